//! Reaching into a sandbox: its files, a shell, and the servers that run in it. Of a session, by the sandbox's name in it, or any
//! Sandbox by its own name. And handing one to another session.

pub mod handoff;
pub mod transfer;
pub mod upgrade;

use std::sync::Arc;

use super::{namespace_for, session_for};
use crate::api::error::{ApiError, Result};
use crate::api::extract::{PathOf, is_name, shortened};
use crate::app::App;
use crate::auth::{Access, Identity};
use crate::execute::sandboxes::SandboxKey;
use crate::resources::plan::sandbox_name;

/// The sandbox that the path names, if the caller may do `verb` with its `part`.
async fn sandbox_for(
    app: &App,
    identity: &Arc<Identity>,
    path: &PathOf,
    part: &'static str,
    verb: &'static str,
) -> Result<SandboxKey> {
    let name = path.of("sandbox")?;
    let key = if path.has_session() {
        let meta = session_for(app, identity, path, Access::GetSession).await?.meta;
        if !meta.sandboxes.iter().any(|known| known == name) {
            let name = shortened(name);
            return Err(ApiError::not_found(format!("the session {} has no sandbox `{name}`", meta.id)));
        }
        SandboxKey { name: sandbox_name(&meta.name, &meta.uid, name), namespace: meta.namespace }
    } else if is_name(name, 253) {
        SandboxKey { namespace: namespace_for(identity, path)?.to_owned(), name: name.to_owned() }
    } else {
        return Err(ApiError::not_found(format!("there is no Sandbox `{}`", shortened(name))));
    };
    let access = Access::InSandbox { part, verb, name: &key.name };
    app.auth.require(identity, access, &key.namespace).await?;
    Ok(key)
}
