//! A fake API server and a fake session service, which notice every call.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher;
use longhand_crds::watch_scope::WatchScope;
use longhand_protocol::SessionId;
use longhand_protocol::client::{ApiError, Error};
use longhand_protocol::error::{ErrorBody, ErrorType};
use longhand_protocol::internal::{
    DrainSandbox, Drained, Handoff, SessionList, SessionRef, SessionSummary, SettleHandoff,
};
use serde_json::Value;
use tokio::task::JoinHandle;
use tower_test::mock::Handle;

use crate::config::{Fencing, Images, Tracing, WayOut};
use crate::context::Context;
use crate::events::Events;
use crate::injection::Injection;
use crate::log_service::LogService;
use crate::nodes::Nodes;

const DEADLINE: Duration = Duration::from_secs(5);

/// A call that the API server shall get, and its answer: method, path, status, body.
pub(crate) type Call<'a> = (&'a str, &'a str, u16, Value);

pub(crate) fn images() -> Images {
    Images {
        harness: "longhand/harness:test".into(),
        proxy: "longhand/proxy:test".into(),
        sandbox: "longhand/sandbox:test".into(),
        sandboxd: "longhand/sandboxd:test".into(),
        injection: Some(Injection::ImageVolume),
        pull_policy: "IfNotPresent".into(),
    }
}

pub(crate) fn fencing() -> Fencing {
    Fencing { require: true, canaries: "api=tcp://10.96.0.1:443,kubelet=tcp://$(SANDBOXD_HOST_IP):10250".into() }
}

pub(crate) fn context() -> (Arc<Context>, Server) {
    context_with(Arc::new(FakeLog::default()))
}

pub(crate) fn context_with(log: Arc<FakeLog>) -> (Arc<Context>, Server) {
    let (service, handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let client = Client::new(service, "default");
    let context = Context {
        events: Events::new(client.clone(), "operator-0"),
        nodes: Nodes::new(client.clone()),
        client,
        log,
        scope: WatchScope::default(),
        namespace: "longhand-system".into(),
        session_url: "http://longhand-session.longhand-system.svc:8080".into(),
        session_ca: None,
        images: images(),
        fencing: fencing(),
        way_out: WayOut::default(),
        tracing: Tracing::default(),
        default_model: None,
    };
    (Arc::new(context), Server(handle))
}

/// The API server's end of a client.
pub(crate) struct Server(Handle<Request<Body>, Response<Body>>);

/// A server that answers a list of calls in order.
pub(crate) struct Expecting(JoinHandle<(Server, Vec<Value>)>);

impl Server {
    pub(crate) fn expect<'a>(self, calls: impl IntoIterator<Item = Call<'a>>) -> Expecting {
        let calls: Vec<(String, u16, Value)> =
            calls.into_iter().map(|(method, path, status, body)| (format!("{method} {path}"), status, body)).collect();
        Expecting(tokio::spawn(self.serve(calls)))
    }

    async fn serve(mut self, calls: Vec<(String, u16, Value)>) -> (Self, Vec<Value>) {
        let mut bodies = Vec::new();
        for (expected, status, body) in calls {
            let next = tokio::time::timeout(DEADLINE, self.0.next_request()).await;
            let (request, answer) = next.unwrap_or_else(|_| panic!("no {expected}")).unwrap();
            assert_eq!(format!("{} {}", request.method(), request.uri().path()), expected);
            let sent = request.into_body().collect().await.unwrap().to_bytes();
            bodies.push(serde_json::from_slice(&sent).unwrap_or(Value::Null));
            let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
            answer.send_response(response.body(Body::from(serde_json::to_vec(&body).unwrap())).unwrap());
        }
        (self, bodies)
    }
}

impl Expecting {
    /// Asserts that every expected call was made and, once `holders` of the client are gone, no other; returns what was
    /// sent.
    pub(crate) async fn nothing_else<T>(self, holders: T) -> Vec<Value> {
        let (mut server, bodies) = self.0.await.unwrap();
        drop(holders);
        let next = tokio::time::timeout(DEADLINE, server.0.next_request()).await.expect("the client is still in use");
        assert!(next.is_none(), "an unexpected call: {:?}", next.map(|(request, _)| request.uri().to_string()));
        bodies
    }
}

/// A session service that says what it is told to.
#[derive(Default)]
pub(crate) struct FakeLog {
    pub(crate) summary: Option<SessionSummary>,
    pub(crate) logs: Vec<SessionRef>,
    pub(crate) drained: Option<Drained>,
    pub(crate) handoff: Option<Handoff>,
    /// A log that cannot be deleted, and the status of the answer that says so.
    pub(crate) refused: Option<(SessionId, u16)>,
    pub(crate) made: Mutex<Vec<&'static str>>,
}

impl FakeLog {
    pub(crate) fn calls(&self) -> Vec<&'static str> {
        self.made.lock().unwrap().clone()
    }

    fn answer<T: Clone>(&self, call: &'static str, answer: Option<&T>) -> Result<T, Error> {
        self.made.lock().unwrap().push(call);
        answer.cloned().ok_or_else(|| failure(call, 503))
    }
}

fn failure(call: &str, status: u16) -> Error {
    Error::Api(Box::new(ApiError {
        call: call.to_owned(),
        status: StatusCode::from_u16(status).unwrap(),
        body: ErrorBody { kind: ErrorType::ApiError, message: "not now".into(), details: None },
        request_id: None,
        retry_after: None,
    }))
}

#[async_trait]
impl LogService for FakeLog {
    async fn ensure(&self, _: &str, _: &str, _: &str) -> Result<SessionSummary, Error> {
        self.answer("ensure", self.summary.as_ref())
    }

    async fn summary(&self, _: &str, _: &str) -> Result<SessionSummary, Error> {
        self.answer("summary", self.summary.as_ref())
    }

    async fn list(&self, after: Option<&SessionId>, _: usize) -> Result<SessionList, Error> {
        let sessions = if after.is_some() { Vec::new() } else { self.logs.clone() };
        self.answer("list", Some(&SessionList { sessions }))
    }

    async fn delete(&self, session: &SessionId) -> Result<(), Error> {
        self.answer("delete", Some(&()))?;
        match &self.refused {
            Some((refused, status)) if refused == session => Err(failure("delete", *status)),
            _ => Ok(()),
        }
    }

    async fn drain(&self, _: &str, _: &str, _: &DrainSandbox) -> Result<Drained, Error> {
        self.answer("drain", self.drained.as_ref())
    }

    async fn settle_handoff(&self, _: &str, _: &str, _: &SettleHandoff) -> Result<Handoff, Error> {
        self.answer("settle_handoff", self.handoff.as_ref())
    }
}

/// A store that holds these objects, as after a first list.
pub(crate) fn store<K>(objects: impl IntoIterator<Item = K>) -> Store<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + 'static,
{
    let (store, mut writer) = reflector::store();
    writer.apply_watcher_event(&watcher::Event::Init);
    for object in objects {
        writer.apply_watcher_event(&watcher::Event::InitApply(object));
    }
    writer.apply_watcher_event(&watcher::Event::InitDone);
    // The store stays ready as long as its writer lives.
    std::mem::forget(writer);
    store
}
