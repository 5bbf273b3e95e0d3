//! The credential proxy beside no proxy: requests a second, how long one takes, and memory, in each of its three modes. A server of
//! TLS and the clients are in this process, the proxy is one of its own; all on loopback. Needs no cluster.

mod client;
mod process;
mod server;

use std::time::Duration;

use tokio::time::Instant;

use self::client::{Client, Outcome, Way};
use self::process::{Files, Running};
use self::server::Server;
use super::{Figure, Goal, Report, Samples};
use crate::cluster::TestResult;

/// How many MiB a large body has.
const MIB_VARIABLE: &str = "PROXY_BENCH_MIB";
/// How long small bodies are asked for.
const WINDOW: Duration = Duration::from_secs(4);
/// How many large bodies one connection asks for in turn.
const LARGE_IN_TURN: usize = 5;
/// The largest count of connections.
const MANY: usize = 256;
const STARTS: usize = 20;
/// As many samples of a distribution are kept for the report.
const KEPT: usize = 400;
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// What was done, for the report.
const METHOD: &str = "All on one machine, on loopback: a server of TLS 1.3 and its clients (hyper over rustls) in one process, the proxy in \
    another, which has one thread. Each client has one connection that is kept, HTTP/1.1, and sends a GET when the answer to the last \
    one has come whole; direct: the same client and server without the proxy, in the same run, just before. Tunnel: CONNECT to a host \
    without a credential. Intercepted: CONNECT to a host with one, whose placeholder is in a header; TLS ends in the proxy and begins \
    there again, and answers are searched for the value. Base URL: plain HTTP to the proxy, which puts the credential in, and TLS from there. \
    1 KiB: for 4 s; 100 MiB: five in turn, or one on each of the 256 connections. Added: the difference of the \
    medians. The proxy, the server and the clients share the machine's cores, so that what the proxy computes is missing elsewhere. Resident set: \
    the peak of a proxy that has served this mode alone, from its start. Start-up: from the start of the proxy's process to the end of \
    the first handshake with a certificate of its own, which its authority and the host's certificate are made in.";

/// Runs it.
///
/// # Errors
/// When the proxy cannot be started, or an answer is not what was asked for.
pub async fn run() -> TestResult<Report> {
    let large = std::env::var(MIB_VARIABLE).ok().map(|mib| mib.parse::<usize>()).transpose()?.unwrap_or(100);
    let files = Files::new()?;
    let server = Server::start().await?;
    let mut results = Vec::new();
    for way in [Way::Tunnel, Way::Intercepted, Way::BaseUrl] {
        let proxy = Running::start(&server, &files).await?;
        let clients = Client::new(&server, &proxy).await?;
        for (size, name) in [(KIB, "1 KiB".to_owned()), (large * MIB, format!("{large} MiB"))] {
            for connections in [1, MANY] {
                tracing::info!(?way, size, connections, "measures");
                let direct = measure(&clients, Way::Direct, size, connections).await?;
                let ours = measure(&clients, way, size, connections).await?;
                let plural = if connections == 1 { "" } else { "s" };
                let what = format!("{}, {name}, {connections} connection{plural}", way.name());
                results.extend(figures(way, &what, (size, connections), &ours, &direct));
            }
        }
        let peak = proxy.peak_mib()?;
        let what = format!("{}: peak resident set, {MANY} connections", way.name());
        results.push(Figure::single(&what, "MiB", peak, Goal::Below(40.0)));
    }
    results.push(start_up(&server, &files).await?);
    Ok(Report { date: jiff::Timestamp::now().to_string(), method: METHOD.to_owned(), results })
}

/// Large bodies are asked for so often each, small ones for as long as the window is open.
async fn measure(clients: &Client, way: Way, size: usize, connections: usize) -> TestResult<Outcome> {
    match (size < MIB, connections) {
        (true, _) => clients.run(way, size, connections, usize::MAX, WINDOW).await,
        (false, 1) => clients.run(way, size, 1, LARGE_IN_TURN, Duration::MAX).await,
        (false, _) => clients.run(way, size, connections, 1, Duration::MAX).await,
    }
}

/// One connection shows how long a request takes, many how many there can be: each is held to its goal there.
fn figures(way: Way, what: &str, (size, connections): (usize, usize), ours: &Outcome, direct: &Outcome) -> Vec<Figure> {
    let samples = Samples { ours: ours.milliseconds.clone(), baseline: direct.milliseconds.clone() };
    let few = Samples { ours: kept(&samples.ours), baseline: kept(&samples.baseline) };
    let percentile = |percent: f64| {
        let (ours, baseline) =
            (super::percentile(&samples.ours, percent), super::percentile(&samples.baseline, percent));
        Figure::new(&format!("{what}: p{percent}"), "ms", ours, Some(baseline), few.clone(), Goal::None)
    };
    let (middle, last) = (percentile(50.0), percentile(99.0));
    let alone = size < MIB && connections == 1;
    let goal_if = |applies, goal| if way == Way::Intercepted && applies { goal } else { Goal::None };
    let rate = |outcome: &Outcome| outcome.milliseconds.len() as f64 / outcome.seconds;
    let (unit, share) = if size < MIB { ("requests/s", 1.0) } else { ("MiB/s", size as f64 / MIB as f64) };
    let (fast, baseline) = (rate(ours) * share, rate(direct) * share);
    let throughput = Figure::new(
        &format!("{what}: throughput"),
        unit,
        fast,
        Some(baseline),
        Samples::default(),
        goal_if(!alone, Goal::AtLeast(0.6)),
    );
    let mut figures = vec![middle, last, throughput];
    if let (true, [Figure { ours, baseline: Some(direct), .. }, ..]) = (size < MIB, &figures[..]) {
        let added =
            Figure::single(&format!("{what}: added at p50"), "ms", ours - direct, goal_if(alone, Goal::Below(1.0)));
        figures.insert(1, added);
    }
    figures
}

/// Some of many samples, from every part of the run.
fn kept(samples: &[f64]) -> Vec<f64> {
    let step = samples.len().div_ceil(KEPT).max(1);
    samples.iter().step_by(step).copied().collect()
}

async fn start_up(server: &Server, files: &Files) -> TestResult<Figure> {
    let mut milliseconds = Vec::new();
    for _ in 0..STARTS {
        let begun = Instant::now();
        let proxy = Running::start(server, files).await?;
        client::first_handshake(&proxy).await?;
        milliseconds.push(begun.elapsed().as_secs_f64() * 1_000.0);
    }
    let samples = Samples { ours: milliseconds, baseline: Vec::new() };
    Ok(Figure::percentile("interception: start-up, p50", "ms", &samples, 50.0, Goal::Below(20.0)))
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Way, figures, kept};

    #[test]
    fn what_an_interception_adds_is_held_to_its_goals_and_the_rest_is_not() {
        let outcome = |milliseconds: f64| Outcome { milliseconds: vec![milliseconds; 10], seconds: 2.0 * milliseconds };
        let of = |way, size, ours| figures(way, "w", size, &outcome(ours), &outcome(1.0));
        let small = of(Way::Intercepted, (1_024, 1), 1.5);
        let met: Vec<_> = small.iter().map(|figure| (figure.metric.as_str(), figure.met)).collect();
        let expected = [("w: p50", None), ("w: added at p50", Some(true)), ("w: p99", None), ("w: throughput", None)];
        assert_eq!(met, expected);
        assert_eq!(of(Way::Intercepted, (1_024, 1), 2.5)[1].met, Some(false));
        let many = of(Way::Intercepted, (1_024, 256), 1.5);
        assert_eq!((many[1].met, many[3].met), (None, Some(true)));
        assert_eq!(of(Way::Intercepted, (2 << 20, 1), 2.0)[2].met, Some(false));
        for connections in [1, 256] {
            assert!(of(Way::Tunnel, (1_024, connections), 2.5).iter().all(|figure| figure.met.is_none()));
        }
        let large = of(Way::BaseUrl, (2 << 20, 256), 1.0);
        assert_eq!((large.len(), large[2].unit.as_str()), (3, "MiB/s"));
        assert!((large[2].ours - 10.0).abs() < 1e-9, "{large:?}");
    }

    #[test]
    fn few_samples_are_kept_of_many() {
        let many: Vec<f64> = (0..4_001).map(f64::from).collect();
        assert!(kept(&many).len() <= 400 && kept(&many).last() > Some(&3_900.0));
        assert_eq!(kept(&[1.0]), [1.0]);
    }
}
