//! The session log on a real etcd of its own, on loopback: how many events a second, how soon watchers have them, how
//! long a wake-up takes with how much history, and what open streams cost in memory. Needs no cluster.

mod append;
mod memory;
mod server;
mod tail;
mod wake;

use std::time::Duration;

use longhand_protocol::SessionId;
use longhand_protocol::event::{EventBody, NewEvent};
use longhand_session_log::SessionStore as _;
use longhand_session_log::etcd::EtcdStore;
use longhand_session_log::store::{Claimant, SessionMeta, Takeover};
use serde_json::json;

use self::server::Server;
use super::{Figure, Goal, Report, Samples};
use crate::cluster::TestResult;

pub use self::memory::{TAILS_OF, hold_tails};

/// Longer than any part takes: the claims of the bench are not renewed.
const TTL: Duration = Duration::from_secs(3_600);
/// As many samples of a distribution are kept for the report.
const KEPT: usize = 400;

/// What was done, for the report.
const METHOD: &str = "One etcd process on loopback, with its own disk syncs, and the store in the process of the benchmark, on the \
    same machine. An append is one event of the brain that has claimed the session (`agent.message` with a text of the size \
    that is named), one event a call, through `SessionStore`, the next one when the last is acknowledged; the store's watch \
    over all logs runs, as in a replica. The baseline is `put` of a value of that size, one put an event, over one client \
    connection, as many tasks at a time as there are sessions, as many events; rounds of both alternate. Beside 256 sessions the same client also puts \
    as many values 128 to a transaction, without guards: what etcd itself has to give to a log that writes one key an event, \
    where ours writes two and compares one. Delivery: from the \
    call of an append to the record at a tail, all tails on one session, one append at a time. Wake: `claim` and the last 100 \
    records, sessions in turn, the baseline is the history of 100 events. Memory: the resident set of a process that holds \
    1,000 tails on 1,000 sessions, after each of them has brought 20 records of 1 KiB; not that of a whole service replica.";

/// Runs it.
///
/// # Errors
/// When etcd cannot be started, or a call to the store fails.
pub async fn run() -> TestResult<Report> {
    let mut results = append::run().await?;
    let server = Server::start().await?;
    results.extend(tail::run(&server).await?);
    results.extend(wake::run(&server).await?);
    results.push(memory::run(&server).await?);
    Ok(Report { date: jiff::Timestamp::now().to_string(), method: METHOD.to_owned(), results })
}

/// A session that the benchmark has claimed.
struct Brain {
    id: SessionId,
    epoch: u64,
    head: u64,
}

impl Brain {
    async fn claim(store: &EtcdStore) -> TestResult<Self> {
        let id = SessionId::generate();
        store.create(meta(&id)?).await?;
        let (epoch, record) = store.claim(&id, &claimant(), Takeover::Always, TTL).await?;
        Ok(Self { id, epoch, head: record.seq })
    }

    async fn append(&mut self, store: &EtcdStore, events: Vec<NewEvent>) -> TestResult {
        self.head = store.append(&self.id, self.epoch, self.head, events).await?.head;
        Ok(())
    }
}

fn claimant() -> Claimant {
    Claimant { pod_uid: "bench".to_owned(), pod_name: "bench".to_owned() }
}

fn meta(id: &SessionId) -> TestResult<SessionMeta> {
    let agent = json!({"id": "agent_bench", "name": "bench", "version": 1, "model": {"id": "bench", "max_tokens": 1, "api_version": "2023-06-01"}});
    Ok(serde_json::from_value(json!({
        "id": id, "namespace": "bench", "name": "bench", "uid": "bench", "agent": agent, "sandboxes": [],
        "harnessIdleSeconds": 0, "deliveredInputs": 0, "createdAt": jiff::Timestamp::now(),
    }))?)
}

fn event(text: &str) -> NewEvent {
    NewEvent::new(EventBody::AgentMessage { content: vec![json!({"type": "text", "text": text})] })
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// Evenly spaced quantiles of many samples, rounded to microseconds.
fn thinned(samples: &Samples) -> Samples {
    let thin = |all: &[f64]| {
        let mut sorted = all.to_vec();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        let kept: Vec<f64> =
            if count <= KEPT { sorted } else { (1..=KEPT).map(|number| sorted[number * count / KEPT - 1]).collect() };
        kept.into_iter().map(|value| (value * 1_000.0).round() / 1_000.0).collect()
    };
    Samples { ours: thin(&samples.ours), baseline: thin(&samples.baseline) }
}

#[cfg(test)]
mod tests {
    use super::{KEPT, Samples, meta, thinned};
    use crate::bench::percentile;

    #[test]
    fn quantiles_stay_when_samples_are_thinned() {
        let ours: Vec<f64> = (0..100_000).rev().map(f64::from).collect();
        let few = thinned(&Samples { ours: ours.clone(), baseline: vec![2.0, 1.0] });
        assert_eq!((few.ours.len(), few.baseline.len()), (KEPT, 2));
        for percent in [50.0, 99.0] {
            assert!((percentile(&ours, percent) - percentile(&few.ours, percent)).abs() <= 100_000.0 / 400.0);
        }
    }

    #[test]
    fn a_session_can_be_made() {
        assert!(meta(&longhand_protocol::SessionId::generate()).is_ok());
    }
}
