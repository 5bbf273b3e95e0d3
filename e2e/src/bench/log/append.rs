//! Appends of many brains at once, beside raw puts.

use std::future::Future;
use std::time::{Duration, Instant};

use etcd_client::{Client, KvClient, Txn, TxnOp};
use longhand_session_log::etcd::EtcdStore;
use tokio::task::JoinSet;

use super::server::Server;
use super::{Brain, Figure, Goal, event, millis, thinned};
use crate::bench::Samples;
use crate::cluster::TestResult;

const ROUNDS: usize = 5;
const SIZES: [(usize, &str); 3] = [(200, "200 B"), (1_024, "1 KiB"), (16_384, "16 KiB")];
/// How many sessions, and how many events each of them has in a round; of the largest size, a quarter.
const LOADS: [(usize, usize); 3] = [(1, 200), (16, 120), (256, 40)];
const SMALL: usize = 1_024;
/// As many puts as etcd takes in one transaction.
const BATCH: usize = 128;

/// A load in words and in numbers.
struct Load {
    size: usize,
    name: &'static str,
    sessions: usize,
    each: usize,
}

pub(super) async fn run() -> TestResult<Vec<Figure>> {
    let mut figures = Vec::new();
    // The most telling one first: it is plotted.
    for (sessions, each) in LOADS.into_iter().rev() {
        for (size, name) in SIZES.into_iter().rev() {
            let each = if size > SMALL { each.div_ceil(4) } else { each };
            figures.extend(measure(&Load { size, name, sessions, each }).await?);
        }
    }
    Ok(figures)
}

/// Rates and latencies of one side.
#[derive(Default)]
struct Side {
    rates: Vec<f64>,
    latencies: Vec<f64>,
}

impl Side {
    fn add(&mut self, load: &Load, elapsed: Duration, latencies: Vec<f64>) {
        self.rates.push((load.sessions * load.each) as f64 / elapsed.as_secs_f64());
        self.latencies.extend(latencies);
    }
}

async fn measure(load: &Load) -> TestResult<Vec<Figure>> {
    let server = Server::start().await?;
    let store = server.store().await?;
    let raw = Client::connect([server.endpoint()], None).await?.kv_client();
    let mut brains = claim(&store, load.sessions).await?;
    let (mut ours, mut baseline, mut batched) = (Side::default(), Side::default(), Side::default());
    let most = load.sessions >= BATCH && load.size <= SMALL;
    for round in 0..=ROUNDS {
        let (raw_time, raw_latencies) = put(&raw, load, round).await?;
        let batched_time = if most { Some(put_batched(&raw, load, round).await?) } else { None };
        let (time, latencies, after) = append(&store, brains, load).await?;
        brains = after;
        // The first round fills caches.
        if round > 0 {
            baseline.add(load, raw_time, raw_latencies);
            ours.add(load, time, latencies);
            if let Some(time) = batched_time {
                batched.add(load, time, Vec::new());
            }
        }
    }
    let ceiling = Samples { ours: batched.rates, baseline: baseline.rates.clone() };
    let rates = Samples { ours: ours.rates, baseline: baseline.rates };
    let latencies = thinned(&Samples { ours: ours.latencies, baseline: baseline.latencies });
    let small = load.size <= SMALL;
    let (rate_goal, median_goal) = match load.sessions {
        256 if small => (Goal::AtLeast(8.0), Goal::Ratio(1.0)),
        1 => (Goal::None, Goal::Ratio(1.5)),
        _ => (Goal::None, Goal::None),
    };
    let name = format!("{}, {} session{}", load.name, load.sessions, if load.sessions == 1 { "" } else { "s" });
    let mut figures = vec![
        Figure::percentile(&format!("{name}: append, p50"), "ms", &latencies, 50.0, median_goal),
        Figure::percentile(&format!("{name}: append, p99"), "ms", &latencies, 99.0, Goal::None),
        Figure::percentile(&format!("{name}: rate"), "events/s", &rates, 50.0, rate_goal),
    ];
    if most {
        let metric = format!("{name}: rate of etcd itself, {BATCH} puts a transaction, no guards");
        figures.push(Figure::percentile(&metric, "events/s", &ceiling, 50.0, Goal::None));
    }
    for figure in &figures {
        tracing::info!(figure.metric, figure.ours, ?figure.baseline, ?figure.ratio, "measured");
    }
    Ok(figures)
}

async fn claim(store: &EtcdStore, count: usize) -> TestResult<Vec<Brain>> {
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let store = store.clone();
        tasks.spawn(async move { Brain::claim(&store).await });
    }
    tasks.join_all().await.into_iter().collect()
}

async fn append(store: &EtcdStore, brains: Vec<Brain>, load: &Load) -> TestResult<(Duration, Vec<f64>, Vec<Brain>)> {
    let (text, each) = ("x".repeat(load.size), load.each);
    let work = brains.into_iter().map(|mut brain| {
        let (store, text) = (store.clone(), text.clone());
        async move {
            let mut latencies = Vec::with_capacity(each);
            for _ in 0..each {
                let begun = Instant::now();
                brain.append(&store, vec![event(&text)]).await?;
                latencies.push(millis(begun.elapsed()));
            }
            Ok((latencies, brain))
        }
    });
    let (time, done) = all(work).await?;
    let (latencies, brains): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    Ok((time, latencies.concat(), brains))
}

async fn put(raw: &KvClient, load: &Load, round: usize) -> TestResult<(Duration, Vec<f64>)> {
    let (value, each) = ("x".repeat(load.size), load.each);
    let work = (0..load.sessions).map(|number| {
        let (mut raw, value) = (raw.clone(), value.clone());
        async move {
            let mut latencies = Vec::with_capacity(each);
            for count in 0..each {
                let begun = Instant::now();
                raw.put(format!("/raw/{number:04}/{round}-{count:016x}"), value.as_str(), None).await?;
                latencies.push(millis(begun.elapsed()));
            }
            Ok(latencies)
        }
    });
    let (time, done) = all(work).await?;
    Ok((time, done.concat()))
}

/// The same puts, as many at a time, but [`BATCH`] to a transaction: more than any log can have of which an event is a key
/// and nothing else is checked or written.
async fn put_batched(raw: &KvClient, load: &Load, round: usize) -> TestResult<Duration> {
    let (value, each) = ("x".repeat(load.size), load.each);
    let work = (0..load.sessions / BATCH).map(|number| {
        let (mut raw, value) = (raw.clone(), value.clone());
        async move {
            for count in 0..each {
                let put = |place| {
                    let key = format!("/batched/{number:02}-{place:03}/{round}-{count:016x}");
                    TxnOp::put(key, value.as_str(), None)
                };
                raw.txn(Txn::new().and_then((0..BATCH).map(put).collect::<Vec<_>>())).await?;
            }
            Ok(())
        }
    });
    Ok(all(work).await?.0)
}

/// Runs all of them at once, each as a task.
async fn all<T: Send + 'static>(
    work: impl Iterator<Item = impl Future<Output = TestResult<T>> + Send + 'static>,
) -> TestResult<(Duration, Vec<T>)> {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for one in work {
        tasks.spawn(one);
    }
    let done = tasks.join_all().await;
    Ok((begun.elapsed(), done.into_iter().collect::<TestResult<Vec<T>>>()?))
}
