//! What is said of a sandbox.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longhand_crds::annotations;
use longhand_crds::sandbox::{DEADLINE_EXCEEDED, Loss, SandboxStatus};

use super::observe::Observed;
use super::plan::{Plan, View, awaits};
use super::pod::SANDBOXD_PORT;
use super::volume::{self, Volume};
use crate::conditions::{FINISHED, Observation, READY, RESOURCES_READY, SUSPENDED, find, merge};
use crate::error::Error;
use crate::pods::{PodView, Stage};

/// The status of a sandbox whose pod is gone, written before another is made: whoever waits for a call must learn of it.
pub(super) fn lost(observed: &Observed, plan: &Plan, loss: &Loss, now: Timestamp) -> SandboxStatus {
    let ready = Observation::no(READY, &loss.reason, format!("pod {} is lost: {}", loss.pod_uid, loss.message));
    let mut status = base(observed, plan, None);
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
    let mut status = base(observed, plan, pod);
    if plan.volume && error.is_none() {
        status.workspace_claim = Some(volume::claim_name(&observed.sandbox));
    }
    if let Some(loss) = &plan.loss {
        status.last_loss = Some(loss.clone());
    }
    // One that was taken from the pool is ready although the plan did not know it.
    let ready_since = pod.and_then(|pod| match pod.stage {
        Stage::Running { ready_since, .. } => ready_since,
        _ => None,
    });
    // Calls that run in one that is handed over are still joined, and one that receives a workspace is sent it.
    let serves = matches!(plan.view, View::Ready | View::HandingOver(_) | View::Receiving(_)) || plan.make.is_some();
    if let Some(since) = ready_since.filter(|_| serves) {
        status.address = pod.and_then(|pod| pod.ip.as_deref()).map(address);
        // Idleness counts from here: one that waited in a pool has been ready for nobody until now.
        let is_new = observed.sandbox.status.as_ref().and_then(|old| old.pod_uid.as_ref()) != status.pod_uid.as_ref();
        status.ready_at.get_or_insert(Time(if is_new { now } else { since }));
        if awaits(observed).is_none() {
            (status.provisioning_deadline, status.last_miss) = (None, None);
        }
    }
    let mut seen = vec![ready(observed, plan, pod, error)];
    seen.extend(suspended(observed, plan));
    seen.extend(resources(observed));
    if let View::Finished(cause) = &plan.view {
        seen.push(Observation::yes(FINISHED, &cause.reason, &cause.message));
    }
    status.conditions = merge(&status.conditions, &seen, status.observed_generation, now);
    status
}

/// What the session service says of the workspace: nothing, until something could not be put into it.
fn resources(observed: &Observed) -> Option<Observation> {
    let sandbox = &observed.sandbox;
    // Without its template it is not known what it shall hold: what was said stays.
    observed.template.as_ref()?;
    let failed = sandbox.metadata.annotations.as_ref().and_then(|all| all.get(annotations::RESOURCES_FAILED));
    if let Some(why) = failed {
        return Some(Observation::no(RESOURCES_READY, "ResourceFailed", why));
    }
    if let Some(names) = unreachable(observed) {
        let text = format!(
            "{names}: a sandbox without a session has no way out, and is given the files of its template alone"
        );
        return Some(Observation::no(RESOURCES_READY, "Unsupported", text));
    }
    let said =
        find(sandbox.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default(), RESOURCES_READY);
    said.map(|_| Observation::yes(RESOURCES_READY, "Provisioned", "the workspace holds what it shall"))
}

/// What a sandbox without a session cannot be given: what its template names that comes from the network.
fn unreachable(observed: &Observed) -> Option<String> {
    let template = observed.template.as_ref().filter(|_| observed.sandbox.spec.session_ref.is_none())?;
    let remote = template.spec.provision.iter().filter(|resource| resource.file.is_none());
    let names: Vec<&str> = remote.map(|resource| resource.name.as_str()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn base(observed: &Observed, plan: &Plan, pod: Option<&PodView>) -> SandboxStatus {
    let old = observed.sandbox.status.clone().unwrap_or_default();
    let same = pod.is_some_and(|pod| old.pod_uid.as_ref() == Some(&pod.uid));
    SandboxStatus {
        observed_generation: observed.sandbox.metadata.generation,
        pod_name: pod.map(|pod| pod.name.clone()),
        pod_uid: pod.map(|pod| pod.uid.clone()),
        address: None,
        // What was there is missed, if it is wanted again.
        workspace_claim: match &observed.volume {
            Volume::Missing if !matches!(plan.view, View::Finished(_)) => old.workspace_claim,
            volume => volume.name().map(ToOwned::to_owned),
        },
        restarts: plan.restarts,
        incarnation: plan.incarnation,
        provisioning_deadline: plan.deadline.map(Time),
        ready_at: old.ready_at.filter(|_| same),
        last_loss: old.last_loss,
        last_miss: plan.miss.clone(),
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
        View::Provisioning => match pod.map(|pod| &pod.stage) {
            Some(Stage::Running { ready_since: Some(_), .. }) if let Some(from) = awaits(observed) => {
                receiving(name, &from.sandbox)
            }
            Some(Stage::Running { ready_since: Some(_), .. }) => {
                // In the words of the reconcile that comes next, which has nothing to write then.
                Observation::yes(READY, "Running", format!("pod {name} takes calls"))
            }
            _ if resuming(observed) => {
                no("Resuming", format!("pod {name} is starting, with the workspace that was kept"))
            }
            _ => no("Provisioning", format!("pod {name} is starting")),
        },
        View::VolumePending(why) => no("VolumePending", format!("pod {name} waits for its workspace: {why}")),
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
        View::WaitingForPod(ending) => {
            no("Resuming", format!("the next pod is made when {ending} has ended, which still has the workspace"))
        }
        View::WaitingForWorkspace(from) => {
            no("WorkspaceMoving", format!("a pod is made when Sandbox {from} has handed its workspace over"))
        }
        View::Receiving(from) => receiving(name, from),
        View::HandingOver(session) => no(
            "HandingOver",
            format!("it takes no more calls: its workspace goes to AgentSession {session} when nothing runs in it"),
        ),
        View::Suspending => no("Suspending", "the pod was told to end".to_owned()),
        View::Suspended => no("Suspended", "there is no pod, as spec.desiredState says".to_owned()),
        View::Resting { why, .. } => no(DEADLINE_EXCEEDED, why.clone()),
        View::Finished(cause) => no(&cause.reason, cause.message.clone()),
    }
}

fn receiving(pod: &str, from: &str) -> Observation {
    let message = format!("pod {pod} takes calls when it has been given the workspace of Sandbox {from}");
    Observation::no(READY, "WorkspaceMoving", message)
}

/// Whether there was a time without a pod and there is no pod since then that was ready.
fn resuming(observed: &Observed) -> bool {
    let status = observed.sandbox.status.as_ref();
    let suspended = status.and_then(|status| find(&status.conditions, SUSPENDED));
    suspended.is_some_and(|condition| condition.status == "True" || condition.reason == "Resuming")
}

/// The condition `Suspended`, once it has had something to say.
fn suspended(observed: &Observed, plan: &Plan) -> Option<Observation> {
    let status = observed.sandbox.status.as_ref();
    match &plan.view {
        View::Suspending | View::Resting { ending: true, .. } => {
            Some(Observation::no(SUSPENDED, "Suspending", "the pod has not ended yet"))
        }
        View::Suspended | View::Resting { ending: false, .. } => Some(match observed.volume.name() {
            Some(volume) => Observation::yes(
                SUSPENDED,
                "WorkspaceKept",
                format!("there is no pod; the workspace is kept in PersistentVolumeClaim {volume}"),
            ),
            None if observed.sandbox.spec.workspace_from.is_some()
                && (matches!(plan.view, View::Resting { .. }) || status.is_none_or(|was| was.incarnation == 0)) =>
            {
                Observation::yes(
                    SUSPENDED,
                    "WorkspaceMoving",
                    "there is no pod; the workspace is on its way from another sandbox",
                )
            }
            None => Observation::yes(
                SUSPENDED,
                "WorkspaceLost",
                "there is no pod; the workspace went with it, as it is not persistent or was never made",
            ),
        }),
        _ if status.is_none_or(|status| find(&status.conditions, SUSPENDED).is_none()) => None,
        View::HandingOver(_) => None,
        View::Ready => Some(Observation::no(SUSPENDED, "Running", "there is a pod")),
        View::Finished(_) => Some(Observation::no(SUSPENDED, "Finished", "it has ended")),
        _ => Some(Observation::no(SUSPENDED, "Resuming", "a pod is on its way")),
    }
}
