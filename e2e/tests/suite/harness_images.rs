//! Two agents that differ in the harness image alone: the same session, and the same public events.

use std::collections::HashMap;
use std::time::Duration;

use longhand_crds::{Agent, AgentSession};
use longhand_e2e::cluster::log::{assert_sound, text};
use longhand_e2e::cluster::{
    Fixture, SessionOptions, TestResult, harness_python_image, in_namespace, session_manifest,
};
use longhand_protocol::SessionId;
use longhand_protocol::event::{EventBody, StopReason};
use longhand_protocol::wire::NumberedEvent;

const TURN: Duration = Duration::from_secs(120);

const SCRIPT: &str = r#"
rules:
  - when: {user_contains: count, turn: 0}
    then:
      thinking: It can be computed.
      text: I will run two programs.
      tool_uses:
        - {name: bash, input: {command: "echo $((6 * 7)) > answer; echo done"}}
        - {name: glob, input: {pattern: "*.none"}}
  - when: {user_contains: count, turn: 1}
    then:
      tool_uses: [{name: bash, input: {command: "cat answer"}}, {name: nonesuch, input: {}}]
  - when: {user_contains: count, turn: 2}
    then: {text: "The program says {{last_tool_result}}"}
  - when: {user_contains: busy, times: 1}
    then: {error: {status: 529, type: overloaded_error, message: "try again"}}
  - then: {text: "That is all."}
"#;

#[tokio::test]
async fn a_session_is_the_same_with_another_harness_image() {
    in_namespace("harness-images", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let image = harness_python_image();
        let mut other = serde_json::to_value(namespace.api::<Agent>().get("agent").await?)?;
        other["metadata"] = serde_json::json!({"name": "python"});
        other["spec"]["harness"] = serde_json::json!({ "image": image });
        if let Some(other) = other.as_object_mut() {
            other.remove("status");
        }
        namespace.apply(&serde_json::to_string(&other)?).await?;
        let built_in = played(&fixture, "built-in", "agent").await?;
        let python = played(&fixture, "python", "python").await?;
        assert_eq!(built_in, python);
        assert!(
            built_in.iter().any(|line| line.starts_with("agent.tool_result") && line.ends_with(" 42")),
            "{built_in:#?}"
        );
        assert_eq!(built_in.iter().filter(|line| line.starts_with("session.status_idle")).count(), 2);
        Ok(())
    })
    .await;
}

/// A whole session of this agent, of two turns, as clients see it.
async fn played(fixture: &Fixture, name: &str, agent: &str) -> TestResult<Vec<String>> {
    // Rules that count their uses begin anew.
    fixture.model.set_script(SCRIPT).await?;
    let manifest = session_manifest(name, &SessionOptions::saying(&["count, please"]));
    fixture
        .namespace
        .apply(&manifest.replace("agentRef: {name: agent}", &format!("agentRef: {{name: {agent}}}")))
        .await?;
    let session: SessionId = fixture.session_id(name).await?;
    fixture.service.until_idle(&session, 0, TURN).await?;
    let first = fixture.service.log(&session).await?.len() as u64;
    fixture.service.send(&session, "busy now?").await?;
    fixture.service.until_idle(&session, first, TURN).await?;
    let log = fixture.service.log(&session).await?;
    assert_sound(&log);
    let resource = fixture.namespace.api::<AgentSession>().get(name).await?;
    assert_eq!(resource.spec.agent_ref.name, agent);
    Ok(public(&log))
}

/// A line for each public event, without identifiers, times and numbers of tokens; results of parallel calls in the order of
/// the calls.
fn public(log: &[NumberedEvent]) -> Vec<String> {
    let mut calls = HashMap::new();
    let mut lines = Vec::new();
    let mut results: Vec<(usize, String)> = Vec::new();
    for event in log.iter().map(|event| &event.event).filter(|event| !event.body.is_extension()) {
        let kind = event.body.kind();
        let line = match &event.body {
            EventBody::UserMessage { .. } | EventBody::AgentMessage { .. } => {
                format!("{kind} {}", text(&event.body).trim())
            }
            EventBody::AgentToolUse { name, input, evaluated_permission, .. } => {
                calls.insert(&event.id, calls.len());
                format!("{kind} {name} {input} {evaluated_permission:?}")
            }
            EventBody::AgentToolResult { tool_use_id, is_error, .. } => {
                let call = calls.get(tool_use_id).copied().unwrap_or(usize::MAX);
                results.push((call, format!("{kind} {call} {is_error:?} {}", text(&event.body).trim())));
                continue;
            }
            EventBody::SessionStatusIdle { stop_reason: StopReason::RequiresAction { event_ids } } => {
                format!("{kind} requires_action {}", event_ids.len())
            }
            EventBody::SessionStatusIdle { stop_reason } => format!("{kind} {stop_reason:?}"),
            EventBody::SessionError { error } => format!("{kind} {:?} {:?}", error.kind, error.retry_status),
            _ => kind.to_owned(),
        };
        results.sort();
        lines.extend(results.drain(..).map(|(_, line)| line));
        lines.push(line);
    }
    lines
}
