//! A sandbox of one session is handed to another one: its files are there, in a pod of its own, and nothing else.

use std::process::ExitCode;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams};
use longhand_crds::{Sandbox, SandboxTemplate, labels};
use longhand_e2e::cluster::log::{assert_sound, kinds, results_of, text};
use longhand_e2e::cluster::{
    Fixture, SessionOptions, TestNamespace, TestResult, VIEWER, eventually, in_namespace, longhand, session_manifest,
    token, wait_for,
};
use longhand_protocol::SessionId;
use longhand_protocol::event::EventBody;
use longhand_protocol::wire::handoffs::HandOff;

const SCRIPT: &str = r#"
rules:
  - when: {user_contains: begin, turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "echo made here > note; nohup sleep 600 >/dev/null 2>&1 & echo begun"}}]}
  - when: {user_contains: look, turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "cat note || echo nothing; echo asleep: $(grep -lx sleep /proc/[0-9]*/comm | wc -l)"}}]}
  - then: {text: "Done."}
"#;
const TEMPLATE: &str = r#"
apiVersion: longhand.dev/v1alpha1
kind: SandboxTemplate
metadata: {name: kept}
spec:
  resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {cpu: "1", memory: 256Mi}}
  workspace: {size: 64Mi, persistence: Persistent}
"#;
/// The same, with what a copy could lose.
const FURNISHED: &str = r#"
rules:
  - when: {user_contains: begin, turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "echo made here > note; mkdir -p .git/refs empty; echo ref: main > .git/HEAD; printf '#!/bin/sh\\necho ran' > run; chmod 755 run; ln -s run link; nohup sleep 600 >/dev/null 2>&1 & echo begun"}}]}
  - when: {user_contains: look, turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "cat note || echo nothing; cat .git/HEAD; ./link; echo empty: $(ls -A empty | wc -l); echo link: $(readlink link); echo asleep: $(grep -lx sleep /proc/[0-9]*/comm | wc -l)"}}]}
  - then: {text: "Done."}
"#;
const POOL: &str = r#"
apiVersion: longhand.dev/v1alpha1
kind: SandboxTemplate
metadata: {name: pooled}
spec:
  resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {cpu: "1", memory: 256Mi}}
  workspace: {size: 64Mi}
  warm: 1
"#;
const UNSCHEDULABLE: &str = r#"
apiVersion: longhand.dev/v1alpha1
kind: SandboxTemplate
metadata: {name: huge}
spec:
  resources: {requests: {cpu: "500", memory: 64Mi}, limits: {cpu: "500", memory: 256Mi}}
  provisioningSeconds: SECONDS
"#;
const LONG: Duration = Duration::from_secs(120);

async fn session(fixture: &Fixture, name: &str, template: &str, input: &[&str]) -> TestResult<SessionId> {
    let manifest = session_manifest(name, &SessionOptions::saying(input));
    let wanted = format!("{{name: main, templateRef: {{name: {template}}}}}");
    fixture.namespace.apply(&manifest.replace("{name: main, templateRef: {name: small}}", &wanted)).await?;
    fixture.session_id(name).await
}

/// What the last tool call of a session said.
async fn look(fixture: &Fixture, session: &SessionId) -> TestResult<String> {
    let after = fixture.service.log(session).await?.len() as u64;
    fixture.service.send(session, "look").await?;
    fixture.service.until_idle(session, after, LONG).await?;
    let log = fixture.service.log(session).await?;
    assert_sound(&log);
    let call = log.iter().rev().find(|event| matches!(event.event.body, EventBody::AgentToolUse { .. }));
    let results = results_of(&log, &call.ok_or("no tool was called")?.event.id);
    Ok(text(results.first().ok_or("the call has no result")?))
}

#[tokio::test]
async fn the_workspace_goes_to_the_other_session_and_no_process_does() {
    in_namespace("handoff", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 600).await?;
        namespace.apply(TEMPLATE).await?;
        namespace.apply(VIEWER).await?;
        let from = session(&fixture, "giver", "kept", &["begin"]).await?;
        // Its own template has no volume: it gets the one that is handed to it.
        let to = session(&fixture, "receiver", "small", &[]).await?;
        fixture.service.until_idle(&from, 0, LONG).await?;
        let before = namespace.pods(labels::SANDBOX).await?;
        let claims = namespace.api::<PersistentVolumeClaim>().list(&ListParams::default()).await?.items;
        let [claim] = claims.as_slice() else { return Err(format!("{} claims", claims.len()).into()) };

        let viewer = fixture.service.wire_as(&token(&namespace, "viewer", None).await?)?;
        let request = HandOff { to_session: to.clone(), to_sandbox: None };
        let refused = viewer.hand_off(&from, "main", &request).await;
        let status = refused.err().and_then(|error| error.status());
        assert_eq!(status.map(|status| status.as_u16()), Some(403));

        for _ in 0..2 {
            let code = longhand(&namespace, &["handoff", "giver", "--to", "receiver/main"]).await?;
            assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS), "and again, which changes nothing");
        }
        eventually("the workspace has one owner, the sandbox of the other session", LONG, || async {
            let sandboxes = namespace.api::<Sandbox>().list(&ListParams::default()).await?.items;
            let moved = namespace.api::<PersistentVolumeClaim>().get(&claim.name_any()).await?;
            let [sandbox] = sandboxes.as_slice() else { return Ok(None) };
            let owners = moved.owner_references();
            let of_receiver = sandbox.spec.session_ref.as_ref().is_some_and(|session| session.name == "receiver");
            let owned = owners.len() == 1 && Some(&owners[0].uid) == sandbox.metadata.uid.as_ref();
            Ok((of_receiver && owned && moved.metadata.uid == claim.metadata.uid).then_some(()))
        })
        .await?;

        let said = look(&fixture, &to).await?;
        assert!(said.contains("made here"), "{said}");
        assert!(said.contains("asleep: 0"), "no process came along: {said}");
        let after = namespace.pods(labels::SANDBOX).await?;
        let own = |pod: &&Pod| before.iter().all(|old| old.metadata.uid != pod.metadata.uid);
        assert_eq!(after.iter().filter(own).count(), 1, "it has a pod of its own");
        // The session that gave it away begins anew.
        let said = look(&fixture, &from).await?;
        assert!(said.contains("nothing"), "{said}");

        let (given, received) = (fixture.service.log(&from).await?, fixture.service.log(&to).await?);
        let count = |kinds: &[&str], wanted: &str| kinds.iter().filter(|kind| **kind == wanted).count();
        assert_eq!(count(&kinds(&given), "x.sandbox.handed_off"), 1, "{:?}", kinds(&given));
        assert_eq!(count(&kinds(&received), "x.sandbox.received"), 1, "{:?}", kinds(&received));
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_workspace_in_no_volume_is_copied_into_a_pod_that_was_ready_before() {
    in_namespace("handoff-copy", |namespace| async move {
        let fixture = Fixture::install(&namespace, FURNISHED, 600).await?;
        namespace.apply(POOL).await?;
        let pooled = wait_for(namespace.api::<SandboxTemplate>(), "pooled", "its pool is full", LONG, |template| {
            (template?.status.as_ref()?.warm_ready == 1).then_some(())
        });
        pooled.await?;
        let from = session(&fixture, "giver", "small", &["begin"]).await?;
        let to = session(&fixture, "receiver", "pooled", &[]).await?;
        fixture.service.until_idle(&from, 0, LONG).await?;
        let before = namespace.pods(labels::SANDBOX).await?;

        for _ in 0..2 {
            let code = longhand(&namespace, &["handoff", "giver", "--to", "receiver/main"]).await?;
            assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS), "and again, which changes nothing");
        }
        let uid = eventually("the sandbox of the other session alone is there, with a copy", LONG, || async {
            let sandboxes = namespace.api::<Sandbox>().list(&ListParams::default()).await?.items;
            let [sandbox] = sandboxes.as_slice() else { return Ok(None) };
            Ok(sandbox.spec.workspace_from.as_ref().and_then(|from| from.copied_to.clone()))
        })
        .await?;
        assert!(before.iter().any(|pod| pod.metadata.uid.as_ref() == Some(&uid)), "it was taken from the pool");

        let said = look(&fixture, &to).await?;
        for wanted in ["made here", "ref: main", "ran", "empty: 0", "link: run", "asleep: 0"] {
            assert!(said.contains(wanted), "{wanted}: {said}");
        }
        // The session that gave it away begins anew.
        let said = look(&fixture, &from).await?;
        assert!(said.contains("nothing"), "{said}");
        let (given, received) = (fixture.service.log(&from).await?, fixture.service.log(&to).await?);
        let count = |kinds: &[&str], wanted: &str| kinds.iter().filter(|kind| **kind == wanted).count();
        assert_eq!(count(&kinds(&given), "x.sandbox.handed_off"), 1, "{:?}", kinds(&given));
        assert_eq!(count(&kinds(&received), "x.sandbox.received"), 1, "{:?}", kinds(&received));
        Ok(())
    })
    .await;
}

/// Waits until the only sandbox is the giver's, which is handed over no more, and gives why the handoff was taken back.
async fn taken_back(namespace: &TestNamespace) -> TestResult<String> {
    eventually("the handoff is taken back, and the Event says so", LONG, || async {
        let sandboxes = namespace.api::<Sandbox>().list(&ListParams::default()).await?.items;
        let [sandbox] = sandboxes.as_slice() else { return Ok(None) };
        if sandbox.spec.handoff_to.is_some() {
            return Ok(None);
        }
        let events = namespace.api::<Event>().list(&ListParams::default()).await?.items;
        let said = events.into_iter().find(|event| event.reason.as_deref() == Some("SandboxHandoffTakenBack"));
        Ok(said.and_then(|event| event.note))
    })
    .await
}

#[tokio::test]
async fn a_workspace_stays_if_the_other_pod_does_not_come() {
    in_namespace("handoff-late", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 600).await?;
        namespace.apply(&UNSCHEDULABLE.replace("SECONDS", "5")).await?;
        let from = session(&fixture, "giver", "small", &["begin"]).await?;
        let to = session(&fixture, "receiver", "huge", &[]).await?;
        fixture.service.until_idle(&from, 0, LONG).await?;
        let before = namespace.pods(labels::SANDBOX).await?;
        fixture.service.wire.hand_off(&from, "main", &HandOff { to_session: to.clone(), to_sandbox: None }).await?;
        let why = taken_back(&namespace).await?;
        assert!(why.contains("ProvisioningDeadlineExceeded"), "{why}");
        let said = look(&fixture, &from).await?;
        assert!(said.contains("made here"), "{said}");
        let after = namespace.pods(labels::SANDBOX).await?;
        assert!(before.iter().all(|old| after.iter().any(|pod| pod.metadata.uid == old.metadata.uid)), "the same pod");
        for session in [&from, &to] {
            let log = fixture.service.log(session).await?;
            assert!(kinds(&log).iter().all(|kind| !kind.ends_with("handed_off") && !kind.ends_with("received")));
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_workspace_that_is_lost_with_its_pod_goes_to_nobody() {
    in_namespace("handoff-lost", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 600).await?;
        // It is on its way for as long as there is no pod for it.
        namespace.apply(&UNSCHEDULABLE.replace("SECONDS", "600")).await?;
        let from = session(&fixture, "giver", "small", &["begin"]).await?;
        let to = session(&fixture, "receiver", "huge", &[]).await?;
        fixture.service.until_idle(&from, 0, LONG).await?;
        let pods = namespace.pods(labels::SANDBOX).await?;
        let [pod] = pods.as_slice() else { return Err(format!("{} pods", pods.len()).into()) };
        fixture.service.wire.hand_off(&from, "main", &HandOff { to_session: to, to_sandbox: None }).await?;
        namespace.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await?;
        let why = taken_back(&namespace).await?;
        assert!(why.contains("its workspace with it"), "{why}");
        let said = look(&fixture, &from).await?;
        assert!(said.contains("nothing"), "{said}");
        Ok(())
    })
    .await;
}
