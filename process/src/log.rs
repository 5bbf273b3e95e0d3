//! The log of a process, on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Logs from `RUST_LOG` on, or from `info`: JSON for machines, lines of text for a terminal.
pub fn to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        log.init();
    } else {
        log.json().flatten_event(true).init();
    }
}
