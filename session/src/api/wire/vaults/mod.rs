//! Vaults: made, listed, looked at, changed, archived and deleted. They are the `Vault` resources that kubectl sees.

pub mod credentials;
mod map;
mod write;

pub(super) use self::write::origin;

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use longhand_crds::wire_id::{derived_id, prefix};
use longhand_crds::{Vault, VaultSpec, annotations, wire_id};
use longhand_protocol::wire::Page;
use longhand_protocol::wire::vaults::{self as wire, CreateVault, Deleted, UpdateVault};

use super::agents::{made_and_gone, new_metadata};
use super::checks::NewName;
use super::fields::{check_display_name, check_metadata, patch_metadata};
use super::listing::Listing;
use super::namespace_for;
use super::once::MaybeSeed;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, JsonOf, PathOf, shortened};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::{Access, Identity};
use crate::resources::ResourceError;
use crate::resources::named::{archived_at, find};

const KIND: &str = "vaults";
/// Others change the same vault; each of these attempts reads it anew.
const ATTEMPTS: usize = 5;

/// `GET vaults`, the newest first.
pub async fn list(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    mut params: Params,
) -> Result<Json<Page<wire::Vault>>> {
    let listing = Listing::take(&mut params)?;
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::Kind(KIND, "list"), namespace).await?;
    let (vaults, next_page) =
        listing.of_pages(|from| app.vaults.page(namespace, from), |vault| &vault.metadata).await?;
    Ok(Json(Page { data: vaults.iter().map(map::shown).collect(), next_page }))
}

/// `POST vaults`.
pub async fn create(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    MaybeSeed(seed): MaybeSeed,
    JsonOf(body): JsonOf<CreateVault>,
) -> Result<Json<wire::Vault>> {
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::Kind(KIND, "create"), namespace).await?;
    check_display_name(&body.display_name)?;
    let metadata = body.metadata.unwrap_or_default();
    check_metadata(&metadata)?;
    let name = NewName::of("vlt", prefix::VAULT, seed.as_ref());
    let vault = Vault {
        metadata: new_metadata("vlt", &name),
        spec: VaultSpec { credentials: Vec::new(), display_name: Some(body.display_name), metadata },
        status: None,
    };
    let vault = match (app.vaults.create_vault(namespace, vault).await, name.name) {
        // Made when the request was carried out before.
        (Err(ResourceError::Conflict { .. }), Some(name)) => {
            app.vaults.named(namespace, &name).await?.ok_or_else(|| made_and_gone("vault"))?
        }
        (made, _) => made.map_err(|error| ApiError::from(error).of_change())?,
    };
    Ok(Json(map::shown(&vault)))
}

/// `GET vaults/{vault}`.
pub async fn retrieve(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<wire::Vault>> {
    params.end()?;
    Ok(Json(map::shown(&vault_for(&app, &identity, &path, "get").await?.object)))
}

/// `POST vaults/{vault}`.
pub async fn update(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    JsonOf(body): JsonOf<UpdateVault>,
) -> Result<Json<wire::Vault>> {
    params.end()?;
    let place = vault_for(&app, &identity, &path, "update").await?;
    let (vault, ()) = place
        .change(&app, |vault| {
            check_live(vault)?;
            if let Some(name) = &body.display_name {
                check_display_name(name)?;
                vault.spec.display_name = Some(name.clone());
            }
            patch_metadata(&mut vault.spec.metadata, body.metadata.as_ref().unwrap_or(&BTreeMap::new()))
        })
        .await?;
    Ok(Json(map::shown(&vault)))
}

/// `POST vaults/{vault}/archive`. Sessions that use it go on; new ones may not.
pub async fn archive(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<wire::Vault>> {
    params.end()?;
    let place = vault_for(&app, &identity, &path, "update").await?;
    if archived_at(&place.object.metadata).is_some() {
        return Ok(Json(map::shown(&place.object)));
    }
    let now = Timestamp::now().to_string();
    let (vault, ()) = place
        .change(&app, |vault| {
            let annotations = vault.metadata.annotations.get_or_insert_default();
            annotations.entry(annotations::ARCHIVED_AT.to_owned()).or_insert_with(|| now.clone());
            Ok(())
        })
        .await?;
    Ok(Json(map::shown(&vault)))
}

/// `DELETE vaults/{vault}`. The Secrets that were written for it go with it.
pub async fn delete(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<Deleted>> {
    params.end()?;
    let place = vault_for(&app, &identity, &path, "delete").await?;
    let id = wire_id(prefix::VAULT, &place.object.metadata);
    let deleted = app.vaults.delete_vault(&place.namespace, &place.name, &place.uid).await;
    deleted.map_err(|error| ApiError::from(error).of_change())?;
    Ok(Json(Deleted { id, kind: "vault_deleted".to_owned() }))
}

/// A vault that the path names, as it was read.
struct VaultPlace {
    namespace: String,
    name: String,
    uid: String,
    object: Vault,
}

/// The vault that the path names, if the caller may do this with it.
async fn vault_for(app: &App, identity: &Identity, path: &PathOf, verb: &'static str) -> Result<VaultPlace> {
    let namespace = namespace_for(identity, path)?;
    let reference = path.of("vault")?;
    let found: Option<Vault> = find(app.vaults.as_ref(), prefix::VAULT, namespace, reference).await?;
    let named = found.and_then(|vault| Some((vault.metadata.name.clone()?, vault.metadata.uid.clone()?, vault)));
    let Some((name, uid, object)) = named else {
        // Who may not look is not told what there is.
        app.auth.require(identity, Access::Kind(KIND, verb), namespace).await?;
        let message = format!("there is no vault `{}` in namespace {namespace}", shortened(reference));
        return Err(ApiError::not_found(message));
    };
    app.auth.require(identity, Access::Object(KIND, verb, &name), namespace).await?;
    Ok(VaultPlace { namespace: namespace.to_owned(), name, uid, object })
}

impl VaultPlace {
    /// Changes the vault, beside others who do. `change` may be called several times, and sees what the others wrote.
    async fn change<T>(&self, app: &App, change: impl Fn(&mut Vault) -> Result<T>) -> Result<(Vault, T)> {
        let mut vault = self.object.clone();
        for _ in 0..ATTEMPTS {
            let outcome = change(&mut vault)?;
            match app.vaults.replace_vault(vault).await {
                Ok(vault) => return Ok((vault, outcome)),
                Err(ResourceError::Conflict { .. }) => vault = self.again(app).await?,
                Err(error) => return Err(ApiError::from(error).of_change()),
            }
        }
        Err(ApiError::conflict(format!("Vault {}/{} changes faster than it can be changed", self.namespace, self.name)))
    }

    async fn again(&self, app: &App) -> Result<Vault> {
        let vault = app.vaults.named(&self.namespace, &self.name).await?;
        let vault = vault.filter(|vault| vault.metadata.uid.as_ref() == Some(&self.uid));
        vault.ok_or_else(|| ApiError::not_found(format!("the vault {} was deleted meanwhile", self.name)))
    }
}

fn check_live(vault: &Vault) -> Result<()> {
    match archived_at(&vault.metadata) {
        None => Ok(()),
        Some(at) => Err(ApiError::bad_request(format!("the vault was archived at {at} and cannot be changed"))),
    }
}

/// A new identifier.
pub(super) fn fresh_id(prefix: &str) -> String {
    derived_id(prefix, &format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>()))
}
