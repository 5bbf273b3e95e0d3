//! What must be there before a sandbox pod is made: the fence, and the key that it knows the session service by.

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use kube::api::{Patch, PatchParams};

use super::network_policy;
use crate::calls::call;
use crate::context::Context;
use crate::error::Error;

/// Where the session service publishes the key that sandboxes know it by.
const KEYS: &str = "longhand-session-keys";
const VERIFY_KEY: &str = "sandboxd-verify-key";

/// Puts the fence up in `namespace`.
pub(crate) async fn put_fence(context: &Context, namespace: &str) -> Result<(), Error> {
    let policy = network_policy::build(namespace, &context.namespace);
    let api: Api<NetworkPolicy> = Api::namespaced(context.client.clone(), namespace);
    let params = PatchParams::apply(crate::MANAGER).force();
    let what = || format!("apply NetworkPolicy {namespace}/{}", network_policy::NAME);
    call(what, api.patch(network_policy::NAME, &params, &Patch::Apply(&policy))).await?;
    Ok(())
}

/// The key that sandboxes verify the session service's tokens with.
pub(crate) async fn verify_key(context: &Context) -> Result<String, Error> {
    let namespace = &context.namespace;
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    let map = call(|| format!("get ConfigMap {namespace}/{KEYS}"), api.get_opt(KEYS)).await?;
    let key = map.and_then(|map| map.data).and_then(|mut data| data.remove(VERIFY_KEY));
    key.ok_or_else(|| Error::NoVerifyKey { namespace: namespace.clone(), name: KEYS, key: VERIFY_KEY })
}
