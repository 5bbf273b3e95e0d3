//! The configuration of the credential proxy beside a harness.

use longhand_crds::Agent;
use longhand_crds::vault::{CredentialSpec, PlacementKind, PrivateAddresses};
use serde_json::{Value, json};

/// Where the proxy finds credentials: a folder for each, with one file.
pub(super) const CREDENTIALS: &str = "/var/run/longhand/credentials";
/// The path under which the proxy serves the model API.
pub(super) const MODEL_PREFIX: &str = "/model";

/// The value of `PROXY_CONFIG`: file names and rules, never a value.
pub(super) fn config(agent: &Agent, credential: &CredentialSpec) -> Value {
    let allow = &credential.allow;
    let port = allow.port.unwrap_or_else(|| i32::from(allow.scheme.default_port()));
    let placement = match credential.placement.kind {
        PlacementKind::Bearer => json!({ "type": "bearer" }),
        PlacementKind::Header => json!({ "type": "header", "name": credential.placement.header }),
    };
    json!({ "routes": [{
        "name": "model",
        "prefix": MODEL_PREFIX,
        "upstream": agent.spec.model.base_url,
        "credential": {
            "name": credential.name,
            "file": format!("{CREDENTIALS}/{}/{}", credential.name, credential.secret_ref.key),
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
    }] })
}

#[cfg(test)]
mod tests {
    use longhand_crds::vault::{Placement, PlacementKind, Scheme};

    use super::config;
    use crate::fixtures;

    #[test]
    fn the_proxy_reads_what_is_written() {
        let (agent, vault) = (fixtures::agent(), fixtures::vault());
        let config = config(&agent, &vault.spec.credentials[0]);
        insta::assert_yaml_snapshot!(config);
        assert!(longhand_proxy::config::Config::parse(&config.to_string()).is_ok());
    }

    #[test]
    fn a_bearer_at_the_scheme_s_own_port() {
        let (mut agent, mut vault) = (fixtures::agent(), fixtures::vault());
        agent.spec.model.base_url = "https://model.test".into();
        let credential = &mut vault.spec.credentials[0];
        credential.placement = Placement { kind: PlacementKind::Bearer, header: None };
        (credential.allow.port, credential.allow.scheme) = (None, Scheme::Https);
        let config = config(&agent, credential);
        assert_eq!(config["routes"][0]["credential"]["allow"]["port"], 443);
        assert!(longhand_proxy::config::Config::parse(&config.to_string()).is_ok());
    }
}
