//! What is said of a session.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use longhand_crds::agent_session::{AgentSessionStatus, HarnessStatus, UsageStatus};
use longhand_crds::vault::CredentialSpec;
use longhand_protocol::internal::{LimitNotice, LimitOf, Limited, SessionSummary};
use longhand_protocol::wire::SessionStatus;

use super::observe::{Observed, References};
use super::plan::{HARNESS_READY, LogCall, Plan, View, log_call};
use super::proxy_health::{Credentials, Unusable};
use crate::conditions::{Observation, READY, find, merge, word};
use crate::error::Error;
use crate::pods::Stage;

const AGENT_RESOLVED: &str = "AgentResolved";
const TEMPLATES_RESOLVED: &str = "SandboxTemplatesResolved";
const CREDENTIALS_READY: &str = "CredentialsReady";
/// The condition that speaks of limits of the session and its namespace.
pub(super) const WITHIN_LIMITS: &str = "WithinLimits";
/// The session's own limit is reached.
const LIMIT_REACHED: &str = "LimitReached";

/// How a reconcile went.
pub(super) struct Outcome<'a> {
    /// What the session service said, if it was asked and answered.
    pub(super) log: Option<&'a SessionSummary>,
    /// The harness as it is now.
    pub(super) harness: HarnessStatus,
    /// What went wrong.
    pub(super) error: Option<&'a Error>,
}

/// The status after a reconcile.
pub(super) fn status(observed: &Observed, plan: &Plan, outcome: &Outcome<'_>, now: Timestamp) -> AgentSessionStatus {
    let mut status = with_harness(observed, outcome.harness.clone());
    status.observed_generation = observed.session.metadata.generation;
    if let Some(log) = outcome.log {
        status.session_id = Some(log.session_id.to_string());
        status.phase = Some(log.status.as_str().to_owned());
        status.epoch = Some(signed(log.epoch));
        status.last_sequence = Some(signed(log.head));
        status.delivered_inputs = Some(signed(log.delivered_inputs));
        // A session at work may still stop at a limit of an older spec.
        if log_call(observed) == LogCall::Ensure && !log.wake {
            status.delivered_generation = status.observed_generation;
        }
        status.usage = Some(UsageStatus {
            input_tokens: signed(log.usage.input_tokens),
            output_tokens: signed(log.usage.output_tokens),
            cache_read_input_tokens: signed(log.usage.cache_read_input_tokens),
            cache_creation_input_tokens: signed(log.usage.cache_creation_input_tokens),
        });
    }
    let mut seen = vec![agent_resolved(observed), templates_resolved(observed)];
    seen.push(harness_ready(observed, plan, outcome.error));
    seen.extend(credentials_ready(observed, plan));
    seen.extend(outcome.log.map(within_limits));
    let ready = ready(&seen, &status, plan, outcome);
    seen.push(ready);
    status.conditions = merge(&status.conditions, &seen, status.observed_generation, now);
    status
}

/// The status as it was, but for the harness: written before anything else, since only the pod that it names may claim.
pub(super) fn with_harness(observed: &Observed, harness: HarnessStatus) -> AgentSessionStatus {
    let mut status = observed.session.status.clone().unwrap_or_default();
    status.harness = (harness.generation > 0 || harness.warm).then_some(harness);
    status
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn agent_resolved(observed: &Observed) -> Observation {
    match &observed.references {
        Ok(References { agent, .. }) => {
            let message = format!("Agent {} and the credential that it names exist", agent.name_any());
            Observation::yes(AGENT_RESOLVED, "Resolved", message)
        }
        Err(missing) => Observation::no(AGENT_RESOLVED, missing.reason(), missing.to_string()),
    }
}

fn templates_resolved(observed: &Observed) -> Observation {
    if observed.missing_templates.is_empty() {
        return Observation::yes(
            TEMPLATES_RESOLVED,
            "Resolved",
            "every sandbox template that the session names exists",
        );
    }
    let names = observed.missing_templates.join(", ");
    let message = format!("SandboxTemplate {names} does not exist in this namespace");
    Observation::no(TEMPLATES_RESOLVED, "SandboxTemplateNotFound", message)
}

fn credentials_ready(observed: &Observed, plan: &Plan) -> Option<Observation> {
    let started =
        observed.pods.iter().any(|seen| matches!(seen.pod.stage, Stage::Running { .. } | Stage::Restarting(_)));
    if let Credentials::Reported(unusable, _) = &observed.credentials
        && let Some(first) = unusable.first()
    {
        let reason = if first.missing { "SecretNotFound" } else { "SecretUnusable" };
        let message: Vec<String> = unusable.iter().map(|one| describe(observed, one)).collect();
        return Some(Observation::no(CREDENTIALS_READY, reason, message.join("; ")));
    }
    if started || plan.harness.warm {
        return Some(Observation::yes(CREDENTIALS_READY, "Mounted", "the credential proxy has every credential"));
    }
    let known =
        observed.session.status.as_ref().is_some_and(|status| find(&status.conditions, CREDENTIALS_READY).is_some());
    let unknown = || Observation::unknown(CREDENTIALS_READY, "NotChecked", "no harness has started yet");
    (!known).then(unknown)
}

fn describe(observed: &Observed, unusable: &Unusable) -> String {
    let namespace = observed.session.namespace().unwrap_or_default();
    let named = |(_, credential): &(&str, &CredentialSpec)| credential.name == unusable.credential;
    let known: Vec<_> = observed.references.iter().flat_map(References::credentials).filter(named).collect();
    let [(vault, credential)] = known.as_slice() else {
        return format!("credential {}: {}", unusable.credential, unusable.detail);
    };
    let secret = &credential.secret_ref;
    let place = format!(
        "Secret {namespace}/{} key {} (Vault {vault}, credential {})",
        secret.name, secret.key, credential.name
    );
    if unusable.missing { format!("{place} does not exist") } else { format!("{place}: {}", unusable.detail) }
}

fn harness_ready(observed: &Observed, plan: &Plan, error: Option<&Error>) -> Observation {
    let name =
        plan.harness.pod_name.clone().or_else(|| plan.make.as_ref().map(|new| new.name.clone())).unwrap_or_default();
    let no = |reason: &str, message: String| Observation::no(HARNESS_READY, reason, message);
    if let (Some(error), Some(_)) = (error, &plan.make) {
        return no(error.reason(), error.to_string());
    }
    match &plan.view {
        View::NotNeeded => no("NotNeeded", "no work is open".to_owned()),
        View::Blocked => match &observed.references {
            Err(missing) => no(missing.reason(), missing.to_string()),
            Ok(_) => no("Blocked", "something that the harness needs is missing".to_owned()),
        },
        View::Starting => no("Starting", format!("pod {name} is starting")),
        View::Offered => no("Offered", "the session is offered to the agent's pods that are ready".to_owned()),
        View::Stuck(cause) => no(&word(&cause.reason), format!("pod {name} cannot start: {}", cause.message)),
        View::Crashing(cause) => no("Crashing", format!("pod {name}: {}: {}", cause.reason, cause.message)),
        View::NotClaimed => no("NotClaimed", format!("pod {name} runs, but does not claim the session")),
        View::BackingOff(failures) => {
            no("BackingOff", format!("{failures} pods failed in a row; the next is made later"))
        }
        View::Working => Observation::yes(HARNESS_READY, "Working", format!("pod {name} owns the session")),
        View::Parked => Observation::yes(HARNESS_READY, "Parked", format!("pod {name} waits for the next message")),
        // A claim takes a moment: the condition does not flip for it.
        View::Claiming => {
            let was = observed.session.status.as_ref().and_then(|status| find(&status.conditions, HARNESS_READY));
            let message = format!("pod {name} is about to claim the session");
            match was {
                Some(condition) if condition.status == "True" => Observation::yes(HARNESS_READY, "Claiming", message),
                _ => no("Claiming", message),
            }
        }
    }
}

/// As far as the session service says: without its word the condition stays as it was.
fn within_limits(log: &SessionSummary) -> Observation {
    let Some(LimitNotice { of, what, limit, reached }) = log.limit else {
        return Observation::yes(WITHIN_LIMITS, "WithinLimits", "neither the session nor its namespace is nearly full");
    };
    let limit = match (of, what) {
        (LimitOf::Session, what) => format!("{limit} {} of one session", what.as_str()),
        (LimitOf::Namespace, Limited::Sessions) => format!("{limit} sessions of the namespace"),
        (LimitOf::Namespace, what) => format!("{limit} {} of the namespace", what.as_str()),
    };
    let (reason, message) = match (of, reached) {
        (LimitOf::Session, true) => (
            LIMIT_REACHED,
            format!("the limit of {limit} is reached: the session takes nothing new; fork it or start another"),
        ),
        (LimitOf::Session, false) => {
            ("NearLimit", format!("the limit of {limit} comes near: fork the session or start another in time"))
        }
        (LimitOf::Namespace, true) => (
            "NamespaceLimitReached",
            format!("the limit of {limit} is reached: nothing new is taken until sessions are deleted"),
        ),
        (LimitOf::Namespace, false) => {
            ("NamespaceNearLimit", format!("the limit of {limit} comes near: delete sessions that are not needed"))
        }
    };
    Observation::no(WITHIN_LIMITS, reason, message)
}

/// What is to be told of limits, if that has changed.
pub(super) fn limit_news(before: &[Condition], after: &[Condition]) -> Option<String> {
    let now = find(after, WITHIN_LIMITS).filter(|condition| condition.status == "False")?;
    let told = find(before, WITHIN_LIMITS).is_some_and(|before| before.reason == now.reason);
    (!told).then(|| now.message.clone())
}

fn ready(seen: &[Observation], status: &AgentSessionStatus, plan: &Plan, outcome: &Outcome<'_>) -> Observation {
    let unmet = |kind: &str| seen.iter().find(|one| one.kind == kind && one.truth == crate::conditions::Truth::False);
    if let Some(missing) = unmet(AGENT_RESOLVED).or_else(|| unmet(TEMPLATES_RESOLVED)) {
        return missing.as_kind(READY);
    }
    if let Some(error) = outcome.error {
        return Observation::no(READY, error.reason(), error.to_string());
    }
    if status.session_id.is_none() {
        return Observation::no(READY, "LogPending", "the session's log does not exist yet");
    }
    if let Some(missing) = unmet(CREDENTIALS_READY) {
        return missing.as_kind(READY);
    }
    if matches!(plan.view, View::Stuck(_) | View::Crashing(_) | View::NotClaimed | View::BackingOff(_) | View::Blocked)
        && let Some(problem) = unmet(HARNESS_READY)
    {
        return problem.as_kind(READY);
    }
    match status.phase.as_deref() {
        Some(phase) if phase == SessionStatus::Idle.as_str() => {
            let full = seen.iter().find(|one| one.kind == WITHIN_LIMITS && one.reason == LIMIT_REACHED);
            let idle = || Observation::yes(READY, "Idle", "the session has answered everything");
            full.map_or_else(idle, |full| full.as_kind(READY))
        }
        Some(phase) if phase == SessionStatus::Terminated.as_str() => {
            Observation::no(READY, "Terminated", "the session has ended for good")
        }
        _ if plan.view == View::Starting => {
            Observation::yes(READY, "Starting", "a harness is about to take the session up")
        }
        _ => Observation::yes(READY, "Working", "the session is at work"),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
