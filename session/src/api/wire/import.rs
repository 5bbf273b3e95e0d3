//! `POST sessions/import`: a session from the file of an export.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::State;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt as _};
use kube::api::ObjectMeta;
use longhand_crds::{AgentSession, AgentSessionSpec, annotations, labels, session_id};
use longhand_protocol::SessionId;
use longhand_protocol::export::{Header, LONGEST_LINE, Reader, Step};
use longhand_protocol::wire::Session;
use longhand_session_log::StoreError;
use longhand_session_log::store::{End, Exported, SessionMeta};
use serde_json::json;
use tokio::time::timeout;

use super::vault_use::check_spec;
use super::{namespace_for, view};
use crate::api::error::{ApiError, Result};
use crate::api::extract::{Caller, PathOf, is_name};
use crate::api::query::Params;
use crate::app::App;
use crate::auth::{Access, Identity};
use crate::sessions;

/// The next part of a file has to come within this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// `POST import`.
pub async fn import(
    State(app): State<App>,
    Caller(identity): Caller,
    path: PathOf,
    params: Params,
    body: Body,
) -> Result<Json<Session>> {
    params.end()?;
    let namespace = namespace_for(&identity, &path)?;
    app.auth.require(&identity, Access::CreateSession, namespace).await?;
    app.auth.require(&identity, Access::SendEvents, namespace).await?;
    let _slot = app.streams.open(namespace)?;
    let mut file = File::new(body.into_data_stream());
    let Some(Step::Header(header)) = file.step().await? else {
        return Err(ApiError::bad_request("the body is empty: it has to be an export"));
    };
    let meta: SessionMeta = serde_json::from_value(header.session.clone())
        .map_err(|error| ApiError::bad_request(format!("`header.session` cannot be read: {error}")))?;
    match app.store.state(&meta.id).await {
        Err(StoreError::NotFound(_)) => {}
        Ok(_) => return Err(ApiError::conflict(StoreError::Exists(meta.id).to_string())),
        Err(error) => return Err(error.into()),
    }
    app.quota.check_session(&*app.store, namespace).await?;
    let resource = place(&app, &identity, namespace, &meta, &header).await?;
    let (namespace, name, uid) = sessions::identity(&resource)?;
    let meta = SessionMeta { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.to_owned(), ..meta };
    let id = meta.id.clone();
    let end =
        End { epoch: header.epoch, head: header.head, hash: header.hash.clone(), archived_at: header.archived_at };
    let records = stream::unfold(Some(file), |file| async move {
        let mut file = file?;
        match file.record().await {
            Ok(Some(record)) => Some((Ok(record), Some(file))),
            Ok(None) => None,
            Err(error) => Some((Err(StoreError::BadImport(error.to_string())), None)),
        }
    });
    if let Err(error) = app.store.import(meta, &end, records.boxed()).await {
        give_up(&app, &resource, &id, &error).await?;
        return Err(ApiError::from(error).of_change());
    }
    tracing::info!(session = %id, head = end.head, "session imported");
    let state = app.store.state(&id).await?;
    app.quota.made(&state.meta.namespace);
    view::shown(&app, state, Some(resource)).await.map(Json)
}

/// The resource of the session: a new one, or what an import that was broken off has left.
async fn place(
    app: &App,
    identity: &Identity,
    namespace: &str,
    meta: &SessionMeta,
    header: &Header,
) -> Result<AgentSession> {
    if !is_name(&meta.name, 253) {
        return Err(ApiError::bad_request("`header.session.name` is not the name of a Kubernetes object"));
    }
    if let Some(left) = app.resources.session(namespace, &meta.name).await? {
        if is_import(&left) && session_id(&left.metadata) == meta.id {
            return Ok(left);
        }
        let message = format!("the AgentSession {namespace}/{} exists; delete it, or import elsewhere", meta.name);
        return Err(ApiError::conflict(message));
    }
    let spec = header.spec.clone().unwrap_or_else(|| json!({"agentRef": {"name": meta.agent.name}}));
    let spec: AgentSessionSpec = serde_json::from_value(spec)
        .map_err(|error| ApiError::bad_request(format!("`header.spec` cannot be read: {error}")))?;
    let spec = permitted(app, identity, namespace, spec).await?;
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let resource = AgentSession {
        metadata: ObjectMeta {
            name: Some(meta.name.clone()),
            labels: Some(BTreeMap::from([
                pair(labels::MANAGED_BY, labels::LONGHAND),
                pair(labels::ID, meta.id.as_str()),
            ])),
            annotations: Some(BTreeMap::from([pair(annotations::LOG_FROM, "import")])),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    };
    let made = app.resources.create_session(namespace, resource).await;
    made.map_err(|error| ApiError::from(error).of_change())
}

/// The spec as far as this caller may have it: whoever made the file may have written anything into it. A repository's token
/// stays if the caller may read its Secret; the repository is cloned without it else.
async fn permitted(
    app: &App,
    identity: &Identity,
    namespace: &str,
    mut spec: AgentSessionSpec,
) -> Result<AgentSessionSpec> {
    check_spec(app, identity, namespace, &spec).await?;
    for repository in spec.resources.iter_mut().filter_map(|resource| resource.github_repository.as_mut()) {
        let Some(token) = &repository.token_ref else { continue };
        if !app.auth.permits(identity, Access::ReadSecret(&token.name), namespace).await? {
            tracing::info!(
                namespace,
                secret = token.name,
                "an import goes without a token that its caller may not read"
            );
            repository.token_ref = None;
        }
    }
    Ok(spec)
}

fn is_import(resource: &AgentSession) -> bool {
    let annotations = resource.metadata.annotations.as_ref();
    annotations.and_then(|annotations| annotations.get(annotations::LOG_FROM)).is_some_and(|from| from == "import")
}

/// Takes away what a failed import has left, unless another one has the session by now.
async fn give_up(app: &App, resource: &AgentSession, id: &SessionId, error: &StoreError) -> Result<()> {
    if matches!(error, StoreError::Exists(_)) {
        return Ok(());
    }
    let (namespace, name, uid) = sessions::identity(resource)?;
    if let Err(error) = app.resources.delete_session(namespace, name, uid).await {
        tracing::warn!(session = %id, %error, "the resource of a failed import is left over");
        return Ok(());
    }
    if let Err(error) = app.store.delete(id).await {
        tracing::warn!(session = %id, %error, "a part of a failed import is left over; the sweep takes it");
    }
    Ok(())
}

/// A file that comes in. At most a line of it is held, and what came with its end.
struct File {
    body: BodyDataStream,
    reader: Reader,
    buffer: BytesMut,
    ended: bool,
}

impl File {
    fn new(body: BodyDataStream) -> Self {
        Self { body, reader: Reader::default(), buffer: BytesMut::new(), ended: false }
    }

    /// The next line, checked; nothing at the end of a whole file.
    async fn step(&mut self) -> Result<Option<Step>> {
        let wrong = |error: longhand_protocol::export::Broken| ApiError::bad_request(error.to_string());
        match self.line().await? {
            Some(line) => self.reader.line(&line).map(Some).map_err(wrong),
            None => std::mem::take(&mut self.reader).finish().map(|_| None).map_err(wrong),
        }
    }

    async fn record(&mut self) -> Result<Option<Exported>> {
        loop {
            match self.step().await? {
                Some(Step::Event { seq, record, payloads }) => {
                    return Ok(Some(Exported { seq, bytes: record, payloads: payloads.into_values().collect() }));
                }
                Some(Step::Header(_) | Step::End) => {}
                None => return Ok(None),
            }
        }
    }

    async fn line(&mut self) -> Result<Option<Bytes>> {
        let mut searched = 0;
        loop {
            let found = self.buffer[searched..].iter().position(|byte| *byte == b'\n');
            if let Some(place) = found {
                return Ok(Some(self.buffer.split_to(searched + place + 1).freeze()));
            }
            // The reader says that a line is too long.
            if self.ended || self.buffer.len() > LONGEST_LINE {
                return Ok((!self.buffer.is_empty()).then(|| self.buffer.split().freeze()));
            }
            searched = self.buffer.len();
            match timeout(PATIENCE, self.body.next()).await {
                Err(_) => return Err(ApiError::slow_body(PATIENCE)),
                Ok(None) => self.ended = true,
                Ok(Some(Ok(part))) => self.buffer.extend_from_slice(&part),
                Ok(Some(Err(error))) => {
                    return Err(ApiError::bad_request(format!("the body was broken off: {error}")));
                }
            }
        }
    }
}
