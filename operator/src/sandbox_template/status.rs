//! What is said of a template.

use jiff::Timestamp;
use kube::ResourceExt as _;
use longhand_crds::{SandboxTemplateStatus, labels};

use super::observe::Observed;
use super::plan::{Plan, wanted};
use crate::conditions::{Observation, READY, WARM_READY, find, merge};
use crate::error::Error;
use crate::nodes::USER_NAMESPACES;

/// The status after a reconcile.
pub(super) fn status(observed: &Observed, plan: &Plan, error: Option<&Error>, now: Timestamp) -> SandboxTemplateStatus {
    let template = &observed.template;
    let old = template.status.clone().unwrap_or_default();
    let generation = template.metadata.generation;
    let mut seen = vec![Observation::yes(READY, "Accepted", "sandboxes can be made from this template")];
    if wanted(observed) > 0 || find(&old.conditions, WARM_READY).is_some() || error.is_some() {
        seen.push(warm(observed, plan, error));
    }
    seen.extend(observed.user_namespaces.clone());
    let mut conditions = merge(&old.conditions, &seen, generation, now);
    if observed.user_namespaces.is_none() {
        conditions.retain(|condition| condition.type_ != USER_NAMESPACES);
    }
    SandboxTemplateStatus {
        observed_generation: generation,
        warm_ready: i32::try_from(plan.ready).unwrap_or(i32::MAX),
        selector: template.uid().map(|uid| format!("{}={uid}", labels::POOL_UID)),
        conditions,
    }
}

fn warm(observed: &Observed, plan: &Plan, error: Option<&Error>) -> Observation {
    let (ready, wanted) = (plan.ready, wanted(observed));
    let no = |reason: &str, message: String| Observation::no(WARM_READY, reason, message);
    if let Some(error) = error {
        return no(error.reason(), error.to_string());
    }
    if let Some((pod, cause)) = &plan.stuck {
        return no(&cause.reason, format!("pod {pod} cannot start, and no more are made: {}", cause.message));
    }
    if let Some((pod, cause)) = &plan.failed {
        let message = format!("pod {pod} failed ({}: {}); the next is made in a minute", cause.reason, cause.message);
        return no("BackingOff", message);
    }
    if ready < wanted {
        // Without the number: each that becomes ready would be one more write.
        return no("Starting", format!("not all of {wanted} pods are ready; status.warmReady says how many"));
    }
    Observation::yes(WARM_READY, "AllReady", format!("{wanted} pods wait for sandboxes"))
}
