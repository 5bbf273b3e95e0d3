//! What a client writes of a credential, as the vault's resource keeps it. Pure: values are taken out first, and only the
//! name of the Secret that will hold them goes on.

use http::Uri;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longhand_crds::vault::{
    Allow, CredentialSpec, InjectionLocation, OAuth, Placement, PlacementKind, PrivateAddresses, Refresh, Scheme,
    SecretRef, TokenEndpointAuth, Variable,
};
use longhand_protocol::secret::SecretValue;
use longhand_protocol::wire::vaults::{
    AuthKind, NetworkingKind, TokenEndpointAuthKind, WrittenAuth, WrittenLocation, WrittenNetworking, WrittenRefresh,
};

use crate::api::error::{ApiError, Result};

const TOKEN: &str = "token";
const REFRESH_TOKEN: &str = "refresh-token";
const CLIENT_SECRET: &str = "client-secret";
const MOST_HOSTS: usize = 16;
const LONGEST_URL: usize = 2_048;
const LONGEST_TEXT: usize = 1_024;
const ANY_HOST: &str = "*";

/// What was written, without its values, and which of them there were.
pub(super) struct Written {
    auth: WrittenAuth,
    token: bool,
    refresh_token: bool,
    client_secret: bool,
}

/// The values that a Secret shall hold, by key.
pub(super) type Values = Vec<(&'static str, SecretValue)>;

impl Written {
    /// Takes the values out, or names a field that is not one of the kind.
    pub(super) fn take(mut auth: WrittenAuth) -> Result<(Self, Values)> {
        check_fields(&auth)?;
        let token = auth.access_token.take().or(auth.token.take()).or(auth.secret_value.take());
        let refresh = auth.refresh.as_mut();
        let refresh_token = refresh.and_then(|refresh| refresh.refresh_token.take());
        let endpoint = auth.refresh.as_mut().and_then(|refresh| refresh.token_endpoint_auth.as_mut());
        let client_secret = endpoint.and_then(|endpoint| endpoint.client_secret.take());
        let written = Self {
            auth,
            token: token.is_some(),
            refresh_token: refresh_token.is_some(),
            client_secret: client_secret.is_some(),
        };
        let values = [(TOKEN, token), (REFRESH_TOKEN, refresh_token), (CLIENT_SECRET, client_secret)];
        Ok((written, values.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()))
    }

    /// A new credential, whose values are in the Secret `secret`.
    pub(super) fn create(&self, name: String, id: String, secret: &str, now: Timestamp) -> Result<CredentialSpec> {
        if !self.token {
            return Err(missing(value_field(self.auth.kind)));
        }
        let (allow, placement, oauth) = match self.auth.kind {
            AuthKind::EnvironmentVariable => (self.variable_hosts()?, self.variable()?, None),
            AuthKind::StaticBearer => (self.server()?, bearer(), None),
            AuthKind::McpOauth => (self.server()?, bearer(), Some(self.oauth(secret, now)?)),
        };
        Ok(CredentialSpec {
            name,
            id: Some(id),
            display_name: None,
            metadata: std::collections::BTreeMap::new(),
            secret_ref: reference(secret, TOKEN),
            allow,
            placement,
            mcp_server_url: self.auth.mcp_server_url.clone(),
            model_base_url: None,
            oauth,
            created_at: Some(Time(now)),
            updated_at: Some(Time(now)),
            archived_at: None,
        })
    }

    /// Changes a credential; new values are in the Secret `secret`.
    pub(super) fn change(&self, credential: &mut CredentialSpec, secret: &str, now: Timestamp) -> Result<()> {
        let auth = &self.auth;
        if credential.placement.kind == PlacementKind::Aws {
            return Err(ApiError::bad_request("`auth` of AWS keys can only be changed in the Vault resource"));
        }
        if kind_of(credential) != auth.kind {
            return Err(ApiError::bad_request("`auth.type` cannot be changed"));
        }
        unchanged("mcp_server_url", auth.mcp_server_url.as_ref(), credential.mcp_server_url.as_ref())?;
        let variable = credential.placement.variable.as_mut();
        unchanged("secret_name", auth.secret_name.as_ref(), variable.as_ref().map(|variable| &variable.name))?;
        if self.token {
            credential.secret_ref = reference(secret, TOKEN);
        }
        if let Some(networking) = &auth.networking {
            credential.allow.hosts = hosts(networking)?;
        }
        if let (Some(given), Some(variable)) = (&auth.injection_location, variable) {
            variable.locations = locations(*given, &variable.locations)?;
        }
        if let Some(oauth) = &mut credential.oauth {
            if let Some(expires_at) = auth.expires_at {
                oauth.expires_at = expiry(expires_at, now)?;
            }
            if let Some(refresh) = &auth.refresh {
                let kept = oauth.refresh.as_mut();
                let kept =
                    kept.ok_or_else(|| ApiError::bad_request("`auth.refresh`: the credential was made without"))?;
                self.change_refresh(refresh, kept, secret)?;
            }
        }
        Ok(())
    }

    /// Whether the value may go to other places than before although it is not written anew.
    pub(super) fn widens(&self, credential: &CredentialSpec) -> bool {
        let hosts = self.auth.networking.as_ref().and_then(|networking| hosts(networking).ok());
        !self.token
            && (hosts.is_some_and(|hosts| hosts.iter().any(|host| !credential.allow.hosts.contains(host)))
                || self.auth.injection_location.is_some())
    }

    fn change_refresh(&self, written: &WrittenRefresh, kept: &mut Refresh, secret: &str) -> Result<()> {
        unchanged("refresh.client_id", written.client_id.as_ref(), Some(&kept.client_id))?;
        unchanged("refresh.token_endpoint", written.token_endpoint.as_ref(), Some(&kept.token_endpoint))?;
        unchanged("refresh.resource", written.resource.as_ref(), kept.resource.as_ref())?;
        if self.refresh_token {
            kept.refresh_token_ref = reference(secret, REFRESH_TOKEN);
        }
        if let Some(scope) = &written.scope {
            kept.scope = text("refresh.scope", Some(scope), LONGEST_TEXT)?;
        }
        if self.client_secret {
            if kept.token_endpoint_auth == TokenEndpointAuth::None {
                let message = "`auth.refresh.token_endpoint_auth`: the client of this credential has no secret";
                return Err(ApiError::bad_request(message));
            }
            kept.client_secret_ref = Some(reference(secret, CLIENT_SECRET));
        }
        Ok(())
    }

    fn oauth(&self, secret: &str, now: Timestamp) -> Result<OAuth> {
        let expires_at = expiry(self.auth.expires_at.flatten(), now)?;
        let refresh = self.auth.refresh.as_ref().map(|written| self.refresh(written, secret)).transpose()?;
        Ok(OAuth { expires_at, refresh })
    }

    fn refresh(&self, written: &WrittenRefresh, secret: &str) -> Result<Refresh> {
        let required = |field: &'static str, value: Option<&String>, longest| {
            text(field, value, longest)?.ok_or_else(|| missing(field))
        };
        if !self.refresh_token {
            return Err(missing("refresh.refresh_token"));
        }
        let endpoint = required("refresh.token_endpoint", written.token_endpoint.as_ref(), LONGEST_URL)?;
        let (scheme, ..) = origin("refresh.token_endpoint", &endpoint)?;
        // The CRD compares the letters; a scheme in capitals is refused here and not by the API server.
        if scheme != Scheme::Https || !endpoint.starts_with("https://") {
            let message = "`auth.refresh.token_endpoint` must begin with https://: the refresh token goes there";
            return Err(ApiError::bad_request(message));
        }
        let way = written.token_endpoint_auth.as_ref().ok_or_else(|| missing("refresh.token_endpoint_auth"))?;
        let way = match way.kind {
            TokenEndpointAuthKind::None => TokenEndpointAuth::None,
            TokenEndpointAuthKind::ClientSecretBasic => TokenEndpointAuth::ClientSecretBasic,
            TokenEndpointAuthKind::ClientSecretPost => TokenEndpointAuth::ClientSecretPost,
        };
        if (way == TokenEndpointAuth::None) == self.client_secret {
            let message = "`auth.refresh.token_endpoint_auth.client_secret` belongs to every type but none";
            return Err(ApiError::bad_request(message));
        }
        Ok(Refresh {
            client_id: required("refresh.client_id", written.client_id.as_ref(), LONGEST_TEXT)?,
            token_endpoint: endpoint,
            token_endpoint_auth: way,
            client_secret_ref: self.client_secret.then(|| reference(secret, CLIENT_SECRET)),
            refresh_token_ref: reference(secret, REFRESH_TOKEN),
            resource: text("refresh.resource", written.resource.as_ref(), LONGEST_URL)?,
            scope: text("refresh.scope", written.scope.as_ref(), LONGEST_TEXT)?,
        })
    }

    fn server(&self) -> Result<Allow> {
        let url = text("mcp_server_url", self.auth.mcp_server_url.as_ref(), LONGEST_URL)?;
        let (scheme, host, port) = origin("mcp_server_url", &url.ok_or_else(|| missing("mcp_server_url"))?)?;
        Ok(allow(scheme, vec![host], port))
    }

    fn variable_hosts(&self) -> Result<Allow> {
        let networking = self.auth.networking.as_ref().ok_or_else(|| missing("networking"))?;
        Ok(allow(Scheme::Https, hosts(networking)?, None))
    }

    fn variable(&self) -> Result<Placement> {
        let name = self.auth.secret_name.clone().ok_or_else(|| missing("secret_name"))?;
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if !(1..=253).contains(&name.len()) || name.as_bytes()[0].is_ascii_digit() || !name.bytes().all(letter) {
            let message = "`auth.secret_name` is not the name of a variable: letters, digits and underscores";
            return Err(ApiError::bad_request(message));
        }
        let given = self.auth.injection_location.unwrap_or_default();
        let locations = locations(given, &[InjectionLocation::Header])?;
        let variable = Some(Variable { name, locations });
        Ok(Placement { variable, ..Placement::of(PlacementKind::EnvironmentVariable) })
    }
}

/// The kind that a credential shows as.
fn kind_of(credential: &CredentialSpec) -> AuthKind {
    match credential.placement.kind {
        PlacementKind::EnvironmentVariable | PlacementKind::Aws => AuthKind::EnvironmentVariable,
        PlacementKind::Bearer | PlacementKind::Basic | PlacementKind::Header => match credential.oauth {
            Some(_) => AuthKind::McpOauth,
            None => AuthKind::StaticBearer,
        },
    }
}

const fn value_field(kind: AuthKind) -> &'static str {
    match kind {
        AuthKind::McpOauth => "access_token",
        AuthKind::StaticBearer => "token",
        AuthKind::EnvironmentVariable => "secret_value",
    }
}

/// Refuses fields of other kinds, which would otherwise be passed over in silence.
fn check_fields(auth: &WrittenAuth) -> Result<()> {
    use AuthKind::{EnvironmentVariable, McpOauth, StaticBearer};
    let fields: [(&str, bool, &[AuthKind]); 9] = [
        ("access_token", auth.access_token.is_some(), &[McpOauth]),
        ("token", auth.token.is_some(), &[StaticBearer]),
        ("secret_value", auth.secret_value.is_some(), &[EnvironmentVariable]),
        ("mcp_server_url", auth.mcp_server_url.is_some(), &[McpOauth, StaticBearer]),
        ("expires_at", auth.expires_at.is_some(), &[McpOauth]),
        ("refresh", auth.refresh.is_some(), &[McpOauth]),
        ("secret_name", auth.secret_name.is_some(), &[EnvironmentVariable]),
        ("networking", auth.networking.is_some(), &[EnvironmentVariable]),
        ("injection_location", auth.injection_location.is_some(), &[EnvironmentVariable]),
    ];
    match fields.iter().find(|(_, given, kinds)| *given && !kinds.contains(&auth.kind)) {
        Some((field, ..)) => Err(ApiError::bad_request(format!("`auth.{field}` does not belong to this `auth.type`"))),
        None => Ok(()),
    }
}

fn missing(field: &str) -> ApiError {
    ApiError::bad_request(format!("`auth.{field}` is missing"))
}

fn unchanged(field: &str, given: Option<&String>, kept: Option<&String>) -> Result<()> {
    if given.is_none() || given == kept {
        return Ok(());
    }
    Err(ApiError::bad_request(format!("`auth.{field}` cannot be changed: make another credential")))
}

/// A text within its bound; an empty one is none.
fn text(field: &str, value: Option<&String>, longest: usize) -> Result<Option<String>> {
    match value {
        Some(value) if value.chars().count() > longest => {
            Err(ApiError::bad_request(format!("`auth.{field}` is longer than {longest} characters")))
        }
        value => Ok(value.filter(|value| !value.is_empty()).cloned()),
    }
}

fn expiry(expires_at: Option<Timestamp>, now: Timestamp) -> Result<Option<Time>> {
    match expires_at {
        Some(at) if at <= now => Err(ApiError::bad_request("`auth.expires_at` is not in the future")),
        at => Ok(at.map(Time)),
    }
}

fn reference(secret: &str, key: &str) -> SecretRef {
    SecretRef { name: secret.to_owned(), key: key.to_owned() }
}

const fn bearer() -> Placement {
    Placement::of(PlacementKind::Bearer)
}

fn allow(scheme: Scheme, hosts: Vec<String>, port: Option<i32>) -> Allow {
    Allow {
        scheme,
        hosts,
        port,
        methods: Vec::new(),
        path_prefixes: Vec::new(),
        private_addresses: PrivateAddresses::Refuse,
    }
}

/// Scheme, host and port of a URL that a credential may be sent to.
pub(in crate::api::wire) fn origin(field: &str, url: &str) -> Result<(Scheme, String, Option<i32>)> {
    let wrong = || {
        ApiError::bad_request(format!(
            "`auth.{field}` is not a URL of the form https://host[:port][/path], without a user and with a host name or an IPv4 address"
        ))
    };
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let scheme = match uri.scheme_str() {
        Some("https") => Scheme::Https,
        Some("http") => Scheme::Http,
        _ => return Err(wrong()),
    };
    let authority = uri.authority().ok_or_else(wrong)?;
    let host = authority.host().to_ascii_lowercase();
    if authority.as_str().contains('@') || !is_host(&host) {
        return Err(wrong());
    }
    // What stands behind the host and is no port is not passed over.
    let port = if authority.as_str().len() == authority.host().len() {
        None
    } else {
        Some(authority.port_u16().filter(|port| *port > 0).map(i32::from).ok_or_else(wrong)?)
    };
    Ok((scheme, host, port))
}

fn is_host(host: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let label = |label: &str| {
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes.first().copied().is_some_and(inner)
            && bytes.last().copied().is_some_and(inner)
            && bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
    };
    host.len() <= 253 && host.split('.').all(label)
}

fn hosts(networking: &WrittenNetworking) -> Result<Vec<String>> {
    match (networking.kind, &networking.allowed_hosts) {
        (NetworkingKind::Unrestricted, None) => Ok(vec![ANY_HOST.to_owned()]),
        (NetworkingKind::Unrestricted, Some(_)) => {
            Err(ApiError::bad_request("`auth.networking.allowed_hosts` belongs to the type limited"))
        }
        (NetworkingKind::Limited, None) => Err(missing("networking.allowed_hosts")),
        (NetworkingKind::Limited, Some(hosts)) if !(1..=MOST_HOSTS).contains(&hosts.len()) => {
            Err(ApiError::bad_request(format!("`auth.networking.allowed_hosts` must have 1 to {MOST_HOSTS} entries")))
        }
        (NetworkingKind::Limited, Some(hosts)) => hosts.iter().enumerate().map(host).collect(),
    }
}

fn host((index, host): (usize, &String)) -> Result<String> {
    let host = host.to_ascii_lowercase();
    if is_host(host.strip_prefix("*.").unwrap_or(&host)) {
        return Ok(host);
    }
    Err(ApiError::bad_request(format!(
        "`auth.networking.allowed_hosts[{index}]` is neither a host name, nor an IPv4 address, nor `*.` and a host name"
    )))
}

/// Where a placeholder becomes the value: as given, and otherwise as it was, also in parts of a request that this API has no
/// word for.
fn locations(given: WrittenLocation, kept: &[InjectionLocation]) -> Result<Vec<InjectionLocation>> {
    let wanted = [(InjectionLocation::Header, given.header), (InjectionLocation::Body, given.body)];
    let on = wanted.into_iter().filter(|(place, given)| given.unwrap_or_else(|| kept.contains(place)));
    let others = [InjectionLocation::Query, InjectionLocation::Path].into_iter().filter(|place| kept.contains(place));
    let on: Vec<InjectionLocation> = on.map(|(place, _)| place).chain(others).collect();
    if on.is_empty() {
        return Err(ApiError::bad_request("`auth.injection_location` leaves no place for the value"));
    }
    Ok(on)
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
