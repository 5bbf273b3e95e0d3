//! The versions of an agent, each a ControllerRevision.

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use longhand_crds::agent_version::{Recorded, Step, revision, step};
use longhand_crds::{Agent, labels};

use crate::calls::call;
use crate::error::Error;

/// Whoever creates a version first wins; so many times in a row another does.
const ATTEMPTS: usize = 4;
const PAGE: u32 = 500;

/// The agent's version, recorded if it was not; `None` if the agent has changed since it was read.
///
/// # Errors
/// [`Error`], after which a later try may succeed.
pub(super) async fn ensure(client: &Client, agent: &Agent) -> Result<Option<u64>, Error> {
    let namespace = agent.namespace().unwrap_or_default();
    let api = Api::<ControllerRevision>::namespaced(client.clone(), &namespace);
    for _ in 0..ATTEMPTS {
        let version = match step(agent, &recorded(&api, agent).await?) {
            Step::Current(current) => return Ok(Some(current.version)),
            Step::Outdated => return Ok(None),
            Step::Record(version) => version,
        };
        let new = revision(agent, version).map_err(Error::Unwritable)?;
        let what = || format!("create ControllerRevision {namespace}/{}", new.name_any());
        match call(what, api.create(&PostParams::default(), &new)).await {
            Ok(_) => return Ok(Some(version)),
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::VersionTaken { namespace, name: agent.name_any() })
}

async fn recorded(api: &Api<ControllerRevision>, agent: &Agent) -> Result<Vec<Recorded>, Error> {
    let uid = agent.uid().unwrap_or_default();
    let mut params = ListParams::default().labels(&format!("{}={uid}", labels::AGENT_UID)).limit(PAGE);
    let mut all = Vec::new();
    loop {
        let what = || format!("list the versions of Agent {}", agent.name_any());
        let page = call(what, api.list_metadata(&params)).await?;
        all.extend(page.items.iter().filter_map(|item| Recorded::of(&item.metadata, &uid)));
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            return Ok(all);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{ensure, revision};
    use crate::error::Error;
    use crate::fixtures;
    use crate::testing::{Call, context};

    const REVISIONS: &str = "/apis/apps/v1/namespaces/team/controllerrevisions";

    fn list(versions: &[u64], generation: i64, system: &str) -> Value {
        let mut agent = fixtures::agent();
        agent.metadata.generation = Some(generation);
        agent.spec.system = Some(system.to_owned());
        let items: Vec<Value> = versions
            .iter()
            .map(|version| {
                let metadata = serde_json::to_value(revision(&agent, *version).unwrap().metadata).unwrap();
                json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata})
            })
            .collect();
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {}, "items": items})
    }

    fn taken() -> Value {
        json!({"kind": "Status", "status": "Failure", "reason": "AlreadyExists", "message": "exists", "code": 409})
    }

    fn made() -> Value {
        json!({"metadata": {"name": "coder-v1"}, "revision": 1})
    }

    async fn ensured(generation: i64, calls: Vec<Call<'static>>) -> (Result<Option<u64>, Error>, Vec<Value>) {
        let (context, server) = context();
        let server = server.expect(calls);
        let mut agent = fixtures::agent();
        agent.metadata.generation = Some(generation);
        agent.spec.system = Some("new".to_owned());
        let version = ensure(&context.client, &agent).await;
        (version, server.nothing_else(context).await)
    }

    #[tokio::test]
    async fn an_edit_is_recorded() {
        let calls = vec![("GET", REVISIONS, 200, list(&[1, 2], 1, "old")), ("POST", REVISIONS, 201, made())];
        let (version, sent) = ensured(2, calls).await;
        assert_eq!(version.unwrap(), Some(3));
        assert_eq!((&sent[1]["metadata"]["name"], &sent[1]["revision"]), (&json!("coder-v3"), &json!(3)));
        assert_eq!(sent[1]["data"]["system"], "new");
        assert_eq!(sent[1]["metadata"]["ownerReferences"][0]["uid"], "3e8f1a2b-coder");
    }

    #[tokio::test]
    async fn what_the_service_recorded_is_not_recorded_again() {
        let (version, _) = ensured(1, vec![("GET", REVISIONS, 200, list(&[1], 1, "new"))]).await;
        assert_eq!(version.unwrap(), Some(1));
        let calls = vec![
            ("GET", REVISIONS, 200, list(&[], 1, "")),
            ("POST", REVISIONS, 409, taken()),
            ("GET", REVISIONS, 200, list(&[1], 1, "new")),
        ];
        let (version, _) = ensured(1, calls).await;
        assert_eq!(version.unwrap(), Some(1));
    }

    #[tokio::test]
    async fn a_stale_agent_is_no_new_version() {
        let (version, _) = ensured(1, vec![("GET", REVISIONS, 200, list(&[2], 2, "newer"))]).await;
        assert_eq!(version.unwrap(), None);
    }

    #[tokio::test]
    async fn a_name_that_another_object_has_is_not_tried_for_ever() {
        let calls = (0..4).flat_map(|_| [("GET", REVISIONS, 200, list(&[], 1, "")), ("POST", REVISIONS, 409, taken())]);
        let (version, _) = ensured(1, calls.collect()).await;
        assert!(matches!(version, Err(Error::VersionTaken { .. })), "{version:?}");
    }
}
