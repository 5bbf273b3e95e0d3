//! Harnesses that are ready before there is a session for them.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use longhand_crds::agent::WarmState;
use longhand_crds::{Agent, AgentSession, labels};
use longhand_e2e::cluster::log::{assert_sound, messages};
use longhand_e2e::cluster::{Fixture, SessionOptions, TestNamespace, TestResult, eventually, in_namespace, wait_for};
use longhand_protocol::SessionId;
use longhand_protocol::event::EventBody;

const SCRIPT: &str = r#"
rules:
  - when: {user_contains: slow}
    then: {text: "It took a while.", delay_per_token_ms: 1500}
  - then: {text: "Here I am."}
"#;

/// Pods start on a machine that may be busy.
const START: Duration = Duration::from_secs(90);
/// A session that a busy pod does not take within its moment gets a pod of its own, as is meant: so often it is tried.
const ROUNDS: usize = 4;

async fn scale(namespace: &TestNamespace, replicas: i32) -> TestResult {
    let patch = Patch::Merge(serde_json::json!({ "spec": { "replicas": replicas } }));
    namespace.api::<Agent>().patch_scale("agent", &PatchParams::default(), &patch).await?;
    Ok(())
}

async fn sessions_per_pod(namespace: &TestNamespace, sessions: i32) -> TestResult {
    let patch = Patch::Merge(serde_json::json!({ "spec": { "harness": { "sessionsPerPod": sessions } } }));
    namespace.api::<Agent>().patch("agent", &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Waits until this many pods are ready; gives the names of all that the status names and that do not retire.
async fn ready(namespace: &TestNamespace, count: i32, deadline: Duration) -> TestResult<BTreeSet<String>> {
    let what = format!("status.warmReady is {count}");
    ready_and(namespace, count, &what, deadline, |_| true).await
}

/// The same, once what it gives is as it should be: the status comes after what it tells of.
async fn ready_and(
    namespace: &TestNamespace,
    count: i32,
    what: &str,
    deadline: Duration,
    wanted: impl Fn(&BTreeSet<String>) -> bool + Sync,
) -> TestResult<BTreeSet<String>> {
    wait_for(namespace.api::<Agent>(), "agent", what, deadline, |agent| {
        let status = agent?.status.as_ref().filter(|status| status.warm_ready == count)?;
        let pods = status.warm_pods.iter().filter(|pod| pod.state != WarmState::Retiring);
        Some(pods.map(|pod| pod.name.clone()).collect()).filter(&wanted)
    })
    .await
}

/// The pods that claimed the session, in order.
async fn claimants(fixture: &Fixture, session: &SessionId) -> TestResult<Vec<String>> {
    let log = fixture.service.log(session).await?;
    assert_sound(&log);
    let claims = log.into_iter().filter_map(|event| match event.event.body {
        EventBody::SessionWoken { harness, .. } => Some(harness),
        _ => None,
    });
    Ok(claims.collect())
}

async fn harness_pods(namespace: &TestNamespace, selector: &str) -> TestResult<usize> {
    let params = ListParams::default().labels(&format!("{}={},{selector}", labels::ROLE, labels::HARNESS));
    Ok(namespace.api::<Pod>().list(&params).await?.items.len())
}

/// Does it again until it is so: a round that is not was too slow for pods that are ready.
async fn in_rounds(what: &str, mut round: impl AsyncFnMut(usize) -> TestResult<bool>) -> TestResult {
    for number in 0..ROUNDS {
        if round(number).await? {
            return Ok(());
        }
    }
    Err(format!("not in {ROUNDS} rounds: {what}").into())
}

/// Sends a message to a new session that has none, and gives the pod that takes it if it is one of the agent's; `None` if the session
/// was given a pod of its own, as is meant when the machine is too busy for those that are ready.
async fn taken(fixture: &Fixture, name: &str) -> TestResult<(SessionId, Option<String>)> {
    // Without input of its own: the log is there before the message.
    let session = fixture.session(name, &SessionOptions::default()).await?;
    fixture.service.send(&session, "please be slow").await?;
    let sessions = fixture.namespace.api::<AgentSession>();
    let harness = wait_for(sessions, name, "status.harness names a pod", START, |session| {
        session?.status.as_ref()?.harness.clone().filter(|harness| harness.pod_name.is_some())
    })
    .await?;
    Ok((session, harness.pod_name.filter(|_| harness.warm)))
}

#[tokio::test]
async fn a_message_is_taken_by_a_harness_that_was_ready_and_the_pool_is_filled_up() {
    in_namespace("warm", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let version = wait_for(namespace.api::<Agent>(), "agent", "status.version is set", START, |agent| {
            agent?.status.as_ref()?.version
        })
        .await?;
        scale(&namespace, 2).await?;
        assert_eq!(ready(&namespace, 2, START).await?.len(), 2);
        let twice = async |round| is_taken_twice(&fixture, &format!("round-{round}")).await;
        in_rounds("a pod that was ready takes each of two messages", twice).await?;

        // A surplus goes after a minute; none wanted go at once.
        scale(&namespace, 0).await?;
        eventually("no harness is kept ready", START, || async {
            Ok((harness_pods(&namespace, labels::AGENT_UID).await? == 0).then_some(()))
        })
        .await?;
        let agent = namespace.api::<Agent>().get("agent").await?;
        assert_eq!(agent.status.and_then(|status| status.version), Some(version), "scaling makes no version");
        Ok(())
    })
    .await;
}

/// Whether a new session's two messages, one after the other, were taken by pods that were ready.
async fn is_taken_twice(fixture: &Fixture, name: &str) -> TestResult<bool> {
    let namespace = &fixture.namespace;
    let pool = ready(namespace, 2, START).await?;
    let (session, taken) = taken(fixture, name).await?;
    let Some(taken) = taken else {
        fixture.service.until_idle(&session, 0, START).await?;
        return Ok(false);
    };
    assert!(pool.contains(&taken), "{taken} was not ready before: {pool:?}");
    let what = format!("two pods are ready beside {taken}");
    let beside = |pods: &BTreeSet<String>| pods.len() == 3 || !pods.contains(&taken);
    let filled = ready_and(namespace, 2, &what, START, beside).await?;

    fixture.service.until_idle(&session, 0, START).await?;
    assert_eq!(claimants(fixture, &session).await?, [taken]);
    let uid = namespace.api::<AgentSession>().get(name).await?.uid().unwrap_or_default();
    let own = format!("{}={uid}", labels::SESSION_UID);
    assert_eq!(harness_pods(namespace, &own).await?, 0, "no pod was made for the session");
    wait_for(namespace.api::<AgentSession>(), name, "the pod is given back", Duration::from_secs(20), |session| {
        let status = session?.status.as_ref()?;
        let given_back = status.harness.as_ref().is_none_or(|harness| harness.pod_uid.is_none());
        (given_back && status.phase.as_deref() == Some("idle")).then_some(())
    })
    .await?;

    // The next message is taken by a ready one too, and knows what was said.
    let head = fixture.service.log(&session).await?.len() as u64;
    fixture.service.send(&session, "again").await?;
    fixture.service.until_idle(&session, head, START).await?;
    assert_eq!(messages(&fixture.service.log(&session).await?), ["It took a while.", "Here I am."]);
    let claims = claimants(fixture, &session).await?;
    assert_eq!(claims.len(), 2, "{claims:?}");
    Ok(filled.contains(&claims[1]))
}

#[tokio::test]
async fn a_ready_harness_that_dies_at_work_is_made_up_for() {
    in_namespace("warm-killed", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        scale(&namespace, 1).await?;
        in_rounds("a pod that was ready takes a message", async |round| {
            ready(&namespace, 1, START).await?;
            let (session, taken) = taken(&fixture, &format!("round-{round}")).await?;
            if let Some(pod) = &taken {
                namespace.api::<Pod>().delete(pod, &DeleteParams::default().grace_period(0)).await?;
            }
            fixture.service.until_idle(&session, 0, START).await?;
            let Some(pod) = taken else { return Ok(false) };
            let claims = claimants(&fixture, &session).await?;
            assert!(claims.len() == 2 && claims[0] == pod && claims[1] != pod, "{claims:?}");
            ready(&namespace, 1, START).await?;
            Ok(true)
        })
        .await
    })
    .await;
}

/// Whether two sessions at work were served by the pods that were ready, and by no other.
async fn both_are_served(fixture: &Fixture, round: usize) -> TestResult<bool> {
    let pool = ready(&fixture.namespace, 1, START).await?;
    let mut sessions = Vec::new();
    for name in ["one", "two"] {
        sessions.push(fixture.session(&format!("{name}-{round}"), &SessionOptions::default()).await?);
    }
    for session in &sessions {
        fixture.service.send(session, "please be slow").await?;
    }
    let mut claims = Vec::new();
    for session in &sessions {
        fixture.service.until_idle(session, 0, START).await?;
        claims.push(claimants(fixture, session).await?);
    }
    // One that was offered twice is looked at once more by who has it.
    Ok(claims.iter().all(|claims| !claims.is_empty() && claims.iter().all(|claim| pool.contains(claim))))
}

#[tokio::test]
async fn one_pod_serves_several_sessions() {
    in_namespace("warm-shared", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        sessions_per_pod(&namespace, 4).await?;
        scale(&namespace, 1).await?;
        in_rounds("a pod serves two sessions", async |round| both_are_served(&fixture, round).await).await
    })
    .await;
}

#[tokio::test]
async fn a_session_with_vaults_gets_a_pod_of_its_own() {
    in_namespace("warm-vaults", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        scale(&namespace, 1).await?;
        ready(&namespace, 1, START).await?;
        namespace
            .apply("apiVersion: longhand.dev/v1alpha1\nkind: AgentSession\nmetadata: {name: own}\nspec:\n  agentRef: {name: agent}\n  vaultRefs: [{name: model}]\n")
            .await?;
        let session = fixture.session_id("own").await?;
        fixture.service.send(&session, "hello").await?;
        fixture.service.until_idle(&session, 0, START).await?;
        let claims = claimants(&fixture, &session).await?;
        assert!(claims.len() == 1 && claims[0].contains("-harness-"), "{claims:?}");
        Ok(())
    })
    .await;
}
