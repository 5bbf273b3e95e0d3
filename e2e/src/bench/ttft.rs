//! Time to first token: brain first, against a brain that waits for its hands, and against the pod that a brain is.

mod first_token;
mod tool_calls;

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use longhand_crds::{Agent, AgentSession};
use longhand_protocol::SessionId;

use self::first_token::overhead;
use self::tool_calls::Calls;
use super::{Figure, Goal, Report, Samples, bare_pod};
use crate::cluster::{Fixture, SessionOptions, TestNamespace, TestResult, coupled_image, wait_for};

const ROUNDS: usize = 30;
/// Messages to a harness that waits for the next one in its grace.
const MESSAGES: usize = 60;
const WARM: i32 = 2;
const DEADLINE: Duration = Duration::from_secs(120);
/// The goals of the issue that asked for them.
const WARM_P50_MS: f64 = 15.0;
const WARM_P95_MS: f64 = 40.0;
const COLD_TO_POD: f64 = 1.15;
const P50_TO_COUPLED: f64 = 0.2;
const P95_TO_COUPLED: f64 = 0.05;
const CALL_P50_MS: f64 = 5.0;

const SCRIPT: &str = r#"
rules:
  - when: {user_contains: tool, turn: 0}
    then: {text: "Let me see.", tool_uses: [{name: bash, input: {command: "echo seen"}}]}
  - then: {text: "Here is the answer."}
"#;

const METHOD: &str = "From the request `POST events`, on a connection of a port-forward that is open, to the first `event_delta` at an SSE client, less the time from request to first token \
    by the clock of the scripted model, which answers without delay. 30 rounds, one at a time, of which each is: a new session without \
    a harness (cold); a new session of an agent with two warm harnesses (warm); a new session of the coupled harness; and a bare pod of the \
    cold harness's shape (the spec of such a pod, whose harness finds no service, without owner and labels), from the create request to \
    Ready in a watch. A third of the messages have a tool called. Coupled: the same harness binary in one image with the sandbox's tools, \
    which clones a repository of 50 MB (from a bare repository in the image, which is kind to it: no network) before the harness starts. \
    All images are on the node. In its grace: 60 messages in turn to one session whose harness waits for the next. Per tool call: 60 calls of \
    `bash` with `echo seen` in turn on a sandbox that is ready, from `agent.tool_use` to `agent.tool_result` in the log; beyond the tool: \
    less the time from the beginning of the call to its result by the clock of `sandboxd`, in which the shell and the command start and end.";

struct Rounds {
    cold: Vec<f64>,
    warm: Vec<f64>,
    coupled: Vec<f64>,
    bare: Vec<f64>,
}

/// Runs it in `namespace`.
///
/// # Errors
/// When a session does not answer within two minutes.
pub async fn run(namespace: &TestNamespace) -> TestResult<Report> {
    let fixture = Fixture::install(namespace, SCRIPT, 3_600).await?;
    let image = coupled_image();
    let coupled = format!("harness: {{image: '{image}', resources: {{limits: {{memory: 512Mi}}}}}}");
    agent(&fixture, "coupled", &coupled).await?;
    agent(&fixture, "warm", &format!("warm: {WARM}")).await?;
    // One of each is not counted: it fills the caches of the node.
    for name in ["agent", "warm", "coupled"] {
        new_session(&fixture, &format!("first-{name}"), name, "hello").await?;
    }
    let session = at_rest(&fixture).await?;
    let messages = in_grace(&fixture, &session).await?;
    let calls = tool_calls::measure(&fixture, &session).await?;
    let results = figures(rounds(&fixture).await?, &messages, &calls);
    Ok(Report { date: jiff::Timestamp::now().to_string(), method: METHOD.to_owned(), results })
}

/// An agent with tools, and `more` in its spec.
async fn agent(fixture: &Fixture, name: &str, more: &str) -> TestResult {
    let tools = "  system: You are a test.\n  tools: [{type: agent_toolset_20260401}]";
    fixture.agent(name, &format!("{tools}\n  {more}")).await
}

async fn new_session(fixture: &Fixture, name: &str, agent: &str, text: &str) -> TestResult<f64> {
    let options = SessionOptions { agent: agent.to_owned(), harness_idle_seconds: 0, ..SessionOptions::default() };
    let session = fixture.session(name, &options).await?;
    overhead(fixture, &session, 0, text).await
}

/// Waits until the pool is full again, so that a message finds what it is to measure.
async fn refilled(fixture: &Fixture) -> TestResult {
    wait_for(fixture.namespace.api::<Agent>(), "warm", "the pool is full", DEADLINE, |agent| {
        (agent?.status.as_ref()?.warm_ready >= WARM).then_some(())
    })
    .await
}

async fn rounds(fixture: &Fixture) -> TestResult<Rounds> {
    let shape = shape(fixture).await?;
    let mut rounds = Rounds { cold: Vec::new(), warm: Vec::new(), coupled: Vec::new(), bare: Vec::new() };
    for number in 0..ROUNDS {
        let text = format!("{} number {number}.", if number % 3 == 0 { "use a tool" } else { "just answer" });
        refilled(fixture).await?;
        rounds.cold.push(new_session(fixture, &format!("cold-{number}"), "agent", &format!("cold: {text}")).await?);
        rounds.bare.push(bare_pod::ready_after(&fixture.namespace, &shape, &format!("bare-{number}")).await?);
        rounds.warm.push(new_session(fixture, &format!("warm-{number}"), "warm", &format!("warm: {text}")).await?);
        let coupled =
            new_session(fixture, &format!("coupled-{number}"), "coupled", &format!("coupled: {text}")).await?;
        rounds.coupled.push(coupled);
        for kind in ["cold", "warm", "coupled"] {
            let sessions = fixture.namespace.api::<AgentSession>();
            sessions.delete(&format!("{kind}-{number}"), &DeleteParams::background()).await?;
        }
        let last = |samples: &[f64]| samples.last().copied().unwrap_or(f64::NAN);
        tracing::info!(
            number,
            cold = last(&rounds.cold),
            bare = last(&rounds.bare),
            warm = last(&rounds.warm),
            coupled,
            "time to first token, ms"
        );
    }
    Ok(rounds)
}

/// A cold harness's pod whose harness finds no service, so that it runs until it is deleted.
async fn shape(fixture: &Fixture) -> TestResult<Pod> {
    let options = SessionOptions { harness_idle_seconds: 600, ..SessionOptions::saying(&["stay"]) };
    let session = fixture.session("shape", &options).await?;
    fixture.service.until_idle(&session, 0, DEADLINE).await?;
    let status = fixture.namespace.api::<AgentSession>().get("shape").await?.status;
    let name = status.and_then(|status| status.harness?.pod_name).ok_or("a session without a harness")?;
    let mut pod = fixture.namespace.api::<Pod>().get(&name).await?;
    let containers = pod.spec.iter_mut().flat_map(|spec| &mut spec.containers);
    for variable in containers.flat_map(|container| container.env.iter_mut().flatten()) {
        if variable.name == "LOG_URL" {
            variable.value = Some("http://127.0.0.1:9".to_owned());
        }
    }
    fixture.namespace.api::<AgentSession>().delete("shape", &DeleteParams::background()).await?;
    Ok(pod)
}

/// Overheads of messages, with a harness that is there.
async fn in_grace(fixture: &Fixture, session: &SessionId) -> TestResult<Vec<f64>> {
    let mut messages = Vec::with_capacity(MESSAGES);
    for number in 0..MESSAGES {
        let after = head(fixture, session).await?;
        messages.push(overhead(fixture, session, after, &format!("just answer number {number}.")).await?);
    }
    Ok(messages)
}

/// A session whose harness waits for the next message, and that has a sandbox.
async fn at_rest(fixture: &Fixture) -> TestResult<SessionId> {
    let options = SessionOptions { harness_idle_seconds: 600, ..SessionOptions::saying(&["use a tool"]) };
    let session = fixture.session("grace", &options).await?;
    fixture.service.until_idle(&session, 0, DEADLINE).await?;
    Ok(session)
}

/// The number of the last event.
async fn head(fixture: &Fixture, session: &SessionId) -> TestResult<u64> {
    Ok(fixture.service.log(session).await?.last().and_then(|event| event.seq).unwrap_or_default())
}

fn figures(rounds: Rounds, messages: &[f64], Calls { whole, beyond }: &Calls) -> Vec<Figure> {
    let Rounds { cold, warm, coupled, bare } = rounds;
    let alone = |ours: &[f64]| Samples { ours: ours.to_vec(), baseline: Vec::new() };
    let beside = |ours: &[f64], baseline: &[f64]| Samples { ours: ours.to_vec(), baseline: baseline.to_vec() };
    let figure = |metric: &str, samples: &Samples, percent: f64, goal: Goal| {
        Figure::percentile(&format!("{metric}, p{percent}"), "ms", samples, percent, goal)
    };
    let mut figures = Vec::new();
    let mut both = |metric: &str, samples: Samples, p50: Goal, p95: Goal| {
        figures.push(figure(metric, &samples, 50.0, p50));
        figures.push(figure(metric, &samples, 95.0, p95));
    };
    both("cold, beside coupled", beside(&cold, &coupled), Goal::Ratio(P50_TO_COUPLED), Goal::Ratio(P95_TO_COUPLED));
    both("warm, beside coupled", beside(&warm, &coupled), Goal::Ratio(P50_TO_COUPLED), Goal::Ratio(P95_TO_COUPLED));
    both("cold, beside a bare pod", beside(&cold, &bare), Goal::Ratio(COLD_TO_POD), Goal::None);
    both("warm", alone(&warm), Goal::Below(WARM_P50_MS), Goal::Below(WARM_P95_MS));
    both("in its grace", alone(messages), Goal::Below(WARM_P50_MS), Goal::Below(WARM_P95_MS));
    both("tool call on a ready sandbox", alone(whole), Goal::None, Goal::None);
    both("tool call, beyond the tool", alone(beyond), Goal::Below(CALL_P50_MS), Goal::None);
    figures
}
