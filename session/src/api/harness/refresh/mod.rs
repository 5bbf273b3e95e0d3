//! A credential proxy refreshes an OAuth access token: it asks before it asks the provider, so that one proxy does at a time,
//! and hands over what it was given, which becomes a new Secret that the vault then points to.

mod vault;

use axum::Json;
use axum::extract::State;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use longhand_crds::Vault;
use longhand_protocol::SessionId;
use longhand_protocol::event::{EventBody, NewEvent};
use longhand_protocol::refresh::{CredentialRefresh, LONGEST_ATTEMPT, RefreshAnswer, RefreshFailure, RefreshStep};
use longhand_protocol::secret::SecretValue;
use sha2::{Digest as _, Sha256};

use self::vault::{Held, REFRESH_TOKEN, TOKEN};
use super::access;
use crate::api::error::{ApiError, Result};
use crate::api::extract::{PathOf, is_name};
use crate::api::wire::fields::SecretBody;
use crate::api::wire::vaults::credentials::{owned_by, secret_name_with};
use crate::app::App;
use crate::auth::{Identity, Pod};
use crate::metrics;
use crate::resources::ResourceError;
use crate::resources::vaults::NewSecret;
use crate::sessions::resource_of;

/// Others change the same vault; each of these attempts reads it anew.
const ATTEMPTS: usize = 8;

/// `POST credential_refresh`.
pub async fn refresh(
    State(app): State<App>,
    headers: HeaderMap,
    path: PathOf,
    body: SecretBody,
) -> Result<Json<RefreshAnswer>> {
    let session = path.session()?;
    let identity = app.auth.identify_proxy(&headers).await?;
    app.limits.request(&identity)?;
    let request: CredentialRefresh<SecretValue> = body.parse()?;
    for (field, name) in [("vault", &request.vault), ("credential", &request.credential), ("secret", &request.secret)] {
        if !is_name(name, 253) {
            return Err(ApiError::bad_request(format!("`{field}` is not a name")));
        }
    }
    let pod = access::pod_of(&identity)?;
    let call =
        Call { app: &app, session, identity: &identity, pod, vault: request.vault, credential: request.credential };
    let secret = request.secret;
    let answer = match (request.step, request.attempt, request.access_token, request.failure) {
        (RefreshStep::Begin, None, None, None) => call.begin(&secret).await?,
        (RefreshStep::Refreshed, Some(attempt), Some(token), None) => {
            let tokens = Tokens { token, refresh_token: request.refresh_token, expires_at: request.expires_at };
            call.refreshed(&secret, &attempt, tokens).await?
        }
        (RefreshStep::Failed, None, None, Some(failure)) => call.failed(&secret, failure).await?,
        _ => {
            return Err(ApiError::bad_request(
                "`refreshed` has an `attempt` and an `access_token`, `failed` has a `failure`, and `begin` has neither",
            ));
        }
    };
    metrics::refresh(&answer);
    Ok(Json(answer))
}

/// What a provider gave.
struct Tokens {
    token: SecretValue,
    refresh_token: Option<SecretValue>,
    expires_at: Option<Timestamp>,
}

/// Who asks, and about which credential.
struct Call<'a> {
    app: &'a App,
    session: &'a SessionId,
    identity: &'a Identity,
    pod: Pod,
    vault: String,
    credential: String,
}

impl Call<'_> {
    fn held<'a>(&'a self, secret: &'a str) -> Held<'a> {
        Held { credential: &self.credential, secret, pod: &self.pod.uid }
    }

    async fn vault(&self) -> Result<Option<Vault>> {
        Ok(self.app.vaults.named(&self.pod.namespace, &self.vault).await?)
    }

    async fn begin(&self, secret: &str) -> Result<RefreshAnswer> {
        self.require().await?;
        let mut tried = false;
        for _ in 0..ATTEMPTS {
            let Some(mut vault) = self.vault().await? else { return Ok(RefreshAnswer::Superseded {}) };
            let answer = self.held(secret).begin(&mut vault, Timestamp::now());
            if answer != (RefreshAnswer::Go {}) {
                return Ok(answer);
            }
            // A provider is not asked for tokens that could not be kept.
            if !std::mem::replace(&mut tried, true) {
                let owner = owned_by(&vault);
                self.app.vaults.try_secret(&self.pod.namespace, owner).await?;
            }
            match self.app.vaults.replace_vault(vault).await {
                Ok(_) => return Ok(answer),
                Err(ResourceError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(RefreshAnswer::Busy {})
    }

    async fn refreshed(&self, secret: &str, attempt: &str, tokens: Tokens) -> Result<RefreshAnswer> {
        let fits = (1..=LONGEST_ATTEMPT).contains(&attempt.len()) && attempt.bytes().all(|b| b.is_ascii_alphanumeric());
        if !fits {
            return Err(ApiError::bad_request(format!("`attempt` is not 1 to {LONGEST_ATTEMPT} letters and digits")));
        }
        let Some(mut vault) = self.vault().await? else {
            self.require().await?;
            return Ok(RefreshAnswer::Superseded {});
        };
        let speaks = self.require_holder(&self.held(secret), &vault).await?;
        let Tokens { token, refresh_token, expires_at } = tokens;
        let rotated = refresh_token.is_some();
        let made = self.secret_name(attempt);
        let values = [(TOKEN, Some(token)), (REFRESH_TOKEN, refresh_token)];
        let values = values.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        let mut values = Some(values);
        for _ in 0..ATTEMPTS {
            let (answer, changed) = self.held(secret).store(&mut vault, &made, rotated, expires_at);
            if !changed {
                return Ok(answer);
            }
            if let Some(values) = values.take() {
                let new = NewSecret { name: made.clone(), owner: owned_by(&vault), values };
                match self.app.vaults.create_secret(&self.pod.namespace, new).await {
                    // Made when the same request came before: nobody else knows the name.
                    Ok(()) | Err(ResourceError::Conflict { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            match self.app.vaults.replace_vault(vault).await {
                Ok(_) => {
                    self.put_on_record(speaks, rotated, expires_at).await;
                    return Ok(answer);
                }
                Err(ResourceError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            match self.vault().await? {
                Some(now) => vault = now,
                None => return Ok(RefreshAnswer::Superseded {}),
            }
        }
        Err(ApiError::unavailable(format!("Vault {} changes faster than it can be changed", self.vault)))
    }

    async fn failed(&self, secret: &str, failure: RefreshFailure) -> Result<RefreshAnswer> {
        for attempt in 0..ATTEMPTS {
            let Some(mut vault) = self.vault().await? else {
                self.require().await?;
                return Ok(RefreshAnswer::Superseded {});
            };
            if attempt == 0 {
                self.require_holder(&self.held(secret), &vault).await?;
            }
            let answer = self.held(secret).fail(&mut vault, failure, Timestamp::now());
            if answer != (RefreshAnswer::Noted {}) {
                return Ok(answer);
            }
            match self.app.vaults.replace_vault(vault).await {
                Ok(_) => return Ok(answer),
                Err(ResourceError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(ApiError::unavailable(format!("Vault {} changes faster than it can be changed", self.vault)))
    }

    /// Lets the pod of the session pass, if the credential is the session's.
    async fn require(&self) -> Result<()> {
        access::require(self.app, self.identity, self.session, None).await?;
        let meta = self.app.store.state(self.session).await?.meta;
        let Some(resource) = resource_of(self.app, &meta).await? else {
            return Err(ApiError::not_found(format!("the AgentSession of session {} is gone", self.session)));
        };
        if resource.spec.vault_refs.iter().any(|named| named.name == self.vault) {
            return Ok(());
        }
        let agent = self.app.resources.agent(&meta.namespace, &resource.spec.agent_ref.name).await?;
        let spec = agent.map(|agent| match &resource.spec.agent_ref.overrides {
            Some(overrides) => overrides.apply(agent.spec),
            None => agent.spec,
        });
        let servers = spec.map(|spec| spec.mcp_servers).unwrap_or_default();
        let mut credentials = servers.iter().filter_map(|server| server.credential.as_ref());
        if credentials.any(|named| named.vault == self.vault && named.name == self.credential) {
            return Ok(());
        }
        let Self { vault, credential, session, .. } = self;
        Err(ApiError::forbidden(format!("credential {vault}/{credential} is none of session {session}")))
    }

    /// Lets the pod pass that was told to go ahead, also when it has lost its session since: what it was given is the only
    /// copy. Whether it may speak for the session too.
    async fn require_holder(&self, held: &Held<'_>, vault: &Vault) -> Result<bool> {
        match self.require().await {
            Ok(()) => Ok(true),
            Err(error)
                if matches!(error.status(), StatusCode::FORBIDDEN | StatusCode::NOT_FOUND)
                    && held.is_claimed(vault) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The name of the Secret of this attempt, which no other pod can have made.
    fn secret_name(&self, attempt: &str) -> String {
        let digest = Sha256::digest(format!("{}/{attempt}", self.pod.uid).as_bytes());
        let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        secret_name_with(&self.vault, &self.credential, &digest)
    }

    /// The tokens are kept by now: what cannot be put on record is no reason to fail.
    async fn put_on_record(&self, speaks: bool, rotated: bool, expires_at: Option<Timestamp>) {
        if !speaks {
            return;
        }
        let credential = format!("{}/{}", self.vault, self.credential);
        let event = NewEvent::new(EventBody::CredentialRefreshed { credential, rotated, expires_at });
        if let Err(error) = self.app.store.append_unfenced(self.session, vec![event]).await {
            tracing::warn!(session = %self.session, %error, "a refreshed credential is not on record");
        }
    }
}
