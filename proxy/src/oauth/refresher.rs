//! One access token: who may renew it now, and what becomes of what the provider gave.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::Uri;
use jiff::Timestamp;
use longhand_protocol::{
    refresh::{RefreshAnswer, RefreshFailure, RefreshStep, SentRefresh},
    secret::SentValue,
};
use tokio::{
    sync::{Mutex as Flight, OwnedMutexGuard},
    time::timeout,
};
use tokio_util::task::TaskTracker;

use super::{
    endpoint::{AskError, DEADLINE, Endpoint},
    grant::{self, GrantError, Granted},
    problem::Problem,
    service::Service,
    state::{Held, Standing, State, View},
};
use crate::{
    config::{Credential, OAuth},
    secret::{FileCondition, Secret, SecretFile},
    upstream::Way,
};

/// A token that is good for less than this is renewed before it is used.
const LEEWAY: Duration = Duration::from_secs(60);

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long a request waits for a token.
    pub patience: Duration,
    /// For how long it is asked again while another proxy is renewing the token.
    pub busy: Duration,
    /// Between two of these.
    pub busy_pause: Duration,
    /// How long the provider has.
    pub provider: Duration,
    /// After the first failure in a row; twice as long after each one more.
    pub backoff: Duration,
    /// No longer than this.
    pub longest_backoff: Duration,
    /// A server that refuses a token that was given less than this ago refuses more than the token.
    pub young: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(45),
            busy: Duration::from_secs(20),
            busy_pause: Duration::from_secs(1),
            provider: DEADLINE,
            backoff: Duration::from_secs(1),
            longest_backoff: Duration::from_secs(60),
            young: Duration::from_secs(60),
        }
    }
}

/// Keeps one access token good.
pub struct Refresher {
    /// `<vault>/<credential>`, which may be shown.
    label: String,
    credential: String,
    oauth: OAuth,
    access: SecretFile,
    refresh: SecretFile,
    client_secret: Option<SecretFile>,
    endpoint: Endpoint,
    service: Arc<dyn Service>,
    timing: Timing,
    /// Held by the one that asks.
    flight: Arc<Flight<()>>,
    state: Mutex<State>,
    /// What goes on when the request that began it has ended.
    tasks: TaskTracker,
}

/// A number as it is on the clock: a lifetime that ends after the end of time does not end.
fn after(now: Timestamp, lifetime: Duration) -> Option<Timestamp> {
    now.checked_add(lifetime).ok()
}

impl Refresher {
    /// A token whose files are read when it is first needed.
    #[must_use]
    pub fn new(
        credential: &Credential,
        oauth: OAuth,
        way: &Way,
        service: Arc<dyn Service>,
        timing: Timing,
    ) -> Arc<Self> {
        let endpoint: Uri = oauth.token_endpoint.clone();
        Arc::new(Self {
            label: format!("{}/{}", oauth.vault, credential.name),
            credential: credential.name.clone(),
            access: SecretFile::new(credential.file.clone()),
            refresh: SecretFile::new(oauth.refresh_token_file.clone()),
            client_secret: oauth.client_secret_file.clone().map(SecretFile::new),
            endpoint: Endpoint::new(endpoint, way, credential.rule.allow_private, timing.provider),
            service,
            timing,
            flight: Arc::default(),
            state: Mutex::new(State {
                seen: None,
                held: None,
                expires_at: oauth.expires_at,
                due_at: oauth.expires_at.map(|end| end.saturating_sub(LEEWAY).unwrap_or(end)),
                secret: oauth.secret.clone(),
                standing: Standing::Open,
                handing_over: false,
            }),
            tasks: TaskTracker::new(),
            oauth,
        })
    }

    /// A token that is good as far as is known. One that has expired is renewed first; one that is about to, meanwhile.
    ///
    /// # Errors
    /// [`Problem`], when it has expired and cannot be renewed.
    pub async fn token(self: &Arc<Self>) -> Result<Arc<Secret>, Problem> {
        let (view, now) = (self.look()?, Timestamp::now());
        if !view.is_good(now) {
            return self.renew(&view.access).await;
        }
        if view.is_due(now) {
            self.renew_meanwhile(&view.access);
        }
        Ok(view.access)
    }

    /// Has a token renewed that is good for now, unless somebody is at it or it cannot be.
    fn renew_meanwhile(self: &Arc<Self>, used: &Arc<Secret>) {
        if self.state().may_ask(Instant::now()).is_err() {
            return;
        }
        let Ok(flight) = Arc::clone(&self.flight).try_lock_owned() else { return };
        let (this, used) = (Arc::clone(self), Arc::clone(used));
        // How it ends is logged there, and nobody waits.
        self.tasks.spawn(async move { this.renewed(&used, flight).await.map(drop) });
    }

    /// Another token in the place of one that the server has refused, if there is or can be one.
    pub async fn rejected(self: &Arc<Self>, used: &Arc<Secret>) -> Option<Arc<Secret>> {
        let young = {
            let state = self.state();
            let held = state.held.as_ref().filter(|held| Arc::ptr_eq(&held.access, used));
            held.is_some_and(|held| held.since.elapsed() < self.timing.young)
        };
        if young {
            return None;
        }
        match self.renew(used).await {
            Ok(renewed) => Some(renewed),
            Err(problem) => {
                tracing::warn!(credential = self.label, %problem, "a token that was refused is not renewed");
                None
            }
        }
    }

    /// Why the token cannot be used, if that is known.
    #[must_use]
    pub fn condition(&self) -> Option<Problem> {
        let view = match self.look() {
            Ok(view) => view,
            Err(problem) => return Some(problem),
        };
        if view.is_good(Timestamp::now()) {
            return None;
        }
        self.state().problem()
    }

    /// Returns when everything that the provider gave is handed over.
    pub async fn settled(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token as it is now. What was learnt counts until somebody writes another value into the files.
    fn look(&self) -> Result<View, Problem> {
        let now = Instant::now();
        let (access, refresh) = (self.access.current(now), self.refresh.current(now).ok());
        let mut state = self.state();
        let access = match access {
            Ok(access) => access,
            // What the provider gave is good without the file.
            Err(condition) => match &state.held {
                Some(held) => return Ok(state.view(held.access.clone())),
                None => return Err(Problem::File { path: self.access.path().display().to_string(), condition }),
            },
        };
        let same = |(one, other): &(Arc<Secret>, Option<Arc<Secret>>)| {
            let refresh = refresh.as_ref().is_none_or(|now| other.as_ref().is_none_or(|then| Arc::ptr_eq(now, then)));
            Arc::ptr_eq(one, &access) && refresh
        };
        match &mut state.seen {
            Some(seen) if same(seen) => {
                if seen.1.is_none() {
                    seen.1 = refresh;
                }
            }
            seen => {
                let first = seen.is_none();
                *seen = Some((access.clone(), refresh));
                if !first {
                    state.reset(&self.oauth.secret);
                }
            }
        }
        let current = state.held.as_ref().map_or(access, |held| held.access.clone());
        Ok(state.view(current))
    }

    /// Renews a token unless that has been done. The work goes on when whoever asked for it has gone: what the provider gives is
    /// the only copy.
    async fn renew(self: &Arc<Self>, used: &Arc<Secret>) -> Result<Arc<Secret>, Problem> {
        let (this, used) = (Arc::clone(self), Arc::clone(used));
        let work = self.tasks.spawn(async move {
            let flight = Arc::clone(&this.flight).lock_owned().await;
            this.renewed(&used, flight).await
        });
        match timeout(self.timing.patience, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(Problem::Late),
        }
    }

    /// The work of the one that has the `flight`.
    async fn renewed(
        self: &Arc<Self>,
        used: &Arc<Secret>,
        _flight: OwnedMutexGuard<()>,
    ) -> Result<Arc<Secret>, Problem> {
        let view = self.look()?;
        if !Arc::ptr_eq(&view.access, used) && view.is_good(Timestamp::now()) {
            return Ok(view.access);
        }
        let secret = self.state().may_ask(Instant::now())?;
        let outcome = self.ask(&secret).await;
        let word = match &outcome {
            Ok(_) => "refreshed",
            Err(Problem::Superseded) => "superseded",
            Err(Problem::Refused(_)) => "refused",
            Err(Problem::Busy) => "busy",
            Err(_) => "failed",
        };
        metrics::counter!("longhand_proxy_token_refreshes_total", "outcome" => word).increment(1);
        match outcome {
            Ok(renewed) => {
                tracing::info!(credential = self.label, "an access token was renewed");
                Ok(renewed)
            }
            Err(problem) => {
                tracing::warn!(credential = self.label, %problem, "an access token is not renewed");
                self.state().note(&problem, self.timing, Instant::now());
                Err(problem)
            }
        }
    }

    async fn ask(self: &Arc<Self>, secret: &str) -> Result<Arc<Secret>, Problem> {
        let now = Instant::now();
        let held = self.state().held.as_ref().and_then(|held| held.refresh.clone());
        let refresh = match held {
            Some(refresh) => refresh,
            None => self.refresh.current(now).map_err(|condition| unreadable(&self.refresh, condition))?,
        };
        let client_secret = match &self.client_secret {
            Some(file) => Some(file.current(now).map_err(|condition| unreadable(file, condition))?),
            None => None,
        };
        self.begin(secret).await?;
        let ask = grant::ask(&self.oauth.client, &refresh, client_secret.as_deref());
        let (status, body) = self.endpoint.ask(ask).await?;
        let granted = grant::read(status, &body).map(|granted| granted.in_exchange_for(&refresh));
        match granted {
            Ok(granted) if granted.bearer => Ok(self.keep(granted, secret)),
            Ok(granted) => {
                tracing::warn!(credential = self.label, "the provider gave a token that cannot be sent as a bearer");
                // The refresh token is used up, and this is the next one.
                self.keep(granted, secret);
                Err(Problem::Refused(RefreshFailure::Refused))
            }
            Err(GrantError::Final(failure)) => {
                self.tell(failure, secret.to_owned());
                Err(Problem::Refused(failure))
            }
            Err(error) => Err(AskError::Answer(error).into()),
        }
    }

    /// Waits until this proxy may ask.
    async fn begin(&self, secret: &str) -> Result<(), Problem> {
        let begun = Instant::now();
        let request = self.request(secret, RefreshStep::Begin);
        loop {
            match self.service.refresh(&request).await {
                Ok(RefreshAnswer::Go {}) => return Ok(()),
                Ok(RefreshAnswer::Busy {}) if begun.elapsed() < self.timing.busy => {
                    tokio::time::sleep(self.timing.busy_pause).await;
                }
                Ok(RefreshAnswer::Busy {}) => return Err(Problem::Busy),
                Ok(RefreshAnswer::Superseded {}) => return Err(Problem::Superseded),
                Ok(RefreshAnswer::Failed { failure }) => return Err(Problem::Refused(failure)),
                Ok(RefreshAnswer::Stored { .. } | RefreshAnswer::Noted {}) => {
                    return Err(Problem::Service("it answered something else".to_owned()));
                }
                Err(error) => return Err(Problem::Service(error.to_string())),
            }
        }
    }

    fn request<'a>(&'a self, secret: &'a str, step: RefreshStep) -> SentRefresh<'a> {
        SentRefresh {
            vault: self.oauth.vault.clone(),
            credential: self.credential.clone(),
            secret: secret.to_owned(),
            step,
            attempt: None,
            access_token: None,
            refresh_token: None,
            expires_at: None,
            failure: None,
        }
    }

    /// Keeps what the provider gave, and hands it over.
    fn keep(self: &Arc<Self>, granted: Granted, secret: &str) -> Arc<Secret> {
        let Granted { access, refresh, lifetime, bearer } = granted;
        let (access, rotated) = (Arc::new(access), refresh.map(Arc::new));
        let now = Timestamp::now();
        // One that cannot be sent is as good as expired.
        let lifetime = if bearer { lifetime } else { Some(Duration::ZERO) };
        let expires_at = lifetime.and_then(|lifetime| after(now, lifetime));
        {
            let mut state = self.state();
            let before = state.held.take().and_then(|held| held.refresh);
            let refresh = rotated.clone().or(before);
            state.held = Some(Held { access: access.clone(), refresh, since: Instant::now() });
            state.expires_at = expires_at;
            // A short life has a short leeway.
            state.due_at = lifetime.and_then(|lifetime| after(now, lifetime.saturating_sub(LEEWAY.min(lifetime / 5))));
            (state.standing, state.handing_over) = (Standing::Open, true);
        }
        let (this, secret, token) = (Arc::clone(self), secret.to_owned(), access.clone());
        self.tasks.spawn(async move {
            let kept = this.hand_over(&secret, &token, rotated.as_deref(), expires_at).await;
            if let Some(secret) = kept.filter(|_| !bearer) {
                this.tell(RefreshFailure::Refused, secret);
            }
        });
        access
    }

    /// Hands over what the provider gave, until it is in the vault or another token is. The Secret with the refresh token that is
    /// good now, unless it is another's.
    async fn hand_over(
        &self,
        secret: &str,
        access: &Secret,
        refresh: Option<&Secret>,
        expires_at: Option<Timestamp>,
    ) -> Option<String> {
        let request = SentRefresh {
            attempt: Some(format!("{:032x}", rand::random::<u128>())),
            access_token: Some(SentValue::new(access.expose())),
            refresh_token: refresh.map(|refresh| SentValue::new(refresh.expose())),
            expires_at,
            ..self.request(secret, RefreshStep::Refreshed)
        };
        let mut delay = self.timing.backoff;
        loop {
            let count =
                |outcome| metrics::counter!("longhand_proxy_token_handovers_total", "outcome" => outcome).increment(1);
            let reason = match self.service.refresh(&request).await {
                Ok(RefreshAnswer::Stored { secret }) => {
                    count("stored");
                    let mut state = self.state();
                    (state.secret, state.handing_over) = (secret.clone(), false);
                    return Some(secret);
                }
                Ok(RefreshAnswer::Superseded {}) => {
                    count("superseded");
                    let mut state = self.state();
                    (state.standing, state.handing_over) = (Standing::Superseded, false);
                    return None;
                }
                Ok(_) => "it answered something else".to_owned(),
                Err(error) => error.to_string(),
            };
            count("failed");
            tracing::warn!(credential = self.label, reason, "renewed tokens are not in the vault yet");
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(self.timing.longest_backoff);
        }
    }

    /// Has the provider's refusal put on record; if that fails, the next refusal is.
    fn tell(self: &Arc<Self>, failure: RefreshFailure, secret: String) {
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            let request = SentRefresh { failure: Some(failure), ..this.request(&secret, RefreshStep::Failed) };
            match this.service.refresh(&request).await {
                Ok(RefreshAnswer::Superseded {}) => this.state().standing = Standing::Superseded,
                Ok(_) => {}
                Err(error) => tracing::warn!(credential = this.label, %error, "a refusal is not on record"),
            }
        });
    }
}

fn unreadable(file: &SecretFile, condition: FileCondition) -> Problem {
    Problem::RefreshFile { path: file.path().display().to_string(), condition }
}
