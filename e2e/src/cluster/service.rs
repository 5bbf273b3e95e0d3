//! The session service, as a client of the public API and as a harness reaches it.

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Client;
use kube::api::{Api, ListParams, PostParams};
use longhand_cli::backend::{Backend, is_ready};
use longhand_cli::port_forward::PortForward;
use longhand_protocol::SessionId;
use longhand_protocol::client::sse::{StreamItem, StreamOptions};
use longhand_protocol::client::wire::EventQuery;
use longhand_protocol::client::{HarnessClient, Server, TokenSource, WireClient};
use longhand_protocol::event::{ClientEvent, Event, EventBody};
use longhand_protocol::wire::NumberedEvent;

use super::log::{assert_sound, messages};
use super::namespace::TestNamespace;
use super::{SYSTEM_NAMESPACE, TestResult, eventually};

/// The audience of every token that the session service takes.
const AUDIENCE: &str = "longhand";
const PORT: u16 = 8080;
const SERVICE: &str = "longhand-session";

/// The session service over a port-forward, with a token for one namespace.
pub struct Service {
    forward: PortForward,
    /// How it is reached and known, for requests that no client of ours would make.
    pub server: Server,
    /// The public API, as the `longhand-cli` account of the test's namespace.
    pub wire: WireClient,
}

impl Service {
    /// Connects as the account `longhand-cli` of `namespace`.
    ///
    /// # Errors
    /// When there is no ready pod of the service, or no such account.
    pub async fn connect(namespace: &TestNamespace) -> TestResult<Self> {
        let pods = ready_pods(&namespace.client, 1).await?;
        let pod = pods.into_iter().next().ok_or("no pod of the session service is ready")?;
        Self::connect_to(namespace, pod).await
    }

    /// The same for each of `count` replicas, by the name of its pod.
    ///
    /// # Errors
    /// When there are not so many ready pods of the service within a minute, or there is no such account.
    pub async fn connect_to_each(namespace: &TestNamespace, count: usize) -> TestResult<Vec<(String, Self)>> {
        let mut services = Vec::with_capacity(count);
        for pod in ready_pods(&namespace.client, count).await? {
            services.push((pod.clone(), Self::connect_to(namespace, pod).await?));
        }
        Ok(services)
    }

    async fn connect_to(namespace: &TestNamespace, pod: String) -> TestResult<Self> {
        let pods: Api<Pod> = Api::namespaced(namespace.client.clone(), SYSTEM_NAMESPACE);
        let forward = PortForward::open(pods, pod, PORT).await?;
        let backend = Backend {
            client: namespace.client.clone(),
            namespace: SYSTEM_NAMESPACE.to_owned(),
            service: SERVICE.to_owned(),
        };
        let server = backend.server(forward.address()).await?;
        let token = token(namespace, "longhand-cli", None).await?;
        let wire = WireClient::new(server.clone(), TokenSource::fixed(token), None)?;
        Ok(Self { forward, server, wire })
    }

    /// The loopback address that leads to it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.forward.address()
    }

    /// The public API with another token.
    ///
    /// # Errors
    /// Never, since the first client was made the same way.
    pub fn wire_as(&self, token: &str) -> TestResult<WireClient> {
        Ok(WireClient::new(self.server.clone(), TokenSource::fixed(token), None)?)
    }

    /// The harness API with a token that is bound to `pod`, as its kubelet would mount it.
    ///
    /// # Errors
    /// When the API server makes no such token.
    pub async fn harness_as(
        &self,
        namespace: &TestNamespace,
        pod: &Pod,
        session: &SessionId,
    ) -> TestResult<HarnessClient> {
        let token = token(namespace, "default", Some(pod)).await?;
        Ok(HarnessClient::new(self.server.clone(), session.clone(), TokenSource::fixed(token))?)
    }

    /// Sends a user message.
    ///
    /// # Errors
    /// See [`longhand_protocol::client::Error`].
    pub async fn send(&self, session: &SessionId, text: &str) -> TestResult {
        let content = vec![serde_json::json!({ "type": "text", "text": text })];
        self.wire.send_events(session, vec![ClientEvent::UserMessage { content }]).await?;
        Ok(())
    }

    /// The whole log with our own events, from the first to the last.
    ///
    /// # Errors
    /// See [`longhand_protocol::client::Error`].
    pub async fn log(&self, session: &SessionId) -> TestResult<Vec<NumberedEvent>> {
        // Types without a prefix are shown as long as no filter is set, so the two halves are asked for apart.
        let public = EventQuery { include_seq: true, limit: Some(500), ..EventQuery::default() };
        let own = EventQuery { types: vec!["x.*".to_owned()], ..public.clone() };
        let mut events = self.wire.all_events(session, public).await?;
        events.extend(self.wire.all_events(session, own).await?);
        events.retain(|event| event.seq.is_some());
        events.sort_by_key(|event| event.seq);
        Ok(events)
    }

    /// Follows the log from after `seq` until `done` holds for an event, and returns what was seen on the way with the
    /// sequence numbers.
    ///
    /// # Errors
    /// When `deadline` passes, with the types of the events that were seen.
    pub async fn follow_numbered(
        &self,
        session: &SessionId,
        after_seq: u64,
        deadline: Duration,
        done: impl Fn(&Event) -> bool,
    ) -> TestResult<Vec<(Option<u64>, Event)>> {
        self.read_stream(session, after_seq, Vec::new(), deadline, done).await
    }

    /// As [`Self::follow_numbered`], without the numbers.
    ///
    /// # Errors
    /// When `deadline` passes, with the types of the events that were seen.
    pub async fn follow(
        &self,
        session: &SessionId,
        after_seq: u64,
        deadline: Duration,
        done: impl Fn(&Event) -> bool,
    ) -> TestResult<Vec<Event>> {
        let seen = self.follow_numbered(session, after_seq, deadline, done).await?;
        Ok(seen.into_iter().map(|(_, event)| event).collect())
    }

    /// Waits for the first of our own events of type `kind`.
    ///
    /// # Errors
    /// When `deadline` passes.
    pub async fn follow_all(&self, session: &SessionId, kind: &str, deadline: Duration) -> TestResult<Event> {
        let mut seen =
            self.read_stream(session, 0, vec![kind.to_owned()], deadline, |event| event.body.kind() == kind).await?;
        Ok(seen.pop().ok_or("the stream ended")?.1)
    }

    async fn read_stream(
        &self,
        session: &SessionId,
        after_seq: u64,
        types: Vec<String>,
        deadline: Duration,
        done: impl Fn(&Event) -> bool,
    ) -> TestResult<Vec<(Option<u64>, Event)>> {
        let options = StreamOptions { after_seq: Some(after_seq), types, ..StreamOptions::default() };
        let mut stream = self.wire.stream_events(session, options);
        let mut seen = Vec::new();
        let read = async {
            while let Some(item) = stream.next().await {
                if let StreamItem::Event { seq, event } = item? {
                    let last = done(&event);
                    seen.push((seq, *event));
                    if last {
                        return TestResult::Ok(());
                    }
                }
            }
            Err("the stream ended".into())
        };
        match tokio::time::timeout(deadline, read).await {
            Ok(outcome) => outcome.map(|()| seen),
            Err(_) => {
                let kinds: Vec<_> = seen.iter().map(|(_, event)| event.body.kind()).collect();
                Err(format!("not within {deadline:?}: the event of {session} that ends the wait; seen: {kinds:?}")
                    .into())
            }
        }
    }

    /// Follows the log from after `seq` until the session is idle, and returns what was seen on the way.
    ///
    /// # Errors
    /// When `deadline` passes.
    pub async fn until_idle(&self, session: &SessionId, after_seq: u64, deadline: Duration) -> TestResult<Vec<Event>> {
        self.follow(session, after_seq, deadline, |event| matches!(event.body, EventBody::SessionStatusIdle { .. }))
            .await
    }

    /// Waits until the session is idle after `seq`, and returns its whole log, which is sound, and what its agent said last.
    ///
    /// # Errors
    /// When `deadline` passes.
    ///
    /// # Panics
    /// When the log is not sound.
    pub async fn last_words(
        &self,
        session: &SessionId,
        after_seq: u64,
        deadline: Duration,
    ) -> TestResult<(Vec<NumberedEvent>, String)> {
        self.until_idle(session, after_seq, deadline).await?;
        let log = self.log(session).await?;
        assert_sound(&log);
        let said = messages(&log).pop().unwrap_or_default();
        Ok((log, said))
    }
}

/// The ready pods of the service, once there are `count` at least.
async fn ready_pods(client: &Client, count: usize) -> TestResult<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let labels = ListParams::default().labels("app.kubernetes.io/component=session");
    eventually("ready pods of the session service", Duration::from_secs(60), || async {
        let all = pods.list(&labels).await?.items;
        let ready: Vec<String> = all.iter().filter(|pod| is_ready(pod)).map(kube::ResourceExt::name_any).collect();
        Ok((ready.len() >= count).then_some(ready))
    })
    .await
}

/// A token of the service's audience for an account, bound to a pod if one is given.
///
/// # Errors
/// What the API server says.
pub async fn token(namespace: &TestNamespace, account: &str, pod: Option<&Pod>) -> TestResult<String> {
    let bound_object_ref = pod.map(|pod| BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
    });
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![AUDIENCE.to_owned()],
            bound_object_ref,
            expiration_seconds: Some(3_600),
        },
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = namespace.api();
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await?;
    Ok(answer.status.ok_or("the API server gave no token")?.token)
}
