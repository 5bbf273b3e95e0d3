//! A session service over a store in memory, which can be told to misbehave.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{Method, Uri};
use axum::response::Response;
use longhand_protocol::Record;
use longhand_protocol::error::{ErrorEnvelope, ErrorType};
use longhand_protocol::event::{ClientEvent, EventBody, NewEvent, Preview};
use longhand_protocol::harness::{
    AppendRequest, AppendResponse, ClaimRequest, ClaimResponse, Conflict, DeltasRequest, EventsPage, ExecuteRequest,
    ExecuteResponse, HarnessSession, IdleRequest, LeaseRequest, PromoteRequest, Since,
};
use longhand_protocol::wire::Order;
use longhand_session_log::memory::MemoryStore;
use longhand_session_log::store::{Appended, CallState, Claimant, FinishFrom, SessionStore as _, StoreError, Takeover};
use serde::Serialize;
use serde_json::json;
use tokio::sync::Notify;

use super::session_id;

/// How the service misbehaves.
#[derive(Default)]
pub(crate) struct Faults {
    /// Every change of the log is made, and answered with 503 the first time that it is asked for.
    pub(crate) lose_answers: bool,
    /// Events that come in just before the next `idle`.
    pub(crate) before_idle: Vec<ClientEvent>,
    /// The next `idle` is made, and answered with 503 only when the claim has been found to be over.
    pub(crate) late_idle: bool,
    /// Tool calls end by an interrupt only.
    pub(crate) hang_tools: bool,
    /// Bodies that were answered with 503 once.
    lost: Vec<Bytes>,
}

pub(crate) struct Service {
    pub(crate) store: MemoryStore,
    pub(crate) session: HarnessSession,
    pub(crate) faults: Mutex<Faults>,
    pub(crate) previews: Mutex<Vec<Preview>>,
    /// What was asked for, in order, but for renewals of the claim and previews.
    pub(crate) asked: Mutex<Vec<String>>,
    /// How many records were given out.
    pub(crate) read: Mutex<usize>,
    /// How often each tool call has run.
    pub(crate) runs: Mutex<HashMap<String, u32>>,
    /// Told when a claim is not renewed.
    not_renewed: Notify,
    /// Told when a tool call is asked for.
    pub(crate) executing: Notify,
}

/// Serves the store until the test ends; gives the base URL.
pub(crate) async fn serve_session(store: MemoryStore, session: HarnessSession) -> (Arc<Service>, String) {
    let service = Arc::new(Service {
        store,
        session,
        faults: Mutex::default(),
        previews: Mutex::default(),
        asked: Mutex::default(),
        runs: Mutex::default(),
        read: Mutex::default(),
        not_renewed: Notify::new(),
        executing: Notify::new(),
    });
    let base = super::model::listen(Router::new().fallback(handle).with_state(Arc::clone(&service))).await;
    (service, base)
}

fn answer(status: u16, body: &impl Serialize) -> Response {
    Response::builder().status(status).body(Body::from(serde_json::to_vec(body).unwrap())).unwrap()
}

fn refusal(error: &StoreError) -> Response {
    let (status, conflict) = match error {
        StoreError::Fenced { current, .. } => (412, Some(Conflict::Fenced { epoch: *current })),
        StoreError::ClaimLost { epoch } => (412, Some(Conflict::Fenced { epoch: *epoch })),
        StoreError::HeadMoved { head } => (409, Some(Conflict::HeadMoved { head: *head })),
        StoreError::WakeMoved => (409, Some(Conflict::WakeMoved)),
        StoreError::NotQueued(_) => (409, Some(Conflict::NotQueued)),
        StoreError::NotFound(_) => (404, None),
        _ => (400, None),
    };
    let details = conflict.map(|conflict| serde_json::to_value(conflict).unwrap());
    answer(status, &ErrorEnvelope::new(ErrorType::InvalidRequestError, error.to_string(), details))
}

fn respond<T: Serialize>(result: Result<T, StoreError>) -> Response {
    match result {
        Ok(body) => answer(200, &body),
        Err(error) => refusal(&error),
    }
}

fn appended(appended: Appended) -> AppendResponse {
    AppendResponse { records: appended.records, head: appended.head }
}

async fn handle(
    State(service): State<Arc<Service>>,
    method: Method,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
    body: Bytes,
) -> Response {
    let path = uri.path().to_owned();
    let prefix = format!("/harness/v1/sessions/{}/", session_id());
    let verb = path.strip_prefix(&prefix).unwrap();
    let number = |name: &str| query.get(name).map_or(0, |value| value.parse::<u64>().unwrap());
    if !matches!(verb, "lease" | "deltas") {
        service.asked.lock().unwrap().push(verb.to_owned());
    }
    let response = match (method.as_str(), verb) {
        ("POST", "claim") => respond(service.claim(&serde_json::from_slice(&body).unwrap()).await),
        ("POST", "lease") => {
            let LeaseRequest { epoch } = serde_json::from_slice(&body).unwrap();
            respond(service.store.renew(&session_id(), epoch).await)
        }
        ("GET", "events") => {
            let limit = usize::try_from(number("limit")).unwrap();
            let wanted = longhand_session_log::store::Query {
                after: number("after"),
                before: query.get("before").map(|before| before.parse().unwrap()),
                order: if query.get("order").is_some_and(|order| order == "desc") { Order::Desc } else { Order::Asc },
                types: query.get("types[]").cloned().into_iter().collect(),
                ..longhand_session_log::store::Query::after(0, limit)
            };
            let slice = service.store.slice(&session_id(), &wanted).await;
            *service.read.lock().unwrap() += slice.as_ref().map_or(0, |slice| slice.records.len());
            let inbox = match query.get("inbox") {
                Some(_) => service.store.inbox(&session_id()).await.ok(),
                None => None,
            };
            respond(slice.map(|slice| EventsPage { records: slice.records, head: slice.head, next: slice.next, inbox }))
        }
        ("GET", "inbox") => {
            let (after, wait) = (i64::try_from(number("after_revision")).unwrap(), number("wait_seconds"));
            respond(service.store.wait_inbox(&session_id(), after, Duration::from_secs(wait)).await)
        }
        ("POST", "append") => {
            let AppendRequest { epoch, expected_head, events } = serde_json::from_slice(&body).unwrap();
            respond(service.store.append(&session_id(), epoch, expected_head, events).await.map(appended))
        }
        ("POST", "promote") => {
            let PromoteRequest { epoch, expected_head, inbox, then } = serde_json::from_slice(&body).unwrap();
            respond(service.store.promote(&session_id(), epoch, expected_head, &inbox, then).await.map(appended))
        }
        ("POST", "idle") => respond(service.idle(serde_json::from_slice(&body).unwrap()).await.map(appended)),
        ("POST", "execute") => service.execute(&serde_json::from_slice(&body).unwrap()).await,
        ("POST", "deltas") => {
            let DeltasRequest { frames, .. } = serde_json::from_slice(&body).unwrap();
            service.previews.lock().unwrap().extend(frames);
            answer(200, &json!({}))
        }
        other => panic!("the harness asked for {other:?}"),
    };
    if verb == "lease" && !response.status().is_success() {
        service.not_renewed.notify_one();
    }
    if verb == "idle" && std::mem::take(&mut service.faults.lock().unwrap().late_idle) {
        service.not_renewed.notified().await;
        return answer(503, &json!({}));
    }
    if matches!(verb, "append" | "promote" | "idle") && service.loses_answer(&body) {
        return answer(503, &json!({}));
    }
    response
}

impl Service {
    fn loses_answer(&self, body: &Bytes) -> bool {
        let mut faults = self.faults.lock().unwrap();
        let lose = faults.lose_answers && !faults.lost.contains(body);
        if lose {
            faults.lost.push(body.clone());
        }
        lose
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<ClaimResponse, StoreError> {
        let claimant = Claimant { pod_uid: "pod".to_owned(), pod_name: "pod".to_owned() };
        let ttl = Duration::from_secs(5);
        let (epoch, record) = self.store.claim(&session_id(), &claimant, Takeover::Always, ttl).await?;
        let since = match request.after {
            // More is read in pages, or from a checkpoint.
            Some(after) if record.seq - after <= 500 => {
                let records = self.store.read(&session_id(), after, 500).await?.records;
                *self.read.lock().unwrap() += records.len();
                Some(Since { records, inbox: self.store.inbox(&session_id()).await? })
            }
            _ => None,
        };
        Ok(ClaimResponse {
            epoch,
            head: record.seq,
            lease_ttl_seconds: 1,
            session: self.session.clone(),
            tools: vec![],
            since,
        })
    }

    async fn idle(&self, request: IdleRequest) -> Result<Appended, StoreError> {
        let events = std::mem::take(&mut self.faults.lock().unwrap().before_idle);
        if !events.is_empty() {
            super::send(&self.store, events);
        }
        let IdleRequest { epoch, expected_head, wake_revision, events } = request;
        self.store.idle(&session_id(), epoch, expected_head, wake_revision, events).await
    }

    async fn execute(&self, request: &ExecuteRequest) -> Response {
        self.executing.notify_one();
        let hang = self.faults.lock().unwrap().hang_tools;
        let call = &request.tool_use_id;
        let interrupted = |record: &Record| matches!(record.event.body, EventBody::UserInterrupt { .. });
        if hang && !super::log(&self.store).iter().any(interrupted) {
            return std::future::pending().await;
        }
        if matches!(self.store.call(&session_id(), call).await, Ok(CallState::Open)) {
            *self.runs.lock().unwrap().entry(call.to_string()).or_default() += 1;
            let result = result(call, if hang { "half of it" } else { "done" });
            self.store.finish_call(&session_id(), call, &FinishFrom::Open, vec![result]).await.unwrap();
        }
        let found = super::log(&self.store).into_iter().find(
            |record| matches!(&record.event.body, EventBody::AgentToolResult { tool_use_id, .. } if tool_use_id == call),
        );
        match found {
            Some(record) => answer(200, &ExecuteResponse { record }),
            None => refusal(&StoreError::NotFound(session_id())),
        }
    }
}

pub(crate) fn result(call: &longhand_protocol::EventId, text: &str) -> NewEvent {
    NewEvent::new(EventBody::AgentToolResult {
        tool_use_id: call.clone(),
        content: Some(vec![json!({"type": "text", "text": text})]),
        is_error: Some(false),
    })
}
