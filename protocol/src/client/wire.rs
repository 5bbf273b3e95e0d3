//! The public API, as a client speaks it.

use http::Method;
use serde_json::Map;

use super::sse::{EventStream, StreamOptions};
use super::transport::{Call, Transport};
use super::{Result, Server, TokenSource};
use crate::event::ClientEvent;
use crate::id::SessionId;
use crate::wire::{CreateSession, EventsSent, NumberedEvent, Order, Page, SendEvents, Session, SessionDeleted};

/// The public API, in the namespace of the token or in one that is named.
#[derive(Clone, Debug)]
pub struct WireClient {
    pub(super) transport: Transport,
    namespace: Option<String>,
}

/// Which events a list has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventQuery {
    /// Only these types; empty for all but `x.*`.
    pub types: Vec<String>,
    /// The order.
    pub order: Order,
    /// The most events of a page; the server's choice without.
    pub limit: Option<u32>,
    /// [`Page::next_page`] of the page before.
    pub page: Option<String>,
    /// Only events with a sequence number above this.
    pub after_seq: Option<u64>,
    /// Whether the sequence numbers are wanted.
    pub include_seq: bool,
}

impl WireClient {
    /// A client of the service at `server`; `namespace` replaces that of the token.
    ///
    /// # Errors
    /// When the URL or the authorities of `server` cannot be used.
    pub fn new(server: impl Into<Server>, token: TokenSource, namespace: Option<String>) -> Result<Self> {
        Ok(Self { transport: Transport::new(server, token)?, namespace })
    }

    /// The path of `/v1/sessions` and what follows.
    pub(super) fn path<'a>(&'a self, rest: &[&'a str]) -> Vec<&'a str> {
        let mut path = Vec::with_capacity(4 + rest.len());
        if let Some(namespace) = &self.namespace {
            path.extend(["namespaces", namespace.as_str()]);
        }
        path.extend(["v1", "sessions"]);
        path.extend(rest);
        path
    }

    /// Makes a session.
    ///
    /// # Errors
    /// See [`super::Error`].
    pub async fn create_session(&self, request: &CreateSession) -> Result<Session> {
        self.transport.send_json(Call::post(&self.path(&[])), request).await
    }

    /// A session.
    ///
    /// # Errors
    /// 404 when there is none that the caller may know of.
    pub async fn session(&self, session: &SessionId) -> Result<Session> {
        self.transport.send(Call::get(&self.path(&[session.as_str()]))).await
    }

    /// A page of sessions.
    ///
    /// # Errors
    /// See [`super::Error`].
    pub async fn list_sessions(&self, limit: Option<u32>, page: Option<&str>) -> Result<Page<Session>> {
        let path = self.path(&[]);
        self.transport.send(Call::get(&path).maybe_query("limit", limit).maybe_query("page", page)).await
    }

    /// Deletes a session.
    ///
    /// # Errors
    /// 409 while it is running.
    pub async fn delete_session(&self, session: &SessionId) -> Result<SessionDeleted> {
        let path = self.path(&[session.as_str()]);
        self.transport.send_json(Call::new(Method::DELETE, &path), &Map::new()).await
    }

    /// Sends events, all or none.
    ///
    /// # Errors
    /// See [`super::Error`].
    pub async fn send_events(&self, session: &SessionId, events: Vec<ClientEvent>) -> Result<EventsSent> {
        let path = self.path(&[session.as_str(), "events"]);
        self.transport.send_json(Call::post(&path), &SendEvents { events }).await
    }

    /// A page of the log.
    ///
    /// # Errors
    /// See [`super::Error`].
    pub async fn list_events(&self, session: &SessionId, query: &EventQuery) -> Result<Page<NumberedEvent>> {
        let path = self.path(&[session.as_str(), "events"]);
        let mut call = Call::get(&path)
            .maybe_query("limit", query.limit)
            .maybe_query("page", query.page.as_deref())
            .maybe_query("after_seq", query.after_seq);
        for kind in &query.types {
            call = call.query("types[]", kind);
        }
        if query.order == Order::Desc {
            call = call.query("order", "desc");
        }
        if query.include_seq {
            call = call.query("include_seq", true);
        }
        self.transport.send(call).await
    }

    /// Every event that `query` asks for, page by page.
    ///
    /// # Errors
    /// See [`super::Error`].
    pub async fn all_events(&self, session: &SessionId, mut query: EventQuery) -> Result<Vec<NumberedEvent>> {
        let mut events = Vec::new();
        loop {
            let page = self.list_events(session, &query).await?;
            events.extend(page.data);
            match page.next_page {
                Some(next) => query.page = Some(next),
                None => return Ok(events),
            }
        }
    }

    /// Events as they happen, across broken connections.
    #[must_use]
    pub fn stream_events(&self, session: &SessionId, options: StreamOptions) -> EventStream {
        super::sse::stream(self.clone(), session.clone(), options)
    }
}
