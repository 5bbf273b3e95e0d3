//! One sandbox's life.

use std::time::Duration;

use crate::cluster::TestResult;
use crate::simulated::{Seen, Team};

/// Provisioning may take as long as 300 s by the template's default; a life with faults in it takes a few.
const DEADLINE: Duration = Duration::from_secs(240);

/// What happens to it between its beginning and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Nothing,
    /// It is deleted before anybody looks.
    AtOnce,
    Evicted,
    PodDeleted,
    Suspended,
}

/// Which turn the life of this number takes, and whether it begins with a pod of a pool.
fn plan(number: usize) -> (Turn, bool) {
    let turn = match number % 8 {
        0 | 1 => Turn::Evicted,
        2 | 3 => Turn::Suspended,
        4 | 5 => Turn::PodDeleted,
        6 => Turn::AtOnce,
        _ => Turn::Nothing,
    };
    // The last two change sides with each round.
    (turn, (number + number / 8).is_multiple_of(2))
}

/// Lives it through.
pub(super) async fn live(team: &Team, number: usize) -> TestResult {
    let (turn, warm) = plan(number);
    let name = format!("life-{number}");
    team.claim(&name, if warm { "warm" } else { "cold" }).await?;
    if turn != Turn::AtOnce {
        let (pod, uid) = ready(team, &name, "").await?;
        match turn {
            Turn::Nothing | Turn::AtOnce => {}
            Turn::Evicted => team.fail_pod(&pod).await?,
            Turn::PodDeleted => team.delete_pod(&pod).await?,
            Turn::Suspended => {
                team.set_state(&name, "Suspended").await?;
                let what = "it is suspended";
                team.roll.until(&name, what, DEADLINE, |seen| seen?.is_suspended().then_some(())).await?;
                team.set_state(&name, "Running").await?;
            }
        }
        if turn != Turn::Nothing {
            ready(team, &name, &uid).await?;
        }
    }
    team.release(&name).await
}

/// The name and UID of the pod with which it takes calls, and which is not the one with the UID `before`.
async fn ready(team: &Team, name: &str, before: &str) -> TestResult<(String, String)> {
    let pod = |seen: &Seen| {
        let uid = seen.ready_pod().filter(|uid| *uid != before)?;
        Some((seen.status.pod_name.clone()?, uid.to_owned()))
    };
    team.roll.until(name, "it takes calls", DEADLINE, |seen| pod(seen?)).await
}

#[cfg(test)]
mod tests {
    use super::{Turn, plan};

    #[test]
    fn each_turn_is_taken_from_a_pool_and_without() {
        for turn in [Turn::Nothing, Turn::AtOnce, Turn::Evicted, Turn::PodDeleted, Turn::Suspended] {
            for warm in [true, false] {
                assert!((0..16).any(|number| plan(number) == (turn, warm)), "{turn:?} {warm}");
            }
        }
        assert_eq!((0..16).filter(|number| plan(*number).1).count(), 8);
    }
}
