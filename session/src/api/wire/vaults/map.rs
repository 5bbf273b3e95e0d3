//! Vaults as the wire API shows them, from their resources. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longhand_crds::vault::{self, CredentialSpec, InjectionLocation as Location};
use longhand_crds::wire_id::{derived_id, prefix};
use longhand_crds::{Vault, wire_id};
use longhand_protocol::wire::vaults as wire;

use crate::resources::named::{archived_at, created_at, updated_at};

/// The vault.
pub(super) fn shown(vault: &Vault) -> wire::Vault {
    let metadata = &vault.metadata;
    let created_at = created_at(metadata).unwrap_or(Timestamp::UNIX_EPOCH);
    let name = metadata.name.clone().unwrap_or_default();
    wire::Vault {
        id: wire_id(prefix::VAULT, metadata),
        kind: "vault".to_owned(),
        display_name: vault.spec.display_name.clone().unwrap_or(name),
        metadata: vault.spec.metadata.clone(),
        created_at,
        updated_at: updated_at(metadata).unwrap_or(created_at),
        archived_at: archived_at(metadata),
    }
}

/// The identifier of a credential of this vault.
pub(super) fn credential_id(vault: &Vault, credential: &CredentialSpec) -> String {
    credential.id.clone().unwrap_or_else(|| {
        let uid = vault.metadata.uid.as_deref().unwrap_or_default();
        derived_id(prefix::CREDENTIAL, &format!("{uid}/{}", credential.name))
    })
}

/// The credential. One of kubectl shows as the kind that is placed like it: what goes into a header is a bearer.
pub(super) fn shown_credential(vault: &Vault, credential: &CredentialSpec) -> wire::Credential {
    let time = |time: &Option<Time>| time.as_ref().map(|time| time.0);
    let created_at =
        time(&credential.created_at).or_else(|| created_at(&vault.metadata)).unwrap_or(Timestamp::UNIX_EPOCH);
    wire::Credential {
        id: credential_id(vault, credential),
        kind: "vault_credential".to_owned(),
        vault_id: wire_id(prefix::VAULT, &vault.metadata),
        display_name: credential.display_name.clone(),
        auth: auth(credential),
        metadata: credential.metadata.clone(),
        created_at,
        updated_at: time(&credential.updated_at).unwrap_or(created_at),
        archived_at: time(&credential.archived_at),
    }
}

fn auth(credential: &CredentialSpec) -> wire::CredentialAuth {
    let placement = &credential.placement;
    if placement.kind.is_for_sandboxes() {
        let locations = placement.variable.as_ref().map(|variable| variable.locations.as_slice());
        // AWS keys are in the header that a signature is in.
        let locations = locations.unwrap_or(&[Location::Header]);
        let hosts = &credential.allow.hosts;
        return wire::CredentialAuth::EnvironmentVariable {
            secret_name: placement.variables().last().copied().unwrap_or_default().to_owned(),
            networking: if hosts.iter().any(|host| host == "*") {
                wire::CredentialNetworking::Unrestricted {}
            } else {
                wire::CredentialNetworking::Limited { allowed_hosts: hosts.clone() }
            },
            injection_location: wire::InjectionLocation {
                body: locations.contains(&Location::Body),
                header: locations.contains(&Location::Header),
            },
        };
    }
    let mcp_server_url = credential.mcp_server_url.clone().unwrap_or_else(|| server_url(credential));
    match &credential.oauth {
        None => wire::CredentialAuth::StaticBearer { mcp_server_url },
        Some(oauth) => wire::CredentialAuth::McpOauth {
            mcp_server_url,
            expires_at: oauth.expires_at.as_ref().map(|time| time.0),
            refresh: oauth.refresh.as_ref().map(refresh),
        },
    }
}

fn refresh(refresh: &vault::Refresh) -> wire::Refresh {
    let kind = match refresh.token_endpoint_auth {
        vault::TokenEndpointAuth::None => wire::TokenEndpointAuthKind::None,
        vault::TokenEndpointAuth::ClientSecretBasic => wire::TokenEndpointAuthKind::ClientSecretBasic,
        vault::TokenEndpointAuth::ClientSecretPost => wire::TokenEndpointAuthKind::ClientSecretPost,
    };
    wire::Refresh {
        client_id: refresh.client_id.clone(),
        token_endpoint: refresh.token_endpoint.clone(),
        token_endpoint_auth: wire::TokenEndpointAuth { kind },
        resource: refresh.resource.clone(),
        scope: refresh.scope.clone(),
    }
}

/// Where a credential may go, as a URL.
fn server_url(credential: &CredentialSpec) -> String {
    let allow = &credential.allow;
    let host = allow.hosts.first().map_or("", String::as_str);
    let port = allow.port.map(|port| format!(":{port}")).unwrap_or_default();
    let path = allow.path_prefixes.first().map_or("", String::as_str);
    format!("{}://{host}{port}{path}", allow.scheme.as_str())
}

#[cfg(test)]
mod tests {
    use longhand_crds::Vault;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{shown, shown_credential};

    fn vault(credential: &Value) -> Vault {
        let mut spec = json!({"name": "c", "secretRef": {"name": "s", "key": "canary-key"},
            "allow": {"hosts": ["mcp.example"]}, "placement": {"type": "bearer"}});
        for (key, value) in credential.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(json!({
            "metadata": {"name": "models", "namespace": "team-a", "uid": "u1", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"credentials": [spec]},
        }))
        .unwrap()
    }

    #[test]
    fn a_vault_of_kubectl_has_its_name() {
        let shown = serde_json::to_value(shown(&vault(&json!({})))).unwrap();
        assert_eq!(shown["display_name"], "models");
        assert_eq!(shown["created_at"], "2026-01-01T00:00:00Z");
        assert_eq!(shown["archived_at"], Value::Null);
        assert!(shown["id"].as_str().unwrap().starts_with("vlt_"));
    }

    #[rstest]
    #[case::bearer(json!({}), json!({"type": "static_bearer", "mcp_server_url": "https://mcp.example"}))]
    #[case::header(json!({"placement": {"type": "header", "header": "x-api-key"}, "allow": {"scheme": "http", "hosts": ["m"], "port": 8080, "pathPrefixes": ["/v1"]}}),
        json!({"type": "static_bearer", "mcp_server_url": "http://m:8080/v1"}))]
    #[case::as_written(json!({"mcpServerURL": "https://MCP.example/sse"}), json!({"type": "static_bearer", "mcp_server_url": "https://MCP.example/sse"}))]
    #[case::oauth(json!({"oauth": {"expiresAt": "2030-01-01T00:00:00Z", "refresh": {"clientID": "id", "tokenEndpoint": "https://t/x",
        "tokenEndpointAuth": "client_secret_post", "clientSecretRef": {"name": "s", "key": "canary"}, "refreshTokenRef": {"name": "s", "key": "canary"}}}}),
        json!({"type": "mcp_oauth", "mcp_server_url": "https://mcp.example", "expires_at": "2030-01-01T00:00:00Z", "refresh":
            {"client_id": "id", "token_endpoint": "https://t/x", "token_endpoint_auth": {"type": "client_secret_post"}, "resource": null, "scope": null}}))]
    #[case::variable(json!({"allow": {"hosts": ["*.example.com"]}, "placement": {"type": "environmentVariable", "variable": {"name": "A", "locations": ["body"]}}}),
        json!({"type": "environment_variable", "secret_name": "A", "networking": {"type": "limited", "allowed_hosts": ["*.example.com"]},
            "injection_location": {"body": true, "header": false}}))]
    #[case::anywhere(json!({"allow": {"hosts": ["*"]}, "placement": {"type": "environmentVariable", "variable": {"name": "A", "locations": ["header"]}}}),
        json!({"type": "environment_variable", "secret_name": "A", "networking": {"type": "unrestricted"}, "injection_location": {"body": false, "header": true}}))]
    #[case::aws(json!({"allow": {"hosts": ["*.amazonaws.com"]}, "placement": {"type": "aws", "aws": {"accessKeyIDKey": "canary-id"}}}),
        json!({"type": "environment_variable", "secret_name": "AWS_SECRET_ACCESS_KEY", "networking": {"type": "limited",
            "allowed_hosts": ["*.amazonaws.com"]}, "injection_location": {"body": false, "header": true}}))]
    fn a_credential_shows_what_it_is(#[case] credential: Value, #[case] auth: Value) {
        let vault = vault(&credential);
        let shown = serde_json::to_value(shown_credential(&vault, &vault.spec.credentials[0])).unwrap();
        assert_eq!(shown["auth"], auth);
        assert_eq!(shown["updated_at"], "2026-01-01T00:00:00Z");
        assert!(!shown.to_string().contains("canary"), "not even where the value is: {shown}");
    }
}
