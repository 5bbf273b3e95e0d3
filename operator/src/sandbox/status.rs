//! What is said of a sandbox.

use jiff::Timestamp;
use longhand_crds::sandbox::{Loss, SandboxStatus};

use super::observe::Observed;
use super::plan::{Plan, View};
use super::pod::SANDBOXD_PORT;
use crate::conditions::{Observation, READY, merge};
use crate::error::Error;
use crate::pods::PodView;

/// The status of a sandbox whose pod is gone, written before another is made: whoever waits for a call must learn of it.
pub(super) fn lost(observed: &Observed, restarts: i64, loss: &Loss, now: Timestamp) -> SandboxStatus {
    let ready = Observation::no(READY, &loss.reason, format!("pod {} is lost: {}", loss.pod_uid, loss.message));
    let mut status = base(observed, restarts, None);
    status.last_loss = Some(loss.clone());
    status.conditions = merge(&status.conditions, &[ready], status.observed_generation, now);
    status
}

/// The status after a reconcile; `pod` is the one that there is now.
pub(super) fn status(
    observed: &Observed,
    plan: &Plan,
    pod: Option<&PodView>,
    error: Option<&Error>,
    now: Timestamp,
) -> SandboxStatus {
    let mut status = base(observed, plan.restarts, pod);
    if let Some(loss) = &plan.loss {
        status.last_loss = Some(loss.clone());
    }
    if plan.view == View::Ready {
        status.address = pod.and_then(|pod| pod.ip.as_deref()).map(address);
    }
    let ready = ready(observed, plan, pod, error);
    status.conditions = merge(&status.conditions, &[ready], status.observed_generation, now);
    status
}

fn base(observed: &Observed, restarts: i64, pod: Option<&PodView>) -> SandboxStatus {
    let old = observed.sandbox.status.clone().unwrap_or_default();
    SandboxStatus {
        observed_generation: observed.sandbox.metadata.generation,
        pod_name: pod.map(|pod| pod.name.clone()),
        pod_uid: pod.map(|pod| pod.uid.clone()),
        address: None,
        restarts,
        last_loss: old.last_loss,
        conditions: old.conditions,
    }
}

fn address(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]:{SANDBOXD_PORT}") } else { format!("{ip}:{SANDBOXD_PORT}") }
}

fn ready(observed: &Observed, plan: &Plan, pod: Option<&PodView>, error: Option<&Error>) -> Observation {
    let name = pod.map_or("", |pod| pod.name.as_str());
    let no = |reason: &str, message: String| Observation::no(READY, reason, message);
    if let (Some(error), None) = (error, pod) {
        return no(error.reason(), error.to_string());
    }
    match &plan.view {
        View::TemplateMissing => {
            let template = &observed.sandbox.spec.template_ref.name;
            no("TemplateNotFound", format!("SandboxTemplate {template} does not exist in this namespace"))
        }
        View::Provisioning => no("Provisioning", format!("pod {name} is starting")),
        View::Late => {
            no("ProvisioningDeadlineExceeded", format!("pod {name} has been starting for more than two minutes"))
        }
        View::Stuck(cause) => no(&cause.reason, format!("pod {name} cannot start: {}", cause.message)),
        View::Ready => Observation::yes(READY, "Running", format!("pod {name} takes calls")),
        View::NotReady => no("NotReady", format!("pod {name} runs and does not answer its readiness probe")),
        View::Terminating(None) => no("Terminating", format!("pod {name} was told to end")),
        View::Terminating(Some(cause)) => no(&cause.reason, format!("pod {name} was told to end: {}", cause.message)),
        View::BackingOff => {
            let loss = plan.loss.clone().or_else(|| observed.sandbox.status.as_ref()?.last_loss.clone());
            let Loss { reason, message, .. } = loss.unwrap_or_default();
            no("BackingOff", format!("the pod was lost ({reason}: {message}); the next is made in a moment"))
        }
    }
}
