//! What is kept of an answer of Git LFS, and what a handle is good for.

use rstest::rstest;
use serde_json::json;

use super::*;

const HREF: &str = "https://git.example/a.git/info/lfs/objects/1?x=1";

fn answer(action: &str, href: &str, authorization: &str) -> Vec<u8> {
    json!({"transfer": "basic", "objects": [
        {"oid": "1", "size": 3, "actions": {action: {"href": href, "header": {"Authorization": authorization, "Accept": "x"}}}},
        {"oid": "2", "error": {"code": 404}},
    ]})
    .to_string()
    .into_bytes()
}

fn handle_of(sealed: &Sealed, answer: &[u8]) -> String {
    let clean = sealed.seal(answer, &"team/one".into(), |_, _| true, Instant::now()).unwrap();
    let text = String::from_utf8_lossy(&clean).into_owned();
    assert!(!text.contains("minted"), "{text}");
    let begin = text.find(PREFIX).unwrap();
    text[begin..begin + PREFIX.len() + 43].to_owned()
}

fn sent(handle: &str) -> HeaderMap {
    HeaderMap::from_iter([(header::AUTHORIZATION, handle.parse().unwrap())])
}

#[test]
fn a_handle_is_good_for_its_url_and_for_an_hour() {
    let sealed = Sealed::default();
    let now = Instant::now();
    let clean =
        sealed.seal(&answer("download", HREF, "Bearer minted-token"), &"team/one".into(), |_, _| true, now).unwrap();
    let clean: Value = serde_json::from_slice(&clean).unwrap();
    let headers = &clean["objects"][0]["actions"]["download"]["header"];
    let handle = headers["Authorization"].as_str().unwrap();
    assert!(handle.starts_with("lhs_") && headers["Accept"] == "x" && !clean.to_string().contains("minted"));

    let open = |handle: &str, href: &str, at| {
        let mut headers = sent(handle);
        let opened = sealed.open(&mut headers, &Method::GET, &Link::parse(href).unwrap(), at);
        opened.map(|opened| (headers.len(), opened))
    };
    let (left, opened) = open(handle, HREF, now).unwrap();
    assert_eq!((left, opened[0].1.as_bytes()), (0, &b"Bearer minted-token"[..]));
    assert!(opened[0].1.is_sensitive() && &*opened[0].2 == "team/one");
    for other in [
        "https://git.example/a.git/info/lfs/objects/2?x=1",
        "https://evil.example/a.git/info/lfs/objects/1?x=1",
        "http://git.example/a.git/info/lfs/objects/1?x=1",
    ] {
        assert_eq!(open(handle, other, now).unwrap_err(), NotForThis);
    }
    assert_eq!(open(handle, HREF, now + LIFETIME).unwrap_err(), NotForThis);
    assert_eq!(open("lhs_unknown", HREF, now).unwrap_err(), NotForThis);
    assert_eq!(open("Bearer x", HREF, now).unwrap().0, 1);
}

#[rstest]
#[case("download", "basic", &["GET"])]
#[case("upload", "basic", &["PUT"])]
#[case("upload", "tus", &["HEAD", "PATCH"])]
#[case("verify", "basic", &["POST"])]
fn a_handle_is_good_for_the_method_of_its_action(
    #[case] action: &str,
    #[case] transfer: &str,
    #[case] allowed: &[&str],
) {
    let sealed = Sealed::default();
    let text = String::from_utf8(answer(action, HREF, "Bearer minted")).unwrap().replace("basic", transfer);
    let handle = handle_of(&sealed, text.as_bytes());
    for method in ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"] {
        let opened =
            sealed.open(&mut sent(&handle), &method.parse().unwrap(), &Link::parse(HREF).unwrap(), Instant::now());
        assert_eq!(opened.is_ok(), allowed.contains(&method), "{method}");
    }
}

#[test]
fn the_rule_of_a_credential_is_asked_for_each_method() {
    let asked = Mutex::new(Vec::new());
    let bound = |link: &Link, method: &Method| {
        asked.lock().unwrap().push((link.path_only().to_owned(), method.clone()));
        *method == Method::GET
    };
    let sealed = Sealed::default();
    assert!(sealed.seal(&answer("download", HREF, "Bearer x"), &"team/one".into(), bound, Instant::now()).is_ok());
    let refused =
        sealed.seal(&answer("upload", HREF, "Bearer x"), &"team/one".into(), bound, Instant::now()).unwrap_err();
    assert_eq!(refused, SealError::Elsewhere { method: Method::PUT, host: "git.example".to_owned() });
    let path = "/a.git/info/lfs/objects/1".to_owned();
    assert_eq!(*asked.lock().unwrap(), [(path.clone(), Method::GET), (path, Method::PUT)]);
}

#[test]
fn credentials_are_found_wherever_they_are() {
    let link = |authorization: &str| json!({"href": HREF, "header": {"Authorization": authorization}});
    for answer in [
        json!({"oid": "1", "_links": {"upload": link("Bearer minted-1"), "verify": link("Bearer minted-2")}}),
        json!({"_links": {"self": link("Bearer minted-1"), "download": link("Bearer minted-2")}}),
        json!({"objects": [{"_links": {"download": link("Bearer minted")}}]}),
        json!({"data": [[{"actions": {"download": [link("Bearer minted")]}}]]}),
        json!({"actions": {"download": {"href": HREF, "header": {"X-Foo": "Bearer minted", "X-Key": "minted"}}}}),
        json!({"actions": {"download": {"href": HREF, "header": {"X-Foo": "ghp_minted0123456789abcdef"}}}}),
    ] {
        handle_of(&Sealed::default(), answer.to_string().as_bytes());
    }
    // Of two members with one name the last counts, and only that goes on.
    let doubled = format!(
        r#"{{"actions":{{"download":{{"href":"{HREF}","header":{{"Authorization":"Bearer minted"}},"header":{{"Authorization":"Bearer x"}}}}}}}}"#
    );
    handle_of(&Sealed::default(), doubled.as_bytes());
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let sealed = Sealed::default();
    let seal = |answer: &[u8]| {
        sealed.seal(answer, &"team/one".into(), |link, _| link.host.as_str() == "git.example", Instant::now())
    };
    assert_eq!(seal(b"[]").unwrap_err(), SealError::Answer);
    assert_eq!(seal(b"<html>").unwrap_err(), SealError::Answer);
    assert_eq!(seal(b"{} {}").unwrap_err(), SealError::Answer);
    assert_eq!(seal(br#"{"actions":{"download":{"header":"Bearer x"}}}"#).unwrap_err(), SealError::Answer);
    assert_eq!(seal(&answer("download", "/relative", "Bearer x")).unwrap_err(), SealError::Link);
    assert_eq!(seal(&answer("download", "https://me:x@git.example/", "")).unwrap_err(), SealError::Link);
    assert_eq!(seal(&answer("parts", HREF, "Bearer x")).unwrap_err(), SealError::Action);
    let elsewhere = seal(&answer("download", "https://lfs.example/1", "Bearer x"));
    assert!(matches!(elsewhere, Err(SealError::Elsewhere { .. })));
    assert!(seal(&answer("download", "https://s3.example/1", "AWS4-HMAC-SHA256 Credential=x")).is_ok());
    assert!(seal(br#"{"message":"no"}"#).is_ok());
    assert_eq!(*seal(b"").unwrap(), b"");
    for _ in 0..MAX_HANDLES {
        seal(&answer("download", HREF, "Bearer x")).unwrap();
    }
    assert_eq!(seal(&answer("download", HREF, "Bearer x")).unwrap_err(), SealError::Full);
}

fn typed(name: HeaderName, value: &str) -> HeaderMap {
    if value.is_empty() { HeaderMap::new() } else { HeaderMap::from_iter([(name, value.parse().unwrap())]) }
}

#[rstest]
#[case("POST", "/o/r.git/info/lfs/objects/batch", "", true)]
#[case("POST", "/o/r.git/info/lfs/objects/%62atch", "", true)]
#[case("POST", "/o/r.git/info/lfs/objects/%2562atch", "", true)]
#[case("POST", "/o/r.git/info//LFS/objects/batch/", "", true)]
#[case("POST", "/o/r.git/info/lfs/objects/batch;x", "", true)]
#[case("POST", "/o/r.git/info/lfs/objects", "", true)]
#[case("GET", "/o/r.git/info/lfs/objects/1", "", false)]
#[case("GET", "/o/r.git/info/lfs/objects/1", "application/vnd.git-lfs+json", true)]
#[case("POST", "/anything", "text/html, Application/Vnd.Git-LFS+json; charset=utf-8", true)]
#[case("POST", "/anything", "application/json", false)]
fn what_asks_for_credentials(#[case] method: Method, #[case] path: &str, #[case] kind: &str, #[case] expected: bool) {
    assert_eq!(is_asked(&method, path, &typed(header::ACCEPT, kind)), expected);
    assert_eq!(is_asked(&method, path, &typed(header::CONTENT_TYPE, kind)), expected);
}

#[rstest]
#[case(true, true, "", true)]
#[case(true, true, "text/plain", true)]
#[case(true, false, "text/html", false)]
#[case(true, false, "application/json", true)]
#[case(false, true, "application/json", false)]
#[case(false, true, "application/vnd.git-lfs+json; charset=utf-8", true)]
#[case(false, false, "Application/Vnd.git-lfs+JSON", true)]
fn what_is_sealed(#[case] asked: bool, #[case] succeeded: bool, #[case] kind: &str, #[case] expected: bool) {
    assert_eq!(is_due(asked, succeeded, &typed(header::CONTENT_TYPE, kind)), expected);
}
