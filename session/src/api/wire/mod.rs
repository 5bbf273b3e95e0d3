//! The public API.

pub mod cursor;
pub mod event_query;
pub mod events;
pub mod feed;
pub mod session_page;
pub mod sessions;
pub mod stream;
pub mod view;

use longhand_session_log::store::SessionState;

use super::error::{ApiError, Result};
use super::extract::PathOf;
use crate::app::App;
use crate::auth::{Access, Identity};

/// The session that the path names, if the caller may do this with it.
async fn session_for(app: &App, identity: &Identity, path: &PathOf, access: Access) -> Result<SessionState> {
    let session = path.session()?;
    let state = app.store.state(session).await?;
    app.auth.require(identity, access, &state.meta.namespace).await?;
    match path.namespace() {
        Some(namespace) if namespace != state.meta.namespace => {
            Err(ApiError::not_found(format!("there is no session {session} in namespace {namespace}")))
        }
        _ => Ok(state),
    }
}

/// The namespace that the path names, or that of the caller's ServiceAccount.
fn namespace_for<'a>(identity: &'a Identity, path: &'a PathOf) -> Result<&'a str> {
    let own = identity.service_account().map(|(namespace, _)| namespace);
    path.namespace().or(own).ok_or_else(|| {
        ApiError::bad_request(format!(
            "{} is in no namespace: name one as in /namespaces/<namespace>/v1/sessions",
            identity.username
        ))
    })
}
