//! The one way in which statuses are written.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::calls::{CallError, call};

/// Writes `status` if it is not `old`. An object that is gone, or was made anew under the same name, is left alone.
///
/// # Errors
/// When the API server refuses, or does not answer.
pub async fn write<K, S>(client: &Client, object: &K, old: Option<&S>, status: &S) -> Result<(), CallError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    S: Serialize + PartialEq + Sync,
{
    if old == Some(status) { Ok(()) } else { put(client, object, None, status).await }
}

/// Writes `status` if the object is what `object` shows. One that is gone, or was made anew under the same name, is left alone.
///
/// # Errors
/// A conflict when the object has changed since; or when the API server refuses, or does not answer.
pub async fn write_as_seen<K, S>(client: &Client, object: &K, status: &S) -> Result<(), CallError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    S: Serialize + Sync,
{
    put(client, object, object.resource_version(), status).await
}

async fn put<K, S>(client: &Client, object: &K, version: Option<String>, status: &S) -> Result<(), CallError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    S: Serialize + Sync,
{
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let mut patch = serde_json::json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": name, "uid": object.uid() },
        "status": status,
    });
    if let Some(version) = version {
        patch["metadata"]["resourceVersion"] = version.into();
    }
    let patch = Patch::Apply(patch);
    let params = PatchParams::apply(crate::MANAGER).force();
    let what = || format!("write the status of {} {namespace}/{name}", K::kind(&()));
    let error = match call(what, api.patch_status(&name, &params, &patch)).await {
        Ok(_) => return Ok(()),
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) if error.is_conflict() => error,
        Err(error) => return Err(error),
    };
    // Another object has the name by now, or writers got in each other's way: then nobody else would write it again.
    let found = call(|| format!("get {} {namespace}/{name}", K::kind(&())), api.get_opt(&name)).await?;
    if found.is_some_and(|found| found.uid() == object.uid()) { Err(error) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use longhand_crds::SandboxStatus;
    use serde_json::{Value, json};

    use crate::fixtures;
    use crate::testing::context;

    const SANDBOX: &str = "/apis/longhand.dev/v1alpha1/namespaces/team/sandboxes";

    fn conflict() -> Value {
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "code": 409, "message": "no" })
    }

    #[tokio::test]
    async fn a_conflict_is_an_error_unless_another_object_has_the_name() {
        for same in [true, false] {
            let (context, server) = context();
            let sandbox = fixtures::sandbox();
            let name = sandbox.metadata.name.clone().unwrap();
            let mut found = sandbox.clone();
            if !same {
                found.metadata.uid = Some("another".into());
            }
            let (path, status) = (format!("{SANDBOX}/{name}"), format!("{SANDBOX}/{name}/status"));
            let expecting = server.expect([
                ("PATCH", status.as_str(), 409, conflict()),
                ("GET", path.as_str(), 200, serde_json::to_value(&found).unwrap()),
            ]);
            let written = super::write(&context.client, &sandbox, None, &SandboxStatus::default()).await;
            assert_eq!(written.is_err(), same);
            expecting.nothing_else(context).await;
        }
    }
}
