//! The spoof matrix: hosts, ports, schemes, methods and paths that are nearly what a rule allows.

use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn rule() -> Rule {
    Rule {
        scheme: Scheme::Https,
        hosts: vec![HostPattern::parse("api.example").unwrap()],
        port: 443,
        methods: vec![Method::POST],
        path_prefixes: vec![PlainPath::parse("/v1/messages").unwrap()],
        allow_private: false,
    }
}

/// Judges as the proxy does: what cannot be parsed is refused.
fn allowed(rule: &Rule, scheme: Scheme, host: &str, port: u16, method: &str, path: &str) -> bool {
    let (Ok(host), Ok(path)) = (Host::parse(host), PlainPath::parse(path)) else { return false };
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    rule.judge(&Destination { scheme, host: &host, port, method: &method, path: &path }).is_ok()
}

#[rstest]
#[case::as_it_is("api.example", true)]
#[case::case_("API.Example", true)]
#[case::dot("api.example.", true)]
#[case::parent("example", false)]
#[case::child("x.api.example", false)]
#[case::suffix("api.example.attacker.example", false)]
#[case::prefix("attackerapi.example", false)]
#[case::two_dots("api.example..", false)]
#[case::user("api.example@attacker.example", false)]
#[case::port("api.example:443", false)]
#[case::nul("api.example\0.attacker.example", false)]
#[case::space("api.example ", false)]
#[case::slash("attacker.example/api.example", false)]
#[case::fragment("attacker.example#api.example", false)]
#[case::percent("api%2eexample", false)]
#[case::other_script("аpi.example", false)]
#[case::full_width_dot("api。example", false)]
#[case::empty("", false)]
fn hosts_by_paths(#[case] host: &str, #[case] host_ok: bool) {
    let paths = [
        ("/v1/messages", true),
        ("/v1/messages/", true),
        ("/v1/messages/count_tokens", true),
        ("/v1/messages/batch%20one", true),
        ("/v1/messages-x", false),
        ("/v1/messagesx", false),
        ("/v1", false),
        ("/v1/message", false),
        ("/V1/messages", false),
        ("/", false),
        ("", false),
        ("v1/messages", false),
        ("/v1/%6dessages", false),
        ("/v1/messages/../files", false),
        ("/v1/messages/..", false),
        ("/v1/messages/.", false),
        ("/v1/./messages", false),
        ("/v1/messages/%2e%2e/files", false),
        ("/v1/messages/%2E%2E/files", false),
        ("/v1/messages/.%2e/files", false),
        ("/v1/messages%2f..%2ffiles", false),
        ("/v1/messages/..%2Ffiles", false),
        ("/v1/messages/%252e%252e/files", false),
        ("/v1/messages/..;/files", false),
        ("/v1/messages;x=1/files", false),
        ("/v1/messages/%3bx", false),
        ("/v1/messages\\..\\files", false),
        ("/v1/messages/%5c..%5cfiles", false),
        ("//v1/messages", false),
        ("/v1//messages", false),
        ("/v1/messages//files", false),
        ("/v1/messages/%00", false),
        ("/v1/messages/%0d%0aHost:x", false),
        ("/v1/messages/%7f", false),
        ("/v1/messages/%", false),
        ("/v1/messages/%2", false),
        ("/v1/messages/%zz", false),
        ("/v1/messages/%c0%ae%c0%ae/files", false),
        ("/v1/messages/%c3%a9", true),
        ("/v1/messages/\u{e9}", false),
        ("/v1/messages/a b", false),
        ("/v1/messages/a\tb", false),
        ("/v1/messages?x=/../", false),
        ("/v1/messages#x", false),
    ];
    for (path, path_ok) in paths {
        let actual = allowed(&rule(), Scheme::Https, host, 443, "POST", path);
        assert_eq!(actual, host_ok && path_ok, "{host:?} {path:?}");
    }
}

#[rstest]
#[case(Scheme::Https, 443, "POST", true)]
#[case(Scheme::Http, 443, "POST", false)]
#[case(Scheme::Https, 8443, "POST", false)]
#[case(Scheme::Https, 80, "POST", false)]
#[case(Scheme::Https, 443, "GET", false)]
#[case(Scheme::Https, 443, "post", false)]
#[case(Scheme::Https, 443, "TRACE", false)]
#[case(Scheme::Https, 443, "CONNECT", false)]
fn scheme_port_and_method(#[case] scheme: Scheme, #[case] port: u16, #[case] method: &str, #[case] expected: bool) {
    assert_eq!(allowed(&rule(), scheme, "api.example", port, method, "/v1/messages"), expected);
}

#[rstest]
#[case("GET", "/", true)]
#[case("DELETE", "/anything", true)]
#[case("GET", "/a/../b", false)]
#[case("TRACE", "/", false)]
#[case("CONNECT", "/", false)]
fn empty_lists_mean_any(#[case] method: &str, #[case] path: &str, #[case] expected: bool) {
    let rule = Rule { methods: Vec::new(), path_prefixes: Vec::new(), ..rule() };
    assert_eq!(allowed(&rule, Scheme::Https, "api.example", 443, method, path), expected);
}

#[test]
fn a_mismatch_names_what_is_allowed() {
    let (host, other) = (Host::parse("api.example").unwrap(), Host::parse("evil.example").unwrap());
    let (path, other_path) = (PlainPath::parse("/v1/messages").unwrap(), PlainPath::parse("/v1/files").unwrap());
    let good = Destination { scheme: Scheme::Https, host: &host, port: 443, method: &Method::POST, path: &path };
    let cases = [
        (Destination { scheme: Scheme::Http, ..good.clone() }, "scheme https only, not http"),
        (Destination { host: &other, ..good.clone() }, "hosts api.example only, not evil.example"),
        (Destination { port: 80, ..good.clone() }, "port 443 only, not 80"),
        (Destination { method: &Method::GET, ..good.clone() }, "methods POST only"),
        (Destination { path: &other_path, ..good }, "paths under /v1/messages only"),
    ];
    for (destination, expected) in cases {
        let error = rule().judge(&destination).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[rstest]
#[case("[::1]", Some("::1"), "[::1]")]
#[case("::1", Some("::1"), "[::1]")]
#[case("0:0:0:0:0:0:0:1", Some("::1"), "[::1]")]
#[case("10.0.0.1", Some("10.0.0.1"), "10.0.0.1")]
#[case("*.example", None, "")]
fn addresses_are_hosts(#[case] text: &str, #[case] expected: Option<&str>, #[case] authority: &str) {
    let host = Host::parse(text).ok();
    assert_eq!(host.as_ref().map(Host::as_str), expected);
    assert_eq!(host.map(|host| host.in_authority()).unwrap_or_default(), authority);
}

proptest! {
    /// However often and in whichever way a server decodes it, an allowed path stays under its prefix.
    #[test]
    fn allowed_paths_stay_under_their_prefix(
        tail in proptest::collection::vec(
            prop_oneof!["/", "\\.", "\\.\\.", "%2e", "%2F", "%252e", "%5c", "\\\\", ";", "a", "%61", "%"], 0..8)
    ) {
        let path = format!("/v1/messages/{}", tail.concat());
        let Ok(plain) = PlainPath::parse(&path) else { return Ok(()) };
        prop_assert!(plain.is_under(&PlainPath::parse("/v1/messages").unwrap()));
        let mut decoded = path;
        for _ in 0..4 {
            let mut depth = Vec::new();
            for segment in decoded.replace('\\', "/").split('/').map(|segment| segment.split(';').next().unwrap_or("")) {
                match segment {
                    "" | "." => {}
                    ".." => { depth.pop(); }
                    name => depth.push(name.to_owned()),
                }
            }
            prop_assert!(depth.starts_with(&["v1".to_owned(), "messages".to_owned()]), "{decoded}");
            decoded = decode(&decoded);
        }
    }
}

fn decode(path: &str) -> String {
    let mut out = Vec::new();
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &tail[2..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
