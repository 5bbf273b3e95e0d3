//! A namespace for one test.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::{DynamicObject, GroupVersionKind, NamespaceResourceScope, Resource};
use kube::{Client, ResourceExt as _};
use longhand_cli::backend::is_ready;
use longhand_crds::labels;
use rand::Rng as _;
use serde::de::DeserializeOwned;

use super::{TestResult, eventually};

/// The RuntimeClass of every SandboxTemplate of the tests, such as `gvisor`; that of the cluster if it is not set.
const RUNTIME_CLASS_VARIABLE: &str = "E2E_RUNTIME_CLASS";

/// A namespace that only one test uses. Pod Security `restricted` is enforced in it.
#[derive(Clone)]
pub struct TestNamespace {
    /// A client with the rights of the kubeconfig.
    pub client: Client,
    /// The namespace's name.
    pub name: String,
}

impl TestNamespace {
    /// Makes a namespace whose name begins with `prefix`.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create(client: Client, prefix: &str) -> TestResult<Self> {
        let name = format!("{prefix}-{:06x}", rand::rng().random_range(0..0x0100_0000));
        let labels = [("pod-security.kubernetes.io/enforce", "restricted"), ("longhand.dev/e2e", "true")];
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
        Ok(Self { client, name })
    }

    /// The objects of a kind in this namespace.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// The pods of a role, such as `labels::SANDBOX`.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn pods(&self, role: &str) -> kube::Result<Vec<Pod>> {
        let selector = ListParams::default().labels(&format!("{}={role}", labels::ROLE));
        Ok(self.api::<Pod>().list(&selector).await?.items)
    }

    /// The name of a pod with the label `app`, once one is ready.
    ///
    /// # Errors
    /// When `deadline` passes, or what the API server says.
    pub async fn ready_pod(&self, app: &str, deadline: Duration) -> TestResult<String> {
        let (pods, labels) = (self.api::<Pod>(), ListParams::default().labels(&format!("app={app}")));
        eventually(&format!("a pod of {app} is ready"), deadline, || async {
            Ok(pods.list(&labels).await?.items.into_iter().find(is_ready).map(|pod| pod.name_any()))
        })
        .await
    }

    /// Applies every document of `yaml` to this namespace by server-side apply, as GitOps does.
    ///
    /// # Errors
    /// What the API server says of the first object that it refuses.
    pub async fn apply(&self, yaml: &str) -> TestResult<Vec<DynamicObject>> {
        let mut applied = Vec::new();
        for document in serde_yaml::Deserializer::from_str(yaml) {
            let object: DynamicObject = serde::Deserialize::deserialize(document)?;
            applied.push(self.apply_object(&object).await?);
        }
        Ok(applied)
    }

    /// Applies one object to this namespace by server-side apply.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn apply_object(&self, object: &DynamicObject) -> kube::Result<DynamicObject> {
        let object = &in_runtime_class(object.clone(), runtime_class());
        let types = object.types.clone().unwrap_or_default();
        let (group, version) = types.api_version.split_once('/').unwrap_or(("", &types.api_version));
        let kind = GroupVersionKind::gvk(group, version, &types.kind);
        let (resource, _) = kube::discovery::pinned_kind(&self.client, &kind).await?;
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.name, &resource);
        api.patch(&object.name_any(), &PatchParams::apply("longhand-e2e").force(), &Patch::Apply(object)).await
    }

    /// Begins to remove the namespace; does not wait until it is gone.
    pub async fn delete(&self) {
        let api: Api<Namespace> = Api::all(self.client.clone());
        if let Err(error) = api.delete(&self.name, &DeleteParams::background()).await {
            tracing::warn!(namespace = self.name, %error, "the namespace stays");
        }
    }
}

/// The RuntimeClass that the templates of the tests have, if it is another than the cluster's own.
#[must_use]
pub fn runtime_class() -> Option<String> {
    std::env::var(RUNTIME_CLASS_VARIABLE).ok().filter(|class| !class.is_empty())
}

/// The object as it is, but for a template that names no RuntimeClass.
fn in_runtime_class(mut object: DynamicObject, class: Option<String>) -> DynamicObject {
    let is_template = object.types.as_ref().is_some_and(|types| types.kind == "SandboxTemplate");
    if let (true, Some(class)) = (is_template, class.filter(|class| !class.is_empty()))
        && let Some(spec) = object.data.get_mut("spec").and_then(serde_json::Value::as_object_mut)
    {
        spec.entry("runtimeClassName").or_insert_with(|| class.into());
    }
    object
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::in_runtime_class;

    #[rstest]
    #[case::a_template("SandboxTemplate", "{image: a}", Some("gvisor"), Some("gvisor"))]
    #[case::one_that_names_one("SandboxTemplate", "{runtimeClassName: own}", Some("gvisor"), Some("own"))]
    #[case::not_asked_for("SandboxTemplate", "{image: a}", None, None)]
    #[case::something_else("Sandbox", "{image: a}", Some("gvisor"), None)]
    fn templates_get_the_runtime_class(
        #[case] kind: &str,
        #[case] spec: &str,
        #[case] class: Option<&str>,
        #[case] expected: Option<&str>,
    ) {
        let yaml = format!("apiVersion: longhand.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: a}}\nspec: {spec}\n");
        let object = in_runtime_class(serde_yaml::from_str(&yaml).unwrap(), class.map(ToOwned::to_owned));
        assert_eq!(object.data["spec"]["runtimeClassName"].as_str(), expected);
    }
}
