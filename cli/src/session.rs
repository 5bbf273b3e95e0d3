//! Which session is meant, and whether it has a log.

use std::time::Duration;

use futures::TryStreamExt as _;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use longhand_crds::AgentSession;
use longhand_protocol::SessionId;

use crate::cluster::{self, Cluster};
use crate::error::{Error, Result};

/// Finds the session that is called `text`: `sesn_...`, or the name of an `AgentSession`.
///
/// # Errors
/// When there is none of that name, or it has no log yet.
pub async fn find(cluster: &Cluster, text: &str) -> Result<SessionId> {
    if text.starts_with(SessionId::PREFIX)
        && let Ok(id) = text.parse()
    {
        return Ok(id);
    }
    let session = get(cluster, text).await?;
    started(&session).ok_or_else(|| Error::NotStarted { name: text.to_owned(), why: why_not(&session) })
}

/// The `AgentSession` of that name.
///
/// # Errors
/// When there is none.
pub async fn get(cluster: &Cluster, name: &str) -> Result<AgentSession> {
    let namespace = &cluster.namespace;
    let sessions: Api<AgentSession> = Api::namespaced(cluster.client.clone(), namespace);
    cluster::request(format!("read AgentSession {namespace}/{name}"), sessions.get_opt(name))
        .await?
        .ok_or_else(|| Error::NoSession { namespace: namespace.clone(), name: name.to_owned() })
}

/// Waits until the session has a log; `report` is told what it waits for, each time that changes.
///
/// # Errors
/// [`Error::NotStarted`] with the last known reason after `limit`; what the API server says if it allows no watch.
pub async fn wait_for_start(
    cluster: &Cluster,
    name: &str,
    limit: Duration,
    mut report: impl FnMut(&str),
) -> Result<SessionId> {
    let sessions: Api<AgentSession> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let mut states = Box::pin(watcher::watch_object(sessions, name).default_backoff());
    let mut why = "nobody has looked at it: is the operator running?".to_owned();
    let start = async {
        loop {
            match states.try_next().await {
                Ok(Some(Some(session))) => {
                    if let Some(id) = started(&session) {
                        return Ok(id);
                    }
                    let now = why_not(&session);
                    if now != why {
                        report(&now);
                        why = now;
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "the watch broke; it begins again");
                    if let Some(source) = refusal(error) {
                        let doing = format!("watch AgentSession {}/{name}", cluster.namespace);
                        return Err(Error::Kube { doing, source: Box::new(source) });
                    }
                }
            }
        }
    };
    match tokio::time::timeout(limit, start).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::NotStarted { name: name.to_owned(), why }),
    }
}

/// Whether the log has taken in all of `spec.input`.
#[must_use]
pub fn is_delivered(session: &AgentSession) -> bool {
    let delivered = session.status.as_ref().and_then(|status| status.delivered_inputs).unwrap_or(0);
    usize::try_from(delivered).is_ok_and(|delivered| delivered >= session.spec.input.len())
}

/// What the API server will say every time.
fn refusal(error: watcher::Error) -> Option<kube::Error> {
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => {
            matches!(&error, kube::Error::Api(status) if status.is_forbidden()).then_some(error)
        }
        _ => None,
    }
}

fn started(session: &AgentSession) -> Option<SessionId> {
    session.status.as_ref()?.session_id.as_deref()?.parse().ok()
}

/// What the session's `Ready` condition says.
fn why_not(session: &AgentSession) -> String {
    let conditions = session.status.iter().flat_map(|status| &status.conditions);
    let mut not_true = conditions.filter(|condition| condition.status != "True");
    not_true.find(|condition| condition.type_ == "Ready").map_or_else(
        || "nobody has looked at it: is the operator running?".to_owned(),
        |condition| format!("{}: {}", condition.reason, condition.message),
    )
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use kube::runtime::watcher;
    use longhand_crds::AgentSession;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{is_delivered, refusal, started, why_not};

    #[rstest]
    #[case(403, "Forbidden", true)]
    #[case(410, "Expired", false)]
    #[case(503, "ServiceUnavailable", false)]
    fn only_a_denial_ends_the_wait(#[case] code: u16, #[case] reason: &str, #[case] ends: bool) {
        let error = || kube::Error::Api(Box::new(Status::failure("no", reason).with_code(code)));
        assert_eq!(refusal(watcher::Error::InitialListFailed(error())).is_some(), ends);
        assert_eq!(refusal(watcher::Error::WatchStartFailed(error())).is_some(), ends);
        assert!(refusal(watcher::Error::NoResourceVersion).is_none());
    }

    fn session(input: usize, status: &Value) -> AgentSession {
        let input = vec![json!({"text": "hi"}); input];
        serde_json::from_value(json!({
            "metadata": {"name": "s"}, "spec": {"agentRef": {"name": "a"}, "input": input}, "status": status,
        }))
        .unwrap()
    }

    #[rstest]
    #[case(0, json!(null), true)]
    #[case(1, json!(null), false)]
    #[case(2, json!({"deliveredInputs": 1}), false)]
    #[case(2, json!({"deliveredInputs": 2}), true)]
    fn delivery_is_counted(#[case] input: usize, #[case] status: Value, #[case] delivered: bool) {
        assert_eq!(is_delivered(&session(input, &status)), delivered);
    }

    #[rstest]
    #[case(json!({"sessionID": "sesn_abc"}), Some("sesn_abc"))]
    #[case(json!({"sessionID": "nonsense"}), None)]
    #[case(json!(null), None)]
    fn a_log_has_an_identifier(#[case] status: Value, #[case] id: Option<&str>) {
        assert_eq!(started(&session(0, &status)).as_ref().map(longhand_protocol::SessionId::as_str), id);
    }

    #[test]
    fn the_reason_is_that_of_the_condition() {
        let condition = json!({"type": "Ready", "status": "False", "reason": "AgentNotFound", "message": "no Agent x",
            "lastTransitionTime": "2026-01-02T03:04:05Z"});
        assert_eq!(why_not(&session(0, &json!({"conditions": [condition]}))), "AgentNotFound: no Agent x");
        assert!(why_not(&session(0, &json!(null))).contains("operator"));
    }
}
