//! What is done until a sandbox is ready, as a part of the trace of the tool call that it was made for.

use std::sync::Arc;

use kube::ResourceExt as _;
use kube::runtime::controller::Action;
use longhand_crds::{Sandbox, annotations};
use longhand_process::trace::only_in;
use longhand_protocol::trace::TraceParent;
use tracing::{Instrument as _, info_span};

use super::Sandboxes;
use crate::error::Error;

/// The same as [`super::reconcile`], with a span.
pub(super) async fn reconcile(sandbox: Arc<Sandbox>, sandboxes: Arc<Sandboxes>) -> Result<Action, Error> {
    let span = only_in(made_for(&sandbox), || {
        info_span!("bring about sandbox", namespace = sandbox.namespace(), sandbox = sandbox.name_any())
    });
    super::reconcile(sandbox, sandboxes).instrument(span).await
}

/// The tool call that waits for the sandbox, if it is traced.
fn made_for(sandbox: &Sandbox) -> Option<TraceParent> {
    // Later pods are made for other calls, or for none.
    let is_past = sandbox.status.as_ref().is_some_and(|status| status.ready_at.is_some() || status.incarnation > 0);
    if is_past {
        return None;
    }
    sandbox.annotations().get(annotations::TRACEPARENT)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use longhand_crds::Sandbox;
    use serde_json::{Value, json};

    use super::made_for;

    fn of(status: &Value, traceparent: &str) -> Option<String> {
        let sandbox: Sandbox = serde_json::from_value(json!({
            "metadata": {"name": "s", "annotations": {"longhand.dev/traceparent": traceparent}},
            "spec": {"templateRef": {"name": "t"}},
            "status": status,
        }))
        .unwrap();
        made_for(&sandbox).map(|parent| parent.to_string())
    }

    #[test]
    fn only_what_leads_to_the_first_call_belongs_to_it() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(of(&Value::Null, parent).as_deref(), Some(parent));
        assert_eq!(of(&json!({"readyAt": "2026-01-01T00:00:00Z"}), parent), None);
        assert_eq!(of(&json!({"incarnation": 1}), parent), None);
        assert_eq!(of(&Value::Null, "somebody wrote this"), None);
    }
}
