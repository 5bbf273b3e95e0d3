use std::time::Duration;

use http::StatusCode;
use longhand_crds::sandbox::Loss;
use longhand_protocol::EventId;
use longhand_protocol::event::{EventBody, Permission};
use longhand_protocol::harness::{OutcomePolicy, RECALL};
use longhand_sandbox::client::{NotStarted, SandboxError};
use longhand_sandbox::wire::{CallId, ToolOutput};
use longhand_session_log::store::{CallState, Incarnation};
use rstest::rstest;
use serde_json::json;

use super::{Intent, Leave, Step, Verdict, intent, judge, leave, next, not_again, on_unknown, once, unknown};
use crate::execute::sandboxes::SandboxView;
use crate::execute::story::{Answer, Since};
use crate::testing::meta;

fn incarnation() -> Incarnation {
    Incarnation { sandbox: "s-default-1".to_owned(), pod_uid: "p1".to_owned(), attempt: "a".to_owned() }
}

fn dispatched() -> CallState {
    CallState::Dispatched { incarnation: incarnation() }
}

fn serving(pod: &str) -> SandboxView {
    SandboxView {
        pod_uid: Some(pod.to_owned()),
        address: Some("10.0.0.1:8090".to_owned()),
        ready: true,
        ..SandboxView::default()
    }
}

fn starting() -> SandboxView {
    SandboxView { pod_uid: Some("p1".to_owned()), ..SandboxView::default() }
}

fn lost() -> SandboxView {
    SandboxView {
        last_loss: Some(Loss {
            pod_uid: "p1".to_owned(),
            reason: "OOMKilled".to_owned(),
            message: "limit 1Gi".to_owned(),
            ..Loss::default()
        }),
        ..SandboxView::default()
    }
}

fn deleting() -> SandboxView {
    SandboxView { deleting: true, ..serving("p1") }
}

#[rstest]
#[case::finished(CallState::Finished { seq: 7 }, None, None, "Return { seq: 7 }")]
#[case::first(CallState::Open, None, None, "Create")]
#[case::starting(CallState::Open, Some(starting()), None, "Await")]
#[case::going(CallState::Open, Some(deleting()), None, "Await")]
#[case::drained(CallState::Open, Some(serving("p1")), Some("p1"), "Await")]
#[case::ready(CallState::Open, Some(serving("p1")), None, "Dispatch p1")]
#[case::after_drain(CallState::Open, Some(serving("p2")), Some("p1"), "Dispatch p2")]
#[case::attach(dispatched(), Some(serving("p1")), None, "Attach p1")]
#[case::attach_although_drained(dispatched(), Some(serving("p1")), Some("p1"), "Attach p1")]
#[case::attach_although_going(dispatched(), Some(deleting()), None, "Attach p1")]
#[case::not_ready(dispatched(), Some(starting()), None, "Await")]
#[case::deleted(dispatched(), None, None, "Lost the Sandbox was deleted")]
#[case::killed(dispatched(), Some(lost()), None, "Lost OOMKilled: limit 1Gi")]
#[case::replaced(dispatched(), Some(serving("p2")), None, "Lost its pod was replaced")]
fn each_state_has_one_next_step(
    #[case] call: CallState,
    #[case] sandbox: Option<SandboxView>,
    #[case] avoid: Option<&str>,
    #[case] expected: &str,
) {
    let step = match next(&call, sandbox.as_ref(), avoid) {
        Step::Dispatch { pod_uid, .. } => format!("Dispatch {pod_uid}"),
        Step::Attach { incarnation, .. } => format!("Attach {}", incarnation.pod_uid),
        Step::Lost { cause, .. } => format!("Lost {cause}"),
        step => format!("{step:?}"),
    };
    assert_eq!(step, expected);
}

fn call_id() -> CallId {
    CallId::new("sevt_1").unwrap()
}

fn unreachable() -> SandboxError {
    NotStarted::Unreachable { address: "a".to_owned(), reason: "refused".to_owned() }.into()
}

#[rstest]
#[case::unreachable(unreachable(), true, "NotBegun stay 200")]
#[case::unreachable_later(unreachable(), false, "Again")]
#[case::draining(NotStarted::Draining.into(), true, "NotBegun leave 0")]
#[case::draining_later(NotStarted::Draining.into(), false, "Again")]
#[case::terminating(NotStarted::Terminating.into(), true, "NotBegun leave 0")]
#[case::busy(NotStarted::Busy { retry_after: Duration::from_secs(3) }.into(), true, "NotBegun stay 3000")]
#[case::rejected(NotStarted::Rejected { status: StatusCode::BAD_REQUEST, message: "m".to_owned() }.into(), true, "Rejected")]
#[case::rejected_later(NotStarted::Rejected { status: StatusCode::BAD_REQUEST, message: "m".to_owned() }.into(), false, "Again")]
#[case::token(SandboxError::Unauthorized { message: "m".to_owned() }, true, "NotBegun stay 200")]
#[case::lost(SandboxError::Lost { reason: "reset".to_owned() }, true, "Again")]
#[case::nonsense(SandboxError::Protocol { status: StatusCode::OK, reason: "r".to_owned() }, true, "Again")]
#[case::unknown(SandboxError::UnknownCall { call_id: call_id() }, false, "Strange")]
#[case::evicted(SandboxError::Evicted { call_id: call_id() }, false, "Unknown")]
#[case::mismatch(SandboxError::Mismatch { call_id: call_id() }, true, "Rejected")]
#[case::deadline(SandboxError::Deadline { waited: Duration::from_secs(1) }, true, "TooLong")]
fn a_call_goes_back_only_if_it_certainly_has_not_begun(
    #[case] error: SandboxError,
    #[case] fresh: bool,
    #[case] expected: &str,
) {
    let verdict = match judge(Err(error), fresh) {
        Verdict::NotBegun { leave, wait } => {
            format!("NotBegun {} {}", if leave { "leave" } else { "stay" }, wait.as_millis())
        }
        Verdict::Rejected(_) => "Rejected".to_owned(),
        Verdict::Unknown(_) => "Unknown".to_owned(),
        Verdict::Strange(_) => "Strange".to_owned(),
        Verdict::Again(_) => "Again".to_owned(),
        verdict => format!("{verdict:?}"),
    };
    assert_eq!(verdict, expected);
}

#[test]
fn an_output_is_an_output() {
    assert_eq!(judge(Ok(ToolOutput::ok("hi")), false), Verdict::Done(ToolOutput::ok("hi")));
}

#[rstest]
#[case(&["default"], None, Permission::Allow, Ok("default"))]
#[case(&["default", "gpu"], Some("gpu"), Permission::Allow, Ok("gpu"))]
#[case(&["default"], Some("gpu"), Permission::Allow, Err("has no sandbox `gpu`; it has: default"))]
#[case(&[], None, Permission::Allow, Err("has no sandbox"))]
#[case(&["default"], None, Permission::Deny, Err("not permitted"))]
#[case(&["default"], None, Permission::Ask, Ok("default"))]
fn a_call_that_cannot_run_says_why(
    #[case] sandboxes: &[&str],
    #[case] wanted: Option<&str>,
    #[case] permission: Permission,
    #[case] expected: Result<&str, &str>,
) {
    let mut meta = meta("team-a", "s", "u1");
    meta.sandboxes = sandboxes.iter().map(|name| (*name).to_owned()).collect();
    let body = EventBody::AgentToolUse {
        name: "bash".to_owned(),
        input: json!({"command": "ls"}),
        evaluated_permission: permission,
        sandbox: wanted.map(ToOwned::to_owned),
    };
    match (intent(&body, &meta).unwrap(), expected) {
        (Ok(intent), Ok(sandbox)) => {
            assert_eq!(intent.sandbox, sandbox);
            assert_eq!(intent.asks, permission == Permission::Ask);
        }
        (Err(text), Err(part)) => assert!(text.contains(part), "{text}"),
        (other, _) => panic!("{other:?}"),
    }
    assert_eq!(intent(&EventBody::SessionStatusRunning {}, &meta), None);
}

#[rstest]
#[case::needs_none(false, None, false, "given")]
#[case::needs_none_and_is_stopped(false, None, true, "given")]
#[case::not_yet(true, None, false, "not yet")]
#[case::never(true, None, true, "interrupted The call was not run: the user stopped the turn before.")]
#[case::allowed(true, Some(Answer::Allow), false, "given")]
#[case::allowed_and_stopped(true, Some(Answer::Allow), true, "given")]
#[case::denied(true, Some(Answer::Deny(None)), false, "denied The call was not run: the user denied it")]
#[case::denied_in_vain(true, Some(Answer::Deny(Some(" ".to_owned()))), false, "denied The call was not run: the user denied it")]
#[case::denied_because(true, Some(Answer::Deny(Some("not today".to_owned()))), true, "denied The call was not run: the user denied it: not today")]
fn a_call_that_asks_runs_only_with_leave(
    #[case] asks: bool,
    #[case] answer: Option<Answer>,
    #[case] interrupted: bool,
    #[case] expected: &str,
) {
    let intent = Intent { tool: "bash".to_owned(), input: json!({}), sandbox: "default".to_owned(), asks };
    let found = match leave(&intent, &Since { answer, interrupted, ..Since::default() }) {
        Leave::Given => "given".to_owned(),
        Leave::NotYet => "not yet".to_owned(),
        Leave::Refused(label, text) => format!("{label} {text}"),
    };
    assert_eq!(found, expected);
}

#[test]
fn the_model_is_told_the_cause_and_what_comes_next() {
    let events = unknown(&EventId::generate(), "OOMKilled", true);
    let EventBody::AgentToolResult { content: Some(content), is_error: Some(true), .. } = &events[1].body else {
        panic!("{events:?}")
    };
    let text = content[0]["text"].as_str().unwrap();
    for part in ["OOMKilled", "outcome is unknown", "fresh sandbox"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(matches!(&events[0].body, EventBody::ToolOutcomeUnknown { cause, .. } if cause == "OOMKilled"));
}

#[test]
fn what_happens_once_has_one_identifier() {
    let ready = |pod: &str| {
        once(&["s", pod], EventBody::SandboxReady { sandbox: "default".to_owned(), pod_uid: pod.to_owned() })
    };
    assert_eq!(ready("p1").id, ready("p1").id);
    assert_ne!(ready("p1").id, ready("p2").id);
}

#[rstest]
#[case::reported("bash", 0, false, OutcomePolicy::Report)]
#[case::retried("read", 0, false, OutcomePolicy::Retry)]
#[case::retried_again("read", 1, false, OutcomePolicy::Retry)]
#[case::often_enough("read", 2, false, OutcomePolicy::Report)]
#[case::stopped("read", 0, true, OutcomePolicy::Report)]
#[case::asked("write", 0, false, OutcomePolicy::Ask)]
#[case::asked_each_time("write", 9, false, OutcomePolicy::Ask)]
#[case::stopped_and_not_asked("write", 0, true, OutcomePolicy::Report)]
fn what_becomes_of_a_call_is_as_its_policy_says(
    #[case] tool: &str,
    #[case] retried: u32,
    #[case] interrupted: bool,
    #[case] expected: OutcomePolicy,
) {
    let mut meta = meta("n", "s", "u");
    meta.agent.on_unknown_outcome.insert("read".to_owned(), OutcomePolicy::Retry);
    meta.agent.on_unknown_outcome.insert("write".to_owned(), OutcomePolicy::Ask);
    assert_eq!(on_unknown(&meta, tool, retried, interrupted), expected);
}

#[test]
fn a_call_that_was_asked_about_waits_for_the_answer() {
    let meta = meta("n", "s", "u");
    let body = EventBody::AgentToolUse {
        name: "bash".to_owned(),
        input: json!({}),
        evaluated_permission: Permission::Allow,
        sandbox: None,
    };
    let intent = intent(&body, &meta).unwrap().unwrap();
    let asked = Since { asked: Some(EventId::generate()), unknown: Some("lost".to_owned()), ..Since::default() };
    assert_eq!(leave(&intent, &Since::default()), Leave::Given);
    assert_eq!(leave(&intent, &asked), Leave::NotYet);
    let answered = |answer| Since { answer: Some(answer), ..asked.clone() };
    assert_eq!(leave(&intent, &answered(Answer::Allow)), Leave::Given);
    for ended in [answered(Answer::Deny(None)), Since { interrupted: true, ..asked.clone() }] {
        assert!(matches!(leave(&intent, &ended), Leave::Refused(..)), "{ended:?}");
    }
    let deny = |why: &str| Answer::Deny(Some(why.to_owned()));
    assert_eq!(not_again("lost", None), "lost");
    assert_eq!(not_again("lost", Some(&deny(" "))), "lost; the user does not want it to be run again");
    assert_eq!(not_again("lost", Some(&deny("no"))), "lost; the user does not want it to be run again: no");
}

#[test]
fn recall_needs_no_sandbox() {
    let mut meta = meta("n", "s", "u");
    meta.sandboxes.clear();
    let body = |permission| EventBody::AgentToolUse {
        name: RECALL.to_owned(),
        input: json!({}),
        evaluated_permission: permission,
        sandbox: None,
    };
    assert!(intent(&body(Permission::Allow), &meta).unwrap().is_ok());
    assert!(intent(&body(Permission::Ask), &meta).unwrap().unwrap().asks);
    assert!(intent(&body(Permission::Deny), &meta).unwrap().is_err());
}
