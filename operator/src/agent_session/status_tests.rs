use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use longhand_crds::agent_session::{AgentSessionStatus, HarnessStatus};
use longhand_crds::derived_session_id;
use longhand_protocol::client::{self, ApiError};
use longhand_protocol::error::{ErrorBody, ErrorType};
use longhand_protocol::event::Usage;
use longhand_protocol::internal::{LimitNotice, LimitOf, Limited, SessionSummary};
use longhand_protocol::wire::SessionStatus;
use rstest::rstest;

use super::{Outcome, limit_news, status};
use crate::agent::references::Missing;
use crate::agent_session::observe::{HarnessPod, Observed, References, Unresolved};
use crate::agent_session::plan::plan;
use crate::agent_session::proxy_health::{Credentials, Unusable};
use crate::agent_session::warm::Warm;
use crate::conditions::find;
use crate::error::Error;
use crate::fixtures;
use crate::pods::{Cause, Pending, PodView, Stage};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn observed() -> Observed {
    Observed {
        session: Arc::new(fixtures::session()),
        references: Ok(References::fixture()),
        missing_templates: Vec::new(),
        wake_since: None,
        pods: Vec::new(),
        credentials: Credentials::Unknown,
        warm: Warm::default(),
        worked: None,
    }
}

fn summary(status: SessionStatus) -> SessionSummary {
    SessionSummary {
        session_id: derived_session_id("3e8f1a2b-quickstart"),
        status,
        epoch: 2,
        head: 17,
        delivered_inputs: 1,
        owner_pod_uid: Some("pod-1".into()),
        wake: status == SessionStatus::Running,
        usage: Usage { input_tokens: 5, ..Usage::default() },
        limit: None,
    }
}

fn with_pod(stage: Stage) -> Observed {
    let pod = PodView { name: "h-1".into(), uid: "pod-1".into(), ip: None, created: at(1), stage, unready_since: None };
    let mut observed =
        Observed { pods: vec![HarnessPod { pod, generation: 1, refresh_tokens: BTreeMap::new() }], ..observed() };
    let harness = HarnessStatus {
        generation: 1,
        pod_name: Some("h-1".into()),
        pod_uid: Some("pod-1".into()),
        warm: false,
        failures: 0,
    };
    let old =
        AgentSessionStatus { harness: Some(harness), session_id: Some("s".into()), ..AgentSessionStatus::default() };
    Arc::make_mut(&mut observed.session).status = Some(old);
    observed.wake_since = Some(at(1));
    observed
}

fn after(observed: &Observed, log: Option<&SessionSummary>, error: Option<&Error>) -> AgentSessionStatus {
    let plan = plan(observed, log, at(100));
    let outcome = Outcome { log, harness: plan.harness.clone(), error };
    status(observed, &plan, &outcome, at(100))
}

fn condition<'a>(status: &'a AgentSessionStatus, kind: &str) -> (&'a str, &'a str, &'a str) {
    let Condition { status, reason, message, .. } = find(&status.conditions, kind).unwrap();
    (status, reason, message)
}

#[rstest]
#[case::agent(Unresolved::Agent("coder".into()), "AgentNotFound", "Agent coder")]
#[case::vault(Unresolved::Reference { agent: "coder".into(), missing: Missing::Vault("models".into()) }, "VaultNotFound", "Vault models")]
fn what_is_missing_is_named(#[case] missing: Unresolved, #[case] reason: &str, #[case] named: &str) {
    let status = after(&Observed { references: Err(missing), ..observed() }, None, None);
    for kind in ["AgentResolved", "Ready"] {
        let (truth, found, message) = condition(&status, kind);
        assert_eq!((truth, found), ("False", reason));
        assert!(message.contains(named), "{message}");
    }
    assert_eq!(status.observed_generation, Some(1));
}

#[test]
fn a_missing_template_is_named() {
    let status = after(&Observed { missing_templates: vec!["shell".into()], ..observed() }, None, None);
    assert_eq!(condition(&status, "SandboxTemplatesResolved").1, "SandboxTemplateNotFound");
    assert!(condition(&status, "Ready").2.contains("SandboxTemplate shell"));
    assert_eq!(condition(&status, "AgentResolved").0, "True");
}

#[test]
fn a_missing_secret_is_named_and_heals() {
    let missing = Unusable { credential: "api-key".into(), missing: true, detail: "the file does not exist".into() };
    let mut observed = with_pod(Stage::Pending(Pending::Sidecar(at(10))));
    observed.credentials = Credentials::Reported(vec![missing], vec![]);
    let log = summary(SessionStatus::Running);
    let sick = after(&observed, Some(&log), None);
    let expected = "Secret team/model-key key token (Vault models, credential api-key) does not exist";
    for kind in ["CredentialsReady", "Ready"] {
        assert_eq!(condition(&sick, kind), ("False", "SecretNotFound", expected));
    }
    let mut observed = with_pod(Stage::Running { since: at(90), ready_since: Some(at(90)) });
    Arc::make_mut(&mut observed.session).status = Some(sick);
    let healed = after(&observed, Some(&log), None);
    assert_eq!(condition(&healed, "CredentialsReady").0, "True");
    assert_eq!((condition(&healed, "Ready").0, condition(&healed, "Ready").1), ("True", "Working"));
}

#[test]
fn a_secret_that_cannot_be_used_is_described() {
    let mut observed = with_pod(Stage::Pending(Pending::Sidecar(at(10))));
    let detail = "the file is empty".to_owned();
    observed.credentials =
        Credentials::Reported(vec![Unusable { credential: "api-key".into(), missing: false, detail }], vec![]);
    let status = after(&observed, None, None);
    let (_, reason, message) = condition(&status, "CredentialsReady");
    assert_eq!(reason, "SecretUnusable");
    assert!(message.ends_with("the file is empty"), "{message}");
}

#[rstest]
#[case::working(Stage::Running { since: at(90), ready_since: None }, "True", "Working", "True", "Working")]
#[case::starting(Stage::Pending(Pending::Starting), "True", "Starting", "False", "Starting")]
#[case::no_room(
    Stage::Pending(Pending::Stuck(Cause::new("Unschedulable", "0/1 nodes"))),
    "False",
    "Unschedulable",
    "False",
    "Unschedulable"
)]
#[case::no_image(
    Stage::Pending(Pending::Stuck(Cause::new("ImagePullBackOff", "x"))),
    "False",
    "ImagePullBackOff",
    "False",
    "ImagePullBackOff"
)]
#[case::crashing(Stage::Restarting(Cause::new("OOMKilled", "x")), "False", "Crashing", "False", "Crashing")]
fn describe_is_enough(
    #[case] stage: Stage,
    #[case] ready: &str,
    #[case] ready_reason: &str,
    #[case] harness: &str,
    #[case] harness_reason: &str,
) {
    let status = after(&with_pod(stage), Some(&summary(SessionStatus::Running)), None);
    assert_eq!((condition(&status, "Ready").0, condition(&status, "Ready").1), (ready, ready_reason));
    assert_eq!((condition(&status, "HarnessReady").0, condition(&status, "HarnessReady").1), (harness, harness_reason));
}

#[test]
fn the_log_is_mirrored_and_an_unchanged_status_is_equal() {
    let mut observed = observed();
    let log = summary(SessionStatus::Idle);
    let first = after(&observed, Some(&log), None);
    assert_eq!(first.phase.as_deref(), Some("idle"));
    assert_eq!((first.epoch, first.last_sequence, first.delivered_inputs), (Some(2), Some(17), Some(1)));
    assert_eq!(first.usage.as_ref().map(|usage| usage.input_tokens), Some(5));
    assert_eq!(condition(&first, "Ready").1, "Idle");
    assert_eq!(first.harness, None);
    assert_eq!(first.delivered_generation, Some(1));
    let at_work = after(&observed, Some(&summary(SessionStatus::Running)), None);
    assert_eq!(at_work.delivered_generation, None, "it may still stop at a limit of an older spec");
    Arc::make_mut(&mut observed.session).status = Some(first.clone());
    let plan = plan(&observed, None, at(200));
    let outcome = Outcome { log: None, harness: plan.harness.clone(), error: None };
    assert_eq!(status(&observed, &plan, &outcome, at(200)), first);
}

#[test]
fn a_failure_is_said_and_what_is_known_stays() {
    let mut observed = observed();
    let known = after(&observed, Some(&summary(SessionStatus::Idle)), None);
    Arc::make_mut(&mut observed.session).status = Some(known.clone());
    let error = Error::NameTaken { namespace: "team".into(), name: "h-1".into() };
    let status = after(&observed, None, Some(&error));
    assert_eq!((condition(&status, "Ready").0, condition(&status, "Ready").1), ("False", "PodNameTaken"));
    assert!(condition(&status, "Ready").2.contains("pod team/h-1"));
    assert_eq!((status.session_id, status.phase), (known.session_id, known.phase));
}

#[rstest]
#[case::near(LimitOf::Session, Limited::Events, false, "NearLimit", "10 events of one session", "Idle")]
#[case::full(LimitOf::Session, Limited::Bytes, true, "LimitReached", "10 bytes of one session", "LimitReached")]
#[case::namespace_near(
    LimitOf::Namespace,
    Limited::Bytes,
    false,
    "NamespaceNearLimit",
    "10 bytes of the namespace",
    "Idle"
)]
#[case::namespace_full(
    LimitOf::Namespace,
    Limited::Sessions,
    true,
    "NamespaceLimitReached",
    "10 sessions of the namespace",
    "Idle"
)]
fn a_limit_is_a_condition_and_told_once(
    #[case] of: LimitOf,
    #[case] what: Limited,
    #[case] reached: bool,
    #[case] reason: &str,
    #[case] named: &str,
    #[case] ready: &str,
) {
    let log = summary(SessionStatus::Idle);
    let before = after(&observed(), Some(&log), None);
    assert_eq!(condition(&before, "WithinLimits").0, "True");
    assert_eq!(limit_news(&[], &before.conditions), None);

    let log = SessionSummary { limit: Some(LimitNotice { of, what, limit: 10, reached }), ..log };
    let mut observed = observed();
    Arc::make_mut(&mut observed.session).status = Some(before.clone());
    let full = after(&observed, Some(&log), None);
    let (truth, found, message) = condition(&full, "WithinLimits");
    assert_eq!((truth, found), ("False", reason));
    assert!(message.contains(named), "{message}");
    assert_eq!(condition(&full, "Ready").1, ready);
    assert_eq!(limit_news(&before.conditions, &full.conditions).as_deref(), Some(message));
    assert_eq!(limit_news(&full.conditions, &full.conditions), None);

    // What is not asked is not forgotten, and a session that has ended has ended.
    Arc::make_mut(&mut observed.session).status = Some(full.clone());
    assert_eq!(condition(&after(&observed, None, None), "WithinLimits").1, reason);
    let ended = SessionSummary { status: SessionStatus::Terminated, ..log };
    assert_eq!(condition(&after(&observed, Some(&ended), None), "Ready").1, "Terminated");
}

#[test]
fn a_log_that_is_refused_for_a_limit_says_so() {
    let body = ErrorBody {
        kind: ErrorType::InvalidRequestError,
        message: "namespace team has 2 sessions, as many as it may: delete some".into(),
        details: Some(serde_json::json!({"error_code": "limit_reached", "of": "namespace"})),
    };
    let (call, status) = ("PUT".to_owned(), http::StatusCode::BAD_REQUEST);
    let refused = ApiError { call, status, body, request_id: None, retry_after: None };
    let error = Error::from(client::Error::Api(Box::new(refused)));
    let status = after(&observed(), None, Some(&error));
    let (truth, reason, message) = condition(&status, "Ready");
    assert_eq!((truth, reason), ("False", "LimitReached"));
    assert!(message.contains("as many as it may"), "{message}");
}
