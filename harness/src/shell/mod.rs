//! Does what the core decides.

mod deltas;
mod effects;
mod inbox;
mod lease;
mod parked;
mod served;
mod service;

use std::time::Duration;

use longhand_process::trace::belonging;
use longhand_protocol::client::{self, Backoff, HarnessClient, Server, TokenSource};
use longhand_protocol::harness::{ClaimResponse, Since};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span};

use self::inbox::Watch;
pub use self::parked::Parked;
use self::service::{End, PATIENCE, Service};
use crate::config::{Config, ConfigError, Endpoints};
use crate::core::{Effect, Input, Next, State, Transcript, step};
use crate::mcp::Servers;
use crate::model::Models;

/// The kubelet kills the process ten seconds after it has asked it to stop.
const STOP_GRACE: Duration = Duration::from_secs(7);

/// A claim that is lost as soon as it is made is not made again at full speed.
const RECLAIM_PAUSE: Duration = Duration::from_millis(500);

/// How a harness ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// This harness is not needed any more.
    Done(String),
    /// Something failed that may be different in a moment.
    Failed(String),
    /// A later epoch has claimed the session.
    Fenced {
        /// That epoch.
        epoch: u64,
    },
}

/// The brain of one session.
#[derive(Debug)]
pub struct Harness {
    client: HarnessClient,
    models: Models,
    mcp: Servers,
}

/// What a brain does when its session has nothing left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// It waits for as long as the session's grace.
    Wait,
    /// It forgets the session.
    Leave,
}

/// How the time between a claim and its end ended.
enum Turn {
    /// Nothing is left to do; the wake key was looked at up to this revision.
    Idle(Transcript, i64),
    /// The claim is not ours any more.
    Ended(End, Transcript),
    /// The process is asked to stop.
    Stopped,
    /// It makes no sense to go on.
    Failed(String),
}

impl Harness {
    /// A brain that has asked for nothing yet.
    ///
    /// # Errors
    /// When a URL cannot be used.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let endpoints = &config.endpoints;
        let token = TokenSource::file(&endpoints.token_file);
        let client =
            HarnessClient::new(log(endpoints), config.session.clone(), token.clone()).map_err(wrong("LOG_URL"))?;
        let (models, mcp) = callees(endpoints, token)?;
        Ok(Self { client, models, mcp })
    }

    /// Serves the session until there is nothing to do for as long as the session's grace, or `shutdown`.
    pub async fn run(&self, shutdown: &CancellationToken) -> Exit {
        self.serve_all(shutdown, Rest::Wait).await
    }

    async fn serve_all(&self, shutdown: &CancellationToken, rest: Rest) -> Exit {
        let mut log = Transcript::default();
        let mut watching = None;
        loop {
            let claim = match self.claim(log.head(), shutdown).await {
                Ok(claim) => claim,
                Err(exit) => return exit,
            };
            let grace = Duration::from_secs(claim.session.harness_idle_seconds);
            let seen = claim.since.as_ref().and_then(|since| since.inbox.wake_revision).unwrap_or(0);
            let watch = watching.get_or_insert_with(|| Watch::begin(self.client.clone(), seen));
            // It belongs to what woke the session.
            let woken_by = claim.since.as_ref().and_then(|since| since.inbox.traceparent);
            let span =
                belonging(info_span!("turn", session = %self.client.session_id(), epoch = claim.epoch), woken_by);
            log = match self.serve(claim, log, watch, shutdown).instrument(span).await {
                Turn::Idle(..) if rest == Rest::Leave => return Exit::Done("the session rests".to_owned()),
                Turn::Idle(log, seen) => match wait_for_work(watch, seen, grace, shutdown).await {
                    Some(exit) => return exit,
                    None => log,
                },
                Turn::Ended(End::Lost(reason), log) => {
                    tracing::warn!(%reason, "the claim is lost; claiming again");
                    tokio::time::sleep(RECLAIM_PAUSE).await;
                    log
                }
                Turn::Ended(End::Fenced { epoch }, _) => return Exit::Fenced { epoch },
                Turn::Ended(End::Gone, _) => return Exit::Done("the session is gone".to_owned()),
                Turn::Stopped => return Exit::Done("asked to stop".to_owned()),
                Turn::Failed(reason) => return Exit::Failed(reason),
            };
        }
    }

    /// Claims the session, of which the log is known up to `after`.
    async fn claim(&self, after: u64, shutdown: &CancellationToken) -> Result<ClaimResponse, Exit> {
        let patience = Instant::now() + PATIENCE;
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            let claim = tokio::select! {
                () = shutdown.cancelled() => return Err(Exit::Done("asked to stop".to_owned())),
                claim = self.client.claim(after) => claim,
            };
            let error = match claim {
                Ok(claim) => {
                    tracing::info!(session = %claim.session.id, epoch = claim.epoch, head = claim.head, "claimed");
                    return Ok(claim);
                }
                Err(error) => error,
            };
            match error.status().map(|status| status.as_u16()) {
                Some(403) => return Err(Exit::Done(format!("another pod shall serve the session: {error}"))),
                Some(404) => return Err(Exit::Done(format!("the session is gone: {error}"))),
                _ if error.is_retryable() && Instant::now() < patience => {
                    tracing::warn!(%error, "the session cannot be claimed yet");
                    tokio::time::sleep(error.retry_after().unwrap_or_else(|| backoff.step())).await;
                }
                _ => return Err(Exit::Failed(format!("the session cannot be claimed: {error}"))),
            }
        }
    }

    /// Works until nothing is left to do.
    async fn serve(&self, claim: ClaimResponse, log: Transcript, watch: &Watch, shutdown: &CancellationToken) -> Turn {
        let service = Service::new(self.client.clone(), claim.epoch);
        let mut lease = lease::keep(self.client.clone(), claim.epoch, Duration::from_secs(claim.lease_ttl_seconds));
        let mut mcp = self.mcp.open();
        let mut out_of_time = std::pin::pin!(stopped(shutdown));
        let mut claimed = State::claimed(claim.session, log).with_head(claim.head);
        if let Some(Since { records, inbox }) = claim.since {
            claimed = claimed.with_page(&records, claim.head, inbox);
        }
        let (mut state, mut next) = step(claimed, Input::Claimed);
        loop {
            let effect = match next {
                // An answer that was waited for is put on record before the end.
                Next::Do(_) if shutdown.is_cancelled() && !state.has_uncommitted() => return Turn::Stopped,
                Next::Do(effect) => effect,
                Next::Done => {
                    let seen = state.wake_revision().unwrap_or(0);
                    return Turn::Idle(state.into_transcript(), seen);
                }
                Next::Fail { reason } => return Turn::Failed(reason),
            };
            // A tool call goes on without us and a wait is worth nothing; an answer of the model is worth waiting for.
            let ends_at_once = matches!(
                effect,
                Effect::Execute { .. } | Effect::Stop { .. } | Effect::Rest(_) | Effect::Discover { .. }
            );
            // Idling gives the claim up, which must not look like its loss; it is fenced by itself.
            let gives_up = matches!(effect, Effect::Idle { .. });
            let input = tokio::select! {
                biased;
                end = &mut lease, if !gives_up => {
                    let end = end.unwrap_or_else(|error| End::Lost(format!("the lease task ended: {error}")));
                    return Turn::Ended(end, state.into_transcript());
                }
                () = &mut out_of_time => return Turn::Stopped,
                () = shutdown.cancelled(), if ends_at_once => return Turn::Stopped,
                input = effects::perform(&service, watch, &self.models, &mut mcp, state.wake_revision(), effect) => input,
            };
            state.note_changed(mcp.take_changed());
            match input {
                Ok(input) => (state, next) = step(state, input),
                Err(end) => return Turn::Ended(end, state.into_transcript()),
            }
        }
    }
}

/// Waits for the next message, after the revision `seen` of the wake key; gives the exit when none comes.
async fn wait_for_work(watch: &Watch, seen: i64, grace: Duration, shutdown: &CancellationToken) -> Option<Exit> {
    tokio::select! {
        () = shutdown.cancelled() => Some(Exit::Done("asked to stop".to_owned())),
        arrived = watch.work(seen, grace) => {
            (!arrived).then(|| Exit::Done(format!("no work came within {} seconds", grace.as_secs())))
        }
    }
}

/// The session service.
fn log(endpoints: &Endpoints) -> Server {
    let server = Server::new(&endpoints.log_url);
    match &endpoints.log_ca {
        Some(authorities) => server.trusting(authorities.as_str()),
        None => server,
    }
}

/// What else a brain calls.
fn callees(endpoints: &Endpoints, token: TokenSource) -> Result<(Models, Servers), ConfigError> {
    let models = Models::new(&endpoints.model_base_url, token.clone()).map_err(wrong("MODEL_BASE_URL"))?;
    let mcp = Servers::new(endpoints.mcp_base_url.as_deref(), token).map_err(wrong("MCP_BASE_URL"))?;
    Ok((models, mcp))
}

fn wrong(variable: &'static str) -> impl Fn(client::Error) -> ConfigError {
    move |source| ConfigError::Url { variable, source }
}

async fn stopped(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(STOP_GRACE).await;
}
