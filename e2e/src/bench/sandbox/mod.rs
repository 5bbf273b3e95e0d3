//! Sandboxes on a cluster: cold and from a pool, resumed, and a session's first tool call; against a bare pod of the same shape.

mod claims;

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use longhand_crds::{SandboxTemplate, labels};
use longhand_protocol::event::EventBody;
use serde_json::json;

use super::{Figure, Goal, Report, Samples, bare_pod};
use crate::cluster::{Fixture, SessionOptions, TestNamespace, TestResult, session_manifest, wait_for};

const ROUNDS: usize = 20;
const WARM: i32 = 2;
const DEADLINE: Duration = Duration::from_secs(120);
/// Written down in the issue that asked for it: a first call costs no more than the pod that it needs, and a quarter.
const GOAL: f64 = 1.25;

const SCRIPT: &str = r#"
rules:
  - when: {turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "echo seen"}}]}
  - then: {text: "Done."}
"#;

const METHOD: &str = "Each figure is of the stretch that it names, one after the other, each beside a bare pod where there is a baseline: the spec of \
    such a sandbox's own pod (image, containers, volumes, probes), without owner and labels, from the create request to the condition \
    Ready in a watch. Sandboxes: from the create request of the Sandbox to its condition Ready in a watch that is open before; 20 cold \
    ones, 30 from a pool of 3 that is full again each time, 5 times 10 at once from a pool of 10, and 10 that are resumed with the \
    workspace that was kept. First tool call: from the time at which `agent.tool_use` was in the log to the time at which \
    `agent.tool_result` was, of a session that has no sandbox yet, with the making of the Sandbox, the call through the service and the \
    run of `echo` in it; 20 times without a pool and 20 times from one.";

/// Runs it in `namespace`.
///
/// # Errors
/// When a call has no result, or a pod is not ready, within two minutes.
pub async fn run(namespace: &TestNamespace) -> TestResult<Report> {
    let mut results = claims::run(namespace).await?;
    results.extend(first_calls(namespace).await?);
    Ok(Report { date: jiff::Timestamp::now().to_string(), method: METHOD.to_owned(), results })
}

async fn first_calls(namespace: &TestNamespace) -> TestResult<Vec<Figure>> {
    let fixture = Fixture::install(namespace, SCRIPT, 3_600).await?;
    first_call(&fixture, "first").await?;
    let shape = bare_pod::shape(namespace, "first-").await?;
    let mut cold = Samples::default();
    for number in 0..ROUNDS {
        let name = format!("call-{number}");
        cold.ours.push(first_call(&fixture, &name).await?);
        remove_session(namespace, &name).await?;
        cold.baseline.push(bare_pod::ready_after(namespace, &shape, &format!("bare-{number}")).await?);
        tracing::info!(number, ours = cold.ours[number], bare = cold.baseline[number], "first call, ms");
    }
    let pool = Patch::Merge(json!({ "spec": { "warm": WARM } }));
    namespace.api::<SandboxTemplate>().patch("small", &PatchParams::default(), &pool).await?;
    let mut warm = Samples::default();
    for number in 0..ROUNDS {
        let what = "the pool is full";
        wait_for(namespace.api::<SandboxTemplate>(), "small", what, DEADLINE, |template| {
            (template?.status.as_ref()?.warm_ready == WARM).then_some(())
        })
        .await?;
        let name = format!("warm-{number}");
        warm.ours.push(first_call(&fixture, &name).await?);
        remove_session(namespace, &name).await?;
        tracing::info!(number, ours = warm.ours[number], "first call from a pool, ms");
    }
    Ok(vec![
        Figure::percentile("first tool call, p50", "ms", &cold, 50.0, Goal::Ratio(GOAL)),
        Figure::percentile("first tool call, p95", "ms", &cold, 95.0, Goal::None),
        Figure::percentile("first tool call from a pool, p50", "ms", &warm, 50.0, Goal::None),
        Figure::percentile("first tool call from a pool, p95", "ms", &warm, 95.0, Goal::None),
    ])
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
