//! How long it takes to take a session up again, with how much history.

use std::time::Instant;

use longhand_session_log::SessionStore as _;
use longhand_session_log::etcd::EtcdStore;
use longhand_session_log::store::Query;
use longhand_session_log::store::Takeover;

use super::server::Server;
use super::{Brain, Figure, Goal, Samples, TTL, claimant, event, millis};
use crate::cluster::TestResult;

const HISTORIES: [(usize, &str); 3] = [(100, "100"), (10_000, "10,000"), (1_000_000, "1,000,000")];
const ROUNDS: usize = 100;
/// As many events as one append takes.
const AT_ONCE: usize = 60;
/// What a brain reads first.
const FIRST_SLICE: usize = 100;
const SIZE: usize = 100;

pub(super) async fn run(server: &Server) -> TestResult<Vec<Figure>> {
    let store = server.store().await?;
    let mut brains = Vec::new();
    for (events, name) in HISTORIES {
        let begun = Instant::now();
        let mut brain = Brain::claim(&store).await?;
        let text = "x".repeat(SIZE);
        while brain.head < u64::try_from(events)? {
            brain.append(&store, vec![event(&text); AT_ONCE].into_iter().map(renamed).collect()).await?;
        }
        tracing::info!(events = name, seconds = begun.elapsed().as_secs(), "a history is made");
        brains.push(brain);
    }
    let mut times = vec![Vec::new(); HISTORIES.len()];
    for _ in 0..ROUNDS {
        for (brain, times) in brains.iter().zip(&mut times) {
            times.push(wake(&store, brain).await?);
        }
    }
    let mut figures = Vec::new();
    let shortest = times[0].clone();
    for ((_, name), ours) in HISTORIES.into_iter().zip(times) {
        let samples = Samples { ours, baseline: shortest.clone() };
        let metric = format!("wake with {name} events");
        let median = Figure::percentile(&format!("{metric}, p50"), "ms", &samples, 50.0, Goal::Ratio(1.5));
        tracing::info!(median.metric, median.ours, ?median.ratio, "measured");
        figures.extend([median, Figure::percentile(&format!("{metric}, p99"), "ms", &samples, 99.0, Goal::None)]);
    }
    Ok(figures)
}

/// Each event has an identifier of its own.
fn renamed(event: longhand_protocol::event::NewEvent) -> longhand_protocol::event::NewEvent {
    longhand_protocol::event::NewEvent::new(event.body)
}

async fn wake(store: &EtcdStore, brain: &Brain) -> TestResult<f64> {
    let begun = Instant::now();
    let (_, woken) = store.claim(&brain.id, &claimant(), Takeover::Always, TTL).await?;
    let slice = store.slice(&brain.id, &Query::last(FIRST_SLICE)).await?;
    let time = millis(begun.elapsed());
    if slice.head < woken.seq || slice.records.len() != FIRST_SLICE {
        return Err(format!("the slice has {} records and ends at {}", slice.records.len(), slice.head).into());
    }
    Ok(time)
}
