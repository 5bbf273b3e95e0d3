//! The part of the configuration that is about OAuth access tokens and whom they are handed over to.

use std::path::PathBuf;

use http::Uri;
use jiff::Timestamp;
use longhand_protocol::SessionId;
use serde::Deserialize;

use super::{RouteProblem, checked_name, parse_upstream};
use crate::policy::Scheme;

/// The most characters of a text; `Vault`s have no more either.
const MAX_TEXT: usize = 2_048;

/// How an access token is refreshed.
#[derive(Debug, Clone)]
pub struct OAuth {
    /// The name of its vault.
    pub vault: String,
    /// The Secret that the refresh token is in.
    pub secret: String,
    /// Where tokens are asked for.
    pub token_endpoint: Uri,
    /// Who asks.
    pub client: OAuthClient,
    /// When the access token expires, if that is known.
    pub expires_at: Option<Timestamp>,
    /// The file with the refresh token.
    pub refresh_token_file: PathBuf,
    /// The file with the client's secret, if it has one.
    pub client_secret_file: Option<PathBuf>,
}

/// An OAuth client, and what it asks for.
#[derive(Debug, Clone)]
pub struct OAuthClient {
    /// Its identifier.
    pub id: String,
    /// How it authenticates.
    pub auth: ClientAuth,
    /// The scope.
    pub scope: Option<String>,
    /// The resource indicator.
    pub resource: Option<String>,
}

/// How an OAuth client authenticates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// Not at all.
    None,
    /// By HTTP Basic.
    ClientSecretBasic,
    /// In the body.
    ClientSecretPost,
}

/// The session service, and for which session it is asked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Service {
    /// The session.
    pub session: SessionId,
    /// Its URL.
    pub url: String,
    /// The authorities that it is known by, in PEM; those of the system if absent.
    #[serde(default)]
    pub ca: Option<String>,
    /// The file with the proxy's own token.
    pub token_file: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawOAuth {
    vault: String,
    secret: String,
    token_endpoint: String,
    #[serde(rename = "clientID")]
    client_id: String,
    auth: ClientAuth,
    #[serde(default)]
    scope: Option<String>,
    #[serde(default)]
    resource: Option<String>,
    #[serde(default)]
    expires_at: Option<Timestamp>,
    refresh_token_file: PathBuf,
    #[serde(default)]
    client_secret_file: Option<PathBuf>,
}

impl TryFrom<RawOAuth> for OAuth {
    type Error = RouteProblem;

    fn try_from(raw: RawOAuth) -> Result<Self, RouteProblem> {
        let RawOAuth { vault, secret, token_endpoint, client_id, auth, scope, resource, .. } = raw;
        let (origin, _) = parse_upstream(&token_endpoint, true)?;
        // The refresh token goes there, so that only this pod itself may be asked without TLS.
        let own = origin.host.address().is_some_and(|address| address.is_loopback());
        if origin.scheme != Scheme::Https && !own {
            return Err(RouteProblem::TokenEndpoint(token_endpoint));
        }
        let texts = [Some(&client_id), scope.as_ref(), resource.as_ref()];
        if client_id.is_empty() || texts.into_iter().flatten().any(|text| text.chars().count() > MAX_TEXT) {
            return Err(RouteProblem::OAuthText);
        }
        let files = std::iter::once(&raw.refresh_token_file).chain(&raw.client_secret_file);
        if let Some(file) = files.into_iter().find(|file| !file.is_absolute()) {
            return Err(RouteProblem::File(file.clone()));
        }
        if (auth == ClientAuth::None) != raw.client_secret_file.is_none() {
            return Err(RouteProblem::ClientSecret);
        }
        Ok(Self {
            vault: checked_name(vault)?,
            secret: checked_name(secret)?,
            token_endpoint: token_endpoint.parse().map_err(|_| RouteProblem::Upstream(token_endpoint))?,
            client: OAuthClient { id: client_id, auth, scope, resource },
            expires_at: raw.expires_at,
            refresh_token_file: raw.refresh_token_file,
            client_secret_file: raw.client_secret_file,
        })
    }
}
