//! Uses and refusals on their way to the session's log: the first use of a credential at a host is on record before the
//! request goes out, what follows is within a second. Both modes report here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use http::StatusCode;
use jiff::Timestamp;
use longhand_protocol::client::HarnessClient;
use longhand_protocol::egress::{CredentialEvents, HASH, MAX_HOST, MAX_METHOD, Text, path_sha256};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use self::ledger::{Batch, Ledger};

mod ledger;
mod lost;

/// What is not urgent is collected for so long.
const INTERVAL: Duration = Duration::from_millis(800);
/// How long a report may take.
const REPORT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a first use waits to be on record: for the report before it and its own.
const DURABLE_DEADLINE: Duration = Duration::from_secs(10);
/// Reports that fail for longer than this make every use wait to be on record, so that none goes unseen.
const TOLERATED_OUTAGE: Duration = Duration::from_secs(30);
/// Between two tries.
const RETRY: Duration = Duration::from_secs(1);
/// Events that are refused one after another, each alone, before the rest is not tried at this time: it is not they that the
/// service minds.
const REFUSED_IN_A_ROW: usize = 8;

/// A request, as far as it is put on record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The sandbox's name in the session; empty for the harness.
    pub sandbox: Arc<str>,
    /// The host that was asked for.
    pub host: Text<MAX_HOST>,
    /// The port that was asked for.
    pub port: u16,
    /// The method; `CONNECT` for a tunnel.
    pub method: Text<MAX_METHOD>,
    /// The hash of its path, if it is known.
    pub path_sha256: Option<Text<HASH>>,
}

impl Subject {
    /// A request for a path without its query.
    #[must_use]
    pub fn request(sandbox: Arc<str>, host: &str, port: u16, method: &str, path: &str) -> Self {
        let path_sha256 = Some(path_sha256(path));
        Self { sandbox, host: host.into(), port, method: method.into(), path_sha256 }
    }

    /// A tunnel.
    #[must_use]
    pub fn tunnel(sandbox: Arc<str>, host: &str, port: u16) -> Self {
        Self { sandbox, host: host.into(), port, method: "CONNECT".into(), path_sha256: None }
    }
}

/// A use that is not on record, so that the request must not go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the use of the credential cannot be put on record: the session service did not take it; try again")]
pub struct Unrecorded;

/// Where reports go.
pub trait Report: Send + Sync {
    /// Sends a report. It is durable once this returns `Ok`.
    fn report<'a>(&'a self, events: &'a CredentialEvents) -> BoxFuture<'a, Result<(), ReportError>>;
}

/// Why a report was not taken.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ReportError {
    /// Why.
    pub message: String,
    /// Whether the same report may be taken later.
    pub retryable: bool,
}

impl Report for HarnessClient {
    fn report<'a>(&'a self, events: &'a CredentialEvents) -> BoxFuture<'a, Result<(), ReportError>> {
        Box::pin(async move {
            let failed = |error: longhand_protocol::client::Error| ReportError {
                // The kubelet renews the token; and a pod that is deleted already ends soon, with nothing more to say.
                retryable: error.is_retryable() || error.status() == Some(StatusCode::UNAUTHORIZED),
                message: error.to_string(),
            };
            self.credential_events(events, REPORT_DEADLINE).await.map_err(failed)
        })
    }
}

/// Takes uses and refusals, from any task.
#[derive(Debug, Clone, Default)]
pub struct Audit(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    ledger: Mutex<Ledger>,
    /// Something must be sent at once.
    urgent: Notify,
}

impl Audit {
    /// Puts the use of `<vault>/<credential>` on record. Returns once it is durable if it is the first at this host, or if
    /// reports have failed for a while, and at once otherwise.
    ///
    /// # Errors
    /// [`Unrecorded`]: the request must not go out.
    pub async fn used(&self, credential: &str, subject: &Subject) -> Result<(), Unrecorded> {
        let durable = {
            let mut ledger = self.ledger();
            let outage = ledger.outage(Instant::now()) > TOLERATED_OUTAGE;
            ledger.used(credential, subject, Timestamp::now(), outage)?
        };
        let Some(durable) = durable else { return Ok(()) };
        self.0.urgent.notify_one();
        match timeout(DURABLE_DEADLINE, durable).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Unrecorded),
        }
    }

    /// Puts a refusal on record, within a second. `credential` is `<vault>/<credential>`, if it was for one.
    pub fn denied(&self, credential: Option<&str>, subject: &Subject, reason: &str) {
        self.ledger().denied(credential, subject, reason, Timestamp::now(), Instant::now());
    }

    /// Sends reports until `shutdown`, and then what is left.
    pub async fn run(&self, to: &dyn Report, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(self.next()).await.is_some() {
            if self.flush(to).await != Flushed::All {
                shutdown.run_until_cancelled(tokio::time::sleep(RETRY)).await;
            }
        }
        while self.pending() && self.flush(to).await != Flushed::Nothing {}
    }

    /// Returns when there is something to send: at once if it is urgent.
    async fn next(&self) {
        loop {
            // A timer and not a wake for each refusal: what happens in the meantime goes along.
            let urgent = timeout(INTERVAL, self.0.urgent.notified()).await.is_ok();
            if urgent || self.pending() {
                return;
            }
        }
    }

    fn pending(&self) -> bool {
        !self.ledger().is_empty(Instant::now())
    }

    /// Sends what there is, as far as it fits into one report.
    async fn flush(&self, to: &dyn Report) -> Flushed {
        let batch = self.ledger().take(Instant::now());
        match batch.len() {
            0 => Flushed::All,
            1 => match self.send(batch, to).await {
                Sent::Taken => Flushed::All,
                Sent::Failed => Flushed::Nothing,
                Sent::Refused(alone) => {
                    self.refused(alone);
                    Flushed::Some
                }
            },
            _ => match self.send(batch, to).await {
                Sent::Taken => Flushed::All,
                Sent::Failed => Flushed::Nothing,
                Sent::Refused(batch) => self.one_by_one(batch, to).await,
            },
        }
    }

    /// Sends each event of a report that was refused as one of its own: one that cannot be taken is no reason to lose the others.
    async fn one_by_one(&self, mut batch: Batch, to: &dyn Report) -> Flushed {
        let (mut refused, mut flushed) = (0, Flushed::All);
        while let Some(alone) = batch.first() {
            match self.send(alone, to).await {
                Sent::Taken => refused = 0,
                Sent::Refused(alone) => {
                    self.refused(alone);
                    (refused, flushed) = (refused + 1, Flushed::Some);
                }
                Sent::Failed => {
                    self.ledger().failed(batch, Instant::now());
                    return Flushed::Nothing;
                }
            }
            if refused == REFUSED_IN_A_ROW {
                self.ledger().failed(batch, Instant::now());
                return Flushed::Some;
            }
        }
        flushed
    }

    fn refused(&self, alone: Batch) {
        let lost = self.ledger().refused(alone, Instant::now());
        metrics::counter!("longhand_proxy_audit_unrecorded_total").increment(lost);
    }

    async fn send(&self, batch: Batch, to: &dyn Report) -> Sent {
        let events = CredentialEvents { events: batch.events() };
        let sent = timeout(REPORT_DEADLINE, to.report(&events)).await.unwrap_or_else(|_| {
            Err(ReportError { message: "the session service did not answer in time".to_owned(), retryable: true })
        });
        let (outcome, sent) = match sent {
            Ok(()) => {
                self.ledger().succeeded(batch);
                ("taken", Sent::Taken)
            }
            Err(error) => {
                tracing::warn!(%error, events = batch.len(), "uses and refusals of credentials are not on record");
                if error.retryable {
                    self.ledger().failed(batch, Instant::now());
                    ("failed", Sent::Failed)
                } else {
                    ("refused", Sent::Refused(batch))
                }
            }
        };
        metrics::counter!("longhand_proxy_audit_reports_total", "outcome" => outcome).increment(1);
        sent
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a report.
enum Sent {
    Taken,
    /// It is tried again.
    Failed,
    /// It never will be taken.
    Refused(Batch),
}

/// How much less there is to be sent.
#[derive(Debug, PartialEq, Eq)]
enum Flushed {
    /// What was to be sent.
    All,
    /// Something, and the service has refused the rest.
    Some,
    /// Nothing: the service is to be asked later.
    Nothing,
}

#[cfg(test)]
mod tests;
