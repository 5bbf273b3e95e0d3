//! What workspaces are given, by a real `sandboxd`.

use bytes::Bytes;
use futures::stream;
use longhand_crds::annotations::RESOURCES_FAILED;
use longhand_crds::template_resource::TemplateResource;
use longhand_protocol::{FileId, SessionId};
use longhand_session_log::files::{Home, NewFile};
use rstest::rstest;
use serde_json::{Value, json};

use super::{of_session, of_template};
use crate::execute::sandboxes::SandboxKey;
use crate::execute::tests::{execute, made, result, said};
use crate::resources::Resources as _;
use crate::testing::World;
use crate::testing::hands::{Hands, hands};

/// A session of which the first call runs `command` in a workspace of these, the second one's being the session's own.
async fn begun(
    template: impl Fn(&Hands) -> Value,
    command: &str,
) -> (World, SessionId, u64, Hands, String, (String, bool)) {
    let world = World::new();
    let (id, epoch, call) = world.session_with_call("one", "bash", json!({ "command": command })).await;
    let hands = hands(&world.signer, "hands-1").await;
    let provision: Vec<TemplateResource> = serde_json::from_value(template(&hands)).unwrap();
    world.cluster.environments.edit("team-a", "tools", |template| template.spec.provision = provision);
    let running = execute(&world, &id, epoch, &call);
    let name = made(&world).await;
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    let said = said(&result(running).await.unwrap());
    (world, id, epoch, hands, name, said)
}

async fn run(world: &World, id: &SessionId, epoch: u64, command: &str) -> (String, bool) {
    let call = world.tool_use(id, epoch, "bash", json!({ "command": command })).await;
    said(&result(execute(world, id, epoch, &call)).await.unwrap())
}

fn file(hands: &Hands, name: &str, content: &str) -> Value {
    json!({"name": name, "mountPath": hands.file(name).to_str().unwrap(), "file": {"content": content}})
}

/// What the Sandbox says that its workspace lacks.
async fn lacks(world: &World, name: &str) -> Option<String> {
    let sandbox = world.cluster.sandbox("team-a", name).await.unwrap().unwrap();
    sandbox.metadata.annotations?.get(RESOURCES_FAILED).cloned()
}

fn add(world: &World, hands: &Hands, name: &str, url: &str) {
    let path = hands.file(name).to_str().unwrap().to_owned();
    let resource = json!({"name": name, "id": "sesrsc_Abc", "mountPath": path, "githubRepository": {"url": url}});
    world.cluster.change_session("team-a", "one", |session| {
        session.spec.resources = vec![serde_json::from_value(resource).unwrap()];
    });
}

#[tokio::test]
async fn the_first_call_finds_what_the_template_says_and_a_kept_workspace_stays_as_it_is() {
    let template = |hands: &Hands| json!([file(hands, "notes", "from the template\n")]);
    let (world, id, epoch, hands, name, (text, is_error)) = begun(template, "cat notes; echo mine > notes").await;
    assert!(text.contains("from the template") && !is_error, "{text}");
    assert_eq!(lacks(&world, &name).await, None);
    // Another pod has the same workspace: it is asked, and has nothing to do.
    world.cluster.sandbox_lost(&name, "hands-1", "Evicted");
    let next = hands.successor(&world.signer, "hands-2").await;
    world.cluster.sandbox_ready(&name, "hands-2", &next.address);
    assert_eq!(run(&world, &id, epoch, "cat notes").await, ("mine\n".to_owned(), false));
    // And one whose workspace is lost is given everything again.
    world.cluster.sandbox_lost(&name, "hands-2", "Evicted");
    std::fs::remove_dir_all(hands.file(".longhand")).unwrap();
    std::fs::remove_file(hands.file("notes")).unwrap();
    let last = hands.successor(&world.signer, "hands-3").await;
    world.cluster.sandbox_ready(&name, "hands-3", &last.address);
    assert_eq!(run(&world, &id, epoch, "cat notes").await.0, "from the template\n");
}

#[tokio::test]
async fn a_call_is_refused_with_the_resource_that_is_missing_until_it_is_there() {
    let (world, id, epoch, hands, name, first) = begun(|_| json!([]), "echo ran").await;
    assert_eq!(first, ("ran\n".to_owned(), false));
    add(&world, &hands, "repo", "http://127.0.0.1:9/o/repo");
    let meta = crate::testing::meta("team-a", "one", "uid-one");
    world.executor.resources_changed(&meta);
    let (text, is_error) = run(&world, &id, epoch, "echo ran").await;
    assert!(
        is_error && text.contains("not run") && text.contains("`sesrsc_Abc` at ") && text.contains("127.0.0.1"),
        "{text}"
    );
    let why = lacks(&world, &name).await.expect("the Sandbox says so");
    assert!(text.contains(&why), "{why}");
    // The client takes it away.
    world.cluster.change_session("team-a", "one", |session| session.spec.resources.clear());
    assert_eq!(run(&world, &id, epoch, "echo ran").await, ("ran\n".to_owned(), false));
    assert_eq!(lacks(&world, &name).await, None);
}

#[tokio::test]
async fn a_repository_of_the_session_is_in_the_workspace_of_the_next_call() {
    let (world, id, epoch, hands, _, _) = begun(|_| json!([]), "echo ran").await;
    let server = served().await;
    add(&world, &hands, "repo", &format!("{}/repo.git", server.0));
    world.executor.resources_changed(&crate::testing::meta("team-a", "one", "uid-one"));
    let (text, is_error) = run(&world, &id, epoch, "cat repo/file; git -C repo remote get-url origin").await;
    assert!(!is_error && text == format!("in the repository\n{}/repo.git\n", server.0), "{text}");
    // What is no longer a resource is not taken away.
    world.cluster.change_session("team-a", "one", |session| session.spec.resources.clear());
    assert_eq!(run(&world, &id, epoch, "cat repo/file").await.0, "in the repository\n");
    server.1.abort();
}

/// A Sandbox of the template `tools` that the operator has made ready, of this session or of none.
async fn alone(world: &World, hands: &Hands, session: Option<&str>, provision: Value) -> SandboxKey {
    let provision: Vec<TemplateResource> = serde_json::from_value(provision).unwrap();
    world.cluster.environments.edit("team-a", "tools", |template| template.spec.provision = provision);
    let session = session.map(|name| json!({"name": name, "uid": "uid-one", "sandbox": "main"}));
    let sandbox = json!({
        "apiVersion": "longhand.dev/v1alpha1", "kind": "Sandbox", "metadata": {"name": "free", "namespace": "team-a"},
        "spec": {"templateRef": {"name": "tools"}, "sessionRef": session},
    });
    world.cluster.ensure_sandbox(serde_json::from_value(sandbox).unwrap()).await.unwrap();
    world.cluster.sandbox_ready("free", "hands-1", &hands.address);
    SandboxKey { namespace: "team-a".to_owned(), name: "free".to_owned() }
}

#[tokio::test]
async fn a_sandbox_without_a_session_is_given_the_files_of_its_template_before_somebody_reaches_in() {
    let world = World::new();
    let hands = hands(&world.signer, "hands-1").await;
    let place = hands.file("data").to_str().unwrap().to_owned();
    let archive = json!({"name": "data", "mountPath": place, "archive": {"url": "http://127.0.0.1:9/data.tar"}});
    let key = alone(&world, &hands, None, json!([archive, file(&hands, "notes", "from the template")])).await;
    world.executor.reach(&key).await.unwrap();
    let notes = || std::fs::read_to_string(hands.file("notes")).unwrap();
    assert_eq!(notes(), "from the template");
    assert!(!hands.file("data").exists());
    assert_eq!(lacks(&world, "free").await, None, "the operator says that it is not given the archive");
    std::fs::write(hands.file("notes"), "mine").unwrap();
    world.executor.reach(&key).await.unwrap();
    assert_eq!(notes(), "mine");
}

#[tokio::test]
async fn who_reaches_into_a_sandbox_that_lacks_a_file_is_not_held_up_and_the_sandbox_says_so() {
    let world = World::new();
    let hands = hands(&world.signer, "hands-1").await;
    let outside = json!([{"name": "notes", "mountPath": "/nowhere/notes", "file": {"content": ""}}]);
    let key = alone(&world, &hands, None, outside).await;
    world.executor.reach(&key).await.unwrap();
    let why = lacks(&world, "free").await.expect("the Sandbox says so");
    assert!(why.contains("`notes` at /nowhere/notes"), "{why}");
}

#[tokio::test]
async fn who_reaches_into_a_session_s_sandbox_before_its_first_call_finds_it_empty() {
    let world = World::new();
    let hands = hands(&world.signer, "hands-1").await;
    let key = alone(&world, &hands, Some("one"), json!([file(&hands, "notes", "")])).await;
    world.executor.reach(&key).await.unwrap();
    assert!(!hands.file("notes").exists());
}

/// A file that was uploaded to a namespace.
async fn uploaded(world: &World, namespace: &str, content: Vec<u8>) -> FileId {
    let home = world.app.homes.now(namespace).await.unwrap().unwrap();
    uploaded_to(world, &home, content).await
}

async fn uploaded_to(world: &World, home: &Home, content: Vec<u8>) -> FileId {
    let [filename, mime_type] = ["a", "text/plain"].map(ToOwned::to_owned);
    let pieces: Vec<Result<Bytes, String>> =
        content.chunks(1_000_003).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let new = NewFile { filename, mime_type, expires_in: None };
    world.files.put(world.files.begin_upload(home).unwrap(), new, stream::iter(pieces)).await.unwrap().id
}

fn add_file(world: &World, hands: &Hands, name: &str, file: &str) {
    let path = hands.file(name).to_str().unwrap().to_owned();
    let resource = json!({"name": "f", "id": "sesrsc_F", "mountPath": path, "file": {"fileID": file}});
    world.cluster.change_session("team-a", "one", |session| {
        session.spec.resources = vec![serde_json::from_value(resource).unwrap()];
    });
    world.executor.resources_changed(&crate::testing::meta("team-a", "one", "uid-one"));
}

#[tokio::test]
async fn an_uploaded_file_is_in_the_workspace_of_the_next_call_and_once() {
    let (world, id, epoch, hands, name, _) = begun(|_| json!([]), "echo ran").await;
    let content: Vec<u8> = (0..9_000_000_u32).map(|index| u8::try_from(index % 251).unwrap()).collect();
    let file = uploaded(&world, "team-a", content.clone()).await;
    add_file(&world, &hands, "in/here.bin", file.as_str());
    let (text, is_error) = run(&world, &id, epoch, "wc -c < in/here.bin; stat -c %a in/here.bin").await;
    assert!(!is_error && text == "9000000\n644\n", "{text}");
    assert!(std::fs::read(hands.file("in/here.bin")).unwrap() == content);
    // What the agent makes of it stays, also when the file is gone, and in another pod with the same workspace.
    assert_eq!(run(&world, &id, epoch, "echo mine | tee in/here.bin").await, ("mine\n".to_owned(), false));
    let home = world.app.homes.now("team-a").await.unwrap().unwrap();
    assert!(world.files.delete(&home, &file).await.unwrap());
    world.cluster.sandbox_lost(&name, "hands-1", "Evicted");
    let next = hands.successor(&world.signer, "hands-2").await;
    world.cluster.sandbox_ready(&name, "hands-2", &next.address);
    assert_eq!(run(&world, &id, epoch, "cat in/here.bin").await, ("mine\n".to_owned(), false));
    assert_eq!(lacks(&world, &name).await, None);
}

#[tokio::test]
async fn a_call_is_refused_until_its_file_is_there() {
    let (world, id, epoch, hands, name, _) = begun(|_| json!([]), "echo ran").await;
    // Of another namespace, of one before that had the same name, and of no form at all.
    let elsewhere = uploaded(&world, "team-b", b"x".to_vec()).await;
    let home = Home { namespace: "team-a".to_owned(), uid: "uid-before".to_owned() };
    let before = uploaded_to(&world, &home, b"x".to_vec()).await;
    for missing in [elsewhere.as_str(), before.as_str(), "file_none", "something"] {
        add_file(&world, &hands, "here", missing);
        let (text, is_error) = run(&world, &id, epoch, "echo ran").await;
        let said = format!("there is no file {missing} in namespace team-a");
        assert!(
            is_error && text.contains("not run") && text.contains("`sesrsc_F` at ") && text.contains(&said),
            "{text}"
        );
        assert!(text.contains(&lacks(&world, &name).await.expect("the Sandbox says so")));
        assert!(!hands.file("here").exists());
    }
    let file = uploaded(&world, "team-a", b"there\n".to_vec()).await;
    add_file(&world, &hands, "here", file.as_str());
    assert_eq!(run(&world, &id, epoch, "cat here").await, ("there\n".to_owned(), false));
    assert_eq!(lacks(&world, &name).await, None);
}

/// A server of the files below a folder of its own, in which is the repository `repo.git`.
async fn served() -> (String, tokio::task::JoinHandle<()>) {
    let folder = tempfile::tempdir().unwrap();
    let make = "set -e; mkdir -p \"$1/w\"; cd \"$1/w\"; git init -q -b main; echo in the repository > file; git add .; \
                git -c user.name=t -c user.email=t@t.test commit -q -m one; git clone -q --bare . ../repo.git; \
                git -C ../repo.git update-server-info";
    let status = std::process::Command::new("sh").args(["-c", make, "sh"]).arg(folder.path()).status().unwrap();
    assert!(status.success());
    let root = folder.path().to_owned();
    let router = axum::Router::new().fallback(move |uri: http::Uri| {
        let file = root.join(uri.path().trim_start_matches('/'));
        async move { std::fs::read(file).map_err(|_| http::StatusCode::NOT_FOUND) }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        axum::serve(listener, router).await.unwrap();
        drop(folder);
    });
    (url, task)
}

#[rstest]
#[case(json!({"file": {"fileID": "file_1"}}), None, "Stored { id: \"file_1\" }")]
#[case(json!({"githubRepository": {"url": "https://g.test/", "tokenRef": {"name": "s", "key": "k"}}}), None, "cannot be bound")]
#[case(json!({"githubRepository": {"url": "https://g.test/r", "branch": "main"}}), None, "Some(\"main\")")]
#[case(json!({"githubRepository": {"url": "https://g.test/r", "commit": "c0", "tokenRef": {"name": "s", "key": "k"}}}), Some("Basic x"), "Some(\"Basic x\")")]
fn a_session_s_resource_is_a_source_or_refused(
    #[case] mut resource: Value,
    #[case] authorization: Option<&str>,
    #[case] expected: &str,
) {
    resource["name"] = json!("r");
    resource["mountPath"] = json!("/workspace/r");
    let resource = serde_json::from_value(resource).unwrap();
    let seen = format!("{:?}", of_session(&resource, authorization.map(ToOwned::to_owned)));
    assert!(seen.contains(expected), "{seen}");
}

#[test]
fn a_template_s_resource_is_a_source() {
    let of = |kind: &str, what: Value| {
        let mut resource = json!({"name": "r", "mountPath": "/workspace/r"});
        resource[kind] = what;
        of_template(&serde_json::from_value(resource).unwrap()).unwrap().source
    };
    let seen = [
        of("gitRepository", json!({"url": "https://g.test/r", "ref": "v1"})),
        of("file", json!({"content": "x"})),
        of("archive", json!({"url": "https://a.test/t.tgz"})),
    ];
    let expected = json!([
        {"type": "repository", "url": "https://g.test/r", "reference": "v1"},
        {"type": "file", "content": "x", "mode": 0o644},
        {"type": "archive", "url": "https://a.test/t.tgz"},
    ]);
    assert_eq!(serde_json::to_value(seen).unwrap(), expected);
}
