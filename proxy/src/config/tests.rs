//! What the operator writes of routes, and what is wrong with what it does not.

use rstest::rstest;
use serde_json::{Value, json};

use super::*;

fn route() -> Value {
    json!({
        "name": "model", "prefix": "/model", "upstream": "https://api.anthropic.com",
        "credential": {
            "name": "anthropic", "file": "/var/run/longhand/credentials/anthropic/key",
            "placement": {"type": "header", "name": "x-api-key"},
            "allow": {
                "scheme": "https", "hosts": ["api.anthropic.com"], "port": 443,
                "methods": ["POST"], "pathPrefixes": ["/v1/messages"],
            },
        },
    })
}

fn parse(routes: &Value) -> Result<Config, ConfigError> {
    Config::parse(&json!({"routes": routes}).to_string())
}

#[test]
fn what_the_operator_writes_is_read() {
    let config = parse(&json!([route()])).unwrap();
    let route = &config.routes[0];
    let host = Host::parse("api.anthropic.com").unwrap();
    assert_eq!(route.upstream, Origin { scheme: Scheme::Https, host, port: 443 });
    let credential = route.credential.as_ref().unwrap();
    assert_eq!(credential.placement, Placement::Header("x-api-key".parse().unwrap()));
    assert!(!credential.rule.allow_private && !route.allow_private && route.required);
    assert_eq!((&route.exact, route.methods.len()), (&None, 0));
}

#[rstest]
#[case("http://model.tests.svc:8080", "model.tests.svc", 8080, "")]
#[case("https://gateway.example/anthropic/", "gateway.example", 443, "/anthropic")]
#[case("https://GATEWAY.example./a/b", "gateway.example", 443, "/a/b")]
#[case("http://[::1]:80", "::1", 80, "")]
fn upstreams(#[case] url: &str, #[case] host: &str, #[case] port: u16, #[case] base_path: &str) {
    let (origin, path) = parse_upstream(url, false).unwrap();
    assert_eq!((origin.host.as_str(), origin.port, path.as_str()), (host, port, base_path));
}

#[rstest]
#[case("https://a.example", "/")]
#[case("https://a.example/mcp/", "/mcp/")]
#[case("https://a.example/mcp?key=%2F&b", "/mcp?key=%2F&b")]
fn an_exact_upstream_keeps_its_path_and_query(#[case] url: &str, #[case] expected: &str) {
    assert_eq!(parse_upstream(url, true).unwrap().1, expected);
}

#[test]
fn a_route_may_have_no_credential() {
    let route = json!({"name": "mcp", "prefix": "/mcp/0", "upstream": "http://m.svc/mcp", "exact": true,
        "methods": ["GET", "POST"], "allowPrivate": true, "required": false});
    let config = parse(&json!([route])).unwrap();
    let route = &config.routes[0];
    assert!(route.credential.is_none() && route.allow_private && !route.required);
    assert_eq!((route.exact.as_deref(), route.methods.len()), (Some("/mcp"), 2));
}

#[rstest]
#[case("/name", json!("Model"), "is not a name")]
#[case("/prefix", json!("/"), "must not end with a slash")]
#[case("/prefix", json!("model"), "must begin with")]
#[case("/prefix", json!("/a/../b"), "dot segment")]
#[case("/upstream", json!("ftp://a.example"), "must be http://")]
#[case("/upstream", json!("https://user:pw@a.example"), "must be http://")]
#[case("/upstream", json!("https://a.example/?x=1"), "must be http://")]
#[case("/upstream", json!("https://a.example/#x"), "must be http://")]
#[case("/upstream", json!("https://a.example/a//b"), "empty segment")]
#[case("/upstream", json!("/v1"), "must be http://")]
#[case("/allowPrivate", json!(true), "allowPrivate belongs to")]
#[case("/methods", json!(["A B"]), "is not a method")]
#[case("/credential/name", json!(""), "is not a name")]
#[case("/credential/file", json!("key"), "not an absolute path")]
#[case("/credential/placement", json!({"type": "header", "name": "Host"}), "cannot be placed")]
#[case("/credential/placement", json!({"type": "header", "name": "content-length"}), "cannot be placed")]
#[case("/credential/placement", json!({"type": "header", "name": "a b"}), "cannot be placed")]
#[case("/credential/placement", json!({"type": "query"}), "unknown variant")]
#[case("/credential/placement", json!({"type": "basic"}), "missing field")]
#[case("/credential/placement", json!({"type": "basic", "username": "a:b"}), "without a colon")]
#[case("/credential/placement", json!({"type": "bearer", "name": "x"}), "unknown field")]
#[case("/credential/allow/scheme", json!("gopher"), "unknown variant")]
#[case("/credential/allow/hosts", json!([]), "hosts is empty")]
#[case("/credential/allow/hosts", json!(["*.example"]), "is not a host")]
#[case("/credential/allow/port", json!(70000), "PROXY_CONFIG is not valid")]
#[case("/credential/allow/methods", json!(["A B"]), "is not a method")]
#[case("/credential/allow/pathPrefixes", json!(["/a/%2e"]), "encoded")]
#[case("/credential/allow/extra", json!(1), "unknown field `extra`")]
fn what_is_wrong_is_named(#[case] pointer: &str, #[case] value: Value, #[case] expected: &str) {
    let mut route = route();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    route.pointer_mut(parent).unwrap()[field] = value;
    let error = parse(&json!([route])).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn routes_are_distinct() {
    let with = |name: &str, prefix: &str| {
        let mut route = route();
        route["name"] = json!(name);
        route["prefix"] = json!(prefix);
        route
    };
    assert!(parse(&json!([with("a", "/a"), with("b", "/ab")])).is_ok());
    assert!(parse(&json!([with("a", "/a"), with("a", "/b")])).unwrap_err().to_string().contains("same name"));
    assert!(parse(&json!([with("a", "/a"), with("b", "/a/b")])).unwrap_err().to_string().contains("overlap"));
    assert!(matches!(parse(&json!([])), Err(ConfigError::RouteCount(0))));
}

fn refreshed() -> Value {
    let mut route = route();
    route["credential"]["placement"] = json!({"type": "bearer"});
    route["credential"]["oauth"] = json!({
        "vault": "keys", "secret": "first", "tokenEndpoint": "https://auth.example/token?tenant=a", "clientID": "me",
        "auth": "client_secret_basic", "expiresAt": "2030-01-01T00:00:00Z", "scope": null, "resource": "https://mcp.example/",
        "refreshTokenFile": "/run/refresh", "clientSecretFile": "/run/client",
    });
    json!({
        "routes": [route],
        "service": {"session": "sesn_1", "url": "https://session.example", "tokenFile": "/run/token"},
    })
}

#[test]
fn how_a_token_is_refreshed_is_read() {
    let config = Config::parse(&refreshed().to_string()).unwrap();
    let oauth = config.routes[0].credential.as_ref().unwrap().oauth.as_ref().unwrap();
    assert_eq!(oauth.token_endpoint.to_string(), "https://auth.example/token?tenant=a");
    assert_eq!((oauth.client.auth, oauth.client.scope.as_deref()), (ClientAuth::ClientSecretBasic, None));
    assert_eq!(config.service.unwrap().session.as_str(), "sesn_1");
}

#[rstest]
#[case("/service", json!(null), "there is no service")]
#[case("/service/tokenFile", json!("token"), "not an absolute path")]
#[case("/routes/0/credential/placement", json!({"type": "header", "name": "x-api-key"}), "belongs to the placement bearer")]
#[case("/routes/0/credential/oauth/tokenEndpoint", json!("http://auth.example/token"), "must be https://")]
#[case("/routes/0/credential/oauth/tokenEndpoint", json!("https://user@auth.example/"), "neither user")]
#[case("/routes/0/credential/oauth/clientID", json!(""), "clientID is empty")]
#[case("/routes/0/credential/oauth/resource", json!("r".repeat(2_049)), "too long")]
#[case("/routes/0/credential/oauth/auth", json!("none"), "every auth but none")]
#[case("/routes/0/credential/oauth/clientSecretFile", json!(null), "every auth but none")]
#[case("/routes/0/credential/oauth/refreshTokenFile", json!("refresh"), "not an absolute path")]
#[case("/routes/0/credential/oauth/secret", json!("../x"), "is not a name")]
fn what_is_wrong_with_a_refresh_is_named(#[case] pointer: &str, #[case] value: Value, #[case] expected: &str) {
    let mut config = refreshed();
    *config.pointer_mut(pointer).unwrap() = value;
    let error = Config::parse(&config.to_string()).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_proxy_writes_to_the_log_of_the_one_session_that_it_is_for() {
    let mut config = refreshed();
    let log = |config: &Value| Config::parse(&config.to_string()).unwrap().log();
    assert_eq!(log(&config).unwrap().token_file.to_str(), Some("/run/token"));
    config["routes"][0]["credential"]["oauth"] = json!(null);
    config["service"] = json!(null);
    assert_eq!(log(&config), None, "nobody knows of which session a request is");
    config["egress"] = json!({"session": "sesn_2", "verifyKey": "key=", "sandboxes": {},
        "audit": {"url": "https://log.example", "ca": "PEM", "tokenFile": "/run/audit"}});
    let of_egress = log(&config).unwrap();
    assert_eq!((of_egress.session.as_str(), of_egress.ca.as_deref()), ("sesn_2", Some("PEM")));
    config["service"] = json!({"session": "sesn_1", "url": "https://log.example", "tokenFile": "/run/token"});
    let error = Config::parse(&config.to_string()).unwrap_err().to_string();
    assert!(error.contains("different sessions, sesn_1 and sesn_2"), "{error}");
}

#[test]
fn a_credential_is_named_with_its_vault() {
    let mut route = route();
    let label = |route: &Value| {
        let config = Config::parse(&json!({"routes": [route]}).to_string()).unwrap();
        config.routes[0].credential.as_ref().unwrap().label()
    };
    let name = route["credential"]["name"].as_str().unwrap().to_owned();
    assert_eq!(label(&route), name);
    route["credential"]["vault"] = json!("models");
    assert_eq!(label(&route), format!("models/{name}"));
}
