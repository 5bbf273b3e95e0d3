//! Time to first token: brain first, against a brain that waits for its hands.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use longhand_crds::Agent;
use longhand_protocol::SessionId;
use longhand_protocol::client::sse::{StreamItem, StreamOptions};
use longhand_protocol::event::{EventBody, Preview};

use super::{Figure, Goal, Report, Samples};
use crate::cluster::{Fixture, SessionOptions, TestNamespace, TestResult, session_manifest, wait_for};

const SESSIONS: usize = 30;
const DEADLINE: Duration = Duration::from_secs(120);
/// The harness in one image with the sandbox's tools and a repository of 50 MB, which it clones before it starts.
const COUPLED_IMAGE_VARIABLE: &str = "BENCH_COUPLED_IMAGE";
const DEFAULT_COUPLED_IMAGE: &str = concat!("longhand/coupled:", env!("CARGO_PKG_VERSION"));

const SCRIPT: &str = r#"
rules:
  - when: {user_contains: tool, turn: 0}
    then: {text: "Let me see.", tool_uses: [{name: bash, input: {command: "echo seen"}}]}
  - then: {text: "Here is the answer."}
"#;

const METHOD: &str = "30 sessions each, decoupled and coupled in turn, one at a time, a third of which use a tool. Measured from the \
    answer to `POST events` to the first `event_delta` at an SSE client; no harness is running before, and the scripted model \
    answers without delay. Decoupled: the built-in harness. Coupled: the same harness binary in one image with the sandbox's \
    tools, which clones a repository of 50 MB (from a bare repository in the image, which is kind to it: no network) before \
    the harness starts. Both images are on the node. A ready harness: the same sessions, then, of an agent that keeps two pods ready, \
    which serve up to 16 sessions each.";

/// Runs it in `namespace`.
///
/// # Errors
/// When a session does not answer within two minutes.
pub async fn run(namespace: &TestNamespace) -> TestResult<Report> {
    let fixture = Fixture::install(namespace, SCRIPT, 5).await?;
    let image = std::env::var(COUPLED_IMAGE_VARIABLE).unwrap_or_else(|_| DEFAULT_COUPLED_IMAGE.to_owned());
    let coupled = format!(
        "apiVersion: longhand.dev/v1alpha1\nkind: Agent\nmetadata: {{name: coupled}}\nspec:\n  model: {{id: scripted-1, baseURL: 'http://scripted-model.{}.svc', credential: {{vault: model, name: api-key}}}}\n  system: You are a test.\n  tools: [{{type: agent_toolset_20260401}}]\n  harness: {{image: '{image}', resources: {{limits: {{memory: 512Mi}}}}}}\n",
        namespace.name
    );
    namespace.apply(&coupled).await?;
    let ready = format!(
        "apiVersion: longhand.dev/v1alpha1\nkind: Agent\nmetadata: {{name: ready}}\nspec:\n  model: {{id: scripted-1, baseURL: 'http://scripted-model.{}.svc', credential: {{vault: model, name: api-key}}}}\n  system: You are a test.\n  tools: [{{type: agent_toolset_20260401}}]\n  warm: 2\n  harness: {{sessionsPerPod: 16}}\n",
        namespace.name
    );
    namespace.apply(&ready).await?;
    // One of each is not counted: it fills the caches of the node.
    first_token(&fixture, "warm-up-decoupled", "agent", "hello").await?;
    first_token(&fixture, "warm-up-coupled", "coupled", "hello").await?;
    let mut samples = Samples::default();
    for number in 0..SESSIONS {
        let text = if number % 3 == 0 { "use a tool" } else { "just answer" };
        samples.ours.push(first_token(&fixture, &format!("decoupled-{number}"), "agent", text).await?);
        samples.baseline.push(first_token(&fixture, &format!("coupled-{number}"), "coupled", text).await?);
        tracing::info!(
            number,
            ours = samples.ours[number],
            coupled = samples.baseline[number],
            "time to first token, ms"
        );
    }
    wait_for(namespace.api::<Agent>(), "ready", "status.warmReady is 2", DEADLINE, |agent| {
        (agent?.status.as_ref()?.warm_ready == 2).then_some(())
    })
    .await?;
    first_token(&fixture, "warm-up-ready", "ready", "hello").await?;
    let mut at_once = Samples::default();
    for number in 0..SESSIONS {
        let text = if number % 3 == 0 { "use a tool" } else { "just answer" };
        at_once.ours.push(first_token(&fixture, &format!("ready-{number}"), "ready", text).await?);
        tracing::info!(number, ready = at_once.ours[number], "time to first token, ms");
    }
    let results = vec![
        Figure::percentile("time to first token, p50", "ms", &samples, 50.0, Goal::None),
        Figure::percentile("time to first token, p95", "ms", &samples, 95.0, Goal::None),
        Figure::percentile("time to first token of a ready harness, p50", "ms", &at_once, 50.0, Goal::Below(15.0)),
        Figure::percentile("time to first token of a ready harness, p95", "ms", &at_once, 95.0, Goal::Below(40.0)),
    ];
    Ok(Report { date: jiff::Timestamp::now().to_string(), method: METHOD.to_owned(), results })
}

/// Milliseconds from an accepted message to the first token, of a new session. Returns when the session is idle.
async fn first_token(fixture: &Fixture, name: &str, agent: &str, text: &str) -> TestResult<f64> {
    let options = SessionOptions { harness_idle_seconds: 0, ..SessionOptions::default() };
    let manifest = session_manifest(name, &options).replace("{name: agent}", &format!("{{name: {agent}}}"));
    fixture.namespace.apply(&manifest).await?;
    let session: SessionId = fixture.session_id(name).await?;
    let options = StreamOptions { after_seq: Some(0), previews: true, ..StreamOptions::default() };
    let mut stream = fixture.service.wire.stream_events(&session, options);
    fixture.service.send(&session, text).await?;
    let accepted = Instant::now();
    let mut first = None;
    let read = async {
        while let Some(item) = stream.next().await {
            match item? {
                StreamItem::Preview(Preview::EventDelta { .. }) => {
                    first.get_or_insert_with(|| accepted.elapsed());
                }
                StreamItem::Event { event, .. } if matches!(event.body, EventBody::SessionStatusIdle { .. }) => break,
                StreamItem::Preview(_) | StreamItem::Event { .. } => {}
            }
        }
        TestResult::Ok(())
    };
    tokio::time::timeout(DEADLINE, read).await.map_err(|_| format!("{name} did not answer within {DEADLINE:?}"))??;
    let first = first.ok_or_else(|| format!("{name} went idle without a token"))?;
    Ok(first.as_secs_f64() * 1_000.0)
}
