//! What the operator costs with many sandboxes.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::Instant;

use crate::bench::{Figure, Goal};
use crate::cluster::TestResult;
use crate::simulated::{ControlPlane, Operator, Team};

/// Names other sizes than these, separated by commas.
const SIZES_VARIABLE: &str = "FLEET_SIZES";
const SIZES: [usize; 2] = [1_000, 10_000];
const AT_ONCE: usize = 32;
const REST: Duration = Duration::from_secs(30);
/// So many a second come about on a slow machine.
const SLOWEST: usize = 10;

pub(super) async fn run(plane: &ControlPlane, operator: &mut Operator) -> TestResult<Vec<Figure>> {
    let sizes = match std::env::var(SIZES_VARIABLE) {
        Ok(text) => text.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?,
        Err(_) => SIZES.to_vec(),
    };
    let team = Team::create(plane, "scale").await?;
    team.template("cold", 0).await?;
    let mut results = Vec::new();
    let mut there = 0;
    for size in sizes {
        let (before, begun) = (operator.usage()?, Instant::now());
        let create = async |number: usize| team.claim(&format!("sandbox-{number}"), "cold").await;
        let claims = stream::iter((there..size).map(create)).buffer_unordered(AT_ONCE);
        claims.try_collect::<Vec<()>>().await?;
        let deadline = Duration::from_secs(u64::try_from(60 + size / SLOWEST)?);
        team.roll.until_ready(size, deadline).await?;
        let (made, took) = ((size - there) as f64, begun.elapsed());
        let (after, asks) = (operator.usage()?, plane.fence_asks());
        tracing::info!(size, ?took, resident = after.resident_mib, "sandboxes are ready");
        tokio::time::sleep(REST).await;
        let (rested, asked) = (operator.usage()?, plane.fence_asks() - asks);
        let processor = |seconds: f64, per: f64| seconds * 1_000.0 / per;
        let figure = |metric: &str, unit: &str, value| Figure::single(metric, unit, value, Goal::None);
        let shown = format!("{size} sandboxes");
        results.extend([
            figure(&format!("memory of the operator with {shown}"), "MiB", rested.resident_mib),
            figure(
                &format!("processor time of the operator at rest with {shown}"),
                "ms/s",
                processor(rested.cpu_seconds - after.cpu_seconds, REST.as_secs_f64()),
            ),
            figure(&format!("questions for the fence at rest with {shown}"), "1/s", asked as f64 / REST.as_secs_f64()),
            figure(
                &format!("processor time of the operator for each of up to {shown}"),
                "ms",
                processor(after.cpu_seconds - before.cpu_seconds, made),
            ),
            figure(&format!("cold sandboxes a second, up to {shown}"), "1/s", made / took.as_secs_f64()),
        ]);
        there = size;
    }
    Ok(results)
}
