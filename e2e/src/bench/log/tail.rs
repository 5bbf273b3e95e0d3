//! How soon an appended event is at those who follow the log.

use std::time::Instant;

use futures::StreamExt as _;
use longhand_session_log::SessionStore as _;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::server::Server;
use super::{Brain, Figure, Goal, Samples, event, millis, thinned};
use crate::cluster::TestResult;

const WATCHERS: [usize; 3] = [1, 100, 1_000];
const APPENDS: usize = 200;
const SIZE: usize = 1_024;

pub(super) async fn run(server: &Server) -> TestResult<Vec<Figure>> {
    let mut figures = Vec::new();
    for watchers in WATCHERS {
        let samples = thinned(&Samples { ours: deliveries(server, watchers).await?, baseline: Vec::new() });
        for percent in [50.0, 99.0] {
            let metric = format!("append to tail, {watchers} watchers: p{percent}");
            let figure = Figure::percentile(&metric, "ms", &samples, percent, Goal::None);
            tracing::info!(figure.metric, figure.ours, "measured");
            figures.push(figure);
        }
    }
    Ok(figures)
}

/// Milliseconds from the call of each append to the record at each watcher.
async fn deliveries(server: &Server, watchers: usize) -> TestResult<Vec<f64>> {
    let store = server.store().await?;
    let mut brain = Brain::claim(&store).await?;
    let (sender, mut received) = mpsc::unbounded_channel();
    let mut tasks = Vec::with_capacity(watchers);
    for _ in 0..watchers {
        let mut tail = store.tail(&brain.id, brain.head).await?;
        let sender = sender.clone();
        tasks.push(AbortOnDropHandle::new(tokio::spawn(async move {
            while let Some(record) = tail.next().await {
                if sender.send(record.map(|_| Instant::now())).is_err() {
                    break;
                }
            }
        })));
    }
    let text = "x".repeat(SIZE);
    let mut times = Vec::with_capacity(watchers * APPENDS);
    for number in 0..=APPENDS {
        let begun = Instant::now();
        brain.append(&store, vec![event(&text)]).await?;
        for _ in 0..watchers {
            let at = received.recv().await.ok_or("the tails have ended")??;
            // The first one opens the tails.
            if number > 0 {
                times.push(millis(at.duration_since(begun)));
            }
        }
    }
    Ok(times)
}
