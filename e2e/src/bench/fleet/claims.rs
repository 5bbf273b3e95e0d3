//! Many claims a second from warm pools.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::writes;
use crate::bench::{Figure, Goal, Samples};
use crate::cluster::TestResult;
use crate::simulated::{ControlPlane, Operator, Team, Usage};

const PER_SECOND: usize = 75;
const SECONDS: usize = 10;
const POOLS: usize = 10;
const POOL: usize = 75;
const DEADLINE: Duration = Duration::from_secs(120);
/// The goals of the issue that asked for them.
const P50_MS: f64 = 100.0;
const P99_MS: f64 = 300.0;
const TAKEN: &str = "longhand_operator_warm_sandboxes_taken_total";

pub(super) async fn run(plane: &ControlPlane, operator: &mut Operator) -> TestResult<Vec<Figure>> {
    let team = Arc::new(Team::create(plane, "claims").await?);
    for pool in 0..POOLS {
        team.template(&format!("pool-{pool}"), POOL).await?;
    }
    let written = writes::settled(plane).await?;
    let before = operator.counter(TAKEN).await?;
    let (used, used_by_operator) = (plane.usage()?, operator.usage()?);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(PER_SECOND)?);
    // A claim that is late counts from when it was due.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut claims = JoinSet::new();
    for number in 0..PER_SECOND * SECONDS {
        let due = ticks.tick().await;
        let team = team.clone();
        claims.spawn(async move {
            team.claim(&format!("claim-{number}"), &format!("pool-{}", number % POOLS)).await?;
            TestResult::<(usize, Instant)>::Ok((number, due))
        });
    }
    let mut samples = Samples::default();
    let all = claims.join_all().await;
    tell(plane, written, &used)?;
    tracing::info!(operator = operator.usage()?.cpu_seconds - used_by_operator.cpu_seconds, "processor time, s");
    for claim in all {
        let (number, due) = claim?;
        let name = format!("claim-{number}");
        let bound = team.roll.until(&name, "it is bound", DEADLINE, |seen| seen?.ready).await?;
        samples.ours.push(bound.duration_since(due).as_secs_f64() * 1_000.0);
    }
    let warm = (operator.counter(TAKEN).await? - before) / samples.ours.len() as f64 * 100.0;
    tracing::info!(warm, "claims that found a pod, %");
    for pool in 0..POOLS {
        team.remove_template(&format!("pool-{pool}")).await?;
    }
    team.release_all().await?;
    team.until_pods(0).await?;
    let figure = |percent, goal| {
        let metric = format!("claim to bound at {PER_SECOND} claims/s for {SECONDS} s, p{percent}");
        Figure::percentile(&metric, "ms", &samples, percent, goal)
    };
    Ok(vec![
        figure(50.0, Goal::Below(P50_MS)),
        figure(95.0, Goal::None),
        figure(99.0, Goal::Below(P99_MS)),
        Figure::single("of them from a pool", "%", warm, Goal::None),
    ])
}

/// What the programs did meanwhile, for whoever looks for what takes the time.
fn tell(plane: &ControlPlane, written: usize, used: &[(&'static str, Usage)]) -> TestResult {
    let kinds = writes::kinds(&plane.writes()?.split_off(written));
    tracing::info!(?kinds, "writes by the last claim");
    for ((name, before), (_, after)) in used.iter().zip(plane.usage()?) {
        tracing::info!(name, seconds = after.cpu_seconds - before.cpu_seconds, "processor time");
    }
    Ok(())
}
