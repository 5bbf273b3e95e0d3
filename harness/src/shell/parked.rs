//! A harness that belongs to no session: it takes those of its agent that need one, and nothing of a session is left when it
//! rests.

use std::sync::Arc;
use std::time::Duration;

use longhand_protocol::SessionId;
use longhand_protocol::client::{Backoff, Error, ParkedClient, TokenSource};
use longhand_protocol::harness::Offer;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::served::Served;
use super::service::PATIENCE;
use super::{Exit, Harness, Rest, callees, log, wrong};
use crate::config::{ConfigError, ParkedConfig};
use crate::mcp::Servers;
use crate::model::Models;

/// One long poll.
const POLL: Duration = Duration::from_secs(25);
/// A server that answers long polls at once is not asked faster than this.
const MIN_PERIOD: Duration = Duration::from_millis(500);
/// The operator makes a pod known just after it has made it; one that is not known for so long is not wanted.
const UNKNOWN: Duration = Duration::from_secs(60);
/// A session that cannot be claimed is not offered to this pod again at full speed.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);

/// A harness that waits for sessions of its agent.
#[derive(Debug)]
pub struct Parked {
    client: ParkedClient,
    models: Models,
    mcp: Servers,
    sessions: usize,
}

impl Parked {
    /// A harness that has asked for nothing yet.
    ///
    /// # Errors
    /// When a URL cannot be used.
    pub fn new(config: &ParkedConfig) -> Result<Self, ConfigError> {
        let endpoints = &config.endpoints;
        let token = TokenSource::file(&endpoints.token_file);
        let client = ParkedClient::new(log(endpoints), token.clone()).map_err(wrong("LOG_URL"))?;
        let (models, mcp) = callees(endpoints, token)?;
        let sessions = usize::try_from(config.sessions.get()).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Ok(Self { client, models, mcp, sessions })
    }

    /// Serves what it is offered, each session in a task of its own, until it is told to retire, or `shutdown`.
    pub async fn run(&self, shutdown: &CancellationToken) -> Exit {
        let (room, serving) = (Arc::new(Semaphore::new(self.sessions)), TaskTracker::new());
        let served = Arc::new(Served::default());
        let exit = loop {
            let next = async {
                let slot = Arc::clone(&room).acquire_owned().await;
                (slot, self.next().await)
            };
            match shutdown.run_until_cancelled(next).await {
                Some((Ok(slot), Ok(Some(session)))) => {
                    // Several replicas may offer the same one.
                    let Some(mut entry) = served.enter(&session) else { continue };
                    let harness = Harness {
                        client: self.client.session(session.clone()),
                        models: self.models.clone(),
                        mcp: self.mcp.clone(),
                    };
                    let shutdown = shutdown.clone();
                    serving.spawn(async move {
                        // Given back when the task ends, also by a panic.
                        let _slot = slot;
                        loop {
                            serve(&harness, &session, &shutdown).await;
                            match entry.again() {
                                Some(again) if !shutdown.is_cancelled() => entry = again,
                                _ => break,
                            }
                        }
                    });
                }
                Some((Err(_), _) | (_, Ok(None))) => break Exit::Done("the pod is not needed any more".to_owned()),
                Some((_, Err(reason))) => break Exit::Failed(reason),
                None => break Exit::Done("asked to stop".to_owned()),
            }
        };
        serving.close();
        serving.wait().await;
        exit
    }

    /// The next session; `None` when there will be no more.
    async fn next(&self) -> Result<Option<SessionId>, String> {
        let (mut answered, mut backoff) = (Instant::now(), backoff());
        loop {
            let begun = Instant::now();
            match self.client.park(POLL).await {
                Ok(Offer::Session { session }) => return Ok(Some(session)),
                Ok(Offer::Retire) => return Ok(None),
                Ok(Offer::Nothing) => {
                    (answered, backoff) = (Instant::now(), self::backoff());
                    // A replica that is about to end answers at once.
                    tokio::time::sleep_until(begun + MIN_PERIOD).await;
                }
                Err(error) if answered.elapsed() > patience(&error) => {
                    return Err(format!("no session can be had: {error}"));
                }
                Err(error) => {
                    tracing::debug!(%error, "no session was offered");
                    tokio::time::sleep(error.retry_after().unwrap_or_else(|| backoff.step())).await;
                }
            }
        }
    }
}

fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(5))
}

/// For how long an error may last.
fn patience(error: &Error) -> Duration {
    if error.is_retryable() {
        PATIENCE
    } else if error.status().is_some_and(|status| status.as_u16() == 403) {
        UNKNOWN
    } else {
        Duration::ZERO
    }
}

async fn serve(harness: &Harness, session: &SessionId, shutdown: &CancellationToken) {
    let begun = Instant::now();
    match harness.serve_all(shutdown, Rest::Leave).await {
        Exit::Done(reason) => tracing::info!(%session, %reason, "the session is left"),
        Exit::Failed(reason) => tracing::warn!(%session, %reason, "the session is left"),
        Exit::Fenced { epoch } => tracing::warn!(%session, epoch, "a later epoch has claimed the session"),
    }
    tokio::time::sleep_until(begun + REFUSED_PAUSE).await;
}
