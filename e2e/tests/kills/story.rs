//! What a session tells that is long enough to die in often.

use std::fmt::Write as _;

use longhand_e2e::cluster::log::text;
use longhand_protocol::event::EventBody;
use longhand_protocol::wire::NumberedEvent;

/// Tool calls of the session; each is a request, an answer and a result, so that there are 30 effects.
pub(crate) const TURNS: usize = 10;

/// A model that writes slowly and asks for a tool that runs for a while, and that leaves a line each time it does.
pub(crate) fn script() -> String {
    let mut script = "rules:\n".to_owned();
    for turn in 0..TURNS {
        let _ = write!(
            script,
            "  - when: {{turn: {turn}}}\n    then:\n      text: This is part {turn}.\n      delay_per_token_ms: 100\n      tool_uses: [{{name: bash, input: {{command: \"echo {turn} >> ledger; sleep 0.5; tr '\\\\n' ' ' < ledger\"}}}}]\n"
        );
    }
    let _ = write!(
        script,
        "  - when: {{turn: {TURNS}}}\n    then: {{text: \"The ledger holds {{{{last_tool_result}}}}\", delay_per_token_ms: 50}}\n"
    );
    script
}

/// What clients are told of the conversation. How often the model was asked, and by whom, is not part of it.
pub(crate) fn told(log: &[NumberedEvent]) -> Vec<String> {
    let line = |body: &EventBody| match body {
        EventBody::UserMessage { .. } | EventBody::AgentMessage { .. } | EventBody::AgentToolResult { .. } => {
            Some(format!("{}: {}", body.kind(), text(body)))
        }
        EventBody::AgentToolUse { name, input, .. } => Some(format!("{}: {name} {input}", body.kind())),
        EventBody::SessionStatusIdle { stop_reason } => Some(format!("{}: {stop_reason:?}", body.kind())),
        EventBody::SessionError { error } => Some(format!("{}: {}", body.kind(), error.message)),
        _ => None,
    };
    log.iter().filter_map(|event| line(&event.event.body)).collect()
}
