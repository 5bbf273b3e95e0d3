//! Memory of a replica of the session service that holds many event streams open. `e2e/streams/run` measures it before, in a control plane
//! on loopback, since a way into a cluster that takes a thousand streams of one client is not at hand everywhere.

use std::path::Path;

use serde::Deserialize;

use super::{Figure, Goal, Report};
use crate::cluster::TestResult;

/// Names the file that `e2e/streams/run` has written.
const FILE_VARIABLE: &str = "STREAMS_FILE";
const GOAL_MIB: f64 = 200.0;
const KIB_PER_MIB: f64 = 1_024.0;

const METHOD: &str = "One replica on loopback, over TLS, with a real kube-apiserver and a real etcd; streams of many sessions and of one are measured in a control plane each. \
    All streams are of one client, ask for `event_deltas[]` and read all the time; nobody limits what a caller may ask. Each session has a harness's \
    token and a connection that its calls come on. In each of ROUNDS rounds it claims the session, sends the previews of a message of 1 KiB, eight of them, and \
    appends the message; the round ends when every stream has had them all. Memory is the resident set of the service's process, with the pages of its file \
    (`VmRSS`): before there is a session, when all streams are open, and the most since its start (`VmHWM`), which has the making \
    of the sessions in it.";

/// What was measured.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Measured {
    streams: usize,
    rounds: usize,
    /// Each stream is of a session of its own.
    each: Kib,
    /// All are of one session.
    shared: Kib,
}

/// Resident sets in KiB.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kib {
    before: f64,
    open: f64,
    peak: f64,
}

/// Reads what was measured.
///
/// # Errors
/// When nothing was.
pub fn run() -> TestResult<Report> {
    let file = std::env::var_os(FILE_VARIABLE).ok_or("set STREAMS_FILE to what e2e/streams/run has written")?;
    let text = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", Path::new(&file).display()))?;
    let measured: Measured = serde_json::from_str(&text)?;
    let method = METHOD.replace("ROUNDS", &measured.rounds.to_string());
    Ok(Report { date: jiff::Timestamp::now().to_string(), method, results: figures(&measured) })
}

fn figures(measured: &Measured) -> Vec<Figure> {
    let Measured { streams, each, shared, .. } = measured;
    let of = |what: &str, kib: &Kib| {
        [
            (format!("{what}: before"), kib.before, Goal::None),
            (format!("{what}: open"), kib.open, Goal::Below(GOAL_MIB)),
            (format!("{what}: peak"), kib.peak, Goal::Below(GOAL_MIB)),
        ]
    };
    let rows = of(&format!("{streams} streams, each of its session"), each);
    let rows = rows.into_iter().chain(of(&format!("{streams} streams of one session"), shared));
    rows.map(|(metric, kib, goal)| Figure::single(&metric, "MiB", kib / KIB_PER_MIB, goal)).collect()
}

#[cfg(test)]
mod tests {
    use super::{Measured, figures};

    #[test]
    fn what_streams_take_is_held_to_the_goal_and_what_the_replica_takes_without_is_not() {
        let text = r#"{"streams": 1000, "rounds": 10, "each": {"before": 10240, "open": 102400, "peak": 204800},
            "shared": {"before": 10240, "open": 51200, "peak": 102400}}"#;
        let figures = figures(&serde_json::from_str::<Measured>(text).unwrap());
        let rows: Vec<_> = figures.iter().map(|figure| (figure.metric.as_str(), figure.ours, figure.met)).collect();
        let expected = [
            ("1000 streams, each of its session: before", 10.0, None),
            ("1000 streams, each of its session: open", 100.0, Some(true)),
            ("1000 streams, each of its session: peak", 200.0, Some(false)),
            ("1000 streams of one session: before", 10.0, None),
            ("1000 streams of one session: open", 50.0, Some(true)),
            ("1000 streams of one session: peak", 100.0, Some(true)),
        ];
        assert_eq!(rows, expected);
    }
}
