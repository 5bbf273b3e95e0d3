//! curl.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Collected};
use hyper::body::Incoming;
use longhand_protocol::egress::CredentialOutcome;
use rstest::rstest;
use serde_json::json;

use super::support::{HOST, Reply, SECRET, World, reply};
use crate::intercept::encodings::forms;

const BOTH: &[&[u8]] = &[b"h2", b"http/1.1"];

/// Answers with what it got, the credential in every form, in a header too.
async fn reflect(request: Request<Incoming>) -> Reply {
    let sent = request.headers().get(header::AUTHORIZATION).map_or("", |value| value.to_str().unwrap()).to_owned();
    let mut text = format!("{:?} {} [{sent}]\n", request.version(), request.uri());
    for form in forms(SECRET.as_bytes()) {
        text.push_str(&format!("<{}>\n", String::from_utf8_lossy(&form)));
    }
    let right =
        sent == format!("Bearer {SECRET}") || sent == format!("Basic {}", STANDARD.encode(format!("me:{SECRET}")));
    // A request that is refused for its body ends early.
    let body = request.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
    text.push_str(&format!("body {}\nright: {right}\n", String::from_utf8_lossy(&body)));
    let mut answer = reply(text);
    answer.headers_mut().insert("x-echo", sent.parse().unwrap());
    answer.headers_mut().insert(header::SET_COOKIE, "session=minted".parse().unwrap());
    answer
}

fn leaks(text: &str) -> bool {
    forms(SECRET.as_bytes()).iter().any(|form| text.contains(&*String::from_utf8_lossy(form)))
}

#[rstest]
#[case::http2_all_the_way("--http2", BOTH, "HTTP/2.0")]
#[case::http1_stays("--http1.1", BOTH, "HTTP/1.1")]
#[case::http2_to_http1("--http2", &[b"http/1.1".as_slice()], "HTTP/1.1")]
#[case::http1_all_the_way("--http1.1", &[b"http/1.1".as_slice()], "HTTP/1.1")]
#[tokio::test]
async fn a_credential_goes_out_and_does_not_come_back(
    #[case] version: &str,
    #[case] protocols: &[&[u8]],
    #[case] upstream: &str,
) {
    let world = World::with(|_| {}, protocols, reflect).await;
    let bearer = format!("Authorization: Bearer {}", World::placeholder());
    let basic = format!("me:{}", World::placeholder());
    for credential in [["--header", bearer.as_str()], ["--user", basic.as_str()]] {
        let arguments =
            [version, "--include", credential[0], credential[1], "--data", "hello", "https://git.example/a?b=c"];
        let (status, text) = world.curl(&arguments).await;
        assert_eq!(status, "200", "{text}");
        assert!(text.contains("right: true") && text.contains("body hello") && text.contains(upstream), "{text}");
        assert!(!leaks(&text) && text.contains("[credential removed]") && !text.contains("set-cookie"), "{text}");
    }
    let used = world.event(CredentialOutcome::Used, "").await;
    assert_eq!(
        (used.credential.as_deref(), used.host.as_str(), used.method.as_str()),
        (Some("team/one"), HOST, "POST")
    );
}

#[tokio::test]
async fn what_is_refused_does_not_go_out_and_is_on_record() {
    let requests = Arc::new(AtomicUsize::new(0));
    let seen = requests.clone();
    let world = World::new(move |request| {
        seen.fetch_add(1, Ordering::Relaxed);
        reflect(request)
    })
    .await;
    let one = World::placeholder();
    let url = "https://git.example/a";
    let in_body = format!("token={one}");
    let in_query = format!("{url}?t={one}");
    let broken = format!("Authorization: Bearer {one}x");
    let good = format!("Authorization: Bearer {one}");
    let encoded = format!("X-Note: {}", STANDARD.encode(&one));
    for (arguments, rule) in [
        (&["--header", "Authorization: Bearer attacker", url][..], "none of this session's"),
        (&["--header", "X-Api-Key: attacker", "--header", &good, url], "x-api-key"),
        (&["--user", "me:attacker", url], "authorization"),
        (&["--cookie", "user_session=1", url], "user_session"),
        (&["https://git.example/a?access_token=1"], "access_token"),
        (&["--header", "X-Foo: ghp_0123456789abcdef0123456789abcdef0123", url], "x-foo"),
        (&["--header", "X-RapidAPI-Key: 1", url], "x-rapidapi-key"),
        (&["--cookie", "__Secure-next-auth.session-token=1", url], "next-auth.session-token"),
        (
            &["--header", "Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.YQ", url],
            "sec-websocket-protocol",
        ),
        (&["--header", &broken, url], "stands for no credential"),
        (&["--header", &encoded, url], "Base64"),
        (&["--data", &in_body, url], "body has a placeholder"),
        (&[&in_query], "may not be placed in the query"),
        (&["--header", &good, "--data", "x", "https://git.example/oauth/token"], "OAuth token endpoint"),
        (&["--header", &good, "--path-as-is", "https://git.example/a/../b"], "dot segment"),
        (&["--header", &good, "--request", "TRACE", url], "TRACE"),
        (&["--header", &good, "--header", "Host: evil.example", url], "another host"),
    ] {
        let before = requests.load(Ordering::Relaxed);
        let (status, text) = world.curl(arguments).await;
        assert_eq!(status, "403", "{arguments:?} {text}");
        assert!(text.contains(rule) && !text.contains(&one), "{arguments:?} {text}");
        // The head of a request goes out before its body is seen, but never its end.
        assert!(rule.contains("body") || requests.load(Ordering::Relaxed) == before, "{arguments:?}");
        world.event(CredentialOutcome::Denied, rule).await;
    }
    let (status, _) = world.curl(&["--header", &good, url]).await;
    assert_eq!(status, "200");
}

#[tokio::test]
async fn where_a_binding_says_so_it_is_placed_in_query_path_and_body() {
    let change = |config: &mut serde_json::Value| {
        config["bindings"][0]["placement"]["locations"] = json!(["query", "path", "body"]);
    };
    let seen = Arc::new(std::sync::Mutex::new(String::new()));
    let kept = seen.clone();
    let world = World::with(change, BOTH, move |request: Request<Incoming>| {
        let kept = kept.clone();
        async move {
            let uri = request.uri().path_and_query().unwrap().to_string();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            *kept.lock().unwrap() = format!("{uri} {}", String::from_utf8_lossy(&body));
            reply("ok")
        }
    })
    .await;
    let one = World::placeholder();
    let (url, body) = (format!("https://git.example/bot{one}/x?key={one}"), format!("key={one}"));
    let (status, text) = world.curl(&["--data", &body, &url]).await;
    assert_eq!((status.as_str(), text.as_str()), ("200", "ok"));
    let value = "gh-s3cr%2Ft%2B%22v%5Cl%3Cue%3E%26%3D%201";
    assert_eq!(*seen.lock().unwrap(), format!("/bot{value}/x?key={value} key={value}"));
    let (status, _) = world.curl(&["--header", &format!("Authorization: Bearer {one}"), "https://git.example/"]).await;
    assert_eq!(status, "403");
    // A form that is read anyway has none of somebody else's either.
    let (status, text) = world.curl(&["--data", &format!("{body}&private_token=attacker"), &url]).await;
    assert!(status == "403" && text.contains("form") && text.contains("private_token"), "{text}");
}

#[tokio::test]
async fn what_is_placed_makes_a_request_no_larger_than_it_may_be() {
    let change = |config: &mut serde_json::Value| {
        let binding = &mut config["bindings"][0];
        // Of many letters: what repeats itself takes long to prepare for.
        let value: String =
            (0..1_000_u32).map(|at| char::from(b"abcdefghijklmnopqrstuvwxyz"[(at * at / 7 % 26) as usize])).collect();
        std::fs::write(binding["file"].as_str().unwrap(), value).unwrap();
        binding["placement"]["locations"] = json!(["header", "body"]);
    };
    let world = World::with(change, BOTH, |request: Request<Incoming>| async move {
        reply(request.into_body().collect().await.unwrap().to_bytes().len().to_string())
    })
    .await;
    let one = World::placeholder();
    let file = super::support::path(&world, "many");
    for (count, expected) in [(1_000, "200"), (1_200, "413")] {
        std::fs::write(&file, one.clone() + &format!(" {one}").repeat(count - 1)).unwrap();
        let data = format!("@{}", file.display());
        let arguments = ["--header", "Content-Type: text/plain", "--data-binary", &data, "https://git.example/"];
        let (status, text) = world.curl(&arguments).await;
        assert_eq!(status, expected, "{text}");
        assert!(status == "413" || text == (count * 1_001 - 1).to_string(), "{text}");
    }
    for (count, expected) in [(68, "200"), (69, "431")] {
        let headers: Vec<String> = (0..count).map(|number| format!("X-A{number}: {one}")).collect();
        let headers = headers.iter().flat_map(|header| ["--header", header.as_str()]);
        let arguments: Vec<&str> = headers.chain(["--http1.1", "https://git.example/"]).collect();
        let (status, text) = world.curl(&arguments).await;
        assert_eq!(status, expected, "{text}");
    }
}

#[tokio::test]
async fn a_redirect_is_passed_on_and_not_followed() {
    let world = World::new(|_| async {
        let mut answer = reply("");
        *answer.status_mut() = StatusCode::FOUND;
        let location = format!("https://evil.example/?{}", STANDARD.encode(SECRET));
        answer.headers_mut().insert(header::LOCATION, location.parse().unwrap());
        answer
    })
    .await;
    let good = format!("Authorization: Bearer {}", World::placeholder());
    let (status, text) = world.curl(&["--include", "--header", &good, "https://git.example/"]).await;
    assert!(status == "302" && text.contains("https://evil.example/?[credential") && !leaks(&text), "{text}");
    // The next hop is judged as any other.
    let (status, _) = world.curl(&["--location", "--header", &good, "https://git.example/"]).await;
    assert!(status.contains("403"), "{status}");
}

#[tokio::test]
async fn a_compressed_answer_is_refused_and_none_is_asked_for() {
    let world = World::new(|request: Request<Incoming>| async move {
        assert_eq!(request.headers()[header::ACCEPT_ENCODING], "identity");
        assert!(!request.headers().contains_key(header::RANGE));
        let mut answer = reply("\x1f");
        answer.headers_mut().insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
        answer
    })
    .await;
    let good = format!("Authorization: Bearer {}", World::placeholder());
    let arguments = ["--header", "Accept-Encoding: gzip", "--range", "0-1", "--header", &good, "https://git.example/"];
    let (status, text) = world.curl(&arguments).await;
    assert!(status == "502" && text.contains("compressed"), "{status} {text}");
}

#[tokio::test]
async fn a_credential_without_a_value_goes_nowhere() {
    let world = World::new(reflect).await;
    let good = format!("Authorization: Bearer {}", World::placeholder());
    std::fs::remove_file(super::support::path(&world, "secret")).unwrap();
    let (status, text) = world.curl(&["--header", &good, "https://git.example/"]).await;
    assert!(status == "503" && text.contains("\"team/one\" is not available: the file does not exist"), "{text}");
    world.rotate("short");
    tokio::time::sleep(std::time::Duration::from_millis(1_050)).await;
    let (status, text) = world.curl(&["--header", &good, "https://git.example/"]).await;
    assert!(status == "403" && text.contains("characters can be taken out"), "{text}");
}
