use jiff::Timestamp;
use longhand_crds::vault::{CredentialSpec, InjectionLocation};
use longhand_protocol::wire::vaults::{WrittenAuth, WrittenLocation};
use rstest::rstest;
use serde_json::{Value, json};

use super::{Written, locations, origin};

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

fn written(auth: &Value) -> Result<(Written, Vec<(String, String)>), String> {
    let auth: WrittenAuth = serde_json::from_value(auth.clone()).unwrap();
    let (written, values) = Written::take(auth).map_err(|error| error.to_string())?;
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
    Ok((written, values.iter().map(|(key, value)| ((*key).to_owned(), text(value.expose()))).collect()))
}

fn created(auth: &Value) -> Result<(CredentialSpec, Vec<(String, String)>), String> {
    let (written, values) = written(auth)?;
    let spec = written.create("c".to_owned(), "vcrd_1".to_owned(), "secret-1", now());
    Ok((spec.map_err(|error| error.to_string())?, values))
}

fn bearer() -> Value {
    json!({"type": "static_bearer", "token": "sk-canary", "mcp_server_url": "https://MCP.example:8443/sse"})
}

fn oauth() -> Value {
    json!({"type": "mcp_oauth", "access_token": "at-canary", "mcp_server_url": "https://mcp.example",
        "expires_at": "2030-01-01T00:00:00Z", "refresh": {"client_id": "id", "refresh_token": "rt-canary",
        "token_endpoint": "https://login.example/token", "scope": "all",
        "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": "cs-canary"}}})
}

fn variable() -> Value {
    json!({"type": "environment_variable", "secret_name": "API_KEY", "secret_value": "sv-canary",
        "networking": {"type": "limited", "allowed_hosts": ["API.example.com", "*.example.org", "10.0.0.1"]}})
}

/// `value` with some fields changed; null removes one.
fn with(mut value: Value, changes: &Value) -> Value {
    for (key, change) in changes.as_object().unwrap() {
        match change {
            Value::Null => drop(value.as_object_mut().unwrap().shift_remove(key)),
            change => value[key] = change.clone(),
        }
    }
    value
}

#[rstest]
#[case(bearer(), &[("token", "sk-canary")])]
#[case(oauth(), &[("token", "at-canary"), ("refresh-token", "rt-canary"), ("client-secret", "cs-canary")])]
#[case(variable(), &[("token", "sv-canary")])]
fn values_go_to_the_secret_and_only_there(#[case] auth: Value, #[case] expected: &[(&str, &str)]) {
    let (spec, values) = created(&auth).unwrap();
    let expected: Vec<(String, String)> =
        expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    assert_eq!(values, expected);
    let text = format!("{spec:?} {}", serde_json::to_string(&spec).unwrap());
    assert!(!text.contains("canary"), "{text}");
    assert_eq!(spec.secret_ref.name, "secret-1");
}

#[test]
fn a_bearer_goes_to_its_server_only() {
    let spec = serde_json::to_value(created(&bearer()).unwrap().0).unwrap();
    assert_eq!(spec["allow"]["hosts"], json!(["mcp.example"]));
    assert_eq!(spec["allow"]["port"], 8443);
    assert_eq!(spec["mcpServerURL"], "https://MCP.example:8443/sse");
    assert_eq!(spec["placement"], json!({"type": "bearer"}));
}

#[test]
fn a_variable_is_put_into_headers_unless_told_otherwise() {
    let spec = serde_json::to_value(created(&variable()).unwrap().0).unwrap();
    assert_eq!(spec["allow"]["hosts"], json!(["api.example.com", "*.example.org", "10.0.0.1"]));
    assert_eq!(spec["placement"]["variable"], json!({"name": "API_KEY", "locations": ["header"]}));
    let body = with(variable(), &json!({"injection_location": {"body": true, "header": false}}));
    let spec = serde_json::to_value(created(&body).unwrap().0).unwrap();
    assert_eq!(spec["placement"]["variable"]["locations"], json!(["body"]));
}

#[rstest]
#[case::no_value(with(bearer(), &json!({"token": null})), "auth.token")]
#[case::no_server(with(bearer(), &json!({"mcp_server_url": null})), "auth.mcp_server_url")]
#[case::foreign_field(with(bearer(), &json!({"access_token": "x"})), "auth.access_token")]
#[case::foreign_networking(with(bearer(), &json!({"networking": {"type": "unrestricted"}})), "auth.networking")]
#[case::expired(with(oauth(), &json!({"expires_at": "2020-01-01T00:00:00Z"})), "auth.expires_at")]
#[case::no_refresh_token(with(oauth(), &json!({"refresh": {"client_id": "id", "token_endpoint": "https://t", "token_endpoint_auth": {"type": "none"}}})), "refresh_token")]
#[case::endpoint_without_tls(with(oauth(), &json!({"refresh": {"client_id": "id", "refresh_token": "r", "token_endpoint": "http://t", "token_endpoint_auth": {"type": "none"}}})), "https://")]
#[case::secret_of_none(with(oauth(), &json!({"refresh": {"client_id": "id", "refresh_token": "r", "token_endpoint": "https://t", "token_endpoint_auth": {"type": "none", "client_secret": "s"}}})), "client_secret")]
#[case::no_hosts(with(variable(), &json!({"networking": {"type": "limited", "allowed_hosts": []}})), "allowed_hosts")]
#[case::a_url_as_host(with(variable(), &json!({"networking": {"type": "limited", "allowed_hosts": ["a", "https://b"]}})), "allowed_hosts[1]")]
#[case::hosts_of_unrestricted(with(variable(), &json!({"networking": {"type": "unrestricted", "allowed_hosts": ["a"]}})), "allowed_hosts")]
#[case::any_host(with(variable(), &json!({"networking": {"type": "limited", "allowed_hosts": ["*"]}})), "allowed_hosts[0]")]
#[case::nowhere(with(variable(), &json!({"injection_location": {"header": false}})), "injection_location")]
#[case::no_variable(with(variable(), &json!({"secret_name": "1A"})), "secret_name")]
fn what_is_wrong_is_named(#[case] auth: Value, #[case] field: &str) {
    let error = created(&auth).unwrap_err();
    assert!(error.contains(field), "{error}");
    assert!(!error.contains("canary"), "{error}");
}

#[rstest]
#[case("https://a", true)]
#[case("http://a.b.svc:8080/x", true)]
#[case("https://10.0.0.1", true)]
#[case("https://user@a", false)]
#[case("https://u:p@a", false)]
#[case("ftp://a", false)]
#[case("a", false)]
#[case("/a", false)]
#[case("https://[::1]", false)]
#[case("https://a:0", false)]
#[case("https://a:", false)]
#[case("https://a_b", false)]
#[case("https://*.a", false)]
fn a_credential_goes_to_plain_urls(#[case] url: &str, #[case] good: bool) {
    assert_eq!(origin("mcp_server_url", url).is_ok(), good);
}

fn changed(from: &Value, change: &Value) -> Result<(CredentialSpec, bool), String> {
    let (mut spec, _) = created(from).unwrap();
    let (written, _) = written(change)?;
    let widens = written.widens(&spec);
    written.change(&mut spec, "secret-2", now()).map_err(|error| error.to_string())?;
    Ok((spec, widens))
}

#[test]
fn a_rotation_points_at_another_secret() {
    let (spec, widens) = changed(&oauth(), &json!({"type": "mcp_oauth", "refresh": {"refresh_token": "new"}})).unwrap();
    let refresh = spec.oauth.unwrap().refresh.unwrap();
    assert_eq!(spec.secret_ref.name, "secret-1");
    assert_eq!(refresh.refresh_token_ref.name, "secret-2");
    assert_eq!(refresh.client_secret_ref.unwrap().name, "secret-1");
    assert_eq!(refresh.scope.as_deref(), Some("all"));
    assert!(!widens);
    let (spec, _) = changed(&bearer(), &json!({"type": "static_bearer", "token": "new"})).unwrap();
    assert_eq!(spec.secret_ref.name, "secret-2");
}

#[rstest]
#[case(json!({"networking": {"type": "unrestricted"}}), true)]
#[case(json!({"networking": {"type": "limited", "allowed_hosts": ["evil.example"]}}), true)]
#[case(json!({"networking": {"type": "limited", "allowed_hosts": ["*.example.org"]}}), false)]
#[case(json!({"networking": {"type": "unrestricted"}, "secret_value": "new"}), false)]
#[case(json!({"injection_location": {"body": true}}), true)]
#[case(json!({}), false)]
fn a_wider_scope_for_an_old_value_is_noticed(#[case] change: Value, #[case] widens: bool) {
    let change = with(json!({"type": "environment_variable"}), &change);
    assert_eq!(changed(&variable(), &change).unwrap().1, widens);
}

#[rstest]
#[case(bearer(), json!({"type": "mcp_oauth", "access_token": "x"}), "auth.type")]
#[case(bearer(), json!({"type": "static_bearer", "mcp_server_url": "https://evil.example"}), "mcp_server_url")]
#[case(variable(), json!({"type": "environment_variable", "secret_name": "OTHER"}), "secret_name")]
#[case(oauth(), json!({"type": "mcp_oauth", "refresh": {"token_endpoint": "https://evil.example"}}), "token_endpoint")]
#[case(with(oauth(), &json!({"refresh": null})), json!({"type": "mcp_oauth", "refresh": {"scope": ""}}), "refresh")]
fn what_cannot_be_changed_is_named(#[case] from: Value, #[case] change: Value, #[case] field: &str) {
    assert!(changed(&from, &change).unwrap_err().contains(field));
}

#[test]
fn a_place_that_the_api_has_no_word_for_stays() {
    use InjectionLocation::{Body, Header, Path, Query};
    let given = WrittenLocation { body: Some(true), header: Some(false) };
    assert_eq!(locations(given, &[Header, Query, Path]).unwrap(), [Body, Query, Path]);
    assert_eq!(locations(WrittenLocation::default(), &[Header]).unwrap(), [Header]);
}
