//! Vaults, and the Secrets that are written for them. The service may create Secrets and do nothing else with them.

use std::collections::BTreeMap;

use async_trait::async_trait;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams, Preconditions};
use longhand_crds::{Vault, labels};
use longhand_protocol::secret::SecretValue;
use zeroize::Zeroize as _;

use super::ResourceError;
use super::cluster::{Cluster, call};
use super::named::Named;

/// A Secret that is about to be made. It goes when its owner goes.
pub struct NewSecret {
    /// Its name.
    pub name: String,
    /// Who owns it.
    pub owner: OwnerReference,
    /// The values, by key.
    pub values: Vec<(&'static str, SecretValue)>,
}

/// What the service asks of the Kubernetes API for vaults.
#[async_trait]
pub trait Vaults: Named<Vault> {
    /// Makes a vault.
    async fn create_vault(&self, namespace: &str, vault: Vault) -> Result<Vault, ResourceError>;

    /// Puts a changed vault in the place of the one that was read; refused if that one has changed since.
    async fn replace_vault(&self, vault: Vault) -> Result<Vault, ResourceError>;

    /// Removes a vault, if it is still the one with this UID.
    async fn delete_vault(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ResourceError>;

    /// Makes a Secret.
    async fn create_secret(&self, namespace: &str, secret: NewSecret) -> Result<(), ResourceError>;

    /// Whether a Secret would be made: nothing is.
    async fn try_secret(&self, namespace: &str, owner: OwnerReference) -> Result<(), ResourceError>;
}

/// Said of a namespace without a RoleBinding for this.
const NOT_LET: &str = "the namespace does not let this service make Secrets: bind the ClusterRole <release>-session-secrets in it to \
    the service's account, or name it in the chart's session.secretNamespaces";

/// Whether this is RBAC's refusal, and not that of a quota or a policy.
fn may_not_create(status: &kube::core::Status) -> bool {
    status.is_forbidden() && status.message.contains("cannot create resource \"secrets\"")
}

impl Cluster {
    fn vaults_in(&self, namespace: &str) -> Api<Vault> {
        Api::namespaced(self.client().clone(), namespace)
    }

    async fn make(&self, what: &str, namespace: &str, secret: &Secret, dry_run: bool) -> Result<(), ResourceError> {
        let api = Api::<Secret>::namespaced(self.client().clone(), namespace);
        let params = PostParams { dry_run, ..PostParams::default() };
        let create = async {
            match api.create(&params, secret).await {
                Err(kube::Error::Api(status)) if may_not_create(&status) => Ok(false),
                created => created.map(wipe).map(|()| true),
            }
        };
        let made = call(what, create).await?;
        let refused = || ResourceError::Refused { what: what.to_owned(), reason: NOT_LET.to_owned() };
        if made { Ok(()) } else { Err(refused()) }
    }
}

#[async_trait]
impl Vaults for Cluster {
    async fn create_vault(&self, namespace: &str, vault: Vault) -> Result<Vault, ResourceError> {
        let what = format!("a new Vault in {namespace}");
        call(&what, self.vaults_in(namespace).create(&PostParams::default(), &vault)).await
    }

    async fn replace_vault(&self, vault: Vault) -> Result<Vault, ResourceError> {
        let (namespace, name) =
            (vault.metadata.namespace.clone().unwrap_or_default(), vault.metadata.name.clone().unwrap_or_default());
        let what = format!("Vault {namespace}/{name}");
        call(&what, self.vaults_in(&namespace).replace(&name, &PostParams::default(), &vault)).await
    }

    async fn delete_vault(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ResourceError> {
        let what = format!("Vault {namespace}/{name}");
        let preconditions = Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let api = self.vaults_in(namespace);
        let delete = async {
            match api.delete(name, &params).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                other => other.map(|_| ()),
            }
        };
        call(&what, delete).await
    }

    async fn create_secret(&self, namespace: &str, secret: NewSecret) -> Result<(), ResourceError> {
        let what = format!("Secret {namespace}/{}", secret.name);
        let mut object = secret_object(secret);
        let created = self.make(&what, namespace, &object, false).await;
        wipe_data(&mut object);
        created
    }

    async fn try_secret(&self, namespace: &str, owner: OwnerReference) -> Result<(), ResourceError> {
        let what = format!("a new Secret in {namespace}");
        let name = format!("longhand-{:016x}", rand::random::<u64>());
        self.make(&what, namespace, &secret_object(NewSecret { name, owner, values: Vec::new() }), true).await
    }
}

fn secret_object(secret: NewSecret) -> Secret {
    let data = secret.values.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.expose().to_vec())));
    Secret {
        metadata: ObjectMeta {
            name: Some(secret.name),
            labels: Some(BTreeMap::from([(labels::MANAGED_BY.to_owned(), labels::LONGHAND.to_owned())])),
            owner_references: Some(vec![secret.owner]),
            ..ObjectMeta::default()
        },
        // What was written is never changed: a rotation makes a new Secret.
        immutable: Some(true),
        data: Some(data.collect()),
        ..Secret::default()
    }
}

/// The API server's answer repeats the values.
fn wipe(mut secret: Secret) {
    wipe_data(&mut secret);
}

fn wipe_data(secret: &mut Secret) {
    secret.data.iter_mut().flat_map(BTreeMap::values_mut).for_each(|value| value.0.zeroize());
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use longhand_protocol::secret::SecretValue;

    use super::{NewSecret, secret_object, wipe_data};

    #[test]
    fn a_secret_belongs_to_its_owner_and_is_wiped_after_use() {
        let owner = OwnerReference { name: "models".to_owned(), uid: "u1".to_owned(), ..OwnerReference::default() };
        let value = SecretValue::from("sk-1");
        let mut secret = secret_object(NewSecret { name: "s".to_owned(), owner, values: vec![("token", value)] });
        assert_eq!(secret.metadata.owner_references.as_ref().unwrap()[0].uid, "u1");
        assert_eq!(secret.data.as_ref().unwrap()["token"].0, b"sk-1");
        wipe_data(&mut secret);
        assert!(secret.data.unwrap()["token"].0.is_empty());
    }
}
