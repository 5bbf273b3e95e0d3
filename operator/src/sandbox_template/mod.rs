//! `SandboxTemplate`: accepted if a pod can be made from it.

use std::sync::Arc;

use jiff::Timestamp;
use kube::Api;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use longhand_crds::{SandboxTemplate, SandboxTemplateStatus};
use tokio_util::sync::CancellationToken;

use crate::conditions::{Observation, READY, merge};
use crate::context::{Context, Guarded};
use crate::error::Error;
use crate::{drive, status};

/// Reconciles every `SandboxTemplate` until `token` is cancelled.
pub async fn run(context: Arc<Context>, token: CancellationToken) {
    let api = Api::all(context.client.clone());
    let (store, templates) = drive::watch::<Guarded<SandboxTemplate>>(api, watcher::Config::default());
    drive::run(Controller::for_stream(templates, store), context, token, reconcile).await;
}

async fn reconcile(template: Arc<SandboxTemplate>, context: Arc<Context>) -> Result<Action, Error> {
    let new = plan(&template, Timestamp::now());
    status::write(&context.client, &*template, template.status.as_ref(), &new).await?;
    Ok(Action::await_change())
}

fn plan(template: &SandboxTemplate, now: Timestamp) -> SandboxTemplateStatus {
    let old = template.status.clone().unwrap_or_default();
    let generation = template.metadata.generation;
    let conditions = merge(&old.conditions, &[accepted(template)], generation, now);
    SandboxTemplateStatus { observed_generation: generation, conditions }
}

/// Folders that the pod needs for itself.
const RESERVED: [&str; 5] = ["/tmp", "/proc", "/sys", "/dev", "/etc"];

fn accepted(template: &SandboxTemplate) -> Observation {
    let path = template.spec.workspace.mount_path.trim_end_matches('/');
    let within =
        |reserved: &&str| path.strip_prefix(*reserved).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if let Some(reserved) = RESERVED.iter().find(|reserved| within(reserved)) {
        let message = format!("workspace.mountPath {path} is inside {reserved}, which sandboxes need for themselves");
        return Observation::no(READY, "InvalidMountPath", message);
    }
    Observation::yes(READY, "Accepted", "sandboxes can be made from this template")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rstest::rstest;

    use super::plan;
    use crate::fixtures;

    #[rstest]
    #[case("/workspace", "True", "Accepted")]
    #[case("/tmpfiles", "True", "Accepted")]
    #[case("/tmp", "False", "InvalidMountPath")]
    #[case("/tmp/", "False", "InvalidMountPath")]
    #[case("/proc/self", "False", "InvalidMountPath")]
    fn a_workspace_may_not_cover_the_system(#[case] path: &str, #[case] status: &str, #[case] reason: &str) {
        let mut template = fixtures::template();
        template.spec.workspace.mount_path = path.to_owned();
        let condition = plan(&template, Timestamp::UNIX_EPOCH).conditions.remove(0);
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), (status, reason));
        assert_eq!(condition.observed_generation, Some(1));
    }
}
