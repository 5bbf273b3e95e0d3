//! The model chooses among the sandboxes of its session.

use std::time::Duration;

use longhand_crds::labels;
use longhand_e2e::cluster::log::{assert_sound, text};
use longhand_e2e::cluster::{Fixture, SessionOptions, in_namespace, session_manifest};
use longhand_protocol::event::EventBody;

const SCRIPT: &str = r#"
rules:
  - when: {user_contains: both, turn: 0}
    then:
      tool_uses:
        - {name: bash, input: {command: "echo built > made; cat made", sandbox: build}}
        - {name: bash, input: {command: "ls made || echo nothing"}}
        - {name: bash, input: {command: "true", sandbox: nowhere}}
  - then: {text: "Done."}
"#;

#[tokio::test]
async fn each_call_runs_in_the_sandbox_that_it_names() {
    in_namespace("two-sandboxes", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let manifest = session_manifest("both", &SessionOptions::saying(&["both, please"]));
        let one = "{name: main, templateRef: {name: small}}";
        let two = format!("{one}, {{name: build, templateRef: {{name: small}}}}");
        namespace.apply(&manifest.replace(one, &two)).await?;
        let session = fixture.session_id("both").await?;
        fixture.service.until_idle(&session, 0, Duration::from_secs(150)).await?;
        let log = fixture.service.log(&session).await?;
        assert_sound(&log);
        let calls: Vec<_> =
            log.iter().map(|event| &event.event).filter(|event| event.body.kind() == "agent.tool_use").collect();
        let mut said = Vec::new();
        for call in calls {
            let result = longhand_e2e::cluster::log::results_of(&log, &call.id);
            let EventBody::AgentToolUse { sandbox, .. } = &call.body else { continue };
            said.push((sandbox.as_deref(), text(result.first().ok_or("a call has no result")?)));
        }
        let [(Some("build"), built), (None, main), (Some("nowhere"), nowhere)] = said.as_slice() else {
            return Err(format!("{said:?}").into());
        };
        assert!(built.contains("built"), "{built}");
        assert!(main.contains("nothing"), "{main}");
        assert!(nowhere.contains("no sandbox `nowhere`") && nowhere.contains("main, build"), "{nowhere}");
        assert_eq!(namespace.pods(labels::SANDBOX).await?.len(), 2);
        let asked = fixture.model.recorded().await?.requests;
        assert!(
            asked[0].body["tools"].to_string().contains(r#""enum":["main","build"]"#),
            "{}",
            asked[0].body["tools"]
        );
        Ok(())
    })
    .await;
}
