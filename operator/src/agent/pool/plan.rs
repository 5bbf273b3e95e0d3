//! What shall be done about an agent's pool. Pure.

use std::time::Duration;

use jiff::Timestamp;
use longhand_crds::agent::{WarmFailures, WarmPod, WarmState};

use super::{Observed, Seen, WARM_READY};
use crate::conditions::{Observation, word};
use crate::pods::{self, Cause, Pending, Stage, elapsed};

/// More pods than are wanted are kept for so long: the next burst of messages may need them.
const SURPLUS: Duration = Duration::from_secs(60);
/// A pod that is to go serves what it was just offered: within this time the session's status names it.
const RETIRE: Duration = Duration::from_secs(5);
/// So many pods start at the same time.
const STARTING: usize = 8;
/// So many pods an agent has at the most, with those that serve sessions; what does not fit gets pods of its own.
const MOST: usize = 200;
const MAX_BACKOFF: Duration = Duration::from_secs(300);

/// What shall be done, and what is then so.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// Numbers of pods to make.
    pub(crate) make: Vec<i64>,
    /// Pods to delete, by name and UID.
    pub(crate) remove: Vec<(String, String)>,
    /// Pods that were told to end and whose nodes do not say that they have, by name and UID.
    pub(crate) forget: Vec<(String, String)>,
    /// The pods that there are.
    pub(crate) pods: Vec<WarmPod>,
    /// The highest number that a pod has or had.
    pub(crate) generation: i64,
    /// What failed in a row.
    pub(crate) failures: Option<WarmFailures>,
    /// How many are ready and have room.
    pub(crate) ready: usize,
    /// Why pods ended that nobody told to.
    pub(crate) lost: Vec<(String, Cause)>,
    /// How it looks.
    pub(crate) condition: Observation,
    /// When to look again.
    pub(crate) requeue: Option<Duration>,
}

/// A pod that runs or may still do so.
struct Member<'a> {
    seen: &'a Seen,
    state: WarmState,
    since: Timestamp,
}

impl Member<'_> {
    /// Whether it takes another session, now or soon.
    const fn has_room(&self, sessions: usize) -> bool {
        match self.state {
            WarmState::Starting | WarmState::Parked => true,
            WarmState::Taken => self.seen.serving < sessions,
            WarmState::Retiring => false,
        }
    }

    const fn is_idle(&self) -> bool {
        self.seen.serving == 0
    }
}

/// What shall be done.
pub(crate) fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let (forget, requeue) = pods::overdue(observed.pods.iter().map(|seen| &seen.pod), now);
    let mut plan = Plan {
        make: Vec::new(),
        remove: Vec::new(),
        forget,
        pods: Vec::new(),
        generation: observed.pods.iter().map(|seen| seen.number).fold(observed.generation, i64::max),
        failures: observed.failures.clone(),
        ready: 0,
        lost: Vec::new(),
        condition: Observation::yes(WARM_READY, "NotWanted", "spec.warm is 0"),
        requeue,
    };
    bury(observed, &mut plan, now);
    let live = observed.pods.iter().filter(|seen| seen.pod.is_live());
    let mut members: Vec<Member<'_>> = live.map(|seen| member(observed, seen, now)).collect();
    retire(observed, &mut members, &mut plan, now);
    plan.ready = members.iter().filter(|one| one.state != WarmState::Starting && has_room(observed, one)).count();
    if plan.lost.is_empty() && members.iter().any(|one| matches!(one.state, WarmState::Parked | WarmState::Taken)) {
        plan.failures = None;
    }
    refill(observed, &members, &mut plan, now);
    plan.pods = members.iter().map(entry).collect();
    plan
}

fn has_room(observed: &Observed, member: &Member<'_>) -> bool {
    member.has_room(observed.sessions_per_pod)
}

fn entry(member: &Member<'_>) -> WarmPod {
    let (pod, state) = (&member.seen.pod, member.state);
    WarmPod { name: pod.name.clone(), uid: pod.uid.clone(), state, since: member.since.into() }
}

/// Removes pods that have ended. One that was not told to counts as a failure, once, while the status still names it.
fn bury(observed: &Observed, plan: &mut Plan, now: Timestamp) {
    for Seen { pod, .. } in &observed.pods {
        let cause = match &pod.stage {
            Stage::Succeeded => Cause::new("Ended", "it ended although nobody told it to"),
            Stage::Failed(cause, _) => cause.clone(),
            _ => continue,
        };
        plan.remove.push((pod.name.clone(), pod.uid.clone()));
        let listed = observed.listed.iter().find(|listed| listed.uid == pod.uid);
        if listed.is_some_and(|listed| listed.state != WarmState::Retiring) {
            let count = plan.failures.as_ref().map_or(0, |failures| failures.count).saturating_add(1);
            plan.failures = Some(WarmFailures { count, at: now.into() });
            plan.lost.push((pod.name.clone(), cause));
        }
    }
}

fn member<'a>(observed: &Observed, seen: &'a Seen, now: Timestamp) -> Member<'a> {
    let listed = observed.listed.iter().find(|listed| listed.uid == seen.pod.uid);
    // One with a higher number was made by a reconcile that could not write the status.
    let forgotten = listed.is_none() && seen.number <= observed.generation;
    let current = observed.digest.as_ref().is_ok_and(|digest| seen.digest.as_ref() == Some(digest));
    let state = if forgotten || !current || listed.is_some_and(|listed| listed.state == WarmState::Retiring) {
        WarmState::Retiring
    } else if seen.serving > 0 {
        WarmState::Taken
    } else if matches!(seen.pod.stage, Stage::Running { ready_since: Some(_), .. }) {
        WarmState::Parked
    } else {
        WarmState::Starting
    };
    let since = listed.filter(|listed| listed.state == state).map_or(now, |listed| listed.since.0);
    Member { seen, state, since }
}

/// Has those go that are too many, the one that has been idle for longest first, and deletes those that serve nothing more.
fn retire(observed: &Observed, members: &mut [Member<'_>], plan: &mut Plan, now: Timestamp) {
    let room = members.iter().filter(|one| has_room(observed, one)).count();
    let mut surplus = room.saturating_sub(observed.wanted);
    let mut idle: Vec<&mut Member<'_>> =
        members.iter_mut().filter(|one| one.is_idle() && one.state != WarmState::Retiring).collect();
    idle.sort_by_key(|one| one.since);
    for one in idle {
        let left = if observed.wanted == 0 { Duration::ZERO } else { left(SURPLUS, one.since, now) };
        if surplus == 0 {
            break;
        }
        if left.is_zero() {
            (one.state, one.since) = (WarmState::Retiring, now);
            surplus -= 1;
        } else {
            sooner(plan, left);
        }
    }
    for one in members.iter().filter(|one| one.state == WarmState::Retiring && one.is_idle()) {
        let runs = matches!(one.seen.pod.stage, Stage::Running { .. });
        let left = if runs { left(RETIRE, one.since, now) } else { Duration::ZERO };
        if left.is_zero() {
            plan.remove.push((one.seen.pod.name.clone(), one.seen.pod.uid.clone()));
        } else {
            sooner(plan, left);
        }
    }
}

/// Makes what is missing, unless that cannot be, and says how it looks.
fn refill(observed: &Observed, members: &[Member<'_>], plan: &mut Plan, now: Timestamp) {
    let (wanted, ready) = (observed.wanted, plan.ready);
    if wanted == 0 {
        return;
    }
    let no = |reason: &str, message: String| Observation::no(WARM_READY, reason, message);
    if let Err(missing) = &observed.digest {
        plan.condition = no(&missing.reason, missing.message.clone());
        return;
    }
    let room = members.iter().filter(|one| has_room(observed, one)).count();
    let starting = members.iter().filter(|one| one.state == WarmState::Starting);
    let missing = wanted.saturating_sub(room);
    let stuck = starting.clone().find_map(|one| match &one.seen.pod.stage {
        Stage::Pending(Pending::Stuck(cause)) | Stage::Restarting(cause) => Some((&one.seen.pod.name, cause)),
        _ => None,
    });
    let waits = plan.failures.as_ref().map_or(Duration::ZERO, |failures| left(backoff(failures), failures.at.0, now));
    plan.condition = if ready >= wanted {
        Observation::yes(WARM_READY, "Ready", format!("{ready} harness pods are ready for the next session"))
    } else if let Some((name, cause)) = stuck {
        no(&word(&cause.reason), format!("pod {name} cannot start: {}", cause.message))
    } else if missing > 0 && !waits.is_zero() {
        let count = plan.failures.as_ref().map_or(0, |failures| failures.count);
        let last =
            plan.lost.last().map_or_else(String::new, |(name, cause)| format!(", {name} last: {}", cause.message));
        no("BackingOff", format!("{count} pods failed in a row{last}; the next is made later"))
    } else if missing > 0 && members.len() >= MOST {
        no("TooManyPods", format!("{MOST} pods serve sessions of the agent; no more are made"))
    } else {
        no("Starting", format!("{ready} of {wanted} harness pods are ready"))
    };
    // Where one cannot start, others would not either.
    if missing == 0 || stuck.is_some() {
        return;
    }
    if !waits.is_zero() {
        return sooner(plan, waits);
    }
    let most = STARTING.saturating_sub(starting.count()).min(MOST.saturating_sub(members.len()));
    for _ in 0..missing.min(most) {
        plan.generation = plan.generation.saturating_add(1);
        plan.make.push(plan.generation);
    }
}

fn left(of: Duration, since: Timestamp, now: Timestamp) -> Duration {
    of.saturating_sub(elapsed(since, now))
}

fn sooner(plan: &mut Plan, delay: Duration) {
    plan.requeue = Some(plan.requeue.map_or(delay, |before| before.min(delay)));
}

/// How long after the last failure the next pod is made.
fn backoff(failures: &WarmFailures) -> Duration {
    let exponent = u32::try_from(failures.count).unwrap_or(u32::MAX);
    Duration::from_secs(2_u64.saturating_pow(exponent)).min(MAX_BACKOFF)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
