//! The configuration of the credential proxy beside a harness.

use longhand_crds::vault::{CredentialSpec, PrivateAddresses};
use longhand_protocol::model::FALLBACK_ROUTES;
use serde_json::{Value, json};

use crate::agent::fallbacks::FallbackAccess;

/// Where the proxy finds credentials: a folder for each, with one file.
pub(super) const CREDENTIALS: &str = "/var/run/longhand/credentials";
/// The path under which the proxy serves the model API.
pub(super) const MODEL_PREFIX: &str = "/model";

/// The folder of a fallback's credential: a vault of another name may have one of the same name.
pub(super) fn fallback_folder(fallback: &FallbackAccess) -> String {
    format!("/var/run/longhand/fallback-credentials/{}", fallback.route)
}

/// The value of `PROXY_CONFIG`: file names and rules, never a value.
pub(super) fn config(base_url: &str, credential: &CredentialSpec, fallbacks: &[FallbackAccess]) -> Value {
    let model = route("model", MODEL_PREFIX, base_url, credential, &format!("{CREDENTIALS}/{}", credential.name));
    let fallbacks = fallbacks.iter().map(|fallback| {
        let name = format!("fallback-{}", fallback.route);
        let prefix = format!("{MODEL_PREFIX}{FALLBACK_ROUTES}/{}", fallback.route);
        route(&name, &prefix, &fallback.base_url, &fallback.credential, &fallback_folder(fallback))
    });
    json!({ "routes": std::iter::once(model).chain(fallbacks).collect::<Vec<_>>() })
}

fn route(name: &str, prefix: &str, base_url: &str, credential: &CredentialSpec, folder: &str) -> Value {
    let allow = &credential.allow;
    let port = allow.port.unwrap_or_else(|| i32::from(allow.scheme.default_port()));
    // The agent's references admit nothing else than a bearer or a header.
    let placement = match &credential.placement.header {
        None => json!({ "type": "bearer" }),
        Some(header) => json!({ "type": "header", "name": header }),
    };
    json!({
        "name": name,
        "prefix": prefix,
        "upstream": base_url,
        "credential": {
            "name": credential.name,
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
        },
    })
}

#[cfg(test)]
mod tests {
    use longhand_crds::patterns;
    use longhand_crds::vault::{Placement, PlacementKind, Scheme};
    use proptest::prelude::*;
    use proptest::string::string_regex;

    use super::config;
    use crate::agent::fallbacks::FallbackAccess;
    use crate::fixtures;

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
            let read = longhand_proxy::config::Config::parse(&config(&url, credential, &[]).to_string());
            prop_assert!(read.is_ok(), "{}", read.unwrap_err());
        }
    }

    #[test]
    fn the_proxy_reads_what_is_written() {
        let config = config("http://model.test:8080", &fixtures::vault().spec.credentials[0], &[]);
        insta::assert_yaml_snapshot!(config);
        assert!(longhand_proxy::config::Config::parse(&config.to_string()).is_ok());
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
        let config = config("http://model.test:8080", &credential, &[fallback("0a"), fallback("0b")]);
        let routes = longhand_proxy::config::Config::parse(&config.to_string()).unwrap().routes;
        let prefixes: Vec<&str> =
            config["routes"].as_array().unwrap().iter().filter_map(|route| route["prefix"].as_str()).collect();
        assert_eq!(prefixes, ["/model", "/model-fallbacks/0a", "/model-fallbacks/0b"]);
        let files: std::collections::HashSet<_> = routes.iter().map(|route| &route.credential.file).collect();
        assert_eq!(files.len(), 3, "{files:?}");
    }

    #[test]
    fn a_bearer_at_the_scheme_s_own_port() {
        let mut vault = fixtures::vault();
        let credential = &mut vault.spec.credentials[0];
        credential.placement = Placement { kind: PlacementKind::Bearer, header: None, variable: None };
        (credential.allow.port, credential.allow.scheme) = (None, Scheme::Https);
        let config = config("https://model.test", credential, &[]);
        assert_eq!(config["routes"][0]["credential"]["allow"]["port"], 443);
        assert!(longhand_proxy::config::Config::parse(&config.to_string()).is_ok());
    }
}
