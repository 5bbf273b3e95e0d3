//! Two replicas of the session service: whatever one of them is sent, clients of the other see, and one may die.

use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use longhand_e2e::cluster::log::{assert_sound, messages};
use longhand_e2e::cluster::{
    Fixture, SYSTEM_NAMESPACE, Service, SessionOptions, TestNamespace, TestResult, in_namespace,
};
use longhand_protocol::SessionId;
use longhand_protocol::client::sse::{StreamItem, StreamOptions};
use longhand_protocol::event::EventBody;
use serde_json::json;

const SCRIPT: &str = r#"
rules:
  - when: {}
    then: {text: "one two three four five six seven eight nine ten", delay_per_token_ms: 300}
"#;
const PATIENCE: Duration = Duration::from_secs(90);

/// The service has so many replicas.
async fn scale(namespace: &TestNamespace, replicas: usize) -> TestResult {
    let deployments: Api<Deployment> = Api::namespaced(namespace.client.clone(), SYSTEM_NAMESPACE);
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    deployments.patch_scale("longhand-session", &PatchParams::default(), &patch).await?;
    super::available(namespace, "session").await
}

/// How many previews a client of this replica sees from now on until the session is idle.
async fn previews(service: &Service, session: &SessionId) -> TestResult<usize> {
    let options = StreamOptions { previews: true, patience: PATIENCE, ..StreamOptions::default() };
    let mut stream = service.wire.stream_events(session, options);
    let count = async {
        let mut count = 0;
        while let Some(item) = stream.next().await {
            match item? {
                StreamItem::Preview(_) => count += 1,
                StreamItem::Event { event, .. } if matches!(event.body, EventBody::SessionStatusIdle { .. }) => {
                    return TestResult::Ok(count);
                }
                StreamItem::Event { .. } => {}
            }
        }
        Err("the stream ended before the session was idle".into())
    };
    tokio::time::timeout(PATIENCE, count).await?
}

async fn serve_together(namespace: &TestNamespace) -> TestResult {
    let fixture = Fixture::install(namespace, SCRIPT, 60).await?;
    let services = Service::connect_to_each(namespace, 2).await?;
    let [(first_pod, first), (_, second)] = services.as_slice() else { return Err("more than two replicas".into()) };
    let options = SessionOptions { sandbox: false, harness_idle_seconds: 60, ..SessionOptions::default() };
    let session = fixture.session("shared", &options).await?;

    // The harness shows what it writes to one of them, whichever that is.
    let (at_first, at_second, sent) =
        tokio::join!(previews(first, &session), previews(second, &session), first.send(&session, "count"));
    sent?;
    let (at_first, at_second) = (at_first?, at_second?);
    assert!(at_first > 1 && at_second > 1, "previews at the two replicas: {at_first} and {at_second}");

    let die = async {
        let head = second.log(&session).await?.last().and_then(|event| event.seq).unwrap_or_default();
        second.send(&session, "again").await?;
        second.follow(&session, head, PATIENCE, |event| event.body.kind() == "span.model_request_start").await?;
        let pods: Api<Pod> = Api::namespaced(namespace.client.clone(), SYSTEM_NAMESPACE);
        pods.delete(first_pod, &DeleteParams::default().grace_period(0)).await?;
        TestResult::Ok(())
    };
    let (seen, died) = tokio::join!(previews(second, &session), die);
    died?;
    seen?;
    let log = second.log(&session).await?;
    assert_sound(&log);
    assert_eq!(messages(&log).len(), 2, "{:?}", messages(&log));
    Ok(())
}

/// Scales the service to two replicas and back.
pub(crate) async fn serve() {
    in_namespace("two-replicas", |namespace| async move {
        scale(&namespace, 2).await?;
        let outcome = serve_together(&namespace).await;
        scale(&namespace, 1).await?;
        outcome
    })
    .await;
}
