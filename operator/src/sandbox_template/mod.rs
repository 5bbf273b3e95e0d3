//! `SandboxTemplate`: accepted as it is: what could not work, the API server refuses.

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
    let ready = Observation::yes(READY, "Accepted", "sandboxes can be made from this template");
    SandboxTemplateStatus {
        observed_generation: generation,
        conditions: merge(&old.conditions, &[ready], generation, now),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::plan;
    use crate::fixtures;

    #[test]
    fn a_status_is_written_once() {
        let mut template = fixtures::template();
        let first = plan(&template, Timestamp::from_second(1).unwrap());
        assert_eq!((first.observed_generation, first.conditions[0].reason.as_str()), (Some(1), "Accepted"));
        template.status = Some(first.clone());
        assert_eq!(plan(&template, Timestamp::from_second(2).unwrap()), first);
    }
}
