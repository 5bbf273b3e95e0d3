//! What sandboxes ask of the API server.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::bench::{Figure, Goal};
use crate::cluster::{TestResult, eventually};
use crate::simulated::{ControlPlane, Seen, Team, User, Write};

const TIMES: usize = 10;
const POOL: usize = 4;
const DEADLINE: Duration = Duration::from_secs(120);
/// The goals of the issue that asked for them: at most 3, and at most 10.
const CLAIM: f64 = 3.001;
const LIFE: f64 = 10.001;

pub(super) async fn run(plane: &ControlPlane) -> TestResult<Vec<Figure>> {
    let team = Team::create(plane, "writes").await?;
    team.template("pool", POOL).await?;
    team.template("cold", 0).await?;
    // The first one puts the fence up.
    for template in ["pool", "cold"] {
        team.claim("first", template).await?;
        ready(&team, "first").await?;
        team.release("first").await?;
    }
    team.until_pods(POOL).await?;
    team.pool_is("pool", POOL).await?;

    let before = settled(plane).await?;
    for number in 0..TIMES {
        let name = format!("warm-{number}");
        team.claim(&name, "pool").await?;
        ready(&team, &name).await?;
        // That the pool is full again is said for a moment before it says that a pod was taken.
        team.until_pods(POOL + number + 1).await?;
        team.pool_is("pool", POOL).await?;
    }
    let warm = since(plane, before).await?;
    let cold = lives(plane, &team, false).await?;
    let suspended = lives(plane, &team, true).await?;
    team.release_all().await?;
    team.remove_template("pool").await?;
    team.until_pods(0).await?;

    let ours = [User::Claimant, User::Operator];
    let all = [User::Claimant, User::Operator, User::Controllers];
    let figure = |metric: &str, counted: f64, goal| Figure::single(metric, "writes", counted, goal);
    Ok(vec![
        figure("writes of a warm claim", count(&warm, &ours, of_claim), Goal::Below(CLAIM)),
        figure("the same with the pool's next pod", count(&warm, &ours, |_| true), Goal::None),
        figure("writes of a whole life", count(&cold, &all, |_| true), Goal::Below(LIFE)),
        figure("the same with a suspension in it", count(&suspended, &all, |_| true), Goal::None),
    ])
}

async fn ready(team: &Team, name: &str) -> TestResult<String> {
    let pod = |seen: &Seen| seen.ready_pod().and(seen.status.pod_name.clone());
    team.roll.until(name, "it takes calls", DEADLINE, |seen| pod(seen?)).await
}

/// Lives one after the other, each from the claim until the pod is gone.
async fn lives(plane: &ControlPlane, team: &Team, suspension: bool) -> TestResult<Vec<Write>> {
    let (pods, before) = (team.pods().await?, settled(plane).await?);
    for number in 0..TIMES {
        let name = format!("life-{suspension}-{number}");
        team.claim(&name, "cold").await?;
        ready(team, &name).await?;
        if suspension {
            team.set_state(&name, "Suspended").await?;
            team.roll.until(&name, "it is suspended", DEADLINE, |seen| seen?.is_suspended().then_some(())).await?;
            team.set_state(&name, "Running").await?;
            ready(team, &name).await?;
        }
        team.release(&name).await?;
        team.until_pods(pods).await?;
    }
    since(plane, before).await
}

/// How many writes there have been when no more come for a while.
pub(super) async fn settled(plane: &ControlPlane) -> TestResult<usize> {
    let mut last = usize::MAX;
    let mut quiet = 0;
    eventually("nothing is written any more", DEADLINE, || {
        let now = plane.writes().map(|writes| writes.len());
        let stays = now.as_ref().is_ok_and(|now| *now == last);
        quiet = if stays { quiet + 1 } else { 0 };
        last = now.as_ref().copied().unwrap_or(last);
        let settled = quiet >= 10;
        async move { now.map(|now| settled.then_some(now)) }
    })
    .await
}

/// What was written since there were `before` writes; without leases.
async fn since(plane: &ControlPlane, before: usize) -> TestResult<Vec<Write>> {
    settled(plane).await?;
    let writes = plane.writes()?.split_off(before);
    let writes: Vec<Write> = writes.into_iter().filter(|write| write.resource != "leases").collect();
    tracing::info!(kinds = ?kinds(&writes), "writes of {TIMES}");
    Ok(writes)
}

/// How many there are of each kind.
pub(super) fn kinds(writes: &[Write]) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for Write { user, verb, resource, .. } in writes {
        *kinds.entry(format!("{user} {verb} {resource}")).or_default() += 1;
    }
    kinds
}

/// What concerns the sandbox and the pod that it takes, and not the pool.
fn of_claim(write: &Write) -> bool {
    let kind = write.resource.split('/').next().unwrap_or_default();
    kind == "sandboxes" || kind == "events" || (kind == "pods" && write.verb == "patch")
}

/// How many of the writes of `users`, each time.
fn count(writes: &[Write], users: &[User], which: impl Fn(&Write) -> bool) -> f64 {
    let found = writes.iter().filter(|write| users.iter().any(|user| user.name() == write.user) && which(write));
    found.count() as f64 / TIMES as f64
}

#[cfg(test)]
mod tests {
    use super::{TIMES, User, Write, count, of_claim};

    fn write(user: User, verb: &str, resource: &str) -> Write {
        Write { user: user.name().into(), verb: verb.into(), resource: resource.into(), name: "a".into(), code: 200 }
    }

    #[test]
    fn a_claim_is_what_concerns_the_sandbox() {
        let all = [
            write(User::Claimant, "create", "sandboxes"),
            write(User::Operator, "patch", "sandboxes/status"),
            write(User::Operator, "patch", "pods"),
            write(User::Operator, "create", "pods"),
            write(User::Operator, "patch", "sandboxtemplates/status"),
            write(User::Kubelets, "patch", "pods/status"),
        ];
        let ours = [User::Claimant, User::Operator];
        let times = TIMES as f64;
        assert!((count(&all, &ours, of_claim) * times - 3.0).abs() < f64::EPSILON);
        assert!((count(&all, &ours, |_| true) * times - 5.0).abs() < f64::EPSILON);
    }
}
