use std::path::PathBuf;

use base64::engine::general_purpose::STANDARD;
use http::HeaderName;
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::hosts::HostPattern;

const ONE: &str = "lhp_E85lv-r9mTODgSjNknpv6sYoG4HvyRaA3gKloTDAnJQ";
const TWO: &str = "lhp_F85lv-r9mTODgSjNknpv6sYoG4HvyRaA3gKloTDAnJQ";
const THREE: &str = "lhp_G85lv-r9mTODgSjNknpv6sYoG4HvyRaA3gKloTDAnJQ";

fn binding(name: &str, locations: &[Location], host: &str, prefixes: &[&str]) -> Binding {
    Binding {
        vault: "v".to_owned(),
        name: name.to_owned(),
        file: PathBuf::from("/none"),
        placement: BindingPlacement::EnvironmentVariable { locations: locations.to_vec() },
        rule: Rule {
            scheme: Scheme::Https,
            hosts: vec![HostPattern::parse(host).unwrap()],
            port: 443,
            methods: vec![Method::GET, Method::POST],
            path_prefixes: prefixes.iter().map(|prefix| PlainPath::parse(prefix).unwrap()).collect(),
            allow_private: false,
        },
        kept_in: None,
    }
}

struct Case {
    method: Method,
    host: &'static str,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    open: bool,
    private: bool,
}

fn get(path: &str, headers: &[(&str, &str)]) -> Case {
    let headers = headers.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()));
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name, value);
    }
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query.to_owned())));
    Case {
        method: Method::GET,
        host: "git.example",
        path: path.to_owned(),
        query,
        headers: map,
        open: true,
        private: false,
    }
}

/// `v/one` may stand in headers, `v/two` anywhere, `v/three` belongs to another host.
fn judged(case: &Case) -> Result<Allowed, Denial> {
    use Location::{Body, Header, Path, Query};
    let bindings = [
        binding("one", &[Header], "git.example", &["/a"]),
        binding("two", &[Header, Query, Path, Body], "git.example", &[]),
        binding("three", &[Header], "other.example", &[]),
    ];
    let candidates: Vec<Candidate<'_>> = [ONE, TWO, THREE]
        .into_iter()
        .zip(&bindings)
        .map(|(placeholder, binding)| Candidate { placeholder, binding })
        .collect();
    let asked = Asked {
        scheme: Scheme::Https,
        host: &Host::parse(case.host).unwrap(),
        port: 443,
        private: case.private,
        open: case.open,
        method: &case.method,
        path: &case.path,
        query: case.query.as_deref(),
        headers: &case.headers,
        signing: None,
    };
    judge(&asked, &candidates)
}

fn outcome(case: &Case) -> String {
    match judged(case) {
        Ok(allowed) => format!("{:?}", allowed.used),
        Err(denial) => format!("{denial:?}").split([' ', '(', '{']).next().unwrap().to_owned(),
    }
}

fn basic_of(text: &str) -> String {
    format!("Basic {}", STANDARD.encode(text))
}

#[rstest]
#[case("/a", &[("authorization", format!("Bearer {ONE}"))], "[0]")]
#[case("/a", &[("private-token", ONE.to_owned())], "[0]")]
#[case("/a", &[("x-anything", ONE.to_owned())], "[0]")]
#[case("/a/b", &[("authorization", basic_of(&format!("me:{ONE}")))], "[0]")]
#[case("/a/b", &[("authorization", basic_of(&format!("{ONE}:x-oauth-basic")))], "[0]")]
#[case("/a", &[("authorization", format!("Bearer {ONE}")), ("x-second", TWO.to_owned())], "[0, 1]")]
#[case("/a", &[], "[]")]
// The rule of its binding.
#[case("/b", &[("authorization", format!("Bearer {ONE}"))], "NotAllowed")]
#[case("/a/../b", &[("authorization", format!("Bearer {ONE}"))], "NotAllowed")]
#[case("/a/%2e%2e/b", &[("authorization", format!("Bearer {ONE}"))], "NotAllowed")]
#[case("/a%2fb", &[("authorization", format!("Bearer {ONE}"))], "NotAllowed")]
#[case("/@scope%2fname", &[("authorization", format!("Bearer {TWO}"))], "[1]")]
#[case("/x/%2e%2e/y", &[("authorization", format!("Bearer {TWO}"))], "NotAllowed")]
#[case("/x/%252e%252e/y", &[("authorization", format!("Bearer {TWO}"))], "NotAllowed")]
#[case("/x\\y", &[("authorization", format!("Bearer {TWO}"))], "NotAllowed")]
#[case("/a", &[("authorization", format!("Bearer {THREE}"))], "NotAllowed")]
// Where it may stand.
#[case(&format!("/a?t={ONE}"), &[], "Misplaced")]
#[case(&format!("/a/{ONE}"), &[], "Misplaced")]
#[case(&format!("/a?t={TWO}"), &[], "[1]")]
#[case(&format!("/bot{TWO}/send"), &[], "[1]")]
// Placeholders that are none.
#[case("/a", &[("authorization", format!("Bearer {ONE}x"))], "Unresolved")]
#[case("/a", &[("authorization", format!("Bearer {}", &ONE[..40]))], "Unresolved")]
#[case("/a", &[("authorization", "Bearer lhp_H85lv-r9mTODgSjNknpv6sYoG4HvyRaA3gKloTDAnJQ".to_owned())], "Unresolved")]
#[case("/a", &[("authorization", basic_of("lhp_H85lv-r9mTODgSjNknpv6sYoG4HvyRaA3gKloTDAnJQ:"))], "Unresolved")]
#[case("/a", &[("x-note", STANDARD.encode(ONE))], "Hidden")]
#[case(&format!("/a?t={}", ONE.replace('_', "%5f")), &[], "Hidden")]
#[case(&format!("/a?t={}", STANDARD.encode(TWO)), &[], "Hidden")]
// Credentials of somebody else.
#[case("/a", &[("authorization", "Bearer attacker".to_owned())], "Foreign")]
#[case("/a", &[("authorization", basic_of("me:attacker"))], "Foreign")]
#[case("/a", &[("authorization", format!("Bearer {ONE}")), ("authorization", "Bearer attacker".to_owned())], "Foreign")]
#[case("/a", &[("authorization", format!("Bearer {ONE}")), ("x-api-key", "attacker".to_owned())], "Foreign")]
#[case("/a", &[("authorization", basic_of(&format!("ghp_0123456789abcdef0123456789:{ONE}")))], "Foreign")]
#[case("/a", &[("cookie", "user_session=attacker".to_owned())], "Foreign")]
#[case("/a?access_token=attacker", &[], "Foreign")]
fn requests(#[case] path: &str, #[case] headers: &[(&str, String)], #[case] expected: &str) {
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(outcome(&get(path, &headers)), expected);
}

#[test]
fn a_method_that_echoes_is_never_passed_on() {
    for method in [Method::TRACE, Method::CONNECT] {
        assert_eq!(outcome(&Case { method, ..get("/a", &[]) }), "Method");
    }
    let bearer = format!("Bearer {ONE}");
    let put = Case { method: Method::PUT, ..get("/a", &[("authorization", &bearer)]) };
    assert_eq!(outcome(&put), "NotAllowed");
}

#[test]
fn an_endpoint_that_mints_is_not_for_credentials() {
    let bearer = format!("Bearer {TWO}");
    let post = |headers: &[(&str, &str)]| Case { method: Method::POST, ..get("/oauth/token", headers) };
    assert_eq!(outcome(&post(&[("authorization", &bearer)])), "Mints");
    // Not in its body either: the placeholder there stays one, and is refused.
    assert_eq!(judged(&post(&[])), Ok(Allowed::default()));
}

#[test]
fn a_body_is_filled_only_where_the_binding_says_so() {
    assert_eq!(judged(&get("/a", &[])), Ok(Allowed { used: vec![], body: vec![1], authenticates: None }));
}

#[test]
fn a_private_address_must_be_allowed() {
    let bearer = format!("Bearer {ONE}");
    assert_eq!(outcome(&Case { private: true, ..get("/a", &[("authorization", &bearer)]) }), "Private");
}

#[test]
fn without_a_credential_the_rules_hold_unless_the_host_is_open() {
    use Location::Header;
    let bindings = [binding("one", &[Header], "git.example", &["/a"])];
    let candidates = [Candidate { placeholder: ONE, binding: &bindings[0] }];
    let outcome = |path: &str, open: bool| {
        let (host, headers) = (Host::parse("git.example").unwrap(), HeaderMap::new());
        let (scheme, method) = (Scheme::Https, Method::GET);
        let asked = Asked {
            scheme,
            host: &host,
            port: 443,
            private: false,
            open,
            method: &method,
            path,
            query: None,
            headers: &headers,
            signing: None,
        };
        judge(&asked, &candidates).is_ok()
    };
    assert!(outcome("/b", true) && outcome("/a/x", false) && !outcome("/b", false));
}

#[test]
fn a_denial_shows_neither_placeholder_nor_value() {
    let bearer = format!("Bearer {THREE}");
    for case in [get("/a", &[("authorization", &bearer)]), get("/a", &[("authorization", "Bearer attacker")])] {
        let denial = judged(&case).unwrap_err();
        assert!(!denial.to_string().contains("lhp_") && !denial.to_string().contains("attacker"), "{denial}");
    }
}

proptest! {
    #[test]
    fn nothing_makes_it_panic_and_no_unknown_placeholder_passes(
        before in "[ -~]{0,20}",
        after in "[ -~]{0,20}",
        name in "[a-z-]{1,12}",
        path in "/[!-~]{0,20}",
    ) {
        let value = format!("{before}lhp_H85lv-r9mTODgSjNknpv6sYoG4HvyRaA3gKloTDAnJQ{after}");
        let name: Result<HeaderName, _> = name.parse();
        prop_assume!(name.is_ok());
        let mut case = get("/", &[]);
        case.path = path.split('?').next().unwrap().to_owned();
        case.headers.insert(name.unwrap(), value.parse().unwrap());
        prop_assert!(judged(&case).is_err());
    }
}

#[rstest]
#[case::bearer(&[("authorization", format!("Bearer {ONE}"))], Some(0))]
#[case::basic(&[("authorization", basic_of(&format!("me:{TWO}")))], Some(1))]
#[case::a_token_of_its_own_header(&[("private-token", ONE.to_owned())], Some(0))]
#[case::where_nobody_looks(&[("x-anything", ONE.to_owned())], None)]
#[case::one_of_two(&[("authorization", format!("Bearer {ONE}")), ("x-second", TWO.to_owned())], None)]
#[case::none(&[], None)]
fn a_server_speaks_of_the_one_credential_that_is_where_it_looks(
    #[case] headers: &[(&str, String)],
    #[case] expected: Option<usize>,
) {
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(judged(&get("/a", &headers)).unwrap().authenticates, expected);
}

#[rstest]
#[case::of_mcp(&[("authorization", format!("Bearer {TWO}"))], "sessionId=1", true)]
#[case::of_mcp_in_python(&[("authorization", format!("Bearer {TWO}"))], "session_id=1", true)]
#[case::another_cookie_s_name(&[("authorization", format!("Bearer {TWO}"))], "PHPSESSID=1", false)]
#[case::a_token(&[("authorization", format!("Bearer {TWO}"))], "access_token=1", false)]
#[case::without_a_credential(&[], "sessionId=1", false)]
#[case::authorized_by_somebody(&[("x-second", TWO.to_owned())], "sessionId=1", false)]
fn the_session_of_a_request_that_is_authorized_is_no_credential(
    #[case] headers: &[(&str, String)],
    #[case] query: &str,
    #[case] allowed: bool,
) {
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(outcome(&get(&format!("/messages?{query}"), &headers)) != "Foreign", allowed);
}
