//! What bounds a sandbox: its template's word, or the defaults if the template is gone.

use std::time::Duration;

use longhand_crds::sandbox_template::{
    BackgroundProcesses, DEFAULT_IDLE_SECONDS, DEFAULT_LIFETIME_SECONDS, DEFAULT_PROVISIONING_SECONDS,
    DEFAULT_RETENTION_SECONDS, DEFAULT_SUSPENDED_SECONDS, OnFailure, Persistence,
};
use longhand_crds::{Sandbox, SandboxTemplate};

/// What bounds a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// How long it may take to be ready.
    pub(super) provisioning: Duration,
    /// How long it may run without a call; only sandboxes of sessions are reclaimed, as only they are woken by a call.
    pub(super) idle: Option<Duration>,
    /// Whether it is not idle while a process runs in its background.
    pub(super) background_counts: bool,
    /// How long it may be suspended; free-standing ones for as long as they live.
    pub(super) suspended: Option<Duration>,
    /// How long it may be.
    pub(super) lifetime: Duration,
    /// How long it is kept when it has ended.
    pub(super) retention: Duration,
    /// What becomes of it when its pod is lost.
    pub(super) on_failure: OnFailure,
    /// Whether its workspace outlives its pods.
    pub(super) persistent: bool,
}

impl Policy {
    /// What bounds `sandbox`.
    pub(super) fn of(sandbox: &Sandbox, template: Option<&SandboxTemplate>) -> Self {
        let spec = template.map(|template| &template.spec);
        let of_session = sandbox.spec.session_ref.is_some();
        Self {
            provisioning: seconds(spec.map_or(DEFAULT_PROVISIONING_SECONDS, |spec| spec.provisioning_seconds)),
            idle: of_session.then(|| seconds(spec.map_or(DEFAULT_IDLE_SECONDS, |spec| spec.idle_seconds).max(1))),
            background_counts: spec.is_some_and(|spec| spec.background_processes == BackgroundProcesses::KeepAwake),
            suspended: of_session
                .then(|| seconds(spec.map_or(DEFAULT_SUSPENDED_SECONDS, |spec| spec.suspended_seconds))),
            lifetime: seconds(spec.map_or(DEFAULT_LIFETIME_SECONDS, |spec| spec.lifetime_seconds)),
            retention: seconds(spec.map_or(DEFAULT_RETENTION_SECONDS, |spec| spec.retention_seconds)),
            on_failure: spec.map(|spec| spec.on_failure).unwrap_or_default(),
            persistent: sandbox.spec.workspace_from.as_ref().is_some_and(|from| from.claim.is_some())
                || spec.is_some_and(|spec| spec.workspace.persistence == Persistence::Persistent),
        }
    }
}

fn seconds(seconds: i32) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
