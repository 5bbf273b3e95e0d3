//! From the creation of a Sandbox to its condition Ready.

use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::Instant;

use crate::bench::{Figure, Goal, Samples, bare_pod};
use crate::cluster::{TestNamespace, TestResult};
use crate::simulated::Team;

const COLD: usize = 20;
const WARM: usize = 30;
const POOL: usize = 3;
const BURSTS: usize = 5;
const BURST: usize = 10;
const RESUMED: usize = 10;
const DEADLINE: Duration = Duration::from_secs(120);
/// The goals of the issue that asked for them.
const COLD_TO_POD: f64 = 1.05;
const WARM_P50_MS: f64 = 20.0;
const BURST_P95_MS: f64 = 150.0;

pub(super) async fn run(namespace: &TestNamespace) -> TestResult<Vec<Figure>> {
    let team = Team::open(namespace.client.clone(), &namespace.name).await?;
    let cold = cold(namespace, &team).await?;
    let warm = Samples { ours: warm(&team).await?, baseline: Vec::new() };
    let burst = Samples { ours: bursts(&team).await?, baseline: Vec::new() };
    let resumed = resumed(namespace, &team).await?;
    let figure = |metric: &str, samples: &Samples, percent, goal| {
        Figure::percentile(&format!("{metric}, p{percent}"), "ms", samples, percent, goal)
    };
    Ok(vec![
        figure("cold sandbox, beside a bare pod", &cold, 50.0, Goal::Ratio(COLD_TO_POD)),
        figure("cold sandbox, beside a bare pod", &cold, 95.0, Goal::None),
        figure("sandbox from a pool", &warm, 50.0, Goal::Below(WARM_P50_MS)),
        figure("sandbox from a pool", &warm, 95.0, Goal::None),
        figure("each of 10 at once from a pool of 10", &burst, 50.0, Goal::None),
        figure("each of 10 at once from a pool of 10", &burst, 95.0, Goal::Below(BURST_P95_MS)),
        figure("resumed sandbox, beside a bare pod", &resumed, 50.0, Goal::None),
    ])
}

/// Takes turns with bare pods. The first sandbox, which fills caches and puts the fence up, says what they look like.
async fn cold(namespace: &TestNamespace, team: &Team) -> TestResult<Samples> {
    team.template("cold", 0).await?;
    team.timed_claim("shape", "cold").await?;
    let shape = bare_pod::shape(namespace, "shape-").await?;
    team.release("shape").await?;
    team.until_pods(0).await?;
    let mut samples = Samples::default();
    for number in 0..COLD {
        let name = format!("cold-{number}");
        samples.ours.push(team.timed_claim(&name, "cold").await?);
        team.release(&name).await?;
        team.until_pods(0).await?;
        samples.baseline.push(bare_pod::ready_after(namespace, &shape, &format!("cold-bare-{number}")).await?);
        tracing::info!(number, ours = samples.ours[number], bare = samples.baseline[number], "cold sandbox, ms");
    }
    Ok(samples)
}

async fn warm(team: &Team) -> TestResult<Vec<f64>> {
    team.template("warm", POOL).await?;
    let mut samples = Vec::with_capacity(WARM);
    for number in 0..WARM {
        let name = format!("warm-{number}");
        team.pool_is("warm", POOL).await?;
        samples.push(team.timed_claim(&name, "warm").await?);
        team.release(&name).await?;
    }
    team.remove_template("warm").await?;
    team.until_pods(0).await?;
    Ok(samples)
}

async fn bursts(team: &Team) -> TestResult<Vec<f64>> {
    team.template("burst", BURST).await?;
    let mut samples = Vec::with_capacity(BURSTS * BURST);
    for number in 0..BURSTS {
        team.pool_is("burst", BURST).await?;
        let names: Vec<String> = (0..BURST).map(|claim| format!("burst-{number}-{claim}")).collect();
        samples.extend(try_join_all(names.iter().map(|name| team.timed_claim(name, "burst"))).await?);
        try_join_all(names.iter().map(|name| team.release(name))).await?;
    }
    team.remove_template("burst").await?;
    team.until_pods(0).await?;
    Ok(samples)
}

async fn resumed(namespace: &TestNamespace, team: &Team) -> TestResult<Samples> {
    team.persistent_template("kept").await?;
    team.timed_claim("resumed", "kept").await?;
    let mut samples = Samples::default();
    // A bare pod has no claim of its own: it has the workspace of a cold sandbox.
    team.timed_claim("plain", "cold").await?;
    let shape = bare_pod::shape(namespace, "plain-").await?;
    team.release("plain").await?;
    for number in 0..RESUMED {
        team.set_state("resumed", "Suspended").await?;
        let suspended = "it is suspended";
        team.roll.until("resumed", suspended, DEADLINE, |seen| seen?.is_suspended().then_some(())).await?;
        let begun = Instant::now();
        team.set_state("resumed", "Running").await?;
        team.roll.until("resumed", "it takes calls", DEADLINE, |seen| seen?.ready_pod().map(|_| ())).await?;
        samples.ours.push(begun.elapsed().as_secs_f64() * 1_000.0);
        samples.baseline.push(bare_pod::ready_after(namespace, &shape, &format!("resumed-bare-{number}")).await?);
        tracing::info!(number, ours = samples.ours[number], bare = samples.baseline[number], "resumed sandbox, ms");
    }
    team.release("resumed").await?;
    team.until_pods(0).await?;
    Ok(samples)
}
