//! What a GitOps controller does all day changes nothing.

use std::time::Duration;

use longhand_e2e::cluster::{Fixture, SessionOptions, TestResult, in_namespace, session_manifest};
use longhand_protocol::event::EventBody;

use longhand_e2e::cluster::log::{assert_sound, kinds};

const SCRIPT: &str = r#"
rules:
  - then: {text: "You said {{last_user}}."}
"#;

#[tokio::test]
async fn applying_again_changes_nothing_and_input_is_delivered_once() {
    in_namespace("gitops", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let options = SessionOptions { sandbox: false, ..SessionOptions::saying(&["one"]) };
        let manifest = session_manifest("gitops", &options);
        let session = fixture.session("gitops", &options).await?;
        fixture.service.until_idle(&session, 0, Duration::from_secs(60)).await?;

        let first = namespace.apply(&manifest).await?;
        let second = namespace.apply(&manifest).await?;
        assert_eq!(first[0].metadata.generation, second[0].metadata.generation);
        assert_eq!(first[0].data.get("spec"), second[0].data.get("spec"));
        assert_diff_is_empty(&namespace.name, &manifest).await?;

        // Input grows at its end: the new item alone is delivered.
        let more = SessionOptions { sandbox: false, ..SessionOptions::saying(&["one", "two"]) };
        let after = fixture.service.log(&session).await?.len() as u64;
        namespace.apply(&session_manifest("gitops", &more)).await?;
        fixture.service.until_idle(&session, after, Duration::from_secs(60)).await?;
        let log = fixture.service.log(&session).await?;
        assert_sound(&log);
        let said: Vec<_> = log
            .iter()
            .filter(|event| matches!(event.event.body, EventBody::UserMessage { .. }))
            .map(|event| longhand_e2e::cluster::log::text(&event.event.body))
            .collect();
        assert_eq!(said, ["one", "two"], "{:?}", kinds(&log));

        // What was delivered cannot be changed or taken back.
        for input in [&["other", "two"][..], &["one"][..]] {
            let changed = SessionOptions { sandbox: false, ..SessionOptions::saying(input) };
            let refused =
                namespace.apply(&session_manifest("gitops", &changed)).await.err().ok_or("the change was taken")?;
            assert!(refused.to_string().contains("input may only grow at its end"), "{refused}");
        }
        Ok(())
    })
    .await;
}

async fn assert_diff_is_empty(namespace: &str, manifest: &str) -> TestResult {
    let file = std::env::temp_dir().join(format!("{namespace}.yaml"));
    tokio::fs::write(&file, manifest).await?;
    let diff = tokio::process::Command::new("kubectl")
        .args(["diff", "--server-side", "--field-manager=longhand-e2e", "--namespace", namespace, "-f"])
        .arg(&file)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(30), diff).await??;
    tokio::fs::remove_file(&file).await?;
    assert!(output.status.success() && output.stdout.is_empty(), "kubectl diff: {output:?}");
    Ok(())
}
