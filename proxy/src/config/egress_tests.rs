//! What the operator writes, and what is wrong with what it does not.

use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::config::{Config, ConfigError};

fn section() -> Value {
    json!({
        "session": "sesn_one", "verifyKey": "AAAA",
        "sandboxes": {
            "default": {"hosts": ["github.com", "*.pypi.org"]},
            "open": {"unrestricted": true},
        },
        "bindings": [{
            "vault": "team", "name": "github", "file": "/var/run/longhand/credentials/team-github/token",
            "placement": {"type": "environmentVariable", "locations": ["header", "body"]},
            "allow": {"scheme": "https", "hosts": ["api.github.com", "*.githubusercontent.com"], "port": 443},
        }],
        "audit": {"url": "https://session.example", "ca": "PEM", "tokenFile": "/var/run/secrets/longhand-proxy/token"},
        "upstreamProxy": {"url": "http://proxy.corp.example:3128", "noProxy": [".corp.example", "git.example"]},
        "ca": "PEM",
    })
}

fn parse(section: &Value) -> Result<Egress, ConfigError> {
    let route = json!({"name": "model", "prefix": "/model", "upstream": "https://api.example"});
    let config = Config::parse(&json!({"routes": [route], "egress": section}).to_string())?;
    Ok(config.egress.expect("the section"))
}

#[test]
fn what_the_operator_writes_is_read() {
    let egress = parse(&section()).unwrap();
    assert_eq!(egress.session.as_str(), "sesn_one");
    let network = &egress.sandboxes["default"];
    let hosts: Vec<String> = network.hosts.iter().map(ToString::to_string).collect();
    assert_eq!((hosts, network.unrestricted), (vec!["github.com".to_owned(), "*.pypi.org".to_owned()], false));
    assert!(egress.sandboxes["open"].unrestricted);
    let binding = &egress.bindings[0];
    assert_eq!(binding.label(), "team/github");
    let locations = vec![Location::Header, Location::Body];
    assert_eq!(binding.placement, BindingPlacement::EnvironmentVariable { locations });
    assert!(binding.rule.covers(&Host::parse("raw.githubusercontent.com").unwrap()));
    let proxy = egress.upstream_proxy.unwrap();
    assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.corp.example", 3128));
    assert!(proxy.no_proxy[0].covers(&Host::parse("git.corp.example").unwrap(), 443));
}

#[test]
fn most_of_it_may_be_absent() {
    let section = json!({"session": "sesn_one", "verifyKey": "AAAA", "sandboxes": {},
        "audit": {"url": "http://session.example", "tokenFile": "/token"}});
    let egress = parse(&section).unwrap();
    assert!(egress.bindings.is_empty() && egress.upstream_proxy.is_none() && egress.ca.is_none());
}

#[rstest]
#[case("/session", json!("one"), "not an identifier")]
#[case("/sandboxes/default/hosts/0", json!("git*.com"), "sandbox \"default\": \"git*.com\" is not a host")]
#[case("/sandboxes/default/hosts/0", json!("https://github.com"), "is not a host")]
#[case("/sandboxes/default/hosts/0", json!("github.com:443"), "is not a host")]
#[case("/sandboxes/default/hosts", json!(vec!["a.example"; 513]), "has 513 entries")]
#[case("/sandboxes/default/extra", json!(1), "unknown field `extra`")]
#[case("/bindings/0/file", json!("token"), "binding \"team/github\": credential file token is not an absolute path")]
#[case("/bindings/0/vault", json!("Team"), "is not a name")]
#[case("/bindings/0/vault", json!("te/am"), "is not a name")]
#[case("/bindings/0/placement", json!({"type": "environmentVariable", "locations": []}), "locations is empty")]
#[case("/bindings/0/placement", json!({"type": "environmentVariable", "locations": ["cookie"]}), "unknown variant")]
#[case("/bindings/0/placement", json!({"type": "bearer"}), "unknown variant")]
#[case("/bindings/0/placement", json!({"type": "aws", "accessKeyIDFile": "id"}), "file id is not an absolute path")]
#[case("/bindings/0/placement", json!({"type": "aws", "accessKeyIDFile": "/id", "sessionTokenFile": "t"}), "file t is not an absolute path")]
#[case("/bindings/0/placement", json!({"type": "aws", "accessKeyIDFile": "/id", "extra": 1}), "unknown field")]
#[case("/bindings/0/allow/hosts", json!([]), "hosts is empty")]
#[case("/bindings/0/allow/hosts", json!(["*github.com"]), "is not a host")]
#[case("/audit/tokenFile", json!("token"), "audit.tokenFile token is not an absolute path")]
#[case("/upstreamProxy/url", json!("https://proxy.example:3128"), "must be http://host:port")]
#[case("/upstreamProxy/url", json!("http://proxy.example"), "must be http://host:port")]
#[case("/upstreamProxy/url", json!("http://user:pw@proxy.example:3128"), "must be http://host:port")]
#[case("/upstreamProxy/url", json!("http://proxy.example:3128/x"), "must be http://host:port")]
#[case("/upstreamProxy/noProxy", json!(["a b"]), "noProxy")]
fn what_is_wrong_is_named(#[case] pointer: &str, #[case] value: Value, #[case] expected: &str) {
    let mut section = section();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = section.pointer_mut(parent).unwrap();
    match field.parse::<usize>() {
        Ok(position) => parent[position] = value,
        Err(_) => parent[field] = value,
    }
    let error = parse(&section).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_binding_is_there_once() {
    let mut section = section();
    let binding = section["bindings"][0].clone();
    section["bindings"].as_array_mut().unwrap().push(binding);
    assert!(parse(&section).unwrap_err().to_string().contains("\"team/github\" is there twice"));
}
