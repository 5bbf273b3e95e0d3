//! Calls to the session service that are repeated until they are answered.

use std::time::Duration;

use longhand_protocol::client::{Backoff, Error, HarnessClient};
use longhand_protocol::harness::Conflict;
use tokio::time::Instant;

use crate::core::Moved;

/// How long the session service may be away. What was claimed stays claimed unless another brain claims it, so there
/// is no need to hurry: the fence holds whenever the service comes back.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// Why a claim is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// A later epoch has claimed the session.
    Fenced {
        /// That epoch.
        epoch: u64,
    },
    /// The claim is not known any more; it may be made anew.
    Lost(String),
    /// There is no such session.
    Gone,
}

/// Why a change of the log was not made.
#[derive(Debug)]
pub(super) enum CallError {
    /// Something moved; decide again.
    Moved(Moved),
    /// It never will be.
    Refused(String),
    /// The claim is over.
    End(End),
}

/// The session service, as the brain of one epoch uses it.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) client: HarnessClient,
    pub(super) epoch: u64,
}

impl Service {
    pub(super) const fn new(client: HarnessClient, epoch: u64) -> Self {
        Self { client, epoch }
    }

    /// Repeats a call that may be repeated until it is answered.
    pub(super) async fn settle<T, F>(&self, call: impl Fn() -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let patience = Instant::now() + PATIENCE;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
        loop {
            let error = match call().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if !error.is_retryable() {
                return Err(classify(self.epoch, &error));
            }
            if Instant::now() >= patience {
                return Err(CallError::End(End::Lost(error.to_string())));
            }
            let wait = error.retry_after().unwrap_or_else(|| backoff.step());
            tracing::warn!(%error, ?wait, "the session service did not answer; trying again");
            tokio::time::sleep(wait).await;
        }
    }
}

/// What people are told of a refusal.
fn reason(error: &Error) -> String {
    match error {
        Error::Api(answer) => answer.body.message.clone(),
        other => other.to_string(),
    }
}

/// What an error that is not worth repeating means for the brain of `epoch`.
pub(super) fn classify(epoch: u64, error: &Error) -> CallError {
    match error {
        Error::Conflict(Conflict::Fenced { epoch: current }) if *current > epoch => {
            CallError::End(End::Fenced { epoch: *current })
        }
        Error::Conflict(Conflict::Fenced { .. }) => CallError::End(End::Lost(error.to_string())),
        Error::Conflict(Conflict::HeadMoved { .. }) => CallError::Moved(Moved::Head),
        Error::Conflict(Conflict::WakeMoved) => CallError::Moved(Moved::Wake),
        Error::Conflict(Conflict::NotQueued) => CallError::Moved(Moved::Queue),
        _ => match error.status().map(|status| status.as_u16()) {
            Some(401 | 403) => CallError::End(End::Lost(error.to_string())),
            Some(404) => CallError::End(End::Gone),
            _ => CallError::Refused(reason(error)),
        },
    }
}
