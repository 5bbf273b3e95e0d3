//! Whether a caller may have a session use vaults, and all else that the spec of another names.

use longhand_crds::wire_id::prefix;
use longhand_crds::{AgentSessionSpec, Vault, wire_id};

use super::session_resources::check_files;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{is_reference, shortened};
use crate::app::App;
use crate::auth::{Access, Identity};
use crate::resources::named::{archived_at, find};

/// As many as a session may refer to.
const MOST_VAULTS: usize = 16;

/// A vault that a session may refer to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsableVault {
    /// The name of its resource.
    pub name: String,
    /// Its identifier.
    pub id: String,
}

/// The vaults that `references` name (identifiers or names), in that order and each once, if `identity` may use all of
/// them in this namespace.
///
/// # Errors
/// 400 or 404 naming the entry of `vault_ids` that is wrong, and 403 where the verb `use` is not granted.
pub async fn check_vaults(
    app: &App,
    identity: &Identity,
    namespace: &str,
    references: &[String],
) -> Result<Vec<UsableVault>> {
    if references.len() > MOST_VAULTS {
        return Err(ApiError::bad_request(format!("`vault_ids` has more than {MOST_VAULTS} entries")));
    }
    let mut usable: Vec<UsableVault> = Vec::new();
    for (index, reference) in references.iter().enumerate() {
        let missing = || {
            let reference = shortened(reference);
            ApiError::not_found(format!("`vault_ids[{index}]`: there is no vault `{reference}` in {namespace}"))
        };
        if !is_reference(reference) {
            return Err(missing());
        }
        let vault: Option<Vault> = find(app.vaults.as_ref(), prefix::VAULT, namespace, reference).await?;
        let vault = vault.ok_or_else(missing)?;
        let name = vault.metadata.name.clone().unwrap_or_default();
        app.auth.require(identity, Access::UseVault(&name), namespace).await?;
        if archived_at(&vault.metadata).is_some() {
            return Err(ApiError::bad_request(format!("`vault_ids[{index}]`: the vault `{name}` is archived")));
        }
        if usable.iter().all(|known| known.name != name) {
            usable.push(UsableVault { id: wire_id(prefix::VAULT, &vault.metadata), name });
        }
    }
    Ok(usable)
}

/// An error unless `identity` may use every vault that this spec names.
///
/// # Errors
/// 403 naming the vault.
async fn check_named(app: &App, identity: &Identity, namespace: &str, spec: &AgentSessionSpec) -> Result<()> {
    let servers = spec.agent_ref.overrides.iter().flat_map(|overrides| overrides.mcp_servers.iter().flatten());
    let of_servers = servers.filter_map(|server| server.credential.as_ref()).map(|credential| &credential.vault);
    for name in spec.vault_refs.iter().map(|vault| &vault.name).chain(of_servers) {
        app.auth.require(identity, Access::UseVault(name), namespace).await?;
    }
    Ok(())
}

/// An error unless `identity` has the rights that this spec, which somebody else has written, needs of whoever writes it.
///
/// # Errors
/// 403 naming the file or the vault.
pub(super) async fn check_spec(app: &App, identity: &Identity, namespace: &str, spec: &AgentSessionSpec) -> Result<()> {
    check_files(app, identity, namespace, spec.resources.iter()).await?;
    check_named(app, identity, namespace, spec).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::check_vaults;
    use crate::auth::{Access, Identity};
    use crate::testing::World;

    fn alice() -> Identity {
        Identity { username: "system:serviceaccount:team-a:alice".to_owned(), ..Identity::default() }
    }

    #[tokio::test]
    async fn only_who_may_use_a_vault_may_refer_to_it() {
        let world = World::new();
        for name in ["mine", "other"] {
            world.cluster.add_vault("team-a", name, json!({"credentials": []}));
        }
        world.cluster.add_vault("team-b", "elsewhere", json!({"credentials": []}));
        world.cluster.allow(&alice().username, Access::UseVault("mine"), "team-a");
        let check = async |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let usable = check_vaults(&world.app, &alice(), "team-a", &names).await;
            usable.map_err(|error| (error.status().as_u16(), error.to_string()))
        };
        let usable = check(&["mine", "mine"]).await.unwrap();
        assert_eq!(usable.len(), 1);
        let again = check(&[&usable[0].id]).await.unwrap();
        assert_eq!(again, usable);
        assert_eq!(check(&["other"]).await.unwrap_err().0, 403);
        for missing in ["elsewhere", "none", "vlt_none", "a/b", ""] {
            let (status, message) = check(&["mine", missing]).await.unwrap_err();
            assert_eq!(status, 404);
            assert!(message.contains("vault_ids[1]"), "{message}");
        }
    }
}
