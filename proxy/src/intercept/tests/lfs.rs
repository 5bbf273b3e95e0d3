//! Git LFS: what its API hands out is kept, however it is asked for.

use http::{Method, Request, StatusCode, header};
use hyper::body::Incoming;
use longhand_protocol::egress::{CredentialOutcome, path_sha256};
use rstest::rstest;
use serde_json::{Value, json};

use super::support::{Reply, World, reply};

const MINTED: &str = "Bearer minted-for-one-object";
const LFS_TYPE: &str = "application/vnd.git-lfs+json";

fn link(path: &str) -> Value {
    json!({"href": format!("https://git.example{path}"), "header": {"Authorization": MINTED}})
}

fn typed(answer: &Value, kind: &'static str) -> Reply {
    let mut answer = reply(answer.to_string());
    answer.headers_mut().insert(header::CONTENT_TYPE, kind.parse().unwrap());
    answer
}

/// A server that decodes a path before it looks at it, and takes what it has handed out.
async fn forge(request: Request<Incoming>) -> Reply {
    let path = request.uri().path().replace("%62", "b");
    let batch =
        json!({"objects": [{"oid": "1", "actions": {"download": link("/objects/1"), "upload": link("/objects/1")}}]});
    match path.trim_end_matches('/') {
        "/a.git/info/lfs/objects/batch" => typed(&batch, "application/json"),
        "/a.git/info/lfs/objects" => typed(&json!({"_links": {"download": link("/objects/1")}}), "application/json"),
        "/typed" => typed(&batch, LFS_TYPE),
        "/asked" => typed(&batch, "text/plain"),
        "/broken" => typed(&json!([MINTED]), LFS_TYPE),
        "/elsewhere" => typed(
            &json!({"actions": {"download": {"href": "https://lfs.example/1", "header": {"Authorization": MINTED}}}}),
            LFS_TYPE,
        ),
        "/locks" => typed(&json!({"ours": [], "theirs": []}), LFS_TYPE),
        "/refusal" => {
            let mut answer = reply("<html>who are you?");
            *answer.status_mut() = StatusCode::UNAUTHORIZED;
            answer
        }
        _ => {
            let right = request.headers().get(header::AUTHORIZATION).is_some_and(|value| value == MINTED);
            let mut answer = reply(format!("{MINTED} right: {right}"));
            answer.headers_mut().insert("x-echo", MINTED.parse().unwrap());
            answer
        }
    }
}

fn handle(text: &str) -> String {
    let begin = text.find("lhs_").unwrap_or_else(|| panic!("{text}"));
    text[begin..begin + 47].to_owned()
}

#[tokio::test]
async fn what_is_handed_out_is_kept_and_used() {
    let world = World::new(forge).await;
    let basic = format!("me:{}", World::placeholder());
    let batch = ["--user", &basic, "--data", "{}", "https://git.example/a.git/info/lfs/objects/batch"];
    let (status, text) = world.curl(&batch).await;
    assert_eq!(status, "200", "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    let actions = &answer["objects"][0]["actions"];
    let header =
        |action: &str| format!("Authorization: {}", actions[action]["header"]["Authorization"].as_str().unwrap());
    let (download, upload) = (header("download"), header("upload"));
    assert!(download.contains(" lhs_") && download != upload && !text.contains("minted"), "{text}");
    let (status, text) = world.curl(&["--include", "--header", &download, "https://git.example/objects/1"]).await;
    assert!(status == "200" && text.contains("right: true") && !text.contains("minted-for"), "{text}");
    // What was made for one object is named by the credential that it was made for.
    let used = world.event_of(|event| event.path_sha256 == Some(path_sha256("/objects/1"))).await;
    assert_eq!((used.outcome, used.credential.as_deref()), (CredentialOutcome::Used, Some("team/one")));
    let put = ["--include", "--request", "PUT", "--data", "x", "--header", &upload, "https://git.example/objects/1"];
    let (status, text) = world.curl(&put).await;
    assert!(status == "200" && text.contains("right: true") && !text.contains("minted-for"), "{text}");
    // Another URL, and the methods of each other.
    for arguments in [
        &["--header", &download, "https://git.example/objects/2"][..],
        &["--request", "PUT", "--header", &download, "https://git.example/objects/1"],
        &["--request", "DELETE", "--header", &upload, "https://git.example/objects/1"],
        &["--header", &upload, "https://git.example/objects/1"],
    ] {
        let (status, text) = world.curl(arguments).await;
        assert!(status == "403" && text.contains("Git LFS handle"), "{arguments:?} {text}");
    }
}

#[rstest]
#[case::encoded("/a.git/info/lfs/objects/%62atch", "application/json")]
#[case::slash("/a.git/info/lfs/objects/batch/", "application/json")]
#[case::before_batches("/a.git/info/lfs/objects", "application/json")]
#[case::by_the_answer("/typed", "application/json")]
#[case::by_the_request("/asked", LFS_TYPE)]
#[tokio::test]
async fn however_it_is_asked_for(#[case] path: &str, #[case] accept: &str) {
    let world = World::new(forge).await;
    let basic = format!("me:{}", World::placeholder());
    let (accept, url) = (format!("Accept: {accept}"), format!("https://git.example{path}"));
    let (status, text) = world.curl(&["--user", &basic, "--header", &accept, "--data", "{}", &url]).await;
    assert_eq!(status, "200", "{text}");
    assert!(!text.contains("minted"), "{text}");
    let header = format!("Authorization: {}", handle(&text));
    let (status, text) = world.curl(&["--header", &header, "https://git.example/objects/1"]).await;
    assert!(status == "200" && text.contains("right: true"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_and_what_hands_out_nothing_passes() {
    let world = World::new(forge).await;
    let basic = format!("me:{}", World::placeholder());
    for (path, status, expected) in [
        ("/broken", "502", "no JSON object"),
        ("/elsewhere", "502", "lfs.example"),
        ("/locks", "200", "\"ours\":[]"),
        ("/refusal", "401", "who are you?"),
    ] {
        let accept = format!("Accept: {LFS_TYPE}");
        let url = format!("https://git.example{path}");
        let (got, text) = world.curl(&["--user", &basic, "--header", &accept, "--data", "{}", &url]).await;
        assert!(got == status && text.contains(expected) && !text.contains("minted"), "{path} {got} {text}");
    }
}

#[tokio::test]
async fn a_handle_reaches_no_further_than_the_credentials_of_the_session() {
    let change = |config: &mut Value| config["bindings"][0]["allow"]["methods"] = json!([Method::GET.as_str(), "POST"]);
    let world = World::with(change, &[b"http/1.1"], forge).await;
    let basic = format!("me:{}", World::placeholder());
    let batch = ["--user", &basic, "--data", "{}", "https://git.example/a.git/info/lfs/objects/batch"];
    let (status, text) = world.curl(&batch).await;
    assert!(status == "502" && text.contains("PUT at git.example") && !text.contains("minted"), "{text}");
}
