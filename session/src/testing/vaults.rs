//! The vaults of a cluster of make-believe, and the Secrets that were made in it.

use std::collections::BTreeMap;

use async_trait::async_trait;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use longhand_crds::{Vault, labels};
use serde_json::json;

use super::cluster::FakeCluster;
use crate::resources::ResourceError;
use crate::resources::named::{Named, PageOf};
use crate::resources::vaults::{NewSecret, Vaults};

type Key = (String, String);
type Change = Box<dyn FnOnce(&mut Vault) + Send>;

/// Vaults and Secrets.
#[derive(Default)]
pub(super) struct Vaulted {
    vaults: BTreeMap<Key, Vault>,
    /// Namespace, name, owner's UID, and the values.
    secrets: Vec<MadeSecret>,
    secrets_refused: bool,
    /// Somebody else changes the vault just before it is replaced.
    overtaken: Vec<Change>,
    made: u32,
}

/// A Secret as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MadeSecret {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) owner_uid: String,
    pub(crate) values: BTreeMap<String, String>,
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

fn conflict(what: &str) -> ResourceError {
    ResourceError::Conflict { what: what.to_owned(), reason: "it was changed".to_owned() }
}

fn not_let() -> ResourceError {
    ResourceError::Refused { what: "the Secret".to_owned(), reason: "the namespace does not let it".to_owned() }
}

impl FakeCluster {
    /// Somebody applies a vault.
    #[expect(clippy::needless_pass_by_value, reason = "the tests read better")]
    pub(crate) fn add_vault(&self, namespace: &str, name: &str, spec: serde_json::Value) {
        let vault = json!({
            "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{name}"), "resourceVersion": "1",
                         "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": spec,
        });
        self.vaulted().vaults.insert(key(namespace, name), serde_json::from_value(vault).unwrap());
    }

    pub(crate) fn vault_as_stored(&self, namespace: &str, name: &str) -> Option<Vault> {
        self.vaulted().vaults.get(&key(namespace, name)).cloned()
    }

    /// The namespaces do not let the service make Secrets any more.
    pub(crate) fn refuse_secrets(&self) {
        self.vaulted().secrets_refused = true;
    }

    /// The next one who replaces a vault finds that it has changed meanwhile.
    pub(crate) fn overtake(&self, change: impl FnOnce(&mut Vault) + Send + 'static) {
        self.vaulted().overtaken.push(Box::new(change));
    }

    pub(crate) fn secrets(&self) -> Vec<MadeSecret> {
        self.vaulted().secrets.clone()
    }
}

#[async_trait]
impl Named<Vault> for FakeCluster {
    async fn named(&self, namespace: &str, name: &str) -> Result<Option<Vault>, ResourceError> {
        Ok(self.vault_as_stored(namespace, name))
    }

    async fn labelled(&self, namespace: &str, id: &str) -> Result<Vec<Vault>, ResourceError> {
        let carries = |vault: &Vault| {
            vault.metadata.labels.as_ref().and_then(|all| all.get(labels::ID)).is_some_and(|label| label == id)
        };
        let vaulted = self.vaulted();
        let found = vaulted.vaults.iter().filter(|((space, _), vault)| space == namespace && carries(vault));
        Ok(found.map(|(_, vault)| vault.clone()).collect())
    }

    /// In pages of two.
    async fn page(&self, namespace: &str, from: Option<String>) -> Result<PageOf<Vault>, ResourceError> {
        let skip: usize = from.map_or(0, |from| from.parse().unwrap());
        let vaulted = self.vaulted();
        let all: Vec<&Vault> =
            vaulted.vaults.iter().filter(|((space, _), _)| space == namespace).map(|(_, vault)| vault).collect();
        let next = (skip + 2 < all.len()).then(|| (skip + 2).to_string());
        Ok((all.into_iter().skip(skip).take(2).cloned().collect(), next))
    }
}

#[async_trait]
impl Vaults for FakeCluster {
    async fn create_vault(&self, namespace: &str, mut vault: Vault) -> Result<Vault, ResourceError> {
        let mut vaulted = self.vaulted();
        vaulted.made += 1;
        let generated = vault.metadata.generate_name.take().map(|stem| format!("{stem}{}", vaulted.made));
        let name = vault.metadata.name.clone().or(generated).unwrap();
        if vaulted.vaults.contains_key(&key(namespace, &name)) {
            return Err(conflict("the vault"));
        }
        vault.metadata.uid = Some(format!("uid-{name}"));
        vault.metadata.namespace = Some(namespace.to_owned());
        vault.metadata.resource_version = Some("1".to_owned());
        let made = format!("2026-01-01T00:00:{:02}Z", vaulted.made);
        vault.metadata.creation_timestamp = serde_json::from_value(json!(made)).unwrap();
        vault.metadata.name = Some(name.clone());
        vaulted.vaults.insert(key(namespace, &name), vault.clone());
        Ok(vault)
    }

    async fn replace_vault(&self, mut vault: Vault) -> Result<Vault, ResourceError> {
        let key = key(vault.metadata.namespace.as_deref().unwrap(), vault.metadata.name.as_deref().unwrap());
        let mut vaulted = self.vaulted();
        if let Some(change) = vaulted.overtaken.pop() {
            let stored = vaulted.vaults.get_mut(&key).unwrap();
            change(stored);
            stored.metadata.resource_version = Some("100".to_owned());
        }
        let stored = vaulted.vaults.get(&key).ok_or_else(|| conflict("the vault"))?;
        if stored.metadata.resource_version != vault.metadata.resource_version {
            return Err(conflict("the vault"));
        }
        let version: u32 = vault.metadata.resource_version.as_deref().unwrap().parse().unwrap();
        vault.metadata.resource_version = Some((version + 1).to_string());
        vaulted.vaults.insert(key, vault.clone());
        Ok(vault)
    }

    async fn delete_vault(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ResourceError> {
        let removed = self.vaulted().vaults.remove(&key(namespace, name)).unwrap();
        assert_eq!(removed.metadata.uid.as_deref(), Some(uid));
        Ok(())
    }

    async fn create_secret(&self, namespace: &str, secret: NewSecret) -> Result<(), ResourceError> {
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
        let values = secret.values.iter().map(|(key, value)| ((*key).to_owned(), text(value.expose())));
        let made = MadeSecret {
            namespace: namespace.to_owned(),
            name: secret.name,
            owner_uid: secret.owner.uid,
            values: values.collect(),
        };
        let mut vaulted = self.vaulted();
        if vaulted.secrets_refused {
            return Err(not_let());
        }
        if vaulted.secrets.iter().any(|other| other.namespace == made.namespace && other.name == made.name) {
            return Err(conflict("the Secret"));
        }
        vaulted.secrets.push(made);
        Ok(())
    }

    async fn try_secret(&self, _: &str, _: OwnerReference) -> Result<(), ResourceError> {
        if self.vaulted().secrets_refused { Err(not_let()) } else { Ok(()) }
    }
}
