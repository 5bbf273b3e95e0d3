//! What a brain asks of the session service.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::transport::{Call, DEADLINE, Transport};
use super::{Backoff, Result, Server, TokenSource};
use crate::egress::CredentialEvents;
use crate::event::Record;
use crate::harness::{
    AppendRequest, AppendResponse, ClaimRequest, ClaimResponse, DeltasRequest, EventsPage, ExecuteRequest,
    ExecuteResponse, IdleRequest, Inbox, LeaseRequest, Offer, ParkRequest, PromoteRequest,
};
use crate::id::SessionId;
use crate::provision::{ProvisionRequest, ProvisionResponse};
use crate::refresh::{RefreshAnswer, SentRefresh};
use crate::secret::SentValue;

/// A claim waits for the operator to name the pod.
const CLAIM_DEADLINE: Duration = Duration::from_secs(30);
/// How long one request for a tool's result, or for a sandbox, stays open before it is sent again.
const EXECUTE_POLL: Duration = Duration::from_secs(90);
/// A search for the newest record of a type ends after so many pages, of 8,192 records each.
const NEWEST_PAGES: usize = 8;
/// More than everything but the values takes in a request about a refresh.
const REFRESH_NAMES: usize = 4 * 1024;
/// A late preview helps nobody.
const DELTAS_DEADLINE: Duration = Duration::from_secs(2);

/// The harness API of a pod that belongs to no session.
#[derive(Clone, Debug)]
pub struct ParkedClient {
    transport: Transport,
}

impl ParkedClient {
    /// A client of the service at `server`.
    ///
    /// # Errors
    /// When the URL or the authorities of `server` cannot be used.
    pub fn new(server: impl Into<Server>, token: TokenSource) -> Result<Self> {
        Ok(Self { transport: Transport::new(server, token)? })
    }

    /// Waits up to `wait` (at most 30 s) for a session.
    ///
    /// # Errors
    /// 403 when the pod is not known as one that waits for sessions.
    pub async fn park(&self, wait: Duration) -> Result<Offer> {
        let path = ["harness", "v1", "parked"];
        let request = ParkRequest { wait_seconds: wait.as_secs().min(30) };
        self.transport.send_json(Call::post(&path).deadline(wait + DEADLINE), &request).await
    }

    /// The API of a session, over the same connections.
    #[must_use]
    pub fn session(&self, session: SessionId) -> HarnessClient {
        HarnessClient { transport: self.transport.clone(), session }
    }
}

/// The harness API of one session.
#[derive(Clone, Debug)]
pub struct HarnessClient {
    transport: Transport,
    session: SessionId,
}

impl HarnessClient {
    /// A client of the service at `server`.
    ///
    /// # Errors
    /// When the URL or the authorities of `server` cannot be used.
    pub fn new(server: impl Into<Server>, session: SessionId, token: TokenSource) -> Result<Self> {
        Ok(Self { transport: Transport::new(server, token)?, session })
    }

    /// The session.
    #[must_use]
    pub const fn session_id(&self) -> &SessionId {
        &self.session
    }

    fn path<'a>(&'a self, verb: &'a str) -> [&'a str; 5] {
        ["harness", "v1", "sessions", self.session.as_str(), verb]
    }

    /// Takes the session; the answer has what there is after the record `after`.
    ///
    /// # Errors
    /// 403 when another pod shall serve the session.
    pub async fn claim(&self, after: u64) -> Result<ClaimResponse> {
        let path = self.path("claim");
        let request = ClaimRequest { after: Some(after) };
        self.transport.send_json(Call::post(&path).deadline(CLAIM_DEADLINE), &request).await
    }

    /// Reports uses and refusals of credentials; once it returns, they are in the session's log.
    ///
    /// # Errors
    /// 403 when the token is not that of the session's proxy. A report that is repeated may be on record twice.
    pub async fn credential_events(&self, events: &CredentialEvents, deadline: Duration) -> Result<()> {
        let path = self.path("credential_events");
        self.transport.post_only(Call::post(&path).deadline(deadline), events).await
    }

    /// Asks or tells about a refresh of an OAuth access token; may be repeated.
    ///
    /// # Errors
    /// 403 when the credential is none of the session's, and 400 when the namespace does not let the service store tokens.
    pub async fn credential_refresh(&self, request: &SentRefresh<'_>, deadline: Duration) -> Result<RefreshAnswer> {
        let path = self.path("credential_refresh");
        let values = [request.access_token, request.refresh_token];
        let length = values.iter().flatten().map(SentValue::escaped_length).sum::<usize>() + REFRESH_NAMES;
        self.transport.send_secret(Call::post(&path).deadline(deadline), request, length).await
    }

    /// Keeps the claim alive.
    ///
    /// # Errors
    /// [`crate::harness::Conflict::Fenced`] when another epoch has claimed the session.
    pub async fn lease(&self, epoch: u64, deadline: Duration) -> Result<()> {
        let path = self.path("lease");
        self.transport.post_only(Call::post(&path).deadline(deadline), &LeaseRequest { epoch }).await
    }

    /// Records above `after`, at most `limit`.
    ///
    /// # Errors
    /// See [`super::Error`].
    pub async fn events(&self, after: u64, limit: usize) -> Result<EventsPage> {
        let path = self.path("events");
        self.transport.send(Call::get(&path).query("after", after).query("limit", limit)).await
    }

    /// Records above `after`, at most `limit`, and what is queued.
    ///
    /// # Errors
    /// See [`super::Error`].
    pub async fn events_and_inbox(&self, after: u64, limit: usize) -> Result<EventsPage> {
        let path = self.path("events");
        let call = Call::get(&path).query("after", after).query("limit", limit).query("inbox", true);
        self.transport.send(call).await
    }

    /// The newest record of this type, if the service finds it within as many pages as it may look through.
    ///
    /// # Errors
    /// See [`super::Error`].
    pub async fn newest(&self, kind: &str) -> Result<Option<Record>> {
        let path = self.path("events");
        let mut before = None;
        for _ in 0..NEWEST_PAGES {
            let call = Call::get(&path).query("types[]", kind).query("order", "desc").query("limit", 1);
            let page: EventsPage = self.transport.send(call.maybe_query("before", before)).await?;
            let record = page.records.into_iter().next();
            if record.is_some() || page.next.is_none() {
                return Ok(record);
            }
            before = page.next;
        }
        Ok(None)
    }

    /// What is queued now.
    ///
    /// # Errors
    /// See [`super::Error`].
    pub async fn inbox(&self) -> Result<Inbox> {
        let path = self.path("inbox");
        self.transport.send(Call::get(&path)).await
    }

    /// Waits up to `wait` (at most 30 s) for a wake key with a revision above `after_revision`.
    ///
    /// # Errors
    /// See [`super::Error`].
    pub async fn wait_inbox(&self, after_revision: i64, wait: Duration) -> Result<Inbox> {
        let path = self.path("inbox");
        let call = Call::get(&path)
            .query("wait_seconds", wait.as_secs().min(30))
            .query("after_revision", after_revision)
            .deadline(wait + DEADLINE);
        self.transport.send(call).await
    }

    /// Appends events. May be repeated with the same event identifiers.
    ///
    /// # Errors
    /// [`super::Error::Conflict`] when the session's epoch or the log's head has moved.
    pub async fn append(&self, request: &AppendRequest) -> Result<AppendResponse> {
        let path = self.path("append");
        self.transport.send_json(Call::post(&path), request).await
    }

    /// Moves queued events to the log. May be repeated with the same event identifiers.
    ///
    /// # Errors
    /// [`super::Error::Conflict`] when the epoch or the head has moved, or an event is no longer queued.
    pub async fn promote(&self, request: &PromoteRequest) -> Result<AppendResponse> {
        let path = self.path("promote");
        self.transport.send_json(Call::post(&path), request).await
    }

    /// Ends the turn and gives the session up.
    ///
    /// # Errors
    /// [`super::Error::Conflict`] when the epoch, the head or the wake key has moved.
    pub async fn idle(&self, request: &IdleRequest) -> Result<AppendResponse> {
        let path = self.path("idle");
        self.transport.send_json(Call::post(&path), request).await
    }

    /// Runs a tool call and waits for its result until `deadline`, across broken connections: a call runs at most once
    /// however often it is asked for.
    ///
    /// # Errors
    /// The last failure when the deadline passes, or one that a repetition would not change.
    pub async fn execute(&self, request: &ExecuteRequest, deadline: Instant) -> Result<ExecuteResponse> {
        self.until(deadline, "execute", request).await
    }

    /// Has a sandbox made and waits until it takes calls, or never will, until `deadline`.
    ///
    /// # Errors
    /// The last failure when the deadline passes, or one that a repetition would not change.
    pub async fn provision(&self, request: &ProvisionRequest, deadline: Instant) -> Result<ProvisionResponse> {
        self.until(deadline, "provision", request).await
    }

    /// Asks for what takes long and may be asked for again, until there is an answer.
    async fn until<T: DeserializeOwned>(
        &self,
        deadline: Instant,
        verb: &str,
        request: &(impl Serialize + Sync),
    ) -> Result<T> {
        let path = self.path(verb);
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let call = Call::post(&path).deadline(left.min(EXECUTE_POLL));
            let error = match self.transport.send_json(call, request).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let wait = error.retry_after().unwrap_or_else(|| backoff.step());
            if !error.is_retryable() || Instant::now() + wait >= deadline {
                return Err(error);
            }
            tracing::debug!(verb, %error, "asking again");
            tokio::time::sleep(wait).await;
        }
    }

    /// Shows previews to those who watch.
    ///
    /// # Errors
    /// See [`super::Error`]; previews are never repeated.
    pub async fn deltas(&self, request: &DeltasRequest) -> Result<()> {
        let path = self.path("deltas");
        self.transport.post_only(Call::post(&path).deadline(DELTAS_DEADLINE), request).await
    }

    /// Every record above `after`, in pages.
    ///
    /// # Errors
    /// See [`super::Error`].
    pub async fn all_events(&self, mut after: u64, limit: usize) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        loop {
            let page = self.events(after, limit).await?;
            let Some(last) = page.records.last() else { return Ok(records) };
            after = last.seq;
            records.extend(page.records);
            if after >= page.head {
                return Ok(records);
            }
        }
    }
}
