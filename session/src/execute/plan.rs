//! What to do next with a tool call: pure decisions over what the log and the sandbox say.
//!
//! A call runs at most once. The log says which incarnation of the sandbox it was given to; whether it has begun is known
//! there only. So a call goes back to `Open` only when it certainly has not begun, and a call whose incarnation is gone has
//! an unknown outcome for ever.

use std::time::Duration;

use longhand_protocol::EventId;
use longhand_protocol::event::without_result::{self, STOPPED_BEFORE};
use longhand_protocol::event::{EventBody, NewEvent, Permission};
use longhand_protocol::harness::{HANDOFF, OutcomePolicy, RECALL};
use longhand_protocol::sandbox_tools::shortened;
use longhand_sandbox::client::{NotStarted, SandboxError};
use longhand_sandbox::wire::ToolOutput;
use longhand_session_log::store::{CallState, Incarnation, SessionMeta};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::sandboxes::SandboxView;
use super::story::{Answer, Since};

/// Why nobody knows how a call ended that an interrupt should have stopped.
pub(super) const UNSTOPPABLE: &str = "the user stopped the turn, and the call did not end when it was cancelled";

/// The next step of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It has a result.
    Return {
        /// Its sequence number.
        seq: u64,
    },
    /// There is no sandbox.
    Create,
    /// The sandbox does not take calls yet, or is going.
    Await,
    /// Give the call to this sandbox.
    Dispatch { pod_uid: String, address: String },
    /// The call was given to this sandbox, which lives: join it.
    Attach { incarnation: Incarnation, address: String },
    /// The call was given to a sandbox that is gone.
    Lost { incarnation: Incarnation, cause: String },
}

/// How often a call is run again whose sandbox was lost under it.
const MAX_RETRIES: u32 = 2;

/// What becomes of a call of which nobody knows how it ended, as its tool's policy says. One that was run again often enough is
/// reported, and so is every one of a turn that the client has stopped.
pub(super) fn on_unknown(meta: &SessionMeta, tool: &str, retried: u32, interrupted: bool) -> OutcomePolicy {
    match meta.agent.on_unknown_outcome.get(tool).copied().unwrap_or_default() {
        _ if interrupted => OutcomePolicy::Report,
        OutcomePolicy::Retry if retried >= MAX_RETRIES => OutcomePolicy::Report,
        policy => policy,
    }
}

/// What to do next. `avoid` is the UID of a pod that has said that it takes no more calls.
pub(super) fn next(call: &CallState, sandbox: Option<&SandboxView>, avoid: Option<&str>) -> Step {
    match call {
        CallState::Finished { seq } => Step::Return { seq: *seq },
        CallState::Dispatched { incarnation } => joined(incarnation, sandbox),
        CallState::Open => match sandbox {
            None => Step::Create,
            Some(sandbox) => match sandbox.serving() {
                Some((pod_uid, address)) if Some(pod_uid) != avoid => {
                    Step::Dispatch { pod_uid: pod_uid.to_owned(), address: address.to_owned() }
                }
                _ => Step::Await,
            },
        },
    }
}

fn joined(incarnation: &Incarnation, sandbox: Option<&SandboxView>) -> Step {
    let Some(sandbox) = sandbox else {
        return Step::Lost { incarnation: incarnation.clone(), cause: "the Sandbox was deleted".to_owned() };
    };
    if sandbox.pod_uid.as_ref() != Some(&incarnation.pod_uid) {
        return Step::Lost { incarnation: incarnation.clone(), cause: sandbox.cause_of_loss(&incarnation.pod_uid) };
    }
    match &sandbox.address {
        Some(address) => Step::Attach { incarnation: incarnation.clone(), address: address.clone() },
        None => Step::Await,
    }
}

/// What an exchange with a sandbox says of the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has run.
    Done(ToolOutput),
    /// It certainly has not begun: take it back. `leave` says that this pod takes no more calls.
    NotBegun { leave: bool, wait: Duration },
    /// Every repetition would be refused.
    Rejected(String),
    /// Nobody will ever know how it ended.
    Unknown(String),
    /// The sandbox does not know it: another replica's request is on its way, or nobody will ever know.
    Strange(String),
    /// Nothing is known; look at the sandbox and join again.
    Again(String),
    /// It still runs, and its time is over.
    TooLong,
}

/// Sorts what a sandbox answered. `fresh` says that this request was the first that could have begun the call.
pub(super) fn judge(answer: Result<ToolOutput, SandboxError>, fresh: bool) -> Verdict {
    const SOON: Duration = Duration::from_millis(200);
    let error = match answer {
        Ok(output) => return Verdict::Done(output),
        Err(error) => error,
    };
    let reason = error.to_string();
    match error {
        SandboxError::Deadline { .. } => Verdict::TooLong,
        SandboxError::Mismatch { .. } => Verdict::Rejected(reason),
        SandboxError::Evicted { .. } | SandboxError::OutcomeUnknown { .. } => Verdict::Unknown(reason),
        SandboxError::UnknownCall { .. } => Verdict::Strange(
            "the process in the sandbox does not know the call: it has been restarted, or the call never arrived"
                .to_owned(),
        ),
        SandboxError::Lost { .. } | SandboxError::Protocol { .. } => Verdict::Again(reason),
        SandboxError::NotStarted(_) | SandboxError::Unauthorized { .. } | SandboxError::Sign(_) if !fresh => {
            Verdict::Again(reason)
        }
        SandboxError::NotStarted(NotStarted::Draining | NotStarted::Terminating) => {
            Verdict::NotBegun { leave: true, wait: Duration::ZERO }
        }
        SandboxError::NotStarted(NotStarted::Busy { retry_after }) => {
            Verdict::NotBegun { leave: false, wait: retry_after }
        }
        SandboxError::NotStarted(NotStarted::Rejected { message, .. }) => Verdict::Rejected(message),
        // Another pod may have the address by now; the Sandbox's status will say so.
        SandboxError::NotStarted(NotStarted::Unreachable { .. })
        | SandboxError::Unauthorized { .. }
        | SandboxError::Sign(_) => Verdict::NotBegun { leave: false, wait: SOON },
    }
}

/// A tool call as it stands in the log.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Intent {
    pub(super) tool: String,
    pub(super) input: serde_json::Value,
    /// The sandbox's name; empty for what needs none.
    pub(super) sandbox: String,
    /// Whether the client has to be asked first.
    pub(super) asks: bool,
}

/// Whether a call may begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// It may.
    Given,
    /// The client has not been heard yet.
    NotYet,
    /// It never will: a label, and what the model reads.
    Refused(&'static str, String),
}

/// Whether a call may begin, or go on, or begin once more. An interrupt of one that needs no leave, or has it, is for whoever
/// runs it.
pub(super) fn leave(intent: &Intent, since: &Since) -> Leave {
    match &since.answer {
        _ if !intent.asks && since.asked.is_none() => Leave::Given,
        Some(Answer::Allow) => Leave::Given,
        Some(Answer::Deny(message)) => Leave::Refused("denied", without_result::denied(message.as_deref())),
        None if since.interrupted => Leave::Refused("interrupted", STOPPED_BEFORE.to_owned()),
        None => Leave::NotYet,
    }
}

/// Why nobody knows how a call ended that the client does not let run again.
pub(super) fn not_again(cause: &str, answer: Option<&Answer>) -> String {
    match answer {
        Some(Answer::Deny(Some(why))) if !why.trim().is_empty() => {
            format!("{cause}; the user does not want it to be run again: {why}")
        }
        Some(Answer::Deny(_)) => format!("{cause}; the user does not want it to be run again"),
        Some(Answer::Allow) | None => cause.to_owned(),
    }
}

/// Reads the intent from its event, or says in words for the model why it cannot run.
pub(super) fn intent(body: &EventBody, meta: &SessionMeta) -> Option<Result<Intent, String>> {
    let EventBody::AgentToolUse { name, input, evaluated_permission, sandbox } = body else { return None };
    if *evaluated_permission == Permission::Deny {
        return Some(Err(format!("The tool {name} was not run: it is not permitted in this session.")));
    }
    // Without the agent's word there is no such tool.
    if name == RECALL || (name == HANDOFF && meta.agent.handoff.is_some()) {
        let asks = *evaluated_permission == Permission::Ask;
        return Some(Ok(Intent { tool: name.clone(), input: input.clone(), sandbox: String::new(), asks }));
    }
    let known = |wanted: &String| meta.sandboxes.contains(wanted);
    Some(match (sandbox, meta.sandboxes.first()) {
        (_, None) => Err(format!("The tool {name} was not run: this session has no sandbox.")),
        (Some(wanted), Some(_)) if !known(wanted) => Err(format!(
            "The tool {name} was not run: this session has no sandbox `{}`; it has: {}.",
            shortened(wanted),
            meta.sandboxes.join(", ")
        )),
        (wanted, Some(first)) => Ok(Intent {
            tool: name.clone(),
            input: input.clone(),
            sandbox: wanted.as_ref().unwrap_or(first).clone(),
            asks: *evaluated_permission == Permission::Ask,
        }),
    })
}

/// The result of a call.
pub(super) fn result(call: &EventId, text: impl Into<String>, is_error: bool) -> NewEvent {
    let text = text.into();
    // The model API refuses empty text blocks.
    let content = if text.is_empty() { Vec::new() } else { vec![json!({ "type": "text", "text": text })] };
    NewEvent::new(EventBody::AgentToolResult {
        tool_use_id: call.clone(),
        content: Some(content),
        is_error: Some(is_error),
    })
}

/// What the log and the model are told of a call of a self-hosted environment that its worker does not answer. Workers
/// look for `user.tool_result` to know what is left to do.
pub(super) fn hosted_result(call: &EventId, text: &str) -> NewEvent {
    NewEvent::new(EventBody::UserToolResult {
        tool_use_id: call.clone(),
        content: Some(vec![json!({ "type": "text", "text": text })]),
        is_error: Some(true),
    })
}

/// What the log and the model are told when nobody knows how a call ended. `lost` says that its sandbox is gone.
pub(super) fn unknown(call: &EventId, cause: &str, lost: bool) -> Vec<NewEvent> {
    let text = if lost {
        format!(
            "The sandbox was lost ({cause}) while this call was running; its outcome is unknown: it may have run in part, in full, or not at all. The next call gets a fresh sandbox, which has none of the processes of the old one, and its files only if the workspace is kept."
        )
    } else {
        without_result::outcome_unknown(cause)
    };
    let body = EventBody::ToolOutcomeUnknown { tool_use_id: call.clone(), cause: cause.to_owned() };
    vec![NewEvent::new(body), result(call, text, true)]
}

/// An event that is in the log once, however often it is appended: its identifier says what it is about.
pub(super) fn once(about: &[&str], body: EventBody) -> NewEvent {
    let mut hash = Sha256::new();
    for part in std::iter::once(&body.kind()).chain(about) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    NewEvent { id: EventId::from_digest(&hash.finalize().into()), body }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
