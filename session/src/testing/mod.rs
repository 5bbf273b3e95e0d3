//! What the tests share: a service in this process over a store in memory and a cluster of make-believe.

pub(crate) mod cluster;
pub(crate) mod hands;
pub(crate) mod objects;
mod sessions;
mod vaults;
mod work;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, BodyDataStream};
use futures::StreamExt as _;
use http::{HeaderMap, Request, StatusCode};
use jiff::Timestamp;
use longhand_crds::agent::CredentialRef;
use longhand_crds::default_model::DefaultModel;
use longhand_crds::derived_session_id;
use longhand_protocol::event::{ClientEvent, EventBody, NewEvent, Permission};
use longhand_protocol::harness::{AgentSnapshot, Model};
use longhand_protocol::{EventId, SessionId};
use longhand_sandbox::client::SandboxClient;
use longhand_sandbox::token::Signer;
use longhand_session_log::SessionStore as _;
use longhand_session_log::files::Files;
use longhand_session_log::memory::MemoryStore;
use longhand_session_log::requests::MemoryRequests;
use longhand_session_log::store::{Claimant, SessionMeta, Takeover};
use longhand_session_log::work::{MemoryWork, Work};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use self::cluster::FakeCluster;
use crate::app::{App, Kinds, Settings, Waits};
use crate::auth::{Auth, WorkerTokens};
use crate::config::Accounts;
use crate::execute::sandboxes::SandboxIndex;
use crate::execute::{Egress, Executor, Hosted, Limits};
use crate::jobs::config::KeepDeleted;
use crate::limits::Rates;
use crate::ports::Ports;
use crate::ports::pass::Passes;
use crate::quota::SizeLimits;

/// Nothing in a test takes longer.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// How often a stream on which nothing happens says that it is there.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);

pub(crate) fn meta(namespace: &str, name: &str, uid: &str) -> SessionMeta {
    SessionMeta {
        id: derived_session_id(uid),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        agent: AgentSnapshot {
            name: "helper".to_owned(),
            version: 1,
            model: Model {
                id: "m".to_owned(),
                max_tokens: 100,
                api_version: "2023-06-01".to_owned(),
                ..Model::default()
            },
            ..AgentSnapshot::default()
        },
        sandboxes: vec!["default".to_owned()],
        harness_idle_seconds: 30,
        delivered_inputs: 0,
        created_at: Timestamp::now(),
        thread_id: None,
        parent: None,
        retention: longhand_session_log::store::Retention::default(),
    }
}

pub(crate) fn say(text: &str) -> Value {
    json!({"type": "user.message", "content": [{"type": "text", "text": text}]})
}

pub(crate) fn message(text: &str) -> EventBody {
    EventBody::AgentMessage { content: vec![json!({"type": "text", "text": text})] }
}

pub(crate) fn limits(provisioning: Duration, tool: Duration) -> Limits {
    Limits { provisioning, tool, arrival: Duration::from_millis(500), namespace_sandboxes: 0 }
}

/// Nobody is asked to wait.
pub(crate) const UNLIMITED: Rates = Rates {
    requests_per_second: 0,
    request_burst: 0,
    session_events_per_second: 0,
    namespace_events_per_second: 0,
    idempotency_keys_per_second: 0,
    namespace_open_streams: 0,
};

/// A service, and everything around it.
pub(crate) struct World {
    pub(crate) store: MemoryStore,
    pub(crate) requests: MemoryRequests,
    pub(crate) files: Files,
    pub(crate) cluster: Arc<FakeCluster>,
    pub(crate) executor: Arc<Executor>,
    pub(crate) signer: Signer,
    pub(crate) stop: CancellationToken,
    pub(crate) app: App,
    sizes: SizeLimits,
    sandboxes: Arc<SandboxIndex>,
    router: Router,
}

/// What replicas share.
struct Shared {
    store: MemoryStore,
    requests: MemoryRequests,
    files: Files,
    work: Work,
    cluster: Arc<FakeCluster>,
    sandboxes: Arc<SandboxIndex>,
    signer: Signer,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn message(&self) -> &str {
        self.body["error"]["message"].as_str().unwrap_or_default()
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(limits(Duration::from_secs(10), Duration::from_secs(10)))
    }

    pub(crate) fn with(limits: Limits) -> Self {
        Self::with_rates(limits, UNLIMITED)
    }

    pub(crate) fn with_rates(limits: Limits, rates: Rates) -> Self {
        Self::bounded(limits, rates, SizeLimits::NONE)
    }

    /// Sessions and namespaces may hold so much.
    pub(crate) fn sized(sizes: SizeLimits) -> Self {
        Self::bounded(limits(Duration::from_secs(10), Duration::from_secs(10)), UNLIMITED, sizes)
    }

    fn bounded(limits: Limits, rates: Rates, sizes: SizeLimits) -> Self {
        let (cluster, seen) = FakeCluster::new();
        let sandboxes = Arc::new(SandboxIndex::default());
        let index = Arc::clone(&sandboxes);
        // Ends with the cluster, which holds the other end.
        tokio::spawn(async move { index.follow(seen).await });
        let (signer, _) = Signer::generate().unwrap();
        let work = Work::new(Arc::new(MemoryWork::default()));
        let store = MemoryStore::bounded(longhand_session_log::DEFAULT_INBOX_LIMIT, sizes.caps());
        let (requests, files, cluster) = (MemoryRequests::default(), Files::in_memory(), Arc::new(cluster));
        let shared = Shared { store, requests, files, work, cluster, sandboxes, signer };
        Self::assemble(shared, limits, rates, sizes)
    }

    /// Another replica of the same service.
    pub(crate) fn replica(&self) -> Self {
        let limits = limits(Duration::from_secs(10), Duration::from_secs(10));
        let shared = Shared {
            store: self.store.clone(),
            requests: self.requests.clone(),
            files: self.files.clone(),
            work: self.executor.hosted.work.clone(),
            cluster: self.cluster.clone(),
            sandboxes: Arc::clone(&self.sandboxes),
            signer: self.signer.clone(),
        };
        Self::assemble(shared, limits, UNLIMITED, self.sizes)
    }

    fn assemble(shared: Shared, limits: Limits, rates: Rates, sizes: SizeLimits) -> Self {
        let Shared { store, requests, files, work, cluster, sandboxes, signer } = shared;
        let executor = Executor::new(
            Arc::new(store.clone()),
            cluster.clone(),
            Arc::clone(&sandboxes),
            Hosted::new(work, cluster.clone(), cluster.clone()),
            SandboxClient::new(signer.clone()),
            limits,
        );
        let executor = executor.with_egress(Egress::new(&cluster, signer.clone())).with_files(files.clone());
        let executor = Arc::new(executor);
        let stop = CancellationToken::new();
        let waits = Waits {
            claim: Duration::from_millis(500),
            execute: Duration::from_millis(500),
            heartbeat: HEARTBEAT,
            recheck: Duration::from_millis(100),
            deletion: KeepDeleted::default(),
        };
        let accounts = Accounts {
            operator: "longhand-system:longhand-operator".parse().unwrap(),
            replicas: "longhand-system:longhand-session".parse().unwrap(),
            watch_namespaces: Vec::new(),
        };
        let default_model = DefaultModel {
            base_url: "http://model.test".to_owned(),
            credential: CredentialRef { vault: "models".to_owned(), name: "api-key".to_owned() },
        };
        let app = App::new(
            Arc::new(store.clone()),
            Arc::new(requests.clone()),
            files.clone(),
            Kinds::of(&cluster),
            Auth::new(cluster.clone(), WorkerTokens::new(signer.clone()).unwrap()),
            Arc::clone(&executor),
            &Settings { accounts, rates, sizes, default_model: Some(default_model), waits },
            Some(Ports { domain: "https://ports.test".parse().unwrap(), passes: Passes::new(signer.clone()).unwrap() }),
            stop.clone(),
        );
        let router = app.clone().router();
        Self { store, requests, files, cluster, executor, signer, stop, app, sizes, sandboxes, router }
    }

    async fn send(&self, request: Request<Body>) -> http::Response<Body> {
        timeout(SOON, self.router.clone().oneshot(request)).await.expect("an answer in time").unwrap()
    }

    pub(crate) async fn call(&self, method: &str, path: &str, token: &str, body: &Value) -> Answer {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        self.raw(method, path, &[("authorization", &format!("Bearer {token}"))], body).await
    }

    pub(crate) async fn raw(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.send(request.body(body).unwrap()).await;
        let (parts, body) = response.into_parts();
        let bytes = timeout(SOON, axum::body::to_bytes(body, usize::MAX)).await.unwrap().unwrap();
        let body: Value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&bytes)));
        let id = parts.headers.get("request-id").expect("every answer has an identifier").to_str().unwrap();
        if !parts.status.is_success() {
            assert_eq!(body["type"], "error");
            assert_eq!(body["request_id"], id);
        }
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// An answer that need not be JSON.
    pub(crate) async fn text(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(path).header("host", "longhand.test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.send(request.body(body).unwrap()).await;
        let status = response.status().as_u16();
        let bytes = timeout(SOON, axum::body::to_bytes(response.into_body(), usize::MAX)).await.unwrap().unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    pub(crate) async fn stream(&self, path: &str, token: &str, headers: &[(&str, &str)]) -> Frames {
        let mut request = Request::get(path).header("authorization", format!("Bearer {token}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.stream_of(request.body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn stream_of(&self, request: Request<Body>) -> Frames {
        let response = self.send(request).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Frames { body: response.into_body().into_data_stream(), text: String::new(), retry: None }
    }

    /// A session with its resource, of which `pod` is the harness.
    pub(crate) async fn session(&self, name: &str, pod: &str) -> SessionId {
        let uid = format!("uid-{name}");
        self.cluster.add_session("team-a", name, &uid);
        self.cluster.name_harness("team-a", name, Some(pod));
        let meta = meta("team-a", name, &uid);
        let id = meta.id.clone();
        self.store.create(meta).await.unwrap();
        id
    }

    /// A session that is claimed, with a tool call in its log; the epoch and the call.
    pub(crate) async fn session_with_call(&self, name: &str, tool: &str, input: Value) -> (SessionId, u64, EventId) {
        let id = self.session(name, "pod-1").await;
        let epoch = self.claim(&id, "pod-1").await;
        let call = self.tool_use(&id, epoch, tool, input).await;
        (id, epoch, call)
    }

    pub(crate) async fn claim(&self, id: &SessionId, pod: &str) -> u64 {
        let claimant = Claimant { pod_uid: pod.to_owned(), pod_name: pod.to_owned() };
        self.store.claim(id, &claimant, Takeover::Always, Duration::from_secs(15)).await.unwrap().0
    }

    pub(crate) async fn tool_use(&self, id: &SessionId, epoch: u64, tool: &str, input: Value) -> EventId {
        self.tool_use_with(id, epoch, tool, input, Permission::Allow).await
    }

    pub(crate) async fn tool_use_with(
        &self,
        id: &SessionId,
        epoch: u64,
        tool: &str,
        input: Value,
        evaluated_permission: Permission,
    ) -> EventId {
        let event = NewEvent::new(EventBody::AgentToolUse {
            name: tool.to_owned(),
            input,
            evaluated_permission,
            sandbox: None,
        });
        let call = event.id.clone();
        let head = self.store.state(id).await.unwrap().head;
        self.store.append(id, epoch, head, vec![event]).await.unwrap();
        call
    }

    /// A client's event, sent and taken up.
    pub(crate) async fn taken_up(&self, id: &SessionId, epoch: u64, event: ClientEvent) {
        let event = NewEvent::from(event);
        self.store.enqueue(id, vec![event.clone()]).await.unwrap();
        let head = self.store.state(id).await.unwrap().head;
        self.store.promote(id, epoch, head, &[event.id], Vec::new()).await.unwrap();
    }

    /// The types in the log, in order.
    pub(crate) async fn kinds(&self, id: &SessionId) -> Vec<String> {
        let records = self.store.read(id, 0, usize::MAX).await.unwrap().records;
        records.into_iter().map(|record| record.event.body.kind().to_owned()).collect()
    }
}

/// The frames of an event stream.
pub(crate) struct Frames {
    body: BodyDataStream,
    text: String,
    /// After how many milliseconds the server wants to be asked again.
    pub(crate) retry: Option<u64>,
}

/// One frame.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    pub(crate) id: Option<u64>,
    pub(crate) data: Value,
}

impl Frame {
    pub(crate) fn kind(&self) -> &str {
        self.data["type"].as_str().unwrap()
    }
}

impl Frames {
    /// The next frame that is not a comment; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, rest)) = self.text.split_once("\n\n") {
                let (frame, rest) = (frame.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| {
                    frame.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
                };
                let Some(data) = field("data:") else { continue };
                if field("event:").as_deref() == Some("ping") {
                    self.retry = field("retry:").map(|retry| retry.parse().unwrap());
                    continue;
                }
                assert_eq!(field("event:").as_deref(), Some("message"), "{frame}");
                let id = field("id:").map(|id| id.parse().unwrap());
                return Some(Frame { id, data: serde_json::from_str(&data).unwrap() });
            }
            let chunk = self.chunk().await?;
            self.text.push_str(&chunk);
        }
    }

    /// The next bytes as they come, of which a comment consists too; `None` at the end.
    pub(crate) async fn chunk(&mut self) -> Option<String> {
        let chunk = timeout(SOON, self.body.next()).await.expect("a chunk in time")?.unwrap();
        Some(std::str::from_utf8(&chunk).unwrap().to_owned())
    }

    pub(crate) async fn take(&mut self, count: usize) -> Vec<Frame> {
        let mut frames = Vec::new();
        while frames.len() < count {
            frames.push(self.next().await.expect("another frame"));
        }
        frames
    }
}
