//! `longhand exec`: a command or a shell in a sandbox.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use longhand_protocol::client::sandboxes::Terminal;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::transfer::standard;
use crate::args::Target;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::sandbox::place::Place;
use crate::sandbox::terminal::{TerminalError, converse, quoted};

/// What is run, and how it is connected.
pub(super) struct Exec {
    pub(super) place: Place,
    pub(super) standalone: bool,
    pub(super) stdin: bool,
    pub(super) tty: bool,
    pub(super) command: Vec<String>,
}

pub(super) async fn run(cluster: &Cluster, target: &Target, exec: Exec) -> Result<ExitCode> {
    let Exec { place, standalone, stdin, tty, command } = exec;
    let has_terminal = io::stdin().is_terminal();
    if tty && !has_terminal {
        eprintln!("standard input is no terminal: the command gets none either");
    }
    let tty = tty && has_terminal;
    let (sandbox, service, client) = place.reach(cluster, target, standalone).await?;
    let command = (!command.is_empty()).then(|| quoted(&command));
    let (key, term) = (generate_key(), std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned()));
    let terminal = Terminal { command: command.as_deref(), tty, size: size(), term: &term, key: &key };
    let open = client.open_terminal(&sandbox, &terminal).await.map_err(|error| service.explain(error))?;
    if open.accept != derive_accept_key(key.as_bytes()) {
        return Err(TerminalError::Closed("the answer is not one to this WebSocket".to_owned()).into());
    }
    let (told, sizes) = mpsc::channel(1);
    let raw = tty.then(Raw::begin).transpose().map_err(Error::Terminal)?;
    let mut output = standard(io::stdout()).map_err(Error::Output)?;
    let mut errors = standard(io::stderr()).map_err(Error::Output)?;
    let input = stdin.then(|| standard(io::stdin())).transpose().map_err(Error::Terminal)?;
    let code = tokio::select! {
        code = converse(open.stream, input, sizes, &mut output, &mut errors) => code,
        never = watch_size(told, tty) => match never {},
    };
    drop(raw);
    Ok(ExitCode::from(code?))
}

/// Tells of every new size of the terminal.
async fn watch_size(told: mpsc::Sender<(u16, u16)>, tty: bool) -> std::convert::Infallible {
    if tty && let Ok(mut changes) = signal(SignalKind::window_change()) {
        while changes.recv().await.is_some() {
            if told.send(size()).await.is_err() {
                break;
            }
        }
    }
    std::future::pending().await
}

/// Columns and rows of this terminal.
fn size() -> (u16, u16) {
    match tcgetwinsize(io::stdin()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => (80, 24),
    }
}

/// A terminal that hands every key on, and is as it was before when this is dropped.
struct Raw(Termios);

impl Raw {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nobody to tell, and nothing else to do.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
