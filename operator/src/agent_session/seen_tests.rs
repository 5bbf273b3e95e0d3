use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::agent_session::proxy_health::{Credentials, Proxies};
use crate::agent_session::reconcile;
use crate::agent_session::tests::{NoProxies, STATUS, known, pod, session, sessions, summary, written};
use crate::fixtures;
use crate::testing::{FakeLog, context};
use crate::vault::sightings::{Place, Seen, Sightings, State};
use crate::vault::{self, Vaults};

const VAULT_STATUS: &str = "/apis/longhand.dev/v1alpha1/namespaces/team/vaults/models/status";

/// Proxies that all say the same; who was asked.
struct Saying(Vec<Seen>, Arc<Mutex<Vec<String>>>);

#[async_trait]
impl Proxies for Saying {
    async fn credentials(&self, pod_ip: &str) -> Credentials {
        self.1.lock().unwrap().push(pod_ip.to_owned());
        Credentials::Reported(vec![], self.0.clone())
    }
}

fn seen(vault: &str, state: State) -> Seen {
    let place = Place { credential: "api-key".into(), secret: "model-key".into(), key: "token".into() };
    Seen { vault: vault.into(), place, state, answered_at: None }
}

fn running() -> Value {
    json!({ "phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [{ "name": "harness", "image": "", "imageID": "",
        "ready": true, "restartCount": 0, "state": { "running": {} } }] })
}

fn starting() -> Value {
    json!({ "phase": "Pending", "podIP": "10.0.0.1", "initContainerStatuses": [{ "name": "proxy", "image": "", "imageID": "",
        "ready": false, "started": false, "restartCount": 0, "state": { "running": { "startedAt": "1970-01-01T00:00:01Z" } } }] })
}

/// What reconciles of a session and then of its vault do: who was asked, and the vault's status if it was told.
async fn after(pod_status: &Value, wake: bool, said: Vec<Seen>) -> (Vec<String>, Option<Value>) {
    let log = Arc::new(FakeLog { summary: Some(summary(Some("pod-1"), wake)), ..FakeLog::default() });
    let (mut sessions, server) = sessions(log, false, vec![pod(pod_status)]);
    let (sightings, mut news) = Sightings::new();
    let (sightings, asked) = (Arc::new(sightings), Arc::new(Mutex::default()));
    let inner = Arc::get_mut(&mut sessions).unwrap();
    (inner.proxies, inner.sightings) = (Arc::new(Saying(said, Arc::clone(&asked))), sightings.clone());
    let server = server.expect([("PATCH", STATUS, 200, written())]);
    reconcile(session(Some(known(Some("pod-1")))), sessions.clone()).await.unwrap();
    server.nothing_else(sessions).await;
    let asked = asked.lock().unwrap().clone();
    let Some(name) = news.next().now_or_never().flatten() else { return (asked, None) };
    assert_eq!((name.namespace.as_deref(), name.name.as_str()), (Some("team"), "models"));
    assert!(news.next().now_or_never().flatten().is_none(), "it is told once");

    let (context, server) = context();
    let server = server.expect([("PATCH", VAULT_STATUS, 200, serde_json::to_value(fixtures::vault()).unwrap())]);
    let vaults = Arc::new(Vaults { context, sightings });
    vault::reconcile(Arc::new(fixtures::vault()), vaults.clone()).await.unwrap();
    let sent = server.nothing_else(vaults).await.remove(0);
    (asked, Some(sent["status"]["credentials"].clone()))
}

#[rstest]
#[case::while_its_pod_starts(starting(), true, State::Missing, "SecretMissing")]
#[case::while_it_works(running(), true, State::Usable, "Usable")]
#[case::at_the_end_of_work(running(), false, State::Refused, "RefusedUpstream")]
#[tokio::test]
async fn what_the_proxy_of_a_session_says_reaches_the_vault(
    #[case] pod_status: Value,
    #[case] wake: bool,
    #[case] state: State,
    #[case] reason: &str,
) {
    let (asked, credentials) = after(&pod_status, wake, vec![seen("models", state)]).await;
    assert_eq!(asked, ["10.0.0.1"], "once");
    let credentials = credentials.unwrap();
    assert_eq!(credentials[0]["name"], "api-key");
    let usable = &credentials[0]["conditions"][0];
    assert_eq!((usable["type"].as_str(), usable["reason"].as_str()), (Some("Usable"), Some(reason)));
    assert!(usable["message"].as_str().unwrap().contains("session quickstart"), "{usable}");
}

#[tokio::test]
async fn what_is_no_vault_is_told_nothing() {
    let (asked, told) = after(&running(), true, vec![seen("none", State::Missing)]).await;
    assert_eq!((asked.len(), told), (1, None));
}

#[rstest]
#[case::done(json!({ "phase": "Failed", "podIP": "10.0.0.1" }))]
#[case::on_its_way(json!({ "phase": "Pending", "podIP": "10.0.0.1" }))]
#[tokio::test]
async fn a_pod_that_does_not_run_is_not_asked(#[case] pod_status: Value) {
    let log = Arc::new(FakeLog { summary: Some(summary(Some("pod-1"), true)), ..FakeLog::default() });
    let (mut sessions, _server) = sessions(log, false, vec![pod(&pod_status)]);
    let asked = Arc::new(Mutex::default());
    Arc::get_mut(&mut sessions).unwrap().proxies = Arc::new(Saying(vec![], Arc::clone(&asked)));
    let session = session(Some(known(Some("pod-1"))));
    let observed = crate::agent_session::observe::observe(session, &sessions, Timestamp::now()).await.unwrap();
    let harness = observed.session.status.clone().unwrap().harness.unwrap();
    super::tell_vaults(&observed, &harness, true, &sessions, Timestamp::now()).await;
    assert!(asked.lock().unwrap().is_empty());
}

/// When a session whose pod runs is looked at again, if so many proxies may be asked.
async fn again(proxies: Arc<dyn Proxies>, at_once: usize) -> Option<Duration> {
    let log = Arc::new(FakeLog { summary: Some(summary(Some("pod-1"), false)), ..FakeLog::default() });
    let (mut sessions, _server) = sessions(log, false, vec![pod(&running())]);
    let inner = Arc::get_mut(&mut sessions).unwrap();
    (inner.proxies, inner.asking) = (proxies, Semaphore::new(at_once));
    let session = session(Some(known(Some("pod-1"))));
    let observed = crate::agent_session::observe::observe(session, &sessions, Timestamp::now()).await.unwrap();
    let harness = observed.session.status.clone().unwrap().harness.unwrap();
    super::tell_vaults(&observed, &harness, true, &sessions, Timestamp::now()).await
}

#[tokio::test]
async fn a_proxy_that_was_not_asked_or_said_nothing_is_asked_again() {
    let saying = || Arc::new(Saying(vec![], Arc::default()));
    assert_eq!(again(saying(), 1).await, None);
    assert_eq!(again(saying(), 0).await, Some(super::AGAIN));
    assert_eq!(again(Arc::new(NoProxies), 1).await, Some(super::AGAIN));
}
