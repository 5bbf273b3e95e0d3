//! Events and tables as text. What a model or a tool said is data: no character of it reaches the terminal as a command.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use longhand_crds::AgentSession;
use longhand_protocol::event::{EventBody, RetryStatus, Spent, StopReason};
use longhand_protocol::wire::NumberedEvent;
use serde::Serialize;
use serde_json::Value;

/// Longer texts are cut, except what the agent says.
const MAX_CHARS: usize = 160;
/// Where the text begins, for the further lines of an agent's message.
const INDENT: usize = 49;

/// An event as a line: sequence number, time, type and a short text.
#[must_use]
pub fn event(event: &NumberedEvent, zone: &TimeZone) -> String {
    let seq = event.seq.map_or_else(|| "-".to_owned(), |seq| seq.to_string());
    let time = event
        .event
        .processed_at
        .map_or_else(|| "queued".to_owned(), |time| time.to_zoned(zone.clone()).strftime("%H:%M:%S%.3f").to_string());
    let body = &event.event.body;
    format!("{seq:>5}  {time:<12}  {:<26}  {}", body.kind(), text(body)).trim_end().to_owned()
}

fn text(body: &EventBody) -> String {
    match body {
        EventBody::UserMessage { content } | EventBody::SystemMessage { content } => short(&blocks(content)),
        EventBody::AgentMessage { content } => {
            clean(&blocks(content)).lines().collect::<Vec<_>>().join(&format!("\n{:INDENT$}", ""))
        }
        EventBody::AgentToolUse { name, input, .. } | EventBody::AgentCustomToolUse { name, input } => {
            short(&format!("{name}: {}", tool_input(input)))
        }
        EventBody::AgentMcpToolUse { mcp_server_name, name, input, .. } => {
            short(&format!("{mcp_server_name} {name}: {}", tool_input(input)))
        }
        EventBody::AgentToolResult { content, is_error, .. }
        | EventBody::AgentMcpToolResult { content, is_error, .. } => {
            let result = blocks(content.as_deref().unwrap_or_default());
            short(&if *is_error == Some(true) { format!("error: {result}") } else { result })
        }
        EventBody::UserCustomToolResult { content, .. } | EventBody::UserToolResult { content, .. } => {
            short(&blocks(content.as_deref().unwrap_or_default()))
        }
        EventBody::UserToolConfirmation { result, deny_message, .. } => match deny_message {
            Some(message) => short(&format!("{}: {message}", word(result))),
            None => word(result),
        },
        EventBody::UserDefineOutcome { description, .. } => short(description),
        EventBody::SessionUpdated { title, .. } => short(title.as_deref().unwrap_or_default()),
        EventBody::SessionStatusIdle { stop_reason } => stop(stop_reason),
        EventBody::SessionError { error } => {
            short(&format!("{}: {} ({})", word(&error.kind), error.message, retry(error.retry_status)))
        }
        EventBody::SessionUsage { usage: Spent { tokens, list_cost } } => {
            let cost = list_cost.as_ref().map(|cost| format!(", {} {}", cost.amount, cost.currency));
            format!("{} tokens in, {} out{}", tokens.input_tokens, tokens.output_tokens, cost.unwrap_or_default())
        }
        EventBody::SpanModelRequestEnd { is_error: true, .. } => "failed".to_owned(),
        EventBody::SpanModelRequestEnd { model_usage, .. } => {
            format!("{} tokens in, {} out", model_usage.input_tokens, model_usage.output_tokens)
        }
        EventBody::McpCatalog { mcp_server_name, problem: Some(problem), .. } => {
            short(&format!("{mcp_server_name}: {problem}"))
        }
        EventBody::McpCatalog { mcp_server_name, tools, .. } => {
            short(&format!("{mcp_server_name}: {} tools", tools.len()))
        }
        EventBody::SessionWoken { epoch, harness } => short(&format!("epoch {epoch}, pod {harness}")),
        EventBody::SessionNearLimit { what, used, limit } => format!("{used} of {limit} {what}"),
        EventBody::SandboxProvisioning { sandbox, .. }
        | EventBody::SandboxReady { sandbox, .. }
        | EventBody::SandboxReclaimed { sandbox, .. } => short(sandbox),
        EventBody::SandboxHandedOff { sandbox, to_session, to_sandbox } => {
            short(&format!("{sandbox} to {to_session}/{to_sandbox}"))
        }
        EventBody::SandboxReceived { sandbox, from_session, from_sandbox } => {
            short(&format!("{sandbox} from {from_session}/{from_sandbox}"))
        }
        EventBody::CredentialUsed { credential, host, count, .. } => {
            short(&format!("{credential} at {host}, {count} x"))
        }
        EventBody::CredentialDenied { host, port, reason, count, .. } => {
            short(&format!("{host}:{port}: {reason}, {count} x"))
        }
        EventBody::CredentialRefreshed { credential, expires_at, .. } => {
            let until = expires_at.map(|at| format!(", expires at {at}")).unwrap_or_default();
            short(&format!("{credential}{until}"))
        }
        EventBody::SandboxLost { sandbox, cause } => short(&format!("{sandbox}: {cause}")),
        EventBody::ToolOutcomeUnknown { cause, .. }
        | EventBody::ToolOutcomeAsked { cause, .. }
        | EventBody::ToolRetried { cause, .. } => short(cause),
        EventBody::ContextResultsCleared { kept } => format!("the newest {kept} are kept"),
        EventBody::ContextOverflow { tokens } => format!("{tokens} tokens"),
        EventBody::ModelResponse { stop_reason, .. } => short(stop_reason.as_deref().unwrap_or_default()),
        EventBody::ModelFallback { model, .. } => short(model),
        EventBody::UserInterrupt { .. }
        | EventBody::SessionLimitReached { .. }
        | EventBody::SessionLimitRaised {}
        | EventBody::AgentThinking {}
        | EventBody::AgentThreadContextCompacted {}
        | EventBody::ContextCheckpoint { .. }
        | EventBody::SessionStatusRunning {}
        | EventBody::SessionStatusRescheduled {}
        | EventBody::SessionStatusTerminated {}
        | EventBody::SpanModelRequestStart {}
        | EventBody::ToolStarted { .. } => String::new(),
        EventBody::Other { fields, .. } => short(&Value::Object(fields.clone()).to_string()),
    }
}

/// The text of content blocks; others are named.
fn blocks(content: &[Value]) -> String {
    let texts = content.iter().map(|block| match block["text"].as_str() {
        Some(text) => text.to_owned(),
        None => format!("[{}]", block["type"].as_str().unwrap_or("?")),
    });
    texts.collect::<Vec<_>>().join("\n")
}

/// The one string of an input that has but one, such as a command; otherwise the whole input.
fn tool_input(input: &Value) -> String {
    let only = input.as_object().filter(|fields| fields.len() == 1).and_then(|fields| fields.values().next());
    only.and_then(Value::as_str).map_or_else(|| input.to_string(), ToOwned::to_owned)
}

fn stop(reason: &StopReason) -> String {
    match reason {
        StopReason::RequiresAction { event_ids } => {
            let ids: Vec<&str> = event_ids.iter().map(longhand_protocol::EventId::as_str).collect();
            short(&format!("requires_action: {}", ids.join(", ")))
        }
        other => serde_json::to_value(other)
            .ok()
            .and_then(|value| Some(value["type"].as_str()?.to_owned()))
            .unwrap_or_default(),
    }
}

fn word(value: &impl Serialize) -> String {
    let word = serde_json::to_value(value).ok();
    word.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned()
}

const fn retry(status: RetryStatus) -> &'static str {
    match status {
        RetryStatus::Retrying => "retrying",
        RetryStatus::Exhausted => "exhausted",
        RetryStatus::Terminal => "terminal",
    }
}

/// One line, not too long.
fn short(text: &str) -> String {
    let line = clean(text).split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Without control characters but the line feed.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

/// The table of `get sessions`.
#[must_use]
pub fn sessions(sessions: &[AgentSession], with_namespace: bool, now: Timestamp) -> String {
    let mut rows =
        vec![["NAMESPACE", "NAME", "SESSION", "PHASE", "EVENTS", "READY", "REASON", "AGE"].map(ToOwned::to_owned)];
    rows.extend(sessions.iter().map(|session| row(session, now)));
    table(&rows, usize::from(!with_namespace))
}

fn row(session: &AgentSession, now: Timestamp) -> [String; 8] {
    let status = session.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    let created = session.metadata.creation_timestamp.as_ref();
    [
        session.namespace().unwrap_or_default(),
        session.name_any(),
        status.session_id.unwrap_or_default(),
        status.phase.unwrap_or_default(),
        status.last_sequence.map(|last| last.to_string()).unwrap_or_default(),
        ready.map(|condition| condition.status.clone()).unwrap_or_default(),
        ready.map(|condition| condition.reason.clone()).unwrap_or_default(),
        created.map(|created| age(now.duration_since(created.0))).unwrap_or_default(),
    ]
}

fn table<const N: usize>(rows: &[[String; N]], skip: usize) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).skip(skip).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// As kubectl writes ages, to two figures.
fn age(age: SignedDuration) -> String {
    let seconds = age.as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp, tz::TimeZone};
    use longhand_crds::AgentSession;
    use longhand_protocol::wire::NumberedEvent;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn rendered(mut wire: Value) -> String {
        wire["id"] = json!("sevt_1");
        wire["seq"] = json!(12);
        wire["processed_at"] = json!("2026-01-02T03:04:05.678Z");
        let event: NumberedEvent = serde_json::from_value(wire).unwrap();
        super::event(&event, &TimeZone::UTC)
    }

    #[rstest]
    #[case(json!({"type": "user.message", "content": [{"type": "text", "text": "a\n b"}, {"type": "image"}]}), "a b [image]")]
    #[case(json!({"type": "agent.tool_use", "name": "bash", "input": {"command": "ls -l"}, "evaluated_permission": "allow"}), "bash: ls -l")]
    #[case(json!({"type": "agent.tool_use", "name": "edit", "input": {"a": 1, "b": 2}, "evaluated_permission": "allow"}), r#"edit: {"a":1,"b":2}"#)]
    #[case(json!({"type": "agent.tool_result", "tool_use_id": "sevt_2", "content": [{"type": "text", "text": "no"}], "is_error": true}), "error: no")]
    #[case(json!({"type": "agent.tool_result", "tool_use_id": "sevt_2", "content": null, "is_error": null}), "")]
    #[case(json!({"type": "session.status_idle", "stop_reason": {"type": "end_turn"}}), "end_turn")]
    #[case(json!({"type": "session.status_idle", "stop_reason": {"type": "requires_action", "event_ids": ["sevt_3"]}}), "requires_action: sevt_3")]
    #[case(
        json!({"type": "session.error", "error": {"type": "model_overloaded_error", "message": "busy", "retry_status": {"type": "retrying"}}}),
        "model_overloaded_error: busy (retrying)"
    )]
    #[case(json!({"type": "x.session.woken", "epoch": 2, "harness": "h-1"}), "epoch 2, pod h-1")]
    #[case(json!({"type": "session.of_tomorrow", "field": 1}), r#"{"field":1}"#)]
    fn each_event_has_a_short_text(#[case] wire: Value, #[case] expected: &str) {
        let kind = wire["type"].as_str().unwrap().to_owned();
        let line = format!("   12  03:04:05.678  {kind:<26}  {expected}");
        assert_eq!(rendered(wire), line.trim_end());
    }

    #[test]
    fn what_the_agent_says_is_shown_in_full() {
        let text = format!("{}\nsecond", "long ".repeat(100));
        let line = rendered(json!({"type": "agent.message", "content": [{"type": "text", "text": text}]}));
        let column = line.find("long").unwrap();
        assert!(line.ends_with(&format!("\n{}second", " ".repeat(column))), "{line}");
        assert!(line.len() > 500);
    }

    #[test]
    fn what_others_say_is_cut_at_a_character() {
        let line = rendered(json!({"type": "user.message", "content": [{"type": "text", "text": "ä".repeat(300)}]}));
        assert!(line.ends_with("ä…") && line.chars().count() < 230, "{line}");
    }

    #[test]
    fn no_terminal_command_gets_through() {
        let line =
            rendered(json!({"type": "agent.message", "content": [{"type": "text", "text": "a\u{1b}[2J\rb\u{9b}c"}]}));
        assert!(line.ends_with("a [2J b c"), "{line:?}");
    }

    #[rstest]
    #[case(-5, "0s")]
    #[case(119, "119s")]
    #[case(120, "2m")]
    #[case(7_200, "2h")]
    #[case(200_000, "2d")]
    fn ages_are_short(#[case] seconds: i64, #[case] expected: &str) {
        assert_eq!(super::age(SignedDuration::from_secs(seconds)), expected);
    }

    #[test]
    fn sessions_are_a_table() {
        let session: AgentSession = serde_json::from_value(json!({
            "metadata": {"name": "hello", "namespace": "team", "creationTimestamp": "2026-01-02T03:04:05Z"},
            "spec": {"agentRef": {"name": "a"}},
            "status": {"sessionID": "sesn_1", "phase": "idle", "lastSequence": 17, "conditions": [
                {"type": "Ready", "status": "True", "reason": "Idle", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"},
            ]},
        }))
        .unwrap();
        let now: Timestamp = "2026-01-02T03:04:35Z".parse().unwrap();
        let table = super::sessions(std::slice::from_ref(&session), false, now);
        assert_eq!(
            table,
            "NAME    SESSION   PHASE   EVENTS   READY   REASON   AGE\nhello   sesn_1    idle    17       True    Idle     30s"
        );
        assert!(super::sessions(&[session], true, now).starts_with("NAMESPACE   NAME"));
    }
}
