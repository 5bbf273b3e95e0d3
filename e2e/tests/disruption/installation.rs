//! An installation that serves a namespace that it names, with rights in no other, copies `sandboxd` into images, and traces what it does.

use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use longhand_crds::{AgentSession, SandboxTemplate, labels};
use longhand_e2e::cluster::log::{assert_sound, messages};
use longhand_e2e::cluster::{
    Collector, Fixture, SYSTEM_NAMESPACE, SentSpan, SessionOptions, TestNamespace, TestResult, eventually,
    harness_python_image, helm, in_namespace, session_manifest, wait_for,
};
use serde_json::json;

const SCRIPT: &str = r#"
rules:
  - when: {turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "echo served"}}]}
  - then: {text: "{{last_tool_result}}"}
"#;
const PATIENCE: Duration = Duration::from_secs(120);

/// Changes what the installation serves and how `sandboxd` gets into images, and waits until it does. No namespace stands for all of
/// them.
async fn serve_only(namespaces: &[&str], injection: &str, collector: &str) -> TestResult {
    let of = json!(namespaces);
    let values = format!(
        "watchNamespaces={of},session.secretNamespaces={of},sandbox.sandboxd.injection={injection:?},tracing.endpoint={collector:?}"
    );
    let upgrade = ["upgrade", "longhand", "charts/longhand", "-n", SYSTEM_NAMESPACE, "--reuse-values", "--wait"];
    helm(&[&upgrade[..], &["--timeout", "4m", "--set-json", &values]].concat()).await.map(drop)
}

async fn confined(named: &TestNamespace, other: &TestNamespace) -> TestResult {
    let collector = Collector::install(other).await?;
    serve_only(&[&named.name], "InitContainer", &collector.url).await?;
    let bindings = Api::<ClusterRoleBinding>::all(named.client.clone()).list(&ListParams::default()).await?;
    let operators =
        bindings.iter().flat_map(|binding| binding.subjects.iter().flatten().map(move |who| (who, binding)));
    for (who, binding) in operators {
        assert_ne!(who.name, "longhand-operator", "{} gives the operator rights everywhere", binding.name_any());
    }
    let elsewhere = Fixture::install(other, SCRIPT, 60).await?;
    elsewhere.namespace.apply(&session_manifest("unserved", &SessionOptions::saying(&["go"]))).await?;

    let fixture = Fixture::install(named, SCRIPT, 60).await?;
    let patch = Patch::Merge(json!({ "spec": { "image": harness_python_image() } }));
    named.api::<SandboxTemplate>().patch("small", &PatchParams::default(), &patch).await?;
    let session = fixture.session("served", &SessionOptions::saying(&["go"])).await?;
    fixture.service.until_idle(&session, 0, PATIENCE).await?;
    let log = fixture.service.log(&session).await?;
    assert_sound(&log);
    assert_eq!(messages(&log).last().map(|said| said.trim()), Some("served"), "{log:?}");
    idle(named, "served").await?;
    let pod = named.pods(labels::SANDBOX).await?.pop().and_then(|pod| pod.spec).ok_or("there is no sandbox pod")?;
    let copied: Vec<_> = pod.init_containers.iter().flatten().map(|container| container.name.as_str()).collect();
    assert_eq!(copied, ["install-sandboxd"]);
    one_trace(&collector).await?;
    let unserved = other.api::<AgentSession>().get("unserved").await?;
    assert_eq!(unserved.status, None, "a session of a namespace that is not named");
    Ok(())
}

async fn idle(namespace: &TestNamespace, session: &str) -> TestResult {
    wait_for(namespace.api::<AgentSession>(), session, "phase is idle", PATIENCE, |session| {
        (session?.status.as_ref()?.phase.as_deref()? == "idle").then_some(())
    })
    .await
}

/// What was done for the message, from its request to the command that the model asked for, is one trace.
async fn one_trace(collector: &Collector) -> TestResult {
    const DONE: [(&str, &str); 9] = [
        ("longhand-operator", "start harness"),
        ("longhand-harness", "turn"),
        ("longhand-harness", "chat"),
        ("longhand-harness", "execute"),
        ("longhand-session", "POST /harness/v1/sessions/{session}/execute"),
        ("longhand-session", "call"),
        ("longhand-session", "wait for sandbox"),
        ("longhand-operator", "bring about sandbox"),
        ("longhand-session", "run in sandbox"),
    ];
    let of = |spans: &[SentSpan], (service, name): (&str, &str)| {
        spans.iter().find(|span| (span.service.as_str(), span.name.as_str()) == (service, name)).cloned()
    };
    let missing = Mutex::new(Vec::new());
    let spans = eventually("all spans are sent", PATIENCE, || async {
        let spans = collector.spans().await?;
        let without: Vec<_> = DONE.iter().copied().filter(|done| of(&spans, *done).is_none()).collect();
        let all = without.is_empty();
        *missing.lock().unwrap_or_else(PoisonError::into_inner) = without;
        Ok(all.then_some(spans))
    })
    .await
    .map_err(|error| format!("{error}; missing are {missing:?}"))?;
    let turn = of(&spans, DONE[1]).ok_or("no turn")?;
    for done in DONE {
        let span = of(&spans, done).ok_or("a span is gone")?;
        assert_eq!(span.trace, turn.trace, "{done:?} is of another trace than the turn");
        let is_root = spans.iter().all(|other| other.id != span.parent);
        assert!(
            !is_root || span.name == "turn" || span.name == "start harness",
            "{span:?} is a part of nothing that was sent"
        );
    }
    Ok(())
}

/// Whatever comes of it, the installation serves all namespaces again.
pub(crate) async fn serve() {
    in_namespace("named", |named| async move {
        let other = TestNamespace::create(named.client.clone(), "not-named").await?;
        let outcome = AssertUnwindSafe(confined(&named, &other)).catch_unwind().await;
        let restored = serve_only(&[], "Auto", "").await;
        let served = match (&outcome, &restored) {
            // What was made meanwhile is served now.
            (Ok(Ok(())), Ok(())) => idle(&other, "unserved").await,
            _ => Ok(()),
        };
        other.delete().await;
        match outcome {
            Ok(outcome) => outcome.and(restored).and(served),
            Err(panicked) => std::panic::resume_unwind(panicked),
        }
    })
    .await;
}
