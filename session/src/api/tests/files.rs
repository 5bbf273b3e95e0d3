//! Files through the public API.

use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use rstest::rstest;
use serde_json::{Value, json};

use crate::auth::Access;
use crate::quota::SizeLimits;
use crate::testing::{Answer, World};

fn form(filename: &str, content: &str) -> String {
    format!(
        "--xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{filename}\"\r\n\
         Content-Type: text/plain\r\n\r\n{content}\r\n--xyz--\r\n"
    )
}

impl World {
    async fn upload_as(&self, token: &str, path: &str, body: impl Into<Body>) -> Answer {
        let token = format!("Bearer {token}");
        let headers = [("authorization", token.as_str()), ("content-type", "multipart/form-data; boundary=xyz")];
        self.raw("POST", path, &headers, body.into()).await
    }

    async fn upload(&self, filename: &str, content: &str) -> String {
        let answer = self.upload_as("alice", "/v1/files", form(filename, content)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body["id"].as_str().unwrap().to_owned()
    }

    async fn content(&self, token: &str, id: &str) -> (u16, String) {
        let token = format!("Bearer {token}");
        self.text("GET", &format!("/v1/files/{id}/content"), &[("authorization", &token)], Body::empty()).await
    }
}

#[tokio::test]
async fn a_file_comes_goes_and_is_gone() {
    let world = World::new();
    let answer = world.upload_as("alice", "/v1/files?beta=true", form("a b.txt", "hello")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let id = answer.body["id"].as_str().unwrap();
    let created_at = &answer.body["created_at"];
    let expected = json!({"id": id, "type": "file", "filename": "a b.txt", "mime_type": "text/plain", "size_bytes": 5,
        "created_at": created_at, "downloadable": true, "expires_at": null});
    assert_eq!(answer.body, expected);
    let path = format!("/v1/files/{id}");
    // Every replica has it.
    let replica = world.replica();
    assert_eq!(replica.call("GET", &path, "alice", &Value::Null).await.body, expected);
    assert_eq!(replica.content("alice", id).await, (200, "hello".to_owned()));
    let headers = [("authorization", "Bearer alice")];
    let request = http::Request::get(format!("{path}/content")).header(headers[0].0, headers[0].1);
    let response = tower::ServiceExt::oneshot(world.app.clone().router(), request.body(Body::empty()).unwrap()).await;
    let response = response.unwrap();
    for (name, value) in [
        ("content-length", "5"),
        ("content-type", "application/octet-stream"),
        ("content-disposition", "attachment"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(response.headers()[name], value);
    }
    assert_eq!(
        world.call("DELETE", &path, "alice", &Value::Null).await.body,
        json!({"id": id, "type": "file_deleted"})
    );
    for method in ["GET", "DELETE"] {
        assert_eq!(replica.call(method, &path, "alice", &Value::Null).await.status, 404);
    }
    assert_eq!(world.content("alice", id).await.0, 404);
    assert_eq!(world.call("GET", "/v1/files/nonsense", "alice", &Value::Null).await.status, 404);
}

#[tokio::test]
async fn pages_say_where_they_end() {
    let world = World::new();
    let empty = world.call("GET", "/v1/files", "alice", &Value::Null).await.body;
    assert_eq!(empty, json!({"data": [], "next_page": null, "has_more": false, "first_id": null, "last_id": null}));
    for number in 0..3 {
        world.upload(&number.to_string(), "x").await;
        let then = Timestamp::now().as_millisecond();
        // Files of the same millisecond have no order.
        crate::testing::hands::eventually(async || Timestamp::now().as_millisecond() > then).await;
    }
    let list = async |query: &str| {
        let body = world.call("GET", &format!("/v1/files?{query}"), "alice", &Value::Null).await.body;
        let names: Vec<String> =
            body["data"].as_array().unwrap().iter().map(|file| file["filename"].as_str().unwrap().to_owned()).collect();
        (names.join(" "), body["has_more"].as_bool().unwrap(), body["first_id"].clone(), body["last_id"].clone())
    };
    let (names, more, _, last) = list("limit=2").await;
    assert_eq!((names.as_str(), more), ("2 1", true));
    let (names, more, first, _) = list(&format!("limit=2&after_id={}", last.as_str().unwrap())).await;
    assert_eq!((names.as_str(), more), ("0", false));
    let (names, more, ..) = list(&format!("limit=1&before_id={}", first.as_str().unwrap())).await;
    assert_eq!((names.as_str(), more), ("1", true));
    assert_eq!(list("scope_id=sesn_1").await.0, "");
    let first = world.call("GET", "/v1/files?limit=2", "alice", &Value::Null).await.body;
    assert_eq!(list(&format!("limit=2&page={}", first["next_page"].as_str().unwrap())).await.0, "0");
    let ids: Vec<&str> = first["data"].as_array().unwrap().iter().map(|file| file["id"].as_str().unwrap()).collect();
    assert_eq!(list(&format!("ids[]={}&ids[]=file_none&ids[]=x&ids[]={}", ids[1], ids[0])).await.0, "2 1");
    for wrong in ["limit=1001", "after_id=x", "before_id=file_", "page=x", "page=page_x"] {
        assert_eq!(
            world.call("GET", &format!("/v1/files?{wrong}"), "alice", &Value::Null).await.status,
            400,
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn rbac_says_who_may() {
    let world = World::new();
    let id = world.upload("a", "secret").await;
    let path = format!("/v1/files/{id}");
    let refused = world.upload_as("bob", "/v1/files", form("a", "x")).await;
    assert_eq!(refused.status, 403);
    assert!(refused.message().contains("create files.longhand.dev in namespace team-a"), "{}", refused.message());
    for (method, path) in [("GET", "/v1/files"), ("GET", &path), ("DELETE", &path)] {
        assert_eq!(world.call(method, path, "bob", &Value::Null).await.status, 403, "{method} {path}");
    }
    assert_eq!(world.content("bob", &id).await.0, 403);
    // Nor may who may not read it have a session read it.
    let bob = "system:serviceaccount:team-a:bob";
    for access in [Access::CreateSession, Access::GetSession, Access::UpdateSession] {
        world.cluster.allow(bob, access, "team-a");
    }
    let session = json!({"agent": "helper", "environment_id": "tools", "resources": [{"type": "file", "file_id": id}]});
    let refused = world.call("POST", "/v1/sessions", "bob", &session).await;
    assert_eq!(refused.status, 403);
    assert!(refused.message().contains(&format!("get files.longhand.dev {id}")), "{}", refused.message());
    let made = world.call("POST", "/v1/sessions", "alice", &session).await;
    assert_eq!(made.status, 200, "{}", made.body);
    // The workspace of the template, in which it will be.
    assert_eq!(made.body["resources"][0]["mount_path"], format!("/workspace/uploads/{id}"));
    let resources = format!("/v1/sessions/{}/resources", made.body["id"].as_str().unwrap());
    let other = json!({"type": "file", "file_id": id, "mount_path": "/b"});
    assert_eq!(world.call("POST", &resources, "bob", &other).await.status, 403);
    assert_eq!(world.call("POST", &resources, "alice", &other).await.body["mount_path"], "/workspace/b");
    let again = json!({"type": "file", "file_id": id, "mount_path": "/workspace/b"});
    assert_eq!(world.call("POST", &resources, "alice", &again).await.status, 400);
    // Another namespace has files of its own.
    assert_eq!(world.call("GET", &format!("/namespaces/team-b{path}"), "alice", &Value::Null).await.status, 403);
}

#[rstest]
#[case(json!([{"type": "file", "file_id": "f", "mount_path": "/x"}, {"type": "file", "file_id": "g", "mount_path": "/workspace/x"}]))]
#[case(json!([{"type": "file", "file_id": "f", "mount_path": "/.longhand/x"}]))]
#[case(json!([{"type": "file", "file_id": "f", "mount_path": "/workspace"}]))]
#[tokio::test]
async fn files_have_places_of_their_own(#[case] resources: Value) {
    let world = World::new();
    let session = json!({"agent": "helper", "environment_id": "tools", "resources": resources});
    let answer = world.call("POST", "/v1/sessions", "alice", &session).await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert!(answer.message().contains("mount_path"), "{}", answer.message());
}

#[tokio::test]
async fn an_upload_that_breaks_off_or_is_too_much_keeps_nothing() {
    let world = World::new();
    let whole = form("a", "x");
    for (body, status) in [(whole[..whole.len() - 10].to_owned(), 400), (String::new(), 400)] {
        assert_eq!(world.upload_as("alice", "/v1/files", body).await.status, status);
    }
    let head = form("a", "").split("\r\n--xyz--").next().unwrap().to_owned();
    let pieces = stream::iter([Ok(Bytes::from(head)), Err(std::io::Error::other("reset"))]);
    assert_eq!(world.upload_as("alice", "/v1/files", Body::from_stream(pieces.boxed())).await.status, 400);
    assert!(world.files.held().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_namespace_that_is_full_takes_no_file() {
    let sizes = SizeLimits { namespace_max_bytes: 10, ..SizeLimits::NONE };
    let world = World::sized(sizes);
    world.upload("a", "0123456789").await;
    let refused = world.upload_as("alice", "/v1/files", form("b", "x")).await;
    assert_eq!(refused.status, 400);
    assert!(
        refused.message().contains("sessions and files of namespace team-a hold 10 bytes"),
        "{}",
        refused.message()
    );
}

#[tokio::test]
async fn the_client_s_form_is_read() {
    let world = World::new();
    let client = world.client().await;
    let content: Vec<u8> = (0..6_000_000_u32).map(|index| u8::try_from(index % 251).unwrap()).collect();
    let made = client.create_file("data.bin", &content).await.unwrap();
    assert_eq!((made.filename.as_str(), made.size_bytes), ("data.bin", 6_000_000));
    let home = world.app.homes.now("team-a").await.unwrap().unwrap();
    let file = world.files.get(&home, &made.id).await.unwrap().unwrap();
    let pieces: Vec<Bytes> = world.files.read("team-a", &file).await.unwrap().try_collect().await.unwrap();
    assert!(pieces.concat() == content);
    assert_eq!(client.delete_file(&made.id).await.unwrap().id, made.id);
    assert_eq!(client.delete_file(&made.id).await.unwrap_err().status().map(|status| status.as_u16()), Some(404));
}

#[tokio::test]
async fn a_namespace_has_so_many_files_and_no_more() {
    let sizes = SizeLimits { namespace_max_files: 2, ..SizeLimits::NONE };
    let world = World::sized(sizes);
    let first = world.upload("a", "x").await;
    world.upload("b", "x").await;
    // What other replicas have taken counts at once.
    for world in [&world, &world.replica()] {
        let refused = world.upload_as("alice", "/v1/files", form("c", "x")).await;
        assert_eq!(refused.status, 400);
        assert!(refused.message().contains("namespace team-a has 2 files, as many as it may"), "{}", refused.message());
        assert_eq!(
            refused.body["error"]["details"],
            json!({"error_code": "limit_reached", "of": "namespace", "what": "files", "limit": 2})
        );
    }
    assert_eq!(world.call("DELETE", &format!("/v1/files/{first}"), "alice", &Value::Null).await.status, 200);
    world.upload("c", "x").await;
}

#[tokio::test]
async fn a_namespace_that_uploads_as_much_as_it_may_is_told_before_it_sends_more() {
    let world = World::new();
    let home = world.app.homes.now("team-a").await.unwrap().unwrap();
    let held: Vec<_> = (0..4).map(|_| world.files.begin_upload(&home).unwrap()).collect();
    let unread =
        stream::poll_fn(|_| -> std::task::Poll<Option<Result<Bytes, std::io::Error>>> { panic!("it is read") });
    let refused = world.upload_as("alice", "/v1/files", Body::from_stream(unread)).await;
    assert_eq!((refused.status.as_u16(), refused.headers["retry-after"].to_str().unwrap()), (429, "5"));
    assert!(refused.message().contains("4 files of namespace team-a are being uploaded"), "{}", refused.message());
    drop(held);
    world.upload("a", "x").await;
}

#[tokio::test]
async fn a_namespace_that_was_made_again_has_no_files() {
    let world = World::new();
    let id = world.upload("a", "of the one before").await;
    world.cluster.make_namespace_again("team-a");
    // One that has not looked it up yet: the other knows it a few seconds later.
    let replica = world.replica();
    let path = format!("/v1/files/{id}");
    for (method, path) in [("GET", path.as_str()), ("DELETE", &path)] {
        assert_eq!(replica.call(method, path, "alice", &Value::Null).await.status, 404, "{method}");
    }
    assert_eq!(replica.content("alice", &id).await.0, 404);
    for query in ["", &format!("?ids[]={id}")] {
        let list = replica.call("GET", &format!("/v1/files{query}"), "alice", &Value::Null).await;
        assert_eq!(list.body["data"], json!([]));
    }
    let own = replica.upload("a", "own").await;
    assert_eq!(replica.content("alice", &own).await, (200, "own".to_owned()));
}
