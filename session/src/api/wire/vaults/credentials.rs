//! Credentials of a vault. Values are written and never read: each write that has one makes a Secret, to which the vault
//! then points. The Secret goes when the vault goes.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::Resource as _;
use longhand_crds::Vault;
use longhand_crds::refresh::{RefreshRecord, UsedUp};
use longhand_crds::vault::CredentialSpec;
use longhand_crds::wire_id::{derived_id, prefix, wire_id};
use longhand_protocol::wire::vaults::{
    self as wire, CreateCredential, CredentialValidation, Deleted, UpdateCredential, ValidationStatus,
};
use longhand_protocol::wire::{Order, Page};
use serde::{Deserialize, Serialize};

use super::map::{credential_id, shown_credential};
use super::write::{Values, Written};
use super::{VaultPlace, check_live, fresh_id, vault_for};
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, PathOf, shortened};
use crate::api::query::Params;
use crate::api::wire::cursor;
use crate::api::wire::fields::{SecretBody, check_display_name, check_metadata, patch_metadata};
use crate::api::wire::listing::{LONGEST_PAGE, PAGE};
use crate::api::wire::once::{MaybeSeed, Seed};
use crate::app::App;
use crate::auth::Access;
use crate::resources::ResourceError;
use crate::resources::vaults::NewSecret;

/// As many as the resource holds.
const MOST_CREDENTIALS: usize = 32;
/// As much of a vault's name as the name of its Secrets repeats.
const LONGEST_STEM: usize = 160;

/// Where a page of credentials begins.
#[derive(Serialize, Deserialize)]
struct After {
    credential: String,
}

/// `GET vaults/{vault}/credentials`, in the order in which they were made.
pub async fn list(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    mut params: Params,
) -> Result<Json<Page<wire::Credential>>> {
    let after: Option<After> = params.one("page")?.map(|page| cursor::decode(&page, Order::Asc)).transpose()?;
    let limit = params.limit(PAGE, LONGEST_PAGE)?;
    let archived = params.flag("include_archived")?;
    params.end()?;
    let vault = vault_for(&app, &identity, &path, "get").await?.object;
    let all = vault.spec.credentials.iter().filter(|credential| archived || credential.archived_at.is_none());
    let all: Vec<&CredentialSpec> = all.collect();
    let skip = match after {
        None => 0,
        Some(after) => all.iter().position(|found| found.name == after.credential).map_or(all.len(), |at| at + 1),
    };
    let page: Vec<&CredentialSpec> = all.iter().copied().skip(skip).take(limit).collect();
    let more = skip + page.len() < all.len();
    let last = page.last().filter(|_| more).map(|last| After { credential: last.name.clone() });
    let next_page = last.map(|after| cursor::encode(Order::Asc, after)).transpose()?;
    Ok(Json(Page { data: page.into_iter().map(|found| shown_credential(&vault, found)).collect(), next_page }))
}

/// `POST vaults/{vault}/credentials`.
pub async fn create(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    MaybeSeed(seed): MaybeSeed,
    body: SecretBody,
) -> Result<Json<wire::Credential>> {
    params.end()?;
    let place = vault_for(&app, &identity, &path, "update").await?;
    let body: CreateCredential = body.parse()?;
    let metadata = body.metadata.unwrap_or_default();
    check_metadata(&metadata)?;
    body.display_name.as_deref().map_or(Ok(()), check_display_name)?;
    let (written, values) = Written::take(body.auth)?;
    let (id, name, secret) = names(&place.name, seed.as_ref());
    let mut spec = written.create(name.clone(), id.clone(), &secret, Timestamp::now())?;
    (spec.display_name, spec.metadata) = (body.display_name, metadata);
    let add = |vault: &mut Vault| {
        check_live(vault)?;
        if vault.spec.credentials.iter().any(|credential| credential.id.as_ref() == Some(&id)) {
            // Added when the request was carried out before.
            return Ok(());
        }
        if vault.spec.credentials.len() >= MOST_CREDENTIALS {
            let message =
                format!("the vault holds {MOST_CREDENTIALS} credentials, and no more fit: make another vault");
            return Err(ApiError::bad_request(message));
        }
        vault.spec.credentials.push(spec.clone());
        Ok(())
    };
    store(&app, &place, secret, values, seed.is_some(), &add).await?;
    let (vault, ()) = place.change(&app, add).await?;
    shown(&vault, &id)
}

/// `GET vaults/{vault}/credentials/{credential}`.
pub async fn retrieve(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<wire::Credential>> {
    params.end()?;
    let vault = vault_for(&app, &identity, &path, "get").await?.object;
    let id = path.of("credential")?;
    shown(&vault, id)
}

/// `POST vaults/{vault}/credentials/{credential}`.
pub async fn update(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    body: SecretBody,
) -> Result<Json<wire::Credential>> {
    params.end()?;
    let place = vault_for(&app, &identity, &path, "update").await?;
    let UpdateCredential { auth, display_name, metadata } = body.parse()?;
    display_name.iter().flatten().try_for_each(|name| check_display_name(name))?;
    let id = path.of("credential")?;
    let before = credential(&place.object, id)?.clone();
    let (written, values) = match auth {
        None => (None, Values::new()),
        Some(auth) => {
            let (written, values) = Written::take(auth)?;
            (Some(written), values)
        }
    };
    // Who sends an old value to new places could read it there.
    if written.as_ref().is_some_and(|written| written.widens(&before)) {
        app.auth.require(&identity, Access::ReadSecret(&before.secret_ref.name), &place.namespace).await?;
    }
    let secret = secret_name(&place.name, &before.name);
    let now = Timestamp::now();
    let change = |vault: &mut Vault| {
        check_live(vault)?;
        let credential = credential_mut(vault, id)?;
        check_in_use(credential)?;
        // The right to widen was checked for one Secret; another one by now may be somebody else's.
        if credential.secret_ref != before.secret_ref {
            return Err(ApiError::conflict("the credential's value was changed meanwhile: read it and try again"));
        }
        written.as_ref().map_or(Ok(()), |written| written.change(credential, &secret, now))?;
        if let Some(name) = &display_name {
            credential.display_name.clone_from(name);
        }
        metadata.as_ref().map_or(Ok(()), |patch| patch_metadata(&mut credential.metadata, patch))?;
        credential.updated_at = Some(Time(now));
        Ok(())
    };
    store(&app, &place, secret.clone(), values, false, &change).await?;
    let (vault, ()) = place.change(&app, change).await?;
    shown(&vault, id)
}

/// `POST vaults/{vault}/credentials/{credential}/archive`. It is used no more.
pub async fn archive(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<wire::Credential>> {
    params.end()?;
    let place = vault_for(&app, &identity, &path, "update").await?;
    let id = path.of("credential")?;
    if credential(&place.object, id)?.archived_at.is_some() {
        return shown(&place.object, id);
    }
    let now = Timestamp::now();
    let (vault, ()) = place
        .change(&app, |vault| {
            let credential = credential_mut(vault, id)?;
            credential.archived_at.get_or_insert(Time(now));
            credential.updated_at = Some(Time(now));
            Ok(())
        })
        .await?;
    shown(&vault, id)
}

/// `DELETE vaults/{vault}/credentials/{credential}`. Its Secret stays until the vault goes, and nothing names it any more.
pub async fn delete(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<Deleted>> {
    params.end()?;
    let place = vault_for(&app, &identity, &path, "update").await?;
    let reference = path.of("credential")?;
    let id = credential_id(&place.object, credential(&place.object, reference)?);
    place
        .change(&app, |vault| {
            let name = credential(vault, reference)?.name.clone();
            vault.spec.credentials.retain(|credential| credential.name != name);
            RefreshRecord::remove(&mut vault.metadata, &name);
            UsedUp::remove(&mut vault.metadata, &name);
            Ok(())
        })
        .await?;
    Ok(Json(Deleted { id, kind: "vault_credential_deleted".to_owned() }))
}

/// `POST vaults/{vault}/credentials/{credential}/mcp_oauth_validate`. The service cannot read what it has stored, and so
/// cannot try it: the verdict is `unknown`.
pub async fn validate(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
) -> Result<Json<CredentialValidation>> {
    params.end()?;
    let vault = vault_for(&app, &identity, &path, "get").await?.object;
    let found = credential(&vault, path.of("credential")?)?;
    let Some(oauth) = &found.oauth else {
        return Err(ApiError::bad_request("the credential is not of type mcp_oauth: only those are validated"));
    };
    Ok(Json(CredentialValidation {
        kind: "vault_credential_validation".to_owned(),
        vault_id: wire_id(prefix::VAULT, &vault.metadata),
        credential_id: credential_id(&vault, found),
        has_refresh_token: oauth.refresh.is_some(),
        status: ValidationStatus::Unknown,
        mcp_probe: None,
        refresh: None,
        validated_at: Timestamp::now(),
    }))
}

/// Makes the Secret of a change that would be accepted as things stand; without values there is none. It may be there if
/// this is done `again`.
async fn store(
    app: &App,
    place: &VaultPlace,
    name: String,
    values: Values,
    again: bool,
    change: &impl Fn(&mut Vault) -> Result<()>,
) -> Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    change(&mut place.object.clone())?;
    let owner = owned_by(&place.object);
    match app.vaults.create_secret(&place.namespace, NewSecret { name, owner, values }).await {
        Err(ResourceError::Conflict { .. }) if again => Ok(()),
        made => made.map_err(|error| ApiError::from(error).of_change()),
    }
}

/// That the vault owns something.
pub(in crate::api) fn owned_by(vault: &Vault) -> OwnerReference {
    OwnerReference {
        api_version: Vault::api_version(&()).into_owned(),
        kind: Vault::kind(&()).into_owned(),
        name: vault.metadata.name.clone().unwrap_or_default(),
        uid: vault.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    }
}

/// The identifier and the name of a new credential of a vault, and the name of its Secret: the same for a request that is
/// carried out again.
fn names(vault: &str, seed: Option<&Seed>) -> (String, String, String) {
    let Some(seed) = seed.map(|seed| seed.of("credential")) else {
        let name = format!("cred-{:08x}", rand::random::<u32>());
        let secret = secret_name(vault, &name);
        return (fresh_id(prefix::CREDENTIAL), name, secret);
    };
    let name = format!("cred-{}", &seed[..8]);
    let secret = secret_name_with(vault, &name, &seed[8..24]);
    (derived_id(prefix::CREDENTIAL, &seed), name, secret)
}

/// The name of a new Secret.
fn secret_name(vault: &str, credential: &str) -> String {
    secret_name_with(vault, credential, &format!("{:016x}", rand::random::<u64>()))
}

/// The name of a new Secret that ends with `random`.
pub(in crate::api) fn secret_name_with(vault: &str, credential: &str, random: &str) -> String {
    let stem: String = vault.chars().take(LONGEST_STEM).collect();
    format!("{}-{credential}-{random}", stem.trim_end_matches(['-', '.']))
}

fn index(vault: &Vault, reference: &str) -> Result<usize> {
    let named =
        |credential: &CredentialSpec| credential_id(vault, credential) == reference || credential.name == reference;
    let found = vault.spec.credentials.iter().position(named);
    found.ok_or_else(|| ApiError::not_found(format!("the vault has no credential `{}`", shortened(reference))))
}

fn credential<'a>(vault: &'a Vault, reference: &str) -> Result<&'a CredentialSpec> {
    Ok(&vault.spec.credentials[index(vault, reference)?])
}

fn credential_mut<'a>(vault: &'a mut Vault, reference: &str) -> Result<&'a mut CredentialSpec> {
    let index = index(vault, reference)?;
    Ok(&mut vault.spec.credentials[index])
}

fn check_in_use(credential: &CredentialSpec) -> Result<()> {
    match &credential.archived_at {
        None => Ok(()),
        Some(at) => {
            Err(ApiError::bad_request(format!("the credential was archived at {} and cannot be changed", at.0)))
        }
    }
}

fn shown(vault: &Vault, reference: &str) -> Result<Json<wire::Credential>> {
    Ok(Json(shown_credential(vault, credential(vault, reference)?)))
}
