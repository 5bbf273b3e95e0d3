//! An idle session costs no pods; a message wakes what it needs.

use std::time::Duration;

use kube::api::ListParams;
use longhand_crds::{Sandbox, labels};
use longhand_e2e::cluster::{Fixture, SessionOptions, TestNamespace, TestResult, eventually, in_namespace};
use longhand_protocol::event::EventBody;

use longhand_e2e::cluster::log::{assert_sound, kinds};

const SANDBOX_IDLE_SECONDS: u32 = 8;
const HARNESS_IDLE_SECONDS: u32 = 3;
/// The promise: a sandbox is gone within its idle time and this.
const SLACK: Duration = Duration::from_secs(5);

const SCRIPT: &str = r#"
rules:
  - when: {user_contains: tool, turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "echo done"}}]}
  - then: {text: "I was sent {{message_count}} messages."}
"#;

async fn pods(namespace: &TestNamespace, role: &str) -> TestResult<usize> {
    Ok(namespace.pods(role).await?.len())
}

#[tokio::test]
async fn hands_and_brain_go_when_idle_and_come_back_with_the_whole_conversation() {
    in_namespace("idle", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, SANDBOX_IDLE_SECONDS).await?;
        let options =
            SessionOptions { harness_idle_seconds: HARNESS_IDLE_SECONDS, ..SessionOptions::saying(&["use a tool"]) };
        let session = fixture.session("idle", &options).await?;
        let result = |event: &longhand_protocol::Event| matches!(event.body, EventBody::AgentToolResult { .. });
        fixture.service.follow(&session, 0, Duration::from_secs(90), result).await?;
        fixture.service.until_idle(&session, 0, Duration::from_secs(30)).await?;

        eventually("the idle sandbox is gone", Duration::from_secs(60), || async {
            let sandboxes = namespace.api::<Sandbox>().list(&ListParams::default()).await?.items.len();
            let terminating = pods(&namespace, labels::SANDBOX).await?;
            Ok((sandboxes == 0 && terminating == 0).then_some(()))
        })
        .await?;
        eventually("the harness is gone after its grace", Duration::from_secs(20), || async {
            Ok((pods(&namespace, labels::HARNESS).await? == 0).then_some(()))
        })
        .await?;
        let log = fixture.service.log(&session).await?;
        assert_eq!(kinds(&log).last(), Some(&"x.sandbox.reclaimed"));
        let of = |kind: &str| log.iter().rfind(|event| event.event.body.kind() == kind)?.event.processed_at;
        let (used, reclaimed) =
            (of("agent.tool_result").ok_or("no result")?, of("x.sandbox.reclaimed").ok_or("no end")?);
        let (took, wanted) =
            (Duration::try_from(reclaimed.duration_since(used))?, Duration::from_secs(SANDBOX_IDLE_SECONDS.into()));
        // It counts in whole seconds from when the sandbox had done, which is before the log has the result.
        let soonest = wanted.saturating_sub(Duration::from_secs(1));
        assert!((soonest..wanted + SLACK).contains(&took), "it was reclaimed after {took:?}, {wanted:?} were wanted");

        // A message that needs no hands wakes the brain alone, and the model is sent everything.
        let after = log.len() as u64;
        fixture.service.send(&session, "what did I say?").await?;
        fixture.service.until_idle(&session, after, Duration::from_secs(60)).await?;
        assert_eq!(pods(&namespace, labels::SANDBOX).await?, 0);
        let recorded = fixture.model.recorded().await?;
        let messages = recorded.requests.last().ok_or("the model was not asked")?.messages().to_vec();
        assert_eq!(messages.len(), 5, "user, assistant, tool result, assistant, user: {messages:?}");
        assert!(messages[0].to_string().contains("use a tool") && messages[4].to_string().contains("what did I say?"));

        // One that needs them wakes both.
        let after = fixture.service.log(&session).await?.len() as u64;
        fixture.service.send(&session, "use the tool again").await?;
        fixture.service.until_idle(&session, after, Duration::from_secs(90)).await?;
        let log = fixture.service.log(&session).await?;
        assert_sound(&log);
        assert_eq!(kinds(&log).iter().filter(|kind| **kind == "x.sandbox.ready").count(), 2);
        Ok(())
    })
    .await;
}
