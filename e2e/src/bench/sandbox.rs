//! The first tool call of a session, against a bare pod of the same shape.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams};
use longhand_crds::labels;
use longhand_protocol::event::EventBody;

use super::{Figure, Goal, Report, Samples, bare_pod};
use crate::cluster::{Fixture, SessionOptions, TestNamespace, TestResult, session_manifest};

const ROUNDS: usize = 20;
const DEADLINE: Duration = Duration::from_secs(120);
/// Written down in the issue that asked for it: a first call costs no more than the pod that it needs, and a quarter.
const GOAL: f64 = 1.25;

const SCRIPT: &str = r#"
rules:
  - when: {turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "echo seen"}}]}
  - then: {text: "Done."}
"#;

const METHOD: &str = "20 rounds, a first call and a bare pod in turn. The call: from the time at which `agent.tool_use` was in the log \
    to the time at which `agent.tool_result` was, of a session that has no sandbox yet. The bare pod: the spec of that \
    very sandbox's pod (image, containers, volumes, probes), without owner and labels, from the create request to the \
    condition Ready in a watch.";

/// Runs it in `namespace`.
///
/// # Errors
/// When a call has no result, or a pod is not ready, within two minutes.
pub async fn run(namespace: &TestNamespace) -> TestResult<Report> {
    let fixture = Fixture::install(namespace, SCRIPT, 3_600).await?;
    first_call(&fixture, "warm-up").await?;
    let pods = namespace.api::<Pod>();
    let selector = ListParams::default().labels(&format!("{}={}", labels::ROLE, labels::SANDBOX));
    let shape = pods.list(&selector).await?.items.pop().ok_or("there is no sandbox pod")?;
    let mut samples = Samples::default();
    for number in 0..ROUNDS {
        let name = format!("call-{number}");
        samples.ours.push(first_call(&fixture, &name).await?);
        remove_session(namespace, &name).await?;
        samples.baseline.push(bare_pod::ready_after(namespace, &shape, &format!("bare-{number}")).await?);
        tracing::info!(number, ours = samples.ours[number], bare = samples.baseline[number], "first call, ms");
    }
    let results = vec![
        Figure::percentile("first tool call, p50", "ms", &samples, 50.0, Goal::Ratio(GOAL)),
        Figure::percentile("first tool call, p95", "ms", &samples, 95.0, Goal::None),
    ];
    Ok(Report { date: jiff::Timestamp::now().to_string(), method: METHOD.to_owned(), results })
}

async fn first_call(fixture: &Fixture, name: &str) -> TestResult<f64> {
    let options = SessionOptions { harness_idle_seconds: 0, ..SessionOptions::saying(&["go"]) };
    fixture.namespace.apply(&session_manifest(name, &options)).await?;
    let session = fixture.session_id(name).await?;
    fixture.service.until_idle(&session, 0, DEADLINE).await?;
    let log = fixture.service.log(&session).await?;
    let at = |wanted: fn(&EventBody) -> bool| {
        log.iter().find(|event| wanted(&event.event.body)).and_then(|event| event.event.processed_at)
    };
    let called = at(|body| matches!(body, EventBody::AgentToolUse { .. })).ok_or("no tool was called")?;
    let answered = at(|body| matches!(body, EventBody::AgentToolResult { .. })).ok_or("the call has no result")?;
    Ok(answered.duration_since(called).as_secs_f64() * 1_000.0)
}

/// The node has room for few pods at once; a session that was measured makes room.
async fn remove_session(namespace: &TestNamespace, name: &str) -> TestResult {
    namespace.api::<longhand_crds::AgentSession>().delete(name, &DeleteParams::background()).await?;
    let pods = namespace.api::<Pod>();
    crate::cluster::eventually("the measured session's pods are gone", DEADLINE, || async {
        let left = pods.list(&ListParams::default().labels(labels::ROLE)).await?.items;
        Ok(left.iter().all(|pod| !pod.name_any().starts_with(name)).then_some(()))
    })
    .await
}
