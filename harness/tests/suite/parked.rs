//! A harness without a session of its own, against a session service and a model API on loopback.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::routing::{any, post};
use futures::StreamExt as _;
use longhand_harness::{Endpoints, Exit, Parked, ParkedConfig};
use longhand_protocol::SessionId;
use longhand_protocol::event::NewEvent;
use longhand_protocol::harness::{
    AppendRequest, AppendResponse, ClaimResponse, EventsPage, HarnessSession, IdleRequest, LeaseRequest, Offer,
    PromoteRequest,
};
use longhand_session_log::memory::MemoryStore;
use longhand_session_log::store::{Appended, Claimant, SessionMeta, SessionStore as _, StoreError, Takeover};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::model::{Model, Turn};
use crate::support::{self, agent, text};

/// Nothing here takes longer, except on a machine that is very busy.
const LIMIT: Duration = Duration::from_secs(60);

/// Written once: a file that is written again is empty for a moment.
static TOKEN_FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let file = std::env::temp_dir().join(format!("longhand-parked-test-{}", std::process::id()));
    std::fs::write(&file, "the-token\n").unwrap();
    file
});

struct World {
    store: MemoryStore,
    offers: Mutex<VecDeque<Result<Offer, u16>>>,
    news: Notify,
}

struct Run {
    world: Arc<World>,
    model: Arc<Model>,
    shutdown: CancellationToken,
    harness: JoinHandle<Exit>,
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap()
}

async fn start(sessions: u32, turns: impl IntoIterator<Item = Turn>) -> Run {
    let world = Arc::new(World { store: MemoryStore::default(), offers: Mutex::default(), news: Notify::new() });
    let router = Router::new()
        .route("/harness/v1/parked", post(park))
        .route("/harness/v1/sessions/{session}/{verb}", any(handle))
        .with_state(Arc::clone(&world));
    let log_url = support::model::listen(router).await;
    let (model, model_base_url) = support::model::serve(turns).await;
    let token_file = TOKEN_FILE.clone();
    let sessions = sessions.try_into().unwrap();
    let endpoints = Endpoints { log_url, log_ca: None, token_file, model_base_url, mcp_base_url: None };
    let parked = Parked::new(&ParkedConfig { sessions, endpoints }).unwrap();
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    let harness = tokio::spawn(async move { parked.run(&token).await });
    Run { world, model, shutdown, harness }
}

impl Run {
    /// A session with a message.
    async fn session(&self, name: &str, says: &str) -> SessionId {
        let id: SessionId = format!("sesn_{name}").parse().unwrap();
        let meta = SessionMeta {
            id: id.clone(),
            namespace: "ns".to_owned(),
            name: name.to_owned(),
            uid: name.to_owned(),
            agent: agent(),
            sandboxes: Vec::new(),
            harness_idle_seconds: 3_600,
            delivered_inputs: 0,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            thread_id: None,
            parent: None,
            retention: longhand_session_log::store::Retention::default(),
        };
        self.world.store.create(meta).await.unwrap();
        self.world.store.enqueue(&id, vec![NewEvent::from(text(says))]).await.unwrap();
        id
    }

    fn offer(&self, offer: Result<Offer, u16>) {
        self.world.offers.lock().unwrap().push_back(offer);
        self.world.news.notify_one();
    }

    fn offer_session(&self, session: &SessionId) {
        self.offer(Ok(Offer::Session { session: session.clone() }));
    }

    async fn until(&self, session: &SessionId, kind: &str) {
        let mut tail = self.world.store.tail(session, 0).await.unwrap();
        let found = async { while tail.next().await.unwrap().unwrap().event.body.kind() != kind {} };
        within(found).await;
    }

    async fn exit(self) -> Exit {
        within(self.harness).await.unwrap()
    }
}

fn answer(status: u16, body: &impl Serialize) -> Response {
    Response::builder().status(status).body(Body::from(serde_json::to_vec(body).unwrap())).unwrap()
}

async fn park(State(world): State<Arc<World>>) -> Response {
    loop {
        let next = world.offers.lock().unwrap().pop_front();
        match next {
            Some(Ok(offer)) => return answer(200, &offer),
            Some(Err(status)) => return answer(status, &json!({})),
            None => world.news.notified().await,
        }
    }
}

fn respond<T: Serialize>(result: Result<T, StoreError>) -> Response {
    match result {
        Ok(body) => answer(200, &body),
        Err(StoreError::Fenced { current, .. }) => {
            let details = json!({"conflict": "fenced", "epoch": current});
            answer(
                412,
                &json!({"type": "error", "error": {"type": "invalid_request_error", "message": "fenced", "details": details}}),
            )
        }
        Err(error) => answer(
            409,
            &json!({"type": "error", "error": {"type": "invalid_request_error", "message": error.to_string()}}),
        ),
    }
}

fn appended(appended: Appended) -> AppendResponse {
    AppendResponse { records: appended.records, head: appended.head }
}

async fn handle(
    State(world): State<Arc<World>>,
    Path((session, verb)): Path<(SessionId, String)>,
    Query(query): Query<HashMap<String, String>>,
    body: Bytes,
) -> Response {
    let store = &world.store;
    let number = |name: &str| query.get(name).map_or(0, |value| value.parse::<u64>().unwrap());
    match verb.as_str() {
        "claim" => respond(claim(store, &session).await),
        "lease" => {
            let LeaseRequest { epoch } = serde_json::from_slice(&body).unwrap();
            respond(store.renew(&session, epoch).await)
        }
        "events" => {
            let slice = store.read(&session, number("after"), 500).await;
            respond(slice.map(|slice| EventsPage {
                records: slice.records,
                head: slice.head,
                next: slice.next,
                inbox: None,
            }))
        }
        "inbox" => {
            let after = i64::try_from(number("after_revision")).unwrap();
            respond(store.wait_inbox(&session, after, Duration::from_secs(number("wait_seconds"))).await)
        }
        "append" => {
            let AppendRequest { epoch, expected_head, events } = serde_json::from_slice(&body).unwrap();
            respond(store.append(&session, epoch, expected_head, events).await.map(appended))
        }
        "promote" => {
            let PromoteRequest { epoch, expected_head, inbox, then } = serde_json::from_slice(&body).unwrap();
            respond(store.promote(&session, epoch, expected_head, &inbox, then).await.map(appended))
        }
        "idle" => {
            let IdleRequest { epoch, expected_head, wake_revision, events } = serde_json::from_slice(&body).unwrap();
            respond(store.idle(&session, epoch, expected_head, wake_revision, events).await.map(appended))
        }
        "deltas" => answer(200, &json!({})),
        other => panic!("the harness asked for {other}"),
    }
}

async fn claim(store: &MemoryStore, session: &SessionId) -> Result<ClaimResponse, StoreError> {
    let claimant = Claimant { pod_uid: "warm".to_owned(), pod_name: "warm".to_owned() };
    let (epoch, record) = store.claim(session, &claimant, Takeover::IfFree, Duration::from_secs(15)).await?;
    let session = HarnessSession {
        id: session.clone(),
        agent: agent(),
        sandboxes: Vec::new(),
        harness_idle_seconds: 3_600,
        limits: longhand_protocol::harness::Limits::default(),
        budget: None,
    };
    Ok(ClaimResponse { epoch, head: record.seq, lease_ttl_seconds: 1, session, tools: Vec::new(), since: None })
}

fn say(words: &str) -> Vec<Value> {
    vec![json!({"type": "text", "text": words})]
}

#[tokio::test]
async fn it_serves_one_session_after_another_and_keeps_nothing() {
    let run = start(1, [Turn::Say(say("one"), "end_turn"), Turn::Say(say("two"), "end_turn")]).await;
    let (first, second) = (run.session("first", "alpha").await, run.session("second", "beta").await);
    // The operator has not named the pod yet.
    run.offer(Err(403));
    run.offer_session(&first);
    run.until(&first, "session.status_idle").await;
    // At once, although the session's grace is an hour: it belongs to whoever is ready.
    run.offer(Ok(Offer::Nothing));
    run.offer_session(&second);
    run.until(&second, "session.status_idle").await;
    let bodies: Vec<String> = run.model.bodies().iter().map(ToString::to_string).collect();
    assert_eq!(bodies.len(), 2);
    assert!(bodies[1].contains("beta") && !bodies[1].contains("alpha"), "{}", bodies[1]);
    run.offer(Ok(Offer::Retire));
    let exit = run.exit().await;
    assert!(matches!(&exit, Exit::Done(reason) if reason.contains("not needed")), "{exit:?}");
}

#[tokio::test]
async fn it_serves_several_at_once_and_the_end_of_one_is_not_that_of_others() {
    let turns =
        [Turn::Wait(say("late"), "end_turn"), Turn::Say(say("soon"), "end_turn"), Turn::Say(say("x"), "end_turn")];
    let run = start(2, turns).await;
    let (slow, quick) = (run.session("slow", "alpha").await, run.session("quick", "beta").await);
    run.offer_session(&slow);
    within(run.model.hanging.notified()).await;
    run.offer_session(&quick);
    run.until(&quick, "session.status_idle").await;
    // Another brain takes the first one: its claim is over, and the process goes on.
    let claimant = Claimant { pod_uid: "other".to_owned(), pod_name: "other".to_owned() };
    run.world.store.claim(&slow, &claimant, Takeover::Always, LIMIT).await.unwrap();
    run.model.go_on.notify_one();
    let third = run.session("third", "gamma").await;
    run.offer_session(&third);
    run.until(&third, "session.status_idle").await;
    run.shutdown.cancel();
    let store = run.world.store.clone();
    assert!(matches!(run.exit().await, Exit::Done(_)));
    let records = store.read(&slow, 0, 500).await.unwrap().records;
    assert!(records.iter().all(|record| record.event.body.kind() != "agent.message"), "it was fenced");
}

#[tokio::test]
async fn it_ends_what_it_serves_before_it_goes() {
    let run = start(2, [Turn::Wait(say("late"), "end_turn")]).await;
    let session = run.session("one", "alpha").await;
    run.offer_session(&session);
    within(run.model.hanging.notified()).await;
    run.offer(Ok(Offer::Retire));
    tokio::task::yield_now().await;
    assert!(!run.harness.is_finished());
    run.model.go_on.notify_one();
    run.until(&session, "session.status_idle").await;
    assert!(matches!(run.exit().await, Exit::Done(_)));
}

#[tokio::test]
async fn one_that_is_never_named_fails() {
    let run = start(1, []).await;
    run.offer(Err(400));
    let exit = run.exit().await;
    assert!(matches!(&exit, Exit::Failed(reason) if reason.contains("no session can be had")), "{exit:?}");
}
