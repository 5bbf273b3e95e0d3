//! A brain dies without a word; another goes on from the log.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use longhand_crds::AgentSession;
use longhand_e2e::cluster::{Fixture, SessionOptions, TestResult, eventually, in_namespace, wait_for};
use longhand_protocol::SessionId;
use longhand_protocol::event::EventBody;

use longhand_e2e::cluster::log::{assert_sound, kinds, messages};

const SCRIPT: &str = r#"
rules:
  - when: {user_contains: story, times: 1}
    then: {text: "Once upon a time there was a very slow story teller.", delay_per_token_ms: 60000}
  - when: {user_contains: story}
    then: {text: "Once upon a time there was a story."}
  - when: {user_contains: slow tool, turn: 0}
    then:
      text: I will run something slow.
      tool_uses: [{name: bash, input: {command: "echo run >> counter; sleep 8; cat counter"}}]
  - when: {user_contains: slow tool, turn: 1}
    then: {text: "The counter holds: {{last_tool_result}}"}
"#;

/// Kills the session's harness pod with no grace and returns its UID.
async fn kill(fixture: &Fixture, name: &str) -> TestResult<String> {
    let pod = wait_for(
        fixture.namespace.api::<AgentSession>(),
        name,
        "status.harness.podName is set",
        Duration::from_secs(30),
        |session| session?.status.as_ref()?.harness.as_ref()?.pod_name.clone(),
    )
    .await?;
    let pods = fixture.namespace.api::<Pod>();
    let uid = pods.get(&pod).await?.metadata.uid.ok_or("a pod without a UID")?;
    pods.delete(&pod, &DeleteParams::default().grace_period(0)).await?;
    Ok(uid)
}

async fn assert_resumed(fixture: &Fixture, session: &SessionId) -> TestResult<Vec<String>> {
    fixture.service.until_idle(session, 0, Duration::from_secs(90)).await?;
    let log = fixture.service.log(session).await?;
    assert_sound(&log);
    let epochs: Vec<_> = log
        .iter()
        .filter_map(|event| match event.event.body {
            EventBody::SessionWoken { epoch, .. } => Some(epoch),
            _ => None,
        })
        .collect();
    assert_eq!(epochs, [1, 2], "{:?}", kinds(&log));
    assert_eq!(kinds(&log).iter().filter(|kind| **kind == "user.message").count(), 1);
    Ok(messages(&log))
}

#[tokio::test]
async fn killed_while_the_model_streams() {
    in_namespace("killed-stream", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let session = fixture.session("story", &SessionOptions::saying(&["tell me a story"])).await?;
        eventually("the model is writing", Duration::from_secs(60), || async {
            let recorded = fixture.model.recorded().await?;
            Ok(recorded.requests.first().and_then(|request| request.first_token_unix_ms))
        })
        .await?;
        kill(&fixture, "story").await?;
        let messages = assert_resumed(&fixture, &session).await?;
        assert_eq!(messages, ["Once upon a time there was a story."]);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn killed_while_a_tool_runs() {
    in_namespace("killed-tool", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let session = fixture.session("tool", &SessionOptions::saying(&["run the slow tool"])).await?;
        fixture.service.follow_all(&session, "x.sandbox.ready", Duration::from_secs(60)).await?;
        kill(&fixture, "tool").await?;
        let messages = assert_resumed(&fixture, &session).await?;
        let last = messages.last().ok_or("the agent said nothing")?;
        assert_eq!(last.matches("run").count(), 1, "the tool did not run exactly once: {last}");
        Ok(())
    })
    .await;
}
