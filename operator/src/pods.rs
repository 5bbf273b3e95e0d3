//! Pods as plans see them, and the calls that make and remove them.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};

use crate::calls::{CallError, call, unless_gone};

/// A pod that should have ended by then is on a node that does not answer.
const TERMINATION_SLACK: Duration = Duration::from_secs(30);

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its address, when it has one.
    pub ip: Option<String>,
    /// When it was made.
    pub created: Timestamp,
    /// How far it is.
    pub stage: Stage,
    /// Since when it has not been ready, as far as it says so.
    pub unready_since: Option<Timestamp>,
}

/// How far a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its main container has not run yet.
    Pending(Pending),
    /// Its main container runs.
    Running {
        /// Since when.
        since: Timestamp,
        /// Since when the pod has been ready, if it is.
        ready_since: Option<Timestamp>,
    },
    /// Its main container ended and will be started again.
    Restarting(Cause),
    /// It has done its work.
    Succeeded,
    /// It ended, for this reason, at this time.
    Failed(Cause, Timestamp),
    /// It was told to end.
    Terminating {
        /// Why, if the cluster did it.
        disruption: Option<Cause>,
        /// When it should have ended.
        due: Timestamp,
    },
}

/// Why a pod has not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pending {
    /// Nothing is wrong so far.
    Starting,
    /// The first sidecar runs since this time and does not say that it is ready.
    Sidecar(Timestamp),
    /// It will not start unless somebody does something.
    Stuck(Cause),
}

/// What happened to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// One word in CamelCase.
    pub reason: String,
    /// A sentence for a person.
    pub message: String,
}

impl Cause {
    /// A reason and what to say about it.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

impl PodView {
    /// What a plan needs to know of `pod`, whose main container has this name.
    #[must_use]
    pub fn of(pod: &Pod, main: &str) -> Self {
        Self {
            name: pod.name_any(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            ip: pod.status.as_ref().and_then(|status| status.pod_ip.clone()),
            created: pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            stage: stage(pod, main),
            unready_since: condition(pod, "Ready").filter(|ready| ready.0 == "False").map(|ready| ready.2),
        }
    }

    /// Whether it runs or may still do so.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        matches!(self.stage, Stage::Pending(_) | Stage::Running { .. } | Stage::Restarting(_))
    }
}

/// Whether a pod that should have ended at `due` is on a node that does not answer.
#[must_use]
pub fn is_overdue(due: Timestamp, now: Timestamp) -> bool {
    elapsed(due, now) >= TERMINATION_SLACK
}

/// Pods that should have ended long ago, by name and UID, and when the next one would have to.
pub fn overdue<'a>(
    pods: impl IntoIterator<Item = &'a PodView>,
    now: Timestamp,
) -> (Vec<(String, String)>, Option<Duration>) {
    let (mut all, mut next) = (Vec::new(), None);
    for pod in pods {
        let Stage::Terminating { due, .. } = pod.stage else { continue };
        let left = until_overdue(due, now);
        if left.is_zero() {
            all.push((pod.name.clone(), pod.uid.clone()));
        } else {
            next = Some(next.map_or(left, |next: Duration| next.min(left)));
        }
    }
    (all, next)
}

/// How long it takes until a pod that should have ended at `due` is on a node that does not answer.
#[must_use]
pub fn until_overdue(due: Timestamp, now: Timestamp) -> Duration {
    if is_overdue(due, now) {
        return Duration::ZERO;
    }
    let overdue = due.saturating_add(TERMINATION_SLACK).unwrap_or(Timestamp::MAX);
    elapsed(now, overdue).max(Duration::from_millis(1))
}

/// The time from `start` to `now`; none if the clocks disagree.
#[must_use]
pub fn elapsed(start: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(start)).unwrap_or_default()
}

fn stage(pod: &Pod, main: &str) -> Stage {
    let created = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    if let Some(deleted) = &pod.metadata.deletion_timestamp {
        return Stage::Terminating { disruption: disruption(pod), due: deleted.0 };
    }
    let status = pod.status.clone().unwrap_or_default();
    let container = status.container_statuses.iter().flatten().find(|container| container.name == main);
    let state = container.and_then(|container| container.state.as_ref());
    match status.phase.as_deref() {
        Some("Succeeded") => Stage::Succeeded,
        Some("Failed") => {
            let ended = state.and_then(|state| state.terminated.as_ref()).and_then(|ended| ended.finished_at.as_ref());
            Stage::Failed(failure(pod, container), ended.map_or(created, |time| time.0))
        }
        _ => match (state, container) {
            (Some(ContainerState { running: Some(running), .. }), _) => Stage::Running {
                since: running.started_at.as_ref().map_or(created, |time| time.0),
                ready_since: condition(pod, "Ready").filter(|ready| ready.0 == "True").map(|ready| ready.2),
            },
            // No pod of ours starts a container again that ended well; its sidecar may take a while to follow.
            (Some(ContainerState { terminated: Some(ended), .. }), _) if ended.exit_code == 0 => Stage::Succeeded,
            // The kubelet says that the pod has failed a moment later.
            (Some(ContainerState { terminated: Some(ended), .. }), Some(container)) if is_started_once(pod) => {
                Stage::Failed(crash(container), ended.finished_at.as_ref().map_or(created, |time| time.0))
            }
            (_, Some(container)) if container.restart_count > 0 || is_terminated(container) => {
                Stage::Restarting(crash(container))
            }
            _ => Stage::Pending(pending(pod)),
        },
    }
}

fn is_started_once(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) == Some("Never")
}

fn is_terminated(container: &ContainerStatus) -> bool {
    container.state.as_ref().is_some_and(|state| state.terminated.is_some())
}

/// Status, reason with message, and time of the pod's condition of this type.
fn condition(pod: &Pod, kind: &str) -> Option<(String, Cause, Timestamp)> {
    let condition = pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)?;
    let cause = Cause::new(condition.reason.clone().unwrap_or_default(), condition.message.clone().unwrap_or_default());
    let since = condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    Some((condition.status.clone(), cause, since))
}

/// Why the cluster ended the pod, if it did.
fn disruption(pod: &Pod) -> Option<Cause> {
    let (status, cause, _) = condition(pod, "DisruptionTarget")?;
    let reason = match cause.reason.as_str() {
        "DeletionByTaintManager" | "DeletionByPodGC" => "NodeLost",
        "PreemptionByScheduler" => "Preempted",
        "EvictionByEvictionAPI" | "TerminationByKubelet" => "Evicted",
        _ => return None,
    };
    (status == "True").then(|| Cause::new(reason, cause.message))
}

fn failure(pod: &Pod, container: Option<&ContainerStatus>) -> Cause {
    let status = pod.status.as_ref();
    if let Some(reason) = status.and_then(|status| status.reason.clone()).filter(|reason| !reason.is_empty()) {
        return Cause::new(reason, status.and_then(|status| status.message.clone()).unwrap_or_default());
    }
    disruption(pod)
        .or_else(|| container.map(crash))
        .unwrap_or_else(|| Cause::new("Failed", "the pod failed and says no more about it"))
}

/// How a container ended last.
fn crash(container: &ContainerStatus) -> Cause {
    let ended =
        [&container.state, &container.last_state].into_iter().flatten().find_map(|state| state.terminated.as_ref());
    let Some(ended) = ended else { return Cause::new("Exited", format!("container {} ended", container.name)) };
    let reason = match ended.reason.as_deref() {
        Some("OOMKilled") => "OOMKilled",
        Some("ContainerCannotRun" | "StartError") => "StartError",
        _ => "Exited",
    };
    let mut message = format!("container {} ended with exit code {}", container.name, ended.exit_code);
    if reason == "OOMKilled" {
        message = format!("container {} used more memory than its limit", container.name);
    }
    if container.restart_count > 0 {
        message.push_str(&format!(" ({} restarts)", container.restart_count));
    }
    if let Some(said) = ended.message.as_deref().map(str::trim).filter(|said| !said.is_empty()) {
        message.push_str(": ");
        message.push_str(said);
    }
    Cause::new(reason, message)
}

/// Waiting reasons that pass by themselves.
const HARMLESS: [&str; 2] = ["ContainerCreating", "PodInitializing"];

fn pending(pod: &Pod) -> Pending {
    if let Some((status, cause, _)) = condition(pod, "PodScheduled")
        && status == "False"
    {
        return Pending::Stuck(cause);
    }
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let stuck = containers.clone().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().filter(|reason| !HARMLESS.contains(reason))?;
        if container.restart_count > 0 {
            let crash = crash(container);
            return Some(Cause::new(reason, crash.message));
        }
        let said = waiting.message.clone().unwrap_or_default();
        Some(Cause::new(reason, format!("container {} with image {}: {said}", container.name, container.image)))
    });
    if let Some(cause) = stuck {
        return Pending::Stuck(cause);
    }
    let sidecar = status.init_container_statuses.iter().flatten().find(|container| container.started != Some(true));
    let running = sidecar.and_then(|sidecar| sidecar.state.as_ref()).and_then(|state| state.running.as_ref());
    match running.and_then(|running| running.started_at.as_ref()) {
        Some(since) => Pending::Sidecar(since.0),
        None => Pending::Starting,
    }
}

/// A pod that was to be made.
pub enum Made {
    /// It was made, or a reconcile before this one made it.
    Ours(Box<Pod>),
    /// Something else has its name.
    Foreign,
}

/// Makes `pod`; one of the same name is ours only if `owner` controls it.
///
/// # Errors
/// When the API server refuses, or does not answer.
pub async fn create(client: &Client, namespace: &str, pod: &Pod, owner: &str) -> Result<Made, CallError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let name = pod.name_any();
    let params = PostParams { field_manager: Some(crate::MANAGER.to_owned()), ..PostParams::default() };
    match call(|| format!("create pod {namespace}/{name}"), api.create(&params, pod)).await {
        Ok(pod) => Ok(Made::Ours(Box::new(pod))),
        Err(error) if error.is_already_exists() => {
            match call(|| format!("get pod {namespace}/{name}"), api.get(&name)).await {
                Ok(pod) if is_controlled_by(&pod, owner) => Ok(Made::Ours(Box::new(pod))),
                Ok(_) => Ok(Made::Foreign),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// The pod as the API server has it now, if `owner` controls it.
///
/// # Errors
/// When the API server refuses, or does not answer.
pub async fn get(client: &Client, namespace: &str, name: &str, owner: &str) -> Result<Option<Pod>, CallError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod = call(|| format!("get pod {namespace}/{name}"), api.get_opt(name)).await?;
    Ok(pod.filter(|pod| is_controlled_by(pod, owner)))
}

/// Deletes the pod, if it is still the one with this UID.
///
/// # Errors
/// When the API server refuses, or does not answer.
pub async fn delete(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<(), CallError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params =
        DeleteParams::default().preconditions(Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() });
    unless_gone(|| format!("delete pod {namespace}/{name}"), api.delete(name, &params)).await.map(|_| ())
}

/// Deletes a pod that should have ended long ago without waiting for its node to say so. What may still run there is shut out: the
/// log knows a harness by its epoch, and the session service calls a sandbox's present pod only.
///
/// # Errors
/// When the API server refuses, or does not answer.
pub async fn forget(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<(), CallError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let preconditions = Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() };
    let params = DeleteParams::default().grace_period(0).preconditions(preconditions);
    unless_gone(|| format!("delete pod {namespace}/{name} at once"), api.delete(name, &params)).await.map(|_| ())
}

/// Whether the object with this UID controls the pod.
#[must_use]
pub fn is_controlled_by(pod: &Pod, owner: &str) -> bool {
    pod.owner_references().iter().any(|reference| reference.controller == Some(true) && reference.uid == owner)
}

#[cfg(test)]
mod tests;
