//! A sandbox of one session is handed to another one: its files are there, in a pod of its own, and nothing else.

use std::process::ExitCode;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;
use kube::api::ListParams;
use longhand_crds::{Sandbox, labels};
use longhand_e2e::cluster::log::{assert_sound, kinds, results_of, text};
use longhand_e2e::cluster::{
    Fixture, SessionOptions, TestResult, VIEWER, eventually, in_namespace, longhand, session_manifest, token,
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
async fn a_workspace_that_is_in_no_volume_stays_and_it_is_said_why() {
    in_namespace("handoff-ephemeral", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 600).await?;
        let from = session(&fixture, "giver", "small", &["begin"]).await?;
        let to = session(&fixture, "receiver", "small", &[]).await?;
        fixture.service.until_idle(&from, 0, LONG).await?;
        let request = HandOff { to_session: to, to_sandbox: None };
        let error = fixture.service.wire.hand_off(&from, "main", &request).await.err().ok_or("it was handed over")?;
        assert_eq!(error.status().map(|status| status.as_u16()), Some(409), "{error}");
        assert!(error.to_string().contains("persistence: Persistent"), "{error}");
        let said = look(&fixture, &from).await?;
        assert!(said.contains("made here"), "nothing has happened to it: {said}");
        Ok(())
    })
    .await;
}
