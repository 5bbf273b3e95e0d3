//! The log of a process, on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry};

/// Says what is logged: levels, also by target, such as `warn,longhand_session=debug`.
const VARIABLE: &str = "RUST_LOG";

/// Logs what `RUST_LOG` names, or from `info` on: JSON for machines, lines of text for a terminal.
pub fn to_stderr() {
    let (lines, problem) = lines();
    tracing_subscriber::registry().with(lines).init();
    warn_of(problem);
}

/// The same, and gives spans to a collector if the environment names one ([`crate::trace`]).
#[cfg(feature = "trace")]
pub fn and_traces(service: &'static str, runtime: &tokio::runtime::Handle) -> crate::trace::Traces {
    use crate::trace::Traces;

    let (lines, problem) = lines();
    let (traces, unusable) = match Traces::from_env(service, runtime) {
        Ok(traces) => (traces, None),
        Err(error) => (Traces::none(), Some(error)),
    };
    tracing_subscriber::registry().with(lines).with(traces.layer()).init();
    warn_of(problem);
    if let Some(error) = unusable {
        tracing::warn!(%error, "nothing is traced");
    }
    traces
}

/// Logs what `RUST_LOG` names, or from `warn` on, as a person at a terminal reads it.
pub fn for_people() {
    let (filter, problem) = filter(LevelFilter::WARN);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time().with_target(false);
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    warn_of(problem);
}

/// The log of a server, and what is wrong with the text that says what is in it.
fn lines() -> (impl Layer<Registry>, Option<ParseError>) {
    let (filter, problem) = filter(LevelFilter::INFO);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = if std::io::stderr().is_terminal() { lines.boxed() } else { lines.json().flatten_event(true).boxed() };
    (lines.with_filter(filter), problem)
}

fn filter(default: LevelFilter) -> (Targets, Option<ParseError>) {
    parse(std::env::var(VARIABLE).ok().as_deref(), default)
}

/// What is logged, and what is wrong with the text that says so.
fn parse(text: Option<&str>, default: LevelFilter) -> (Targets, Option<ParseError>) {
    match text.filter(|text| !text.trim().is_empty()).map(str::parse::<Targets>) {
        Some(Ok(targets)) => (targets, None),
        Some(Err(problem)) => (Targets::new().with_default(default), Some(problem)),
        None => (Targets::new().with_default(default), None),
    }
}

fn warn_of(problem: Option<ParseError>) {
    if let Some(problem) = problem {
        tracing::warn!(%problem, "{VARIABLE} is not understood and has no effect");
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tracing_subscriber::filter::LevelFilter;

    use super::parse;

    #[rstest]
    #[case(None, false, true, false)]
    #[case(Some(""), false, true, false)]
    #[case(Some("debug"), true, true, false)]
    #[case(Some("error"), false, false, false)]
    #[case(Some("error,longhand=debug"), true, false, false)]
    #[case(Some("longhand=loud"), false, true, true)]
    fn what_is_logged_is_named_or_the_default(
        #[case] text: Option<&str>,
        #[case] ours: bool,
        #[case] theirs: bool,
        #[case] is_wrong: bool,
    ) {
        let (targets, problem) = parse(text, LevelFilter::INFO);
        assert_eq!(targets.would_enable("longhand::part", &tracing::Level::DEBUG), ours);
        assert_eq!(targets.would_enable("kube", &tracing::Level::INFO), theirs);
        assert_eq!(problem.is_some(), is_wrong);
    }
}
