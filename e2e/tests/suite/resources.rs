//! What a workspace holds before the first call runs in it: files and repositories, each given once, or an error that says why not.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use longhand_crds::{AgentSession, Sandbox, SandboxTemplate};
use longhand_e2e::cluster::log::messages;
use longhand_e2e::cluster::{Fixture, SessionOptions, TestResult, eventually, in_namespace, wait_for};
use longhand_protocol::SessionId;
use longhand_protocol::wire::files::FileMetadata;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(120);

const SCRIPT: &str = r#"
rules:
  - when: {user_contains: look, turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "cat notes tools/run; echo mine > notes"}}]}
  - when: {user_contains: serve, turn: 0}
    then:
      tool_uses:
        - name: bash
          input:
            command: >-
              set -e; mkdir -p /tmp/w; cd /tmp/w; git init -q -b main; echo of the repository > file; git add .;
              git -c user.name=t -c user.email=t@t.test commit -q -m one; git clone -q --bare . /tmp/served/r.git;
              git -C /tmp/served/r.git update-server-info; cd /tmp/served;
              python3 -m http.server --bind 127.0.0.1 8000 > /dev/null 2>&1 & sleep 1; echo it serves
  - when: {user_contains: uploaded, turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "cat /workspace/data/up.txt; echo mine > /workspace/data/up.txt"}}]}
  - when: {user_contains: cloned, turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "cat /workspace/r/file"}}]}
  - then: {text: "It says: {{last_tool_result}}"}
"#;

async fn change_template(fixture: &Fixture, spec: Value) -> TestResult {
    let templates = fixture.namespace.api::<SandboxTemplate>();
    templates.patch("small", &PatchParams::default(), &Patch::Merge(json!({ "spec": spec }))).await?;
    Ok(())
}

/// What the agent says when the client has said `text`.
pub(crate) async fn asked(fixture: &Fixture, session: &SessionId, text: &str) -> TestResult<String> {
    let after = fixture.service.log(session).await?.len() as u64;
    fixture.service.send(session, text).await?;
    Ok(fixture.service.last_words(session, after, LONG).await?.1)
}

async fn first(fixture: &Fixture, name: &str, text: &str) -> TestResult<(SessionId, String)> {
    let session = fixture.session(name, &SessionOptions::saying(&[text])).await?;
    fixture.service.until_idle(&session, 0, LONG).await?;
    let said = messages(&fixture.service.log(&session).await?).pop().unwrap_or_default();
    Ok((session, said))
}

fn files() -> Value {
    json!([
        { "name": "notes", "mountPath": "/workspace/notes", "file": { "content": "of the template\n" } },
        { "name": "run", "mountPath": "/workspace/tools/run", "file": { "content": "a tool\n", "mode": 0o755 } },
    ])
}

#[tokio::test]
async fn a_workspace_that_is_kept_is_given_its_files_once() {
    in_namespace("resources", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 5).await?;
        change_template(&fixture, json!({ "provision": files(), "workspace": { "persistence": "Persistent" } }))
            .await?;
        let (session, said) = first(&fixture, "kept", "look").await?;
        assert!(said.contains("of the template") && said.contains("a tool"), "{said}");
        eventually("the sandbox is suspended", Duration::from_secs(60), || async {
            let sandboxes = namespace.api::<Sandbox>().list(&Default::default()).await?;
            let conditions =
                sandboxes.items.into_iter().filter_map(|sandbox| sandbox.status).flat_map(|status| status.conditions);
            let mut conditions = conditions.map(|condition| (condition.type_, condition.status));
            Ok(conditions.any(|condition| condition == ("Suspended".to_owned(), "True".to_owned())).then_some(()))
        })
        .await?;
        let said = asked(&fixture, &session, "look").await?;
        assert!(said.contains("mine") && !said.contains("of the template"), "{said}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_sandbox_from_the_pool_is_given_the_same() {
    in_namespace("resources-warm", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        change_template(&fixture, json!({ "provision": files(), "warm": 1 })).await?;
        wait_for(namespace.api::<SandboxTemplate>(), "small", "a pod waits", LONG, |template| {
            (template?.status.as_ref()?.warm_ready == 1).then_some(())
        })
        .await?;
        let (_, said) = first(&fixture, "warm", "look").await?;
        assert!(said.contains("of the template") && said.contains("a tool"), "{said}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_repository_is_cloned_and_one_that_cannot_be_is_an_error_that_names_it() {
    in_namespace("resources-git", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let (session, said) = first(&fixture, "git", "serve").await?;
        assert!(said.contains("it serves"), "{said}");
        let repository = json!({ "name": "r", "mountPath": "/workspace/r",
            "gitRepository": { "url": "http://127.0.0.1:8000/r.git", "ref": "main" } });
        change_template(&fixture, json!({ "provision": [repository] })).await?;
        // A replica looks again after some seconds.
        eventually("the repository is there", LONG, || async {
            Ok(asked(&fixture, &session, "cloned").await?.contains("of the repository").then_some(()))
        })
        .await?;

        let sessions = namespace.api::<AgentSession>();
        let resources = |resources: Value| Patch::Merge(json!({ "spec": { "resources": resources } }));
        let nowhere = json!([{ "name": "gone", "mountPath": "/workspace/gone", "githubRepository": { "url": "https://nowhere.test/o/gone" } }]);
        sessions.patch("git", &PatchParams::default(), &resources(nowhere)).await?;
        eventually("a call is refused", LONG, || async {
            let said = asked(&fixture, &session, "cloned").await?;
            Ok((said.contains("was not run") && said.contains("`gone` at /workspace/gone") && said.contains("nowhere.test")).then_some(()))
        })
        .await?;
        until_resources_are(&fixture, "False").await?;
        sessions.patch("git", &PatchParams::default(), &resources(json!([]))).await?;
        let said = asked(&fixture, &session, "cloned").await?;
        assert!(said.contains("of the repository"), "{said}");
        until_resources_are(&fixture, "True").await
    })
    .await;
}

#[tokio::test]
async fn an_uploaded_file_is_in_the_workspace_and_one_that_is_gone_is_an_error_that_names_it() {
    in_namespace("resources-files", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        change_template(&fixture, json!({ "warm": 1 })).await?;
        wait_for(namespace.api::<SandboxTemplate>(), "small", "a pod waits", LONG, |template| {
            (template?.status.as_ref()?.warm_ready == 1).then_some(())
        })
        .await?;
        let wire = &fixture.service.wire;
        let (kept, gone) = (wire.create_file("up.txt", b"of the client").await?, wire.create_file("gone", b"x").await?);
        let session = fixture.session("files", &SessionOptions::default()).await?;
        let sessions = namespace.api::<AgentSession>();
        let resource = |name: &str, file: &FileMetadata| {
            let path = format!("/workspace/data/{name}.txt");
            json!([{ "name": name, "mountPath": path, "file": { "fileID": file.id } }])
        };
        let change = |resources: Value| Patch::Merge(json!({ "spec": { "resources": resources } }));
        sessions.patch("files", &PatchParams::default(), &change(resource("up", &kept))).await?;
        let said = asked(&fixture, &session, "uploaded").await?;
        assert!(said.contains("of the client"), "{said}");
        // It is given once, and what was given is there when the file is gone.
        wire.delete_file(&kept.id).await?;
        let said = asked(&fixture, &session, "uploaded").await?;
        assert!(said.contains("mine") && !said.contains("of the client"), "{said}");

        wire.delete_file(&gone.id).await?;
        sessions.patch("files", &PatchParams::default(), &change(resource("down", &gone))).await?;
        eventually("a call is refused", LONG, || async {
            let said = asked(&fixture, &session, "uploaded").await?;
            Ok((said.contains("was not run") && said.contains(gone.id.as_str())).then_some(()))
        })
        .await?;
        until_resources_are(&fixture, "False").await?;
        sessions.patch("files", &PatchParams::default(), &change(json!([]))).await?;
        let said = asked(&fixture, &session, "uploaded").await?;
        assert!(said.contains("mine"), "{said}");
        until_resources_are(&fixture, "True").await
    })
    .await;
}

async fn until_resources_are(fixture: &Fixture, truth: &str) -> TestResult {
    eventually(&format!("ResourcesReady is {truth}"), Duration::from_secs(30), || async {
        let sandboxes = fixture.namespace.api::<Sandbox>().list(&Default::default()).await?;
        let conditions =
            sandboxes.items.into_iter().filter_map(|sandbox| sandbox.status).flat_map(|status| status.conditions);
        let mut conditions = conditions.filter(|condition| condition.type_ == "ResourcesReady");
        Ok(conditions.any(|condition| condition.status == truth).then_some(()))
    })
    .await
}
