//! Thousands of sandboxes' lives on the simulated cluster, over a way to the API server on which writes are refused, answers get lost and
//! watches end: at the end everything is as it was before.

mod life;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{StreamExt as _, TryStreamExt as _, stream};

use self::life::live;
use super::{Figure, Goal, Report};
use crate::cluster::{TestResult, eventually};
use crate::simulated::{ControlPlane, Faults, Operator, Team};

const NODES: usize = 100;
const FOLDER: &str = "target/bench/soak";
/// Names another number of lives.
const LIVES_VARIABLE: &str = "SOAK_LIVES";
const LIVES: usize = 2_000;
/// Lives before the baseline: allocators, caches and the namespace's fence are part of it.
const BEFORE: usize = 400;
const AT_ONCE: usize = 48;
const POOL: usize = 24;
/// What the operator may have more than after the first lives.
const GROWTH_MIB: f64 = 8.0;
/// Counts are whole: one is too many.
const NONE: f64 = 0.5;

const METHOD: &str = "2,000 lives, 48 at a time, on the cluster of `fleet`: half are taken from a pool, half are cold; of eight lives one each \
    only is made and deleted, is deleted at once, loses its pod to an eviction, to a deletion, is suspended and resumed, and those again \
    from the other kind. Between the operator and the API server one patch of 25 is refused with a conflict, the answer of one write of \
    50 is lost, and each watch ends after at most 5 s. The baseline is after 400 lives before, with the same pools gone. Keys of etcd are \
    without events, which go after an hour. A figure that is not met fails the run.";

/// Runs it.
///
/// # Errors
/// When a life does not go on within its deadline, a sandbox has the pod of another, or something is left.
pub async fn run() -> TestResult<Report> {
    let mut plane = ControlPlane::start(Path::new(FOLDER), NODES).await?;
    let faults = Faults::start(&plane).await?;
    let mut operator = Operator::start(&plane, Some(&faults)).await?;
    let outcome = soak(&plane, &faults, &mut operator).await;
    let ended = plane.check();
    let (results, ()) = (outcome?, ended?);
    operator.stop().await;
    drop(faults);
    plane.stop().await;
    let missed = results.iter().find(|figure| figure.met == Some(false));
    if let Some(Figure { metric, ours, .. }) = missed {
        return Err(format!("{metric}: {ours}").into());
    }
    Ok(Report { date: jiff::Timestamp::now().to_string(), method: METHOD.to_owned(), results })
}

async fn soak(plane: &ControlPlane, faults: &Faults, operator: &mut Operator) -> TestResult<Vec<Figure>> {
    let lives = std::env::var(LIVES_VARIABLE).map_or(Ok(LIVES), |text| text.parse())?;
    let team = Team::create(plane, "soak").await?;
    wave(&team, operator, 0..BEFORE.min(lives)).await?;
    let (keys, before) = (settled_keys(plane).await?, operator.usage()?);
    wave(&team, operator, BEFORE.min(lives)..BEFORE.min(lives) + lives).await?;
    let left = settled_keys(plane).await? - keys;
    let after = operator.usage()?;
    let shared = team.roll.shared_pods();
    for pod in &shared {
        tracing::error!("{pod}");
    }
    let none = |metric: &str, value: f64| Figure::single(metric, "left", value, Goal::Below(NONE));
    let grown = after.resident_mib - before.resident_mib;
    Ok(vec![
        none("sandboxes", team.roll.len() as f64),
        none("pods of sandboxes", team.pods().await? as f64),
        none("keys of etcd more than before", left as f64),
        Figure::single("pods that two sandboxes had", "pods", shared.len() as f64, Goal::Below(NONE)),
        Figure::single("memory of the operator more than before", "MiB", grown, Goal::Below(GROWTH_MIB)),
        Figure::single("memory of the operator before", "MiB", before.resident_mib, Goal::None),
        Figure::single("faults", "times", faults.injected() as f64, Goal::None),
    ])
}

/// Lives, with the templates that they need; returns when all of them are over and nothing is left of them.
async fn wave(team: &Team, operator: &mut Operator, numbers: std::ops::Range<usize>) -> TestResult {
    let done = Arc::new(AtomicUsize::new(0));
    team.template("warm", POOL).await?;
    team.template("cold", 0).await?;
    let one = async |number| {
        live(team, number).await?;
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(100) {
            tracing::info!(done, "lives");
        }
        TestResult::Ok(())
    };
    stream::iter(numbers.map(one)).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    for template in ["warm", "cold"] {
        team.remove_template(template).await?;
    }
    team.until_pods(0).await?;
    let usage = operator.usage()?;
    tracing::info!(resident = usage.resident_mib, cpu = usage.cpu_seconds, "all lives of a wave are over");
    Ok(())
}

/// How many keys there are when their number does not change any more.
async fn settled_keys(plane: &ControlPlane) -> TestResult<i64> {
    const LOOKS: usize = 50;
    let deadline = std::time::Duration::from_secs(120);
    let (mut last, mut same) = (-1, 0);
    tokio::time::timeout(deadline, async {
        loop {
            let now = eventually("etcd counts", deadline, || async { plane.keys().await.map(Some) }).await?;
            same = if now == last { same + 1 } else { 0 };
            last = now;
            if same == LOOKS {
                return Ok(now);
            }
        }
    })
    .await
    .map_err(|_| "the number of keys goes on changing")?
}
