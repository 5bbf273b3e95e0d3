//! The public API.

pub mod agents;
pub mod checks;
pub mod cursor;
pub mod environments;
mod event_checks;
pub mod event_query;
pub mod events;
pub mod export;
pub mod feed;
pub mod fields;
pub mod files;
mod fork;
pub mod import;
pub mod listing;
pub mod once;
pub mod sandboxes;
mod session_agent;
pub mod session_create;
mod session_fields;
pub mod session_list;
pub mod session_page;
pub mod session_resources;
pub mod session_update;
pub mod sessions;
pub mod stream;
pub mod threads;
pub mod times;
mod tool_results;
pub mod vault_use;
pub mod vaults;
pub mod view;
pub mod work;
mod worker_access;

use jiff::Timestamp;
use kube::api::ObjectMeta;
use longhand_crds::annotations;
use longhand_session_log::store::{SessionMeta, SessionState};

pub(crate) use self::agents::read::check as check_agent;
use super::error::{ApiError, Result};
use super::extract::PathOf;
use crate::app::App;
use crate::auth::{Access, Identity};

/// The session that the path names, if the caller may do this with it.
async fn session_for(app: &App, identity: &Identity, path: &PathOf, access: Access<'_>) -> Result<SessionState> {
    let state = app.store.state(path.session()?).await?;
    permitted(app, identity, path, access, &state.meta).await?;
    Ok(state)
}

/// An error unless the caller may do this with the session that the path names, which has this metadata.
async fn permitted(
    app: &App,
    identity: &Identity,
    path: &PathOf,
    access: Access<'_>,
    meta: &SessionMeta,
) -> Result<()> {
    worker_access::require(app, identity, access, meta).await?;
    match path.namespace() {
        Some(namespace) if namespace != meta.namespace => {
            Err(ApiError::not_found(format!("there is no session {} in namespace {namespace}", meta.id)))
        }
        _ => Ok(()),
    }
}

/// The namespace that the path names, or that of the caller's ServiceAccount.
fn namespace_for<'a>(identity: &'a Identity, path: &'a PathOf) -> Result<&'a str> {
    let worker = identity.worker.as_ref().map(|worker| worker.queue.namespace.as_str());
    let own = identity.service_account().map(|(namespace, _)| namespace).or(worker);
    path.namespace().or(own).ok_or_else(|| {
        ApiError::bad_request(format!(
            "{} is in no namespace: name one as in /namespaces/<namespace>/v1/...",
            identity.username
        ))
    })
}

/// Marks an object as archived, unless it is.
fn set_archived(meta: &mut ObjectMeta, now: Timestamp) {
    let annotations = meta.annotations.get_or_insert_default();
    annotations.entry(annotations::ARCHIVED_AT.to_owned()).or_insert_with(|| now.to_string());
}
