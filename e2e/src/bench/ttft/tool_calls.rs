//! Tool calls on a sandbox that is ready: as the log has them, and what of it is the tool's own time.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{ListParams, LogParams};
use longhand_crds::labels;
use longhand_protocol::SessionId;
use longhand_protocol::event::EventBody;
use serde_json::Value;

use super::{DEADLINE, head};
use crate::cluster::{Fixture, TestResult};

const CALLS: usize = 60;
/// The container of a sandbox's pod in which `sandboxd` runs.
const CONTAINER: &str = "sandbox";
/// What `sandboxd` says at the end of each call.
const FINISHED: &str = "call finished";

/// What calls took, in milliseconds.
pub(super) struct Calls {
    /// From `agent.tool_use` to `agent.tool_result`.
    pub(super) whole: Vec<f64>,
    /// The same without the time that the tool took.
    pub(super) beyond: Vec<f64>,
}

/// Has a session that rests use a tool, again and again.
///
/// # Errors
/// When a call has no result, or its sandbox does not say how long it took.
pub(super) async fn measure(fixture: &Fixture, session: &SessionId) -> TestResult<Calls> {
    let before = head(fixture, session).await?;
    for number in 0..CALLS {
        let after = head(fixture, session).await?;
        fixture.service.send(session, &format!("use a tool, number {number}.")).await?;
        fixture.service.until_idle(session, after, DEADLINE).await?;
    }
    let own = own_times(fixture).await?;
    let mut called = HashMap::new();
    let mut calls = Calls { whole: Vec::with_capacity(CALLS), beyond: Vec::with_capacity(CALLS) };
    for event in fixture.service.log(session).await?.into_iter().filter(|event| event.seq > Some(before)) {
        match event.event.body {
            EventBody::AgentToolUse { .. } => {
                called.insert(event.event.id, event.event.processed_at.ok_or("a call without a time")?);
            }
            EventBody::AgentToolResult { tool_use_id, .. } => {
                let (begun, ended) =
                    called.remove(&tool_use_id).zip(event.event.processed_at).ok_or("a lone result")?;
                let whole = ended.duration_since(begun).as_secs_f64() * 1_000.0;
                let own = own.get(tool_use_id.as_str()).ok_or_else(|| format!("no sandbox speaks of {tool_use_id}"))?;
                calls.whole.push(whole);
                calls.beyond.push(whole - own);
            }
            _ => {}
        }
    }
    if calls.whole.len() != CALLS {
        return Err(format!("{} results of {CALLS} calls", calls.whole.len()).into());
    }
    Ok(calls)
}

/// How long the sandboxes of the namespace say that each call took, in milliseconds.
async fn own_times(fixture: &Fixture) -> TestResult<HashMap<String, f64>> {
    let pods = fixture.namespace.api::<Pod>();
    let selector = ListParams::default().labels(&format!("{}={}", labels::ROLE, labels::SANDBOX));
    let mut times = HashMap::new();
    for pod in pods.list(&selector).await?.items {
        let params = LogParams { container: Some(CONTAINER.to_owned()), ..LogParams::default() };
        let log = pods.logs(&pod.name_any(), &params).await?;
        times.extend(log.lines().filter_map(own_time));
    }
    Ok(times)
}

/// The call that a line of `sandboxd` says is finished, and the milliseconds that it took.
fn own_time(line: &str) -> Option<(String, f64)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let call = line.pointer("/span/call_id").and_then(Value::as_str)?;
    let took = line.get("duration_ms").and_then(Value::as_f64)?;
    (line.get("message")? == FINISHED).then(|| (call.to_owned(), took))
}

#[cfg(test)]
mod tests {
    use super::own_time;

    #[test]
    fn the_end_of_a_call_is_read() {
        let said = r#"{"level":"INFO","message":"call finished","duration_ms":10.25,"is_error":false,"span":{"call_id":"sevt_1","tool":"bash","name":"call"}}"#;
        assert_eq!(own_time(said), Some(("sevt_1".to_owned(), 10.25)));
        assert_eq!(own_time(&said.replace("call finished", "call began")), None);
        assert_eq!(own_time("serving"), None);
    }
}
