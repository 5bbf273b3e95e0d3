//! The configuration of the credential proxy beside a harness.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longhand_crds::vault::{CredentialSpec, PrivateAddresses, Refresh, TokenEndpointAuth};
use longhand_protocol::harness::mcp_route;
use longhand_protocol::model::FALLBACK_ROUTES;
use serde_json::{Value, json};

use super::egress;
use crate::agent::fallbacks::FallbackAccess;
use crate::agent::mcp::{McpAccess, token_endpoint};
use crate::config::WayOut;
use crate::context::Context;

/// Where the proxy finds credentials: a folder for each, with one file.
pub(super) const CREDENTIALS: &str = "/var/run/longhand/credentials";
/// The path under which the proxy serves the model API.
pub(super) const MODEL_PREFIX: &str = "/model";

/// Files in the folder of what an access token is refreshed with.
pub(super) const REFRESH_TOKEN: &str = "refresh-token";
pub(super) const CLIENT_SECRET: &str = "client-secret";

/// The path under which it serves MCP servers.
pub(super) const MCP_PREFIX: &str = "/mcp";

/// The folder of a fallback's credential: a vault of another name may have one of the same name.
pub(super) fn fallback_folder(fallback: &FallbackAccess) -> String {
    format!("/var/run/longhand/fallback-credentials/{}", fallback.route)
}

/// The value of `PROXY_CONFIG`: file names and rules, never a value.
pub(super) fn config(
    base_url: &str,
    (vault, credential): (&str, &CredentialSpec),
    fallbacks: &[FallbackAccess],
    servers: &[McpAccess],
) -> Value {
    let model = route("model", MODEL_PREFIX, base_url, &placed(Some(vault), credential, &folder(&credential.name)));
    let fallbacks = fallbacks.iter().map(|fallback| {
        let name = format!("fallback-{}", fallback.route);
        let prefix = format!("{MODEL_PREFIX}{FALLBACK_ROUTES}/{}", fallback.route);
        let placed = placed(Some(&fallback.vault), &fallback.credential, &fallback_folder(fallback));
        route(&name, &prefix, &fallback.base_url, &placed)
    });
    let routes: Vec<Value> = std::iter::once(model).chain(fallbacks).chain(servers.iter().map(server)).collect();
    json!({ "routes": routes })
}

/// Says which session the harness serves, and where its log is: uses of credentials are put there, and refreshed access tokens
/// handed over.
pub(super) fn set_session(config: &mut Value, context: &Context, session: &str) {
    let mut service = json!({
        "session": session, "url": context.session_url, "tokenFile": format!("{}/token", egress::TOKEN_FOLDER),
    });
    if let Some(authorities) = &context.session_ca {
        service["ca"] = json!(authorities);
    }
    config["service"] = service;
}

/// Says how access tokens are refreshed.
pub(super) fn set_refresh(config: &mut Value, servers: &[McpAccess]) {
    let routes = config["routes"].as_array_mut().into_iter().flatten();
    for route in routes {
        let named = |server: &&McpAccess| route["name"] == json!(mcp_volume(server));
        if let Some(server) = servers.iter().find(named)
            && let Some((vault, credential, refresh)) = server.refresh()
        {
            let expires_at = credential.oauth.as_ref().and_then(|oauth| oauth.expires_at.as_ref());
            route["credential"]["oauth"] = oauth(vault, refresh, expires_at, &refresh_folder(server));
        }
    }
}

fn oauth(vault: &str, refresh: &Refresh, expires_at: Option<&Time>, folder: &str) -> Value {
    let auth = match refresh.token_endpoint_auth {
        TokenEndpointAuth::None => "none",
        TokenEndpointAuth::ClientSecretBasic => "client_secret_basic",
        TokenEndpointAuth::ClientSecretPost => "client_secret_post",
    };
    json!({
        "vault": vault,
        "secret": refresh.refresh_token_ref.name,
        // References with any other were refused.
        "tokenEndpoint": token_endpoint(refresh).unwrap_or_default(),
        "clientID": refresh.client_id,
        "auth": auth,
        "scope": refresh.scope,
        "resource": refresh.resource,
        "expiresAt": expires_at.map(|time| time.0),
        "refreshTokenFile": format!("{folder}/{REFRESH_TOKEN}"),
        "clientSecretFile": refresh.client_secret_ref.as_ref().map(|_| format!("{folder}/{CLIENT_SECRET}")),
    })
}

/// Says how what goes through the proxy leaves the cluster, in both modes.
pub(super) fn set_way_out(config: &mut Value, way_out: &WayOut) {
    if let Some(url) = &way_out.upstream_proxy {
        config["upstreamProxy"] = json!({ "url": url, "noProxy": way_out.upstream_no_proxy });
    }
    if let Some(authorities) = &way_out.upstream_ca {
        config["ca"] = json!(authorities);
    }
}

fn route(name: &str, prefix: &str, base_url: &str, credential: &Value) -> Value {
    json!({ "name": name, "prefix": prefix, "upstream": base_url, "credential": credential })
}

/// The only URL of a server, with the methods of the protocol.
fn server(server: &McpAccess) -> Value {
    let key = mcp_route(&server.name, &server.url);
    let mut route = json!({
        "name": format!("mcp-{key}"),
        "prefix": format!("{MCP_PREFIX}/{key}"),
        "upstream": server.upstream,
        "exact": true,
        "methods": ["GET", "POST", "DELETE"],
        // The turn goes on without a server.
        "required": false,
    });
    match &server.credential {
        Some(credential) => route["credential"] = placed(server.vault.as_deref(), credential, &mcp_folder(server)),
        None => route["allowPrivate"] = json!(server.private_addresses == PrivateAddresses::Allow),
    }
    route
}

/// The folder of the model's credential.
pub(super) fn folder(credential: &str) -> String {
    format!("{CREDENTIALS}/{credential}")
}

/// The folder of a server's credential: two servers may have credentials of the same name.
pub(super) fn mcp_folder(server: &McpAccess) -> String {
    format!("{CREDENTIALS}/{}", mcp_volume(server))
}

/// The volume of a server's credential.
pub(super) fn mcp_volume(server: &McpAccess) -> String {
    format!("mcp-{}", mcp_route(&server.name, &server.url))
}

/// The volume with what a server's access token is refreshed with.
pub(super) fn refresh_volume(server: &McpAccess) -> String {
    format!("{}-refresh", mcp_volume(server))
}

/// Its folder.
pub(super) fn refresh_folder(server: &McpAccess) -> String {
    format!("{CREDENTIALS}/{}", refresh_volume(server))
}

/// Where a credential is kept, which the proxy says again when it reports of it: the vault may name another Secret by then.
pub(super) fn kept_in(credential: &CredentialSpec) -> Value {
    let secret = &credential.secret_ref;
    json!({ "secret": secret.name, "key": secret.key })
}

fn placed(vault: Option<&str>, credential: &CredentialSpec, folder: &str) -> Value {
    let allow = &credential.allow;
    let port = allow.port.unwrap_or_else(|| i32::from(allow.scheme.default_port()));
    // The agent's references admit nothing that is for sandboxes.
    let placement = match (&credential.placement.header, &credential.placement.username) {
        (Some(header), _) => json!({ "type": "header", "name": header }),
        (None, Some(username)) => json!({ "type": "basic", "username": username }),
        (None, None) => json!({ "type": "bearer" }),
    };
    json!({
        "name": credential.name,
        "vault": vault,
        "file": format!("{folder}/{}", credential.secret_ref.key),
        "placement": placement,
        "allow": {
            "scheme": allow.scheme,
            "hosts": allow.hosts,
            "port": port,
            "methods": allow.methods,
            "pathPrefixes": allow.path_prefixes,
            "allowPrivate": allow.private_addresses == PrivateAddresses::Allow,
        },
        "keptIn": kept_in(credential),
    })
}

#[cfg(test)]
mod tests {
    use longhand_crds::patterns;
    use longhand_crds::vault::{CredentialSpec, Placement, PlacementKind, PrivateAddresses, Scheme};
    use proptest::prelude::*;
    use proptest::string::string_regex;
    use serde_json::json;

    use super::{config, oauth, set_refresh, set_session, set_way_out};
    use crate::agent::fallbacks::FallbackAccess;
    use crate::agent::mcp::{McpAccess, unfit, upstream};
    use crate::config::WayOut;
    use crate::fixtures;
    use crate::testing::context;

    /// Texts that a pattern of the API server takes; labels are short, so that hosts stay within their 253 characters.
    fn taken_by(pattern: &str) -> impl Strategy<Value = String> + use<> {
        string_regex(&pattern.trim_start_matches('^').trim_end_matches('$').replace("{0,61}", "{0,3}")).unwrap()
    }

    proptest! {
        #[test]
        fn what_the_api_server_takes_the_proxy_takes(
            host in taken_by(patterns::HOST),
            path in taken_by(patterns::PATH),
            key in taken_by(patterns::SECRET_KEY),
            url in taken_by(patterns::BASE_URL),
        ) {
            let mut vault = fixtures::vault();
            let credential = &mut vault.spec.credentials[0];
            (credential.allow.hosts, credential.allow.path_prefixes) = (vec![host], vec![path]);
            credential.secret_ref.key = key;
            let read = longhand_proxy::config::Config::parse(&config(&url, ("models", credential), &[], &[]).to_string());
            prop_assert!(read.is_ok(), "{}", read.unwrap_err());
        }
    }

    /// A server as the agent names it.
    fn server(url: &str, credential: Option<CredentialSpec>) -> Option<McpAccess> {
        let (name, url) = ("a server".to_owned(), url.to_owned());
        let upstream = upstream(&url)?;
        let vault = credential.as_ref().map(|_| "models".to_owned());
        Some(McpAccess { name, url, upstream, private_addresses: PrivateAddresses::Refuse, credential, vault })
    }

    proptest! {
        #[test]
        fn a_url_that_the_operator_takes_the_proxy_takes(url in "https?://[a-z0-9._:@\\[\\]-]{1,24}(/[ -~é]{0,24})?") {
            let servers: Vec<McpAccess> = server(&url, None).into_iter().collect();
            let config = config("http://model.test", ("models", &fixtures::vault().spec.credentials[0]), &[], &servers);
            let read = longhand_proxy::config::Config::parse(&config.to_string());
            prop_assert!(read.is_ok(), "{url}: {}", read.unwrap_err());
        }
    }

    #[test]
    fn each_server_has_a_route_of_its_own() {
        let credential = fixtures::vault().spec.credentials.remove(0);
        let servers = [
            server("https://a.test/mcp", None).unwrap(),
            server("http://model.test:8080/v1/messages/mcp/?x=1", Some(credential.clone())).unwrap(),
        ];
        let config = config("http://model.test:8080", ("models", &credential), &[], &servers);
        insta::assert_yaml_snapshot!(config["routes"].as_array().unwrap()[1..]);
        let read = longhand_proxy::config::Config::parse(&config.to_string()).unwrap();
        assert_eq!(read.routes.len(), 3);
    }

    #[test]
    fn the_proxy_reads_what_is_written() {
        let config = config("http://model.test:8080", ("models", &fixtures::vault().spec.credentials[0]), &[], &[]);
        insta::assert_yaml_snapshot!(config);
        assert!(longhand_proxy::config::Config::parse(&config.to_string()).is_ok());
    }

    #[tokio::test]
    async fn an_access_token_is_refreshed_for_one_session() {
        let (context, _server) = context();
        let mut credential = fixtures::vault().spec.credentials.remove(0);
        credential.placement = Placement::of(PlacementKind::Bearer);
        credential.oauth = serde_json::from_value(json!({"expiresAt": "2030-01-01T00:00:00Z", "refresh": {
            "clientID": "me", "tokenEndpoint": "https://auth.test/token", "tokenEndpointAuth": "client_secret_post",
            "clientSecretRef": {"name": "client", "key": "c"}, "refreshTokenRef": {"name": "second", "key": "r"}}}))
        .unwrap();
        let servers = [
            server("http://model.test:8080/v1/messages/mcp", Some(credential)).unwrap(),
            server("https://open.test/mcp", None).unwrap(),
        ];
        let mut config =
            config("http://model.test:8080", ("models", &fixtures::vault().spec.credentials[0]), &[], &servers);
        assert!(!config.to_string().contains("oauth"), "a pod of no session refreshes nothing");
        set_session(&mut config, &context, "sesn_1");
        set_refresh(&mut config, &servers);
        insta::assert_yaml_snapshot!(config["routes"][1]["credential"]["oauth"]);
        let read = longhand_proxy::config::Config::parse(&config.to_string()).unwrap();
        assert_eq!(read.service.unwrap().session.as_str(), "sesn_1");
        let oauth = read.routes[1].credential.as_ref().unwrap().oauth.as_ref().unwrap();
        assert_eq!((oauth.vault.as_str(), oauth.secret.as_str()), ("models", "second"));
        assert!(read.routes[0].credential.as_ref().unwrap().oauth.is_none() && read.routes[2].credential.is_none());
    }

    proptest! {
        #[test]
        fn a_refresh_that_the_operator_takes_the_proxy_takes(
            endpoint in "https://[a-zA-Z0-9._:@\\[\\]-]{1,24}(/[ -~é]{0,24})?",
            client in "\\PC{1,1024}",
            secret in "[a-zA-Z0-9._-]{1,12}",
        ) {
            let mut credential = fixtures::vault().spec.credentials.remove(0);
            credential.placement = Placement::of(PlacementKind::Bearer);
            let refresh = serde_json::from_value(json!({
                "clientID": client, "tokenEndpoint": endpoint, "tokenEndpointAuth": "none",
                "refreshTokenRef": {"name": secret, "key": "r"}}))
            .unwrap();
            let mut config = config("http://model.test:8080", ("models", &credential), &[], &[]);
            config["routes"][0]["credential"]["oauth"] = oauth("models", &refresh, None, "/folder");
            config["service"] = json!({"session": "sesn_1", "url": "http://session.test", "tokenFile": "/token"});
            let taken = unfit(&refresh).is_none();
            let read = longhand_proxy::config::Config::parse(&config.to_string());
            prop_assert!(!taken || read.is_ok(), "{endpoint}: {}", read.unwrap_err());
        }
    }

    #[test]
    fn the_way_out_of_the_cluster_is_the_installation_s() {
        let mut config = config("http://model.test:8080", ("models", &fixtures::vault().spec.credentials[0]), &[], &[]);
        config["egress"] = json!({"session": "sesn_1", "verifyKey": "key=", "sandboxes": {},
            "audit": {"url": "http://session.test", "tokenFile": "/token"}});
        let way_out = WayOut {
            upstream_proxy: Some("http://proxy.corp.test:3128".to_owned()),
            upstream_no_proxy: vec![".corp.test".to_owned()],
            upstream_ca: Some("PEM".to_owned()),
        };
        set_way_out(&mut config, &way_out);
        let read = longhand_proxy::config::Config::parse(&config.to_string()).unwrap();
        let egress = read.egress.unwrap();
        for (proxy, ca) in [(read.upstream_proxy, read.ca), (egress.upstream_proxy, egress.ca)] {
            let proxy = proxy.unwrap();
            assert_eq!((proxy.host.as_str(), proxy.port, proxy.no_proxy.len()), ("proxy.corp.test", 3128, 1));
            assert_eq!(ca.as_deref(), Some("PEM"));
        }
    }

    #[test]
    fn a_fallback_has_a_route_and_a_folder_of_its_own() {
        let credential = fixtures::vault().spec.credentials.remove(0);
        let fallback = |route: &str| FallbackAccess {
            route: route.to_owned(),
            base_url: "http://model.test:8080/x".to_owned(),
            credential: credential.clone(),
            vault: "models".to_owned(),
        };
        let config = config("http://model.test:8080", ("models", &credential), &[fallback("0a"), fallback("0b")], &[]);
        let routes = longhand_proxy::config::Config::parse(&config.to_string()).unwrap().routes;
        let prefixes: Vec<&str> =
            config["routes"].as_array().unwrap().iter().filter_map(|route| route["prefix"].as_str()).collect();
        assert_eq!(prefixes, ["/model", "/model-fallbacks/0a", "/model-fallbacks/0b"]);
        let files: std::collections::HashSet<_> =
            routes.iter().map(|route| &route.credential.as_ref().unwrap().file).collect();
        assert_eq!(files.len(), 3, "{files:?}");
    }

    #[test]
    fn a_bearer_at_the_scheme_s_own_port() {
        let mut vault = fixtures::vault();
        let credential = &mut vault.spec.credentials[0];
        credential.placement = Placement::of(PlacementKind::Bearer);
        (credential.allow.port, credential.allow.scheme) = (None, Scheme::Https);
        let config = config("https://model.test", ("models", credential), &[], &[]);
        assert_eq!(config["routes"][0]["credential"]["allow"]["port"], 443);
        assert!(longhand_proxy::config::Config::parse(&config.to_string()).is_ok());
    }
}
