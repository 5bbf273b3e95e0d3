//! Sessions that come from others: forks, and files.

use std::sync::Once;

use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::Request;
use hyper_util::service::TowerToHyperService;
use longhand_crds::{annotations, labels};
use longhand_process::http::{Limits, Listener};
use longhand_protocol::SessionId;
use longhand_protocol::client::{Server, TokenSource, WireClient};
use longhand_protocol::event::NewEvent;
use longhand_protocol::export::{Broken, LONGEST_LINE, Reader, Verified};
use longhand_protocol::wire::{Fork, ForkSession};
use longhand_session_log::store::Parent;
use longhand_session_log::{SessionStore as _, StoreError};
use rstest::rstest;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::auth::Access;
use crate::testing::{Answer, World, message, say};

const ALICE: &str = "system:serviceaccount:team-a:alice";
const BOB: &str = "system:serviceaccount:team-a:bob";

impl World {
    async fn export(&self, id: &SessionId) -> Vec<u8> {
        let request = Request::get(format!("/v1/sessions/{id}/export")).header("authorization", "Bearer alice");
        let response = self.app.clone().router().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()
    }

    async fn import(&self, file: impl Into<Body>) -> Answer {
        self.import_by("alice", file).await
    }

    async fn import_by(&self, user: &str, file: impl Into<Body>) -> Answer {
        let header = [("authorization", &*format!("Bearer {user}"))];
        self.raw("POST", "/v1/sessions/import", &header, file.into()).await
    }

    /// The client that the command line has, over a connection of its own.
    pub(super) async fn client(&self) -> WireClient {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::new(format!("http://{}", listener.local_addr().unwrap()));
        let service = TowerToHyperService::new(self.app.clone().router());
        tokio::spawn(Listener::plain(listener).serve(service, Limits::default(), CancellationToken::new()));
        WireClient::new(server, TokenSource::fixed("alice"), Some("team-a".to_owned())).unwrap()
    }

    async fn spoken(&self, name: &str) -> SessionId {
        let id = self.session(name, "pod-1").await;
        let events = ["one", "two", "three"].map(|text| NewEvent::new(message(text))).to_vec();
        self.store.append_unfenced(&id, events).await.unwrap();
        id
    }
}

fn prove(file: &[u8]) -> Result<Verified, Broken> {
    let mut reader = Reader::default();
    for line in file.split_inclusive(|byte| *byte == b'\n') {
        reader.line(line)?;
    }
    reader.finish()
}

fn verify(file: &[u8]) -> Verified {
    prove(file).unwrap()
}

fn id_of(answer: &Answer) -> SessionId {
    answer.body["id"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_session_goes_out_and_comes_in_again() {
    let world = World::new();
    let id = world.spoken("one").await;
    let file = world.export(&id).await;
    let verified = verify(&file);
    assert_eq!((verified.events, &verified.header.session["id"]), (3, &json!(id)));
    assert!(verified.header.spec.is_some());
    let before = world.store.read(&id, 0, 100).await.unwrap().records;

    let answer = world.import(file.clone()).await;
    assert_eq!(answer.status, 409, "{answer:?}");
    world.call("DELETE", &format!("/v1/sessions/{id}"), "alice", &Value::Null).await;
    // In parts that know nothing of lines.
    let parts = file.chunks(37).map(|part| Ok::<_, std::io::Error>(part.to_vec())).collect::<Vec<_>>();
    let answer = world.import(Body::from_stream(futures::stream::iter(parts))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(id_of(&answer), id);
    assert_eq!(world.store.read(&id, 0, 100).await.unwrap().records, before);
    let state = world.store.state(&id).await.unwrap();
    assert_eq!((state.meta.namespace.as_str(), state.meta.name.as_str(), state.epoch), ("team-a", "one", 1));
    let resource = world.app.resources.session("team-a", "one").await.unwrap().unwrap();
    assert_eq!(resource.metadata.labels.as_ref().unwrap()[labels::ID], id.as_str());
    assert_eq!(resource.metadata.uid.as_deref(), Some(state.meta.uid.as_str()));
    assert_eq!(verify(&world.export(&id).await).header.hash, verified.header.hash);
    let (path, body) = (format!("/v1/sessions/{id}/events"), json!({"events": [say("go on")]}));
    assert_eq!(world.call("POST", &path, "alice", &body).await.status, 200);
}

#[rstest]
#[case::cut(|file: &mut Vec<u8>| file.truncate(file.len() - 60), "line 5: the file ends after event 3")]
#[case::changed(|file: &mut Vec<u8>| replace(file, "two", "too"), "line 4: event 2 is not what event 3")]
#[case::another_header(|file: &mut Vec<u8>| replace(file, "helper", "keeper"), "line 5: the file was changed")]
#[case::garbage(|file: &mut Vec<u8>| replace(file, "{\"event\":", "{\"evnt\":"), "line 2: it cannot be read")]
#[case::no_export(|file: &mut Vec<u8>| *file = b"{}\n".to_vec(), "line 1: it is not the header")]
#[case::empty(Vec::clear, "line 1: the file is empty")]
#[tokio::test]
async fn a_broken_file_leaves_nothing(#[case] harm: fn(&mut Vec<u8>), #[case] reason: &str) {
    let world = World::new();
    let id = world.spoken("one").await;
    let whole = world.export(&id).await;
    world.call("DELETE", &format!("/v1/sessions/{id}"), "alice", &Value::Null).await;
    let mut file = whole.clone();
    harm(&mut file);
    let answer = world.import(file).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.message().contains(reason), "{}", answer.message());
    assert!(matches!(world.store.state(&id).await, Err(StoreError::NotFound(_))));
    assert!(world.app.resources.session("team-a", "one").await.unwrap().is_none());
    assert_eq!(world.import(whole).await.status, 200, "it can be repeated");
}

fn replace(file: &mut Vec<u8>, from: &str, to: &str) {
    *file = String::from_utf8(file.clone()).unwrap().replacen(from, to, 1).into_bytes();
}

/// The three commands, as far as they are the client's.
#[tokio::test]
async fn a_client_takes_a_session_out_and_in_and_forks_it() {
    let world = World::new();
    let (id, client) = (world.spoken("one").await, world.client().await);
    let parts: Vec<Bytes> = client.export_session(&id).await.unwrap().try_collect().await.unwrap();
    let file = parts.concat();
    assert_eq!((verify(&file).events, &file), (3, &world.export(&id).await));
    let before = world.store.read(&id, 0, 100).await.unwrap().records;
    world.call("DELETE", &format!("/v1/sessions/{id}"), "alice", &Value::Null).await;

    let parts = |file: &[u8]| {
        stream::iter(file.chunks(100).map(|part| Ok(Bytes::copy_from_slice(part))).collect::<Vec<std::io::Result<_>>>())
    };
    let error = client.import_session(parts(&file[..file.len() - 60])).await.unwrap_err().to_string();
    assert!(error.contains("line 5: the file ends after event 3"), "{error}");
    assert_eq!(client.import_session(parts(&file)).await.unwrap().id, id);
    assert_eq!(world.store.read(&id, 0, 100).await.unwrap().records, before);

    let at = |seq| ForkSession { fork: Fork { session: id.clone(), seq }, title: None, initial_events: Vec::new() };
    let fork = client.fork_session(&at(Some(2))).await.unwrap().id;
    assert_eq!(world.store.read(&fork, 0, 100).await.unwrap().records[..2], before[..2]);
    let whole = client.fork_session(&at(None)).await.unwrap().id;
    assert_eq!(world.store.state(&whole).await.unwrap().meta.parent, Some(Parent { session: id.clone(), seq: 3 }));
    let error = client.fork_session(&at(Some(9))).await.unwrap_err();
    assert_eq!(error.status().map(|status| status.as_u16()), Some(400), "{error}");
    let parts: Vec<Bytes> = client.export_session(&fork).await.unwrap().try_collect().await.unwrap();
    assert_eq!(verify(&parts.concat()).events, 2, "a fork goes out as a whole");
}

#[tokio::test]
async fn every_byte_of_an_export_is_proved() {
    let world = World::new();
    let file = world.export(&world.spoken("one").await).await;
    for at in 0..file.len() {
        let mut changed = file.clone();
        changed[at] ^= 1 << (at % 7);
        assert!(prove(&changed).is_err(), "byte {at}");
    }
}

#[tokio::test]
async fn a_line_without_an_end_is_refused() {
    let world = World::new();
    let id = world.spoken("one").await;
    let file = world.export(&id).await;
    world.call("DELETE", &format!("/v1/sessions/{id}"), "alice", &Value::Null).await;
    let header = file.split_inclusive(|byte| *byte == b'\n').next().unwrap().to_vec();
    let endless = stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b'x'; 4 * 1024 * 1024]));
    let answer = world.import(Body::from_stream(stream::iter([Ok(header)]).chain(endless))).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    let expected = format!("line 2: it cannot be read: it is longer than {LONGEST_LINE} bytes");
    assert!(answer.message().contains(&expected), "{}", answer.message());
    assert!(matches!(world.store.state(&id).await, Err(StoreError::NotFound(_))));
}

#[tokio::test]
async fn who_may_not_transfers_nothing() {
    let world = World::new();
    let id = world.spoken("one").await;
    let answer = world.call("GET", &format!("/v1/sessions/{id}/export"), "bob", &Value::Null).await;
    assert_eq!(answer.status, 403);
    let answer = world.call("POST", "/v1/sessions/import", "bob", &Value::Null).await;
    assert_eq!(answer.status, 403);
    let answer = world.call("POST", "/v1/sessions", "bob", &json!({"fork": {"session": id}})).await;
    assert_eq!(answer.status, 403);
}

#[tokio::test]
async fn a_fork_begins_with_the_history_of_its_session() {
    let world = World::new();
    let parent = world.spoken("one").await;
    let body = json!({"fork": {"session": parent, "seq": 2}, "title": "again", "initial_events": [say("instead")]});
    let answer = world.call("POST", "/v1/sessions", "alice", &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let id = id_of(&answer);
    assert_eq!(answer.body["title"], "again");
    let state = world.store.state(&id).await.unwrap();
    assert_eq!((state.head, state.meta.parent), (2, Some(Parent { session: parent.clone(), seq: 2 })));
    assert_eq!(world.store.inbox(&id).await.unwrap().items.len(), 1);
    let resource = world.app.resources.session("team-a", &state.meta.name).await.unwrap().unwrap();
    let from = &resource.metadata.annotations.as_ref().unwrap()[annotations::LOG_FROM];
    assert_eq!(*from, format!("fork {parent} 2"));

    // Its parent stays as long as it does.
    let answer = world.call("DELETE", &format!("/v1/sessions/{parent}"), "alice", &Value::Null).await;
    assert_eq!(answer.status, 409, "{answer:?}");
    assert!(answer.message().contains(id.as_str()), "{}", answer.message());
    assert!(world.app.resources.session("team-a", "one").await.unwrap().is_some());
}

#[rstest]
#[case(json!({"fork": {"session": "sesn_unknown"}}), 404, "sesn_unknown")]
#[case(json!({"fork": {"session": "PARENT", "seq": 4}}), 400, "no event 4")]
#[case(json!({"fork": {"session": "PARENT", "seq": -1}}), 400, "`fork`")]
#[case(json!({"fork": {"session": "PARENT", "at": 1}}), 400, "`fork`")]
#[case(json!({"fork": {"session": "PARENT"}, "agent": "helper"}), 400, "`agent`")]
#[case(json!({"fork": {"session": "PARENT"}, "title": 1}), 400, "`title`")]
#[tokio::test]
async fn what_cannot_be_forked_is_named(#[case] body: Value, #[case] status: u16, #[case] part: &str) {
    let world = World::new();
    let parent = world.spoken("one").await;
    let body = serde_json::from_str(&body.to_string().replace("PARENT", parent.as_str())).unwrap();
    let answer = world.call("POST", "/v1/sessions", "alice", &body).await;
    assert_eq!(answer.status, status, "{answer:?}");
    assert!(answer.message().contains(part), "{}", answer.message());
    assert_eq!(world.store.list(None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_log_of_an_unfinished_fork_is_not_made_empty() {
    let world = World::new();
    let parent = world.spoken("one").await;
    let answer = world.call("POST", "/v1/sessions", "alice", &json!({"fork": {"session": parent}})).await;
    let id = id_of(&answer);
    let name = world.store.state(&id).await.unwrap().meta.name;
    world.store.delete(&id).await.unwrap();
    let resource = world.app.resources.session("team-a", &name).await.unwrap().unwrap();
    let error = crate::sessions::ensure(&world.app, &resource).await.unwrap_err();
    assert_eq!(error.status(), 409);
    assert!(matches!(world.store.state(&id).await, Err(StoreError::NotFound(_))));
}

/// A session with this in its spec, and its export.
async fn exported_with(world: &World, change: Value) -> (SessionId, Vec<u8>) {
    let id = world.spoken("one").await;
    world.cluster.change_session("team-a", "one", |session| {
        let mut spec = serde_json::to_value(&session.spec).unwrap();
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        session.spec = serde_json::from_value(spec).unwrap();
    });
    let file = world.export(&id).await;
    (id, file)
}

#[rstest]
#[case::vault(json!({"vaultRefs": [{"name": "mine"}]}), Access::UseVault("mine"))]
#[case::server(
    json!({"agentRef": {"name": "helper", "overrides": {"mcpServers": [
        {"name": "s", "url": "https://s.test", "credential": {"vault": "other", "name": "c"}}]}}}),
    Access::UseVault("other")
)]
#[case::file(
    json!({"resources": [{"name": "f", "mountPath": "/workspace/f", "file": {"fileID": "file_1"}}]}),
    Access::Object("files", "get", "file_1")
)]
#[tokio::test]
async fn what_others_have_written_into_a_spec_is_asked_for_as_if_the_caller_had(
    #[case] change: Value,
    #[case] access: Access<'static>,
    #[values(false, true)] allowed: bool,
) {
    let world = World::new();
    let others = [Access::CreateSession, Access::SendEvents, Access::ReadEvents];
    for access in others.into_iter().chain(allowed.then_some(access)) {
        world.cluster.allow(BOB, access, "team-a");
    }
    let (id, file) = exported_with(&world, change).await;
    let fork = json!({"fork": {"session": id}});
    let mut answers = Vec::new();
    if !allowed {
        answers.push(world.call("POST", "/v1/sessions", "bob", &fork).await);
    }
    world.call("DELETE", &format!("/v1/sessions/{id}"), "alice", &Value::Null).await;
    answers.push(world.import_by("bob", file).await);
    if allowed {
        answers.push(world.call("POST", "/v1/sessions", "bob", &fork).await);
    }
    for answer in answers {
        let named = answer.message().contains(&access.attributes().to_string());
        assert!(if allowed { answer.status == 200 } else { answer.status == 403 && named }, "{answer:?}");
    }
    assert_eq!(world.app.resources.session("team-a", "one").await.unwrap().is_some(), allowed);
}

#[rstest]
#[case::not_his(false, None)]
#[case::his(true, Some("any"))]
#[tokio::test]
async fn an_import_goes_without_a_token_that_its_caller_may_not_read(
    #[case] allowed: bool,
    #[case] kept: Option<&str>,
) {
    let world = World::new();
    if allowed {
        world.cluster.allow(ALICE, Access::ReadSecret("any"), "team-a");
    }
    let repository = json!({"name": "r", "mountPath": "/workspace/r",
        "githubRepository": {"url": "https://a.test/o/r", "tokenRef": {"name": "any", "key": "k"}}});
    let (id, file) = exported_with(&world, json!({"resources": [repository]})).await;
    world.call("DELETE", &format!("/v1/sessions/{id}"), "alice", &Value::Null).await;
    assert_eq!(world.import(file).await.status, 200);
    let resource = world.app.resources.session("team-a", "one").await.unwrap().unwrap();
    let token = resource.spec.resources[0].github_repository.as_ref().unwrap().token_ref.as_ref();
    assert_eq!(token.map(|token| token.name.as_str()), kept);
}
