//! Hands are lost under a call; the model is told, and the next call gets new ones.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams};
use longhand_crds::labels;
use longhand_e2e::cluster::{Fixture, SessionOptions, in_namespace};
use longhand_protocol::event::EventBody;

use longhand_e2e::cluster::log::{assert_sound, kinds, messages, text};

const SCRIPT: &str = r#"
rules:
  - when: {turn: 0}
    then:
      tool_uses: [{name: bash, input: {command: "touch here; sleep 300"}}]
  - when: {turn: 1}
    then:
      tool_uses: [{name: bash, input: {command: "ls"}}]
  - when: {turn: 2}
    then: {text: "Files now: {{last_tool_result}}."}
"#;

#[tokio::test]
async fn the_model_reads_that_the_outcome_is_unknown_and_gets_a_new_sandbox() {
    in_namespace("lost-sandbox", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let session = fixture.session("lost", &SessionOptions::saying(&["go"])).await?;
        fixture.service.follow_all(&session, "x.sandbox.ready", Duration::from_secs(60)).await?;
        let pods = namespace.api::<Pod>();
        let selector = ListParams::default().labels(&format!("{}={}", labels::ROLE, labels::SANDBOX));
        let pod = pods.list(&selector).await?.items.pop().ok_or("there is no sandbox pod")?;
        pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await?;

        fixture.service.until_idle(&session, 0, Duration::from_secs(120)).await?;
        let log = fixture.service.log(&session).await?;
        assert_sound(&log);
        let results: Vec<_> = log
            .iter()
            .map(|event| &event.event.body)
            .filter(|body| matches!(body, EventBody::AgentToolResult { .. }))
            .collect();
        let [first, second] = results.as_slice() else {
            return Err(format!("{} results: {:?}", results.len(), kinds(&log)).into());
        };
        assert!(matches!(first, EventBody::AgentToolResult { is_error: Some(true), .. }), "{first:?}");
        assert!(text(first).contains("outcome is unknown"), "{}", text(first));
        assert!(!matches!(second, EventBody::AgentToolResult { is_error: Some(true), .. }), "{second:?}");
        assert!(kinds(&log).contains(&"x.tool.outcome_unknown"));
        let replaced = pods.list(&selector).await?.items.iter().any(|other| other.uid() != pod.uid());
        assert!(replaced, "there is no other sandbox pod");
        let said = messages(&log).pop().unwrap_or_default();
        assert!(!said.contains("here"), "the new sandbox has files of the lost one: {said}");
        Ok(())
    })
    .await;
}
