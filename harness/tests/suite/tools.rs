//! Which sandbox a call is for, and calls of which nobody knows how they ended.

use longhand_harness::core::{Effect, Input, Moved, Next};
use longhand_harness::model::Reply;
use longhand_protocol::EventId;
use longhand_protocol::event::{EventBody, NewEvent, StopReason, Verdict};
use longhand_protocol::harness::HarnessSession;
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::brain::{Brain, body, idle};
use crate::support::{interrupt, session};

/// A brain whose model has just been asked, what it was asked, and that it waits for the answer.
fn asked(sandboxes: &[&str]) -> (Brain, Value) {
    let sandboxes = sandboxes.iter().map(|name| (*name).to_owned()).collect();
    let mut brain = Brain::new(HarnessSession { sandboxes, ..session() });
    brain.user("go");
    brain.push(EventBody::SessionStatusRunning {});
    let next = brain.wake();
    let next = brain.appended(next).1;
    let request = body(&next).0.clone();
    (brain, request)
}

fn calls(inputs: &[Value]) -> Input {
    let call =
        |(index, input)| json!({"type": "tool_use", "id": format!("toolu_{index}"), "name": "bash", "input": input});
    let content = inputs.iter().enumerate().map(call).collect();
    Input::Model(Ok(Reply { content, stop_reason: Some("tool_use".to_owned()), ..Reply::default() }))
}

#[test]
fn the_model_chooses_among_several_sandboxes() {
    let (mut brain, request) = asked(&["main", "build"]);
    let bash = request["tools"].as_array().unwrap().iter().find(|tool| tool["name"] == "bash").unwrap();
    assert_eq!(bash["input_schema"]["properties"]["sandbox"]["enum"], json!(["main", "build"]));
    let custom = request["tools"].as_array().unwrap().iter().find(|tool| tool["name"] == "ask").unwrap();
    assert_eq!(custom["input_schema"], json!({"type": "object"}), "the client's tools are not asked for it");
    let inputs = [json!({"n": 1, "sandbox": "build"}), json!({"n": 2}), json!({"n": 3, "sandbox": "nowhere"})];
    let next = brain.input(calls(&inputs));
    brain.appended(next);
    let made: Vec<(Value, Option<String>)> = brain
        .log
        .iter()
        .filter_map(|record| match &record.event.body {
            EventBody::AgentToolUse { input, sandbox, .. } => Some((input.clone(), sandbox.clone())),
            _ => None,
        })
        .collect();
    let chosen = |name: &str| Some(name.to_owned());
    let expected = [(json!({"n": 1}), chosen("build")), (json!({"n": 2}), None), (json!({"n": 3}), chosen("nowhere"))];
    assert_eq!(made, expected, "the service says that there is no such sandbox");
    let raw = brain.log.iter().find_map(|record| match &record.event.body {
        EventBody::ModelResponse { content, .. } => Some(content[0]["input"].clone()),
        _ => None,
    });
    assert_eq!(raw.as_ref(), Some(&inputs[0]), "what the model has said stays as it was");
}

#[test]
fn with_one_sandbox_there_is_nothing_to_choose() {
    let (mut brain, request) = asked(&["main"]);
    assert!(!request["tools"].to_string().contains("sandbox\":"), "{}", request["tools"]);
    let next = brain.input(calls(&[json!({"sandbox": "main"})]));
    brain.appended(next);
    let kept = brain.log.iter().any(|record| {
        matches!(&record.event.body, EventBody::AgentToolUse { input, sandbox: None, .. } if input["sandbox"] == "main")
    });
    assert!(kept, "and the input is the tool's own");
}

/// What the brain does when it has read what came in since.
fn read(brain: &mut Brain) -> Next {
    let next = brain.input(Input::Moved(Moved::Head));
    let Next::Do(Effect::Read { after }) = next else { panic!("{next:?}") };
    let records = brain.log.iter().filter(|record| record.seq > after).cloned().collect();
    let head = brain.head();
    brain.input(Input::Records { records, head })
}

/// A brain that was told by the service that the client is asked about its call.
fn asked_about() -> (Brain, EventId) {
    let (mut brain, _) = asked(&["main"]);
    let next = brain.input(calls(&[json!({})]));
    let next = brain.appended(next).1;
    let Next::Do(Effect::Execute { calls }) = next else { panic!("{next:?}") };
    let call = calls[0].clone();
    brain.push(EventBody::ToolOutcomeAsked { tool_use_id: call.clone(), cause: "OOMKilled".to_owned() });
    brain.input(Input::Executed { abandoned: calls });
    let next = read(&mut brain);
    assert_eq!(idle(&next).0, StopReason::RequiresAction { event_ids: vec![call.clone()] });
    assert_eq!(idle(&brain.clone_of_log().wake()).0, StopReason::RequiresAction { event_ids: vec![call.clone()] });
    (brain, call)
}

#[rstest]
#[case(Verdict::Allow)]
#[case(Verdict::Deny)]
fn a_call_whose_outcome_is_unknown_waits_for_the_client(#[case] result: Verdict) {
    let (mut brain, call) = asked_about();
    brain.push(EventBody::UserToolConfirmation { tool_use_id: call.clone(), result, deny_message: None });
    let expected = Next::Do(Effect::Execute { calls: vec![call.clone()] });
    assert_eq!(read(&mut brain), expected, "the service knows what was said");
    assert_eq!(brain.clone_of_log().wake(), expected, "and so does another brain");
    // It may be lost again.
    brain.push(EventBody::ToolOutcomeAsked { tool_use_id: call.clone(), cause: "Evicted".to_owned() });
    assert_eq!(idle(&read(&mut brain)).0, StopReason::RequiresAction { event_ids: vec![call] });
}

#[test]
fn who_stops_the_turn_is_not_asked_any_more() {
    let (mut brain, call) = asked_about();
    brain.push(NewEvent::from(interrupt()).body);
    let mut other = brain.clone_of_log();
    assert_eq!(other.wake(), Next::Do(Effect::Stop { calls: vec![call.clone()] }));
    brain.push(crate::support::service::result(&call, "unknown").body);
    let mut other = brain.clone_of_log();
    assert_eq!(idle(&other.wake()).0, StopReason::EndTurn);
}
