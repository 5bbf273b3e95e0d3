//! What is done with a conversation that becomes long.

use longhand_harness::core::mcp::Ledger;
use longhand_harness::core::tools::ToolSet;
use longhand_harness::core::transcript::Item;
use longhand_harness::core::{Effect, Input, Next, Transcript};
use longhand_harness::model::{Failure, Reply};
use longhand_protocol::event::{EventBody, Permission, RetryStatus, SessionErrorType, StopReason};
use longhand_protocol::harness::{Compaction, HarnessSession, Recall};
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::brain::{Brain, START, body, idle};
use crate::support::{check_request, session};

fn small(max_tokens: u64) -> HarnessSession {
    let mut session = session();
    session.agent.context.max_tokens = max_tokens;
    session.agent.context.keep_tool_results = 1;
    session
}

fn said(words: &str) -> Input {
    let content = vec![json!({"type": "text", "text": words})];
    Input::Model(Ok(Reply { content, stop_reason: Some("end_turn".to_owned()), ..Reply::default() }))
}

const CLEARED: &str = "x.context.results_cleared agent.thread_context_compacted";
const COMPACTED: &str = "span.model_request_end x.context.checkpoint agent.thread_context_compacted";

fn tool_names(body: &Value) -> Vec<&str> {
    body["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect()
}

#[test]
fn old_results_are_cleared_in_steps_and_can_be_recalled() {
    let mut brain = Brain::new(small(3_000));
    brain.user("go");
    brain.push(EventBody::SessionStatusRunning {});
    for _ in 0..3 {
        brain.answer(0, "tool_use", Some(&"long ".repeat(1_000)));
    }
    let next = brain.wake();
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, CLEARED);
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, START);
    let (request, _) = body(&next);
    let results: Vec<&str> = request["messages"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|message| message["content"].as_array().unwrap())
        .filter(|block| block["type"] == "tool_result")
        .map(|block| block["content"][0]["text"].as_str().unwrap())
        .collect();
    let result = brain.log.iter().find(|record| record.event.body.kind() == "agent.tool_result").unwrap().seq;
    assert!(results[0].contains(&format!("{{\"after\": {}, \"before\": {}}}", result - 1, result + 1)), "{results:?}");
    assert_eq!(results.iter().map(|text| text.len() > 1_000).collect::<Vec<_>>(), [false, false, true]);
    assert!(tool_names(request).contains(&"recall"));
    assert_eq!(brain.whole(), *brain.state.transcript());
    // The next request begins with this one.
    let before = check_request(request);
    let next = brain.input(said("done"));
    let (_, _) = brain.appended(next);
    brain.user("more");
    let next = brain.wake();
    let (_, next) = brain.appended(next);
    assert!(check_request(body(&next).0).starts_with(&before));
}

#[rstest]
#[case(Recall::WhenTrimmed, false)]
#[case(Recall::Never, false)]
#[case(Recall::Always, true)]
fn recall_is_offered_as_the_agent_says(#[case] recall: Recall, #[case] offered: bool) {
    let mut brain = Brain::new(small(3_000));
    brain.session.agent.context.recall = recall;
    brain.user("go");
    let next = brain.wake();
    let (_, next) = brain.appended(next);
    assert_eq!(tool_names(body(&next).0).contains(&"recall"), offered);
}

#[rstest]
#[case(None, true, false)]
#[case(Some(Permission::Ask), true, true)]
#[case(Some(Permission::Allow), false, false)]
fn handoff_is_offered_as_the_agent_says(
    #[case] permission: Option<Permission>,
    #[case] has_sandbox: bool,
    #[case] offered: bool,
) {
    let mut brain = Brain::new(small(3_000));
    brain.session.agent.handoff = permission;
    if !has_sandbox {
        brain.session.sandboxes.clear();
    }
    brain.user("go");
    let next = brain.wake();
    let (_, next) = brain.appended(next);
    assert_eq!(tool_names(body(&next).0).contains(&"handoff"), offered);
    let called = ToolSet::of(&brain.session, &Ledger::default()).call("handoff", json!({"session": "sesn_2"}));
    let evaluated = called.map(|body| match body {
        EventBody::AgentToolUse { evaluated_permission, sandbox: None, .. } => evaluated_permission,
        other => panic!("{other:?}"),
    });
    assert_eq!(evaluated, permission.filter(|_| offered));
}

#[test]
fn a_conversation_that_is_too_long_is_summarised_by_the_model() {
    let mut brain = Brain::new(small(1_000));
    brain.user("the first wish");
    brain.push(EventBody::SessionStatusRunning {});
    brain.answer(5_000, "end_turn", None);
    brain.user("the second wish");
    let next = brain.wake();
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, START);
    let (request, shown) = body(&next);
    assert!(!shown && request["tool_choice"]["type"] == "none", "{request}");
    assert!(request.to_string().contains("the first wish") && !request.to_string().contains("the second wish"));
    let next = brain.input(said("a summary"));
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, COMPACTED);
    assert!(matches!(brain.state.transcript().items(), [Item::Summary(text), Item::User(_)] if text == "a summary"));
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, START);
    let (request, shown) = body(&next);
    let request_text = request["messages"].to_string();
    assert!(shown && request_text.contains("a summary") && request_text.contains("the second wish"), "{request_text}");
    assert!(!request_text.contains("the first wish") && tool_names(request).contains(&"recall"));
    assert_eq!(brain.whole(), *brain.state.transcript());
    // A brain that begins with the checkpoint knows as much as one that reads everything.
    let at = brain.log.iter().position(|record| record.event.body.kind() == "x.context.checkpoint").unwrap();
    let mut restored = Transcript::restored(&brain.log[at]).unwrap();
    brain.log[at + 1..].iter().for_each(|record| restored.apply(record).unwrap());
    assert_eq!(restored, brain.whole());
}

#[test]
fn a_window_that_is_full_in_the_middle_of_an_answer_is_compacted() {
    let mut brain = Brain::new(small(150_000));
    brain.user("go");
    brain.push(EventBody::SessionStatusRunning {});
    brain.answer(8_000, "model_context_window_exceeded", None);
    let next = brain.wake();
    let (_, next) = brain.appended(next);
    assert!(!body(&next).1);
    let next = brain.input(said("a summary"));
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, COMPACTED);
    let (_, next) = brain.appended(next);
    assert!(body(&next).1, "the model goes on");
}

#[test]
fn what_the_model_does_not_take_is_not_sent_again() {
    let mut brain = Brain::new(small(150_000));
    brain.user("go");
    brain.push(EventBody::SessionStatusRunning {});
    brain.answer(9_000, "end_turn", None);
    brain.user("more");
    let next = brain.wake();
    let (_, next) = brain.appended(next);
    assert!(body(&next).1);
    let next = brain.input(Input::Model(Err(Failure::protocol("prompt is too long: 9000 tokens > 8000 maximum"))));
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, "span.model_request_end x.context.overflow");
    let (_, next) = brain.appended(next);
    assert!(!body(&next).1, "a summary is asked for");
}

#[rstest]
#[case::off(Compaction::Off)]
#[case::nothing_but_a_message(Compaction::Summary)]
fn what_cannot_be_made_shorter_ends_the_turn_with_a_clear_error(#[case] compaction: Compaction) {
    let mut brain = Brain::new(small(1_000));
    brain.session.agent.context.compaction = compaction;
    brain.user(&"long ".repeat(2_000));
    brain.push(EventBody::SessionStatusRunning {});
    let next = brain.wake();
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, START, "the model may take more than the agent wishes");
    assert!(body(&next).1);
    let next = brain.input(Input::Model(Err(Failure::protocol("prompt is too long"))));
    let (_, next) = brain.appended(next);
    let (kinds, next) = brain.appended(next);
    assert_eq!(kinds, "session.error");
    let EventBody::SessionError { error } = &brain.log.last().unwrap().event.body else { panic!() };
    assert_eq!(error.kind, SessionErrorType::CompactionLimitReachedError);
    assert_eq!(idle(&next).0, StopReason::RetriesExhausted);
}

#[test]
fn a_summary_that_never_comes_is_asked_for_three_times() {
    let mut brain = Brain::new(small(1_000));
    brain.user("go");
    brain.push(EventBody::SessionStatusRunning {});
    brain.answer(5_000, "end_turn", None);
    brain.user("more");
    let mut next = brain.wake();
    for status in [RetryStatus::Retrying, RetryStatus::Retrying, RetryStatus::Exhausted] {
        let begun = brain.appended(next).1;
        assert!(!body(&begun).1);
        let outcome = brain.input(said(" "));
        next = brain.appended(outcome).1;
        let errors = brain.log.iter().rev().find_map(|record| match &record.event.body {
            EventBody::SessionError { error } => Some(error.clone()),
            _ => None,
        });
        let error = errors.unwrap();
        assert_eq!((error.kind, error.retry_status), (SessionErrorType::CompactionLimitReachedError, status));
        if let Next::Do(Effect::Rest(_)) = next {
            next = brain.input(Input::Rested);
        }
    }
    assert_eq!(idle(&next).0, StopReason::RetriesExhausted);
    brain.user("again");
    let next = brain.wake();
    let (_, next) = brain.appended(next);
    assert!(!body(&next).1, "the next message tries anew");
}
