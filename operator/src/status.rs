//! The one way in which statuses are written.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::calls::{CallError, unless_gone};

/// Writes `status` if it is not `old`. An object that is gone, or was made anew under the same name, is left alone.
///
/// # Errors
/// When the API server refuses, or does not answer.
pub async fn write<K, S>(client: &Client, object: &K, old: Option<&S>, status: &S) -> Result<(), CallError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    S: Serialize + PartialEq + Sync,
{
    if old == Some(status) {
        return Ok(());
    }
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let patch = Patch::Apply(serde_json::json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": name, "uid": object.uid() },
        "status": status,
    }));
    let params = PatchParams::apply(crate::MANAGER).force();
    let what = || format!("write the status of {} {namespace}/{name}", K::kind(&()));
    unless_gone(what, api.patch_status(&name, &params, &patch)).await.map(|_| ())
}
