//! Uses and refusals on their way to the session's log: the first use of a credential at a host is on record before the
//! request goes out, what follows is within a second.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use longhand_protocol::client::HarnessClient;
use longhand_protocol::egress::{CredentialEvents, path_sha256};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use self::ledger::{Entry, Ledger};

mod ledger;

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

/// A request, as far as it is put on record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The sandbox's name in the session.
    pub sandbox: Arc<str>,
    /// The host that was asked for.
    pub host: String,
    /// The port that was asked for.
    pub port: u16,
    /// The method; `CONNECT` for a tunnel.
    pub method: String,
    /// The hash of its path, if it is known.
    pub path_sha256: Option<String>,
}

impl Subject {
    /// A request for a path without its query.
    #[must_use]
    pub fn request(sandbox: Arc<str>, host: &str, port: u16, method: &str, path: &str) -> Self {
        Self { sandbox, host: host.to_owned(), port, method: method.to_owned(), path_sha256: Some(path_sha256(path)) }
    }

    /// A tunnel.
    #[must_use]
    pub fn tunnel(sandbox: Arc<str>, host: &str, port: u16) -> Self {
        Self { sandbox, host: host.to_owned(), port, method: "CONNECT".to_owned(), path_sha256: None }
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
                retryable: error.is_retryable(),
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
            if !self.flush(to).await {
                shutdown.run_until_cancelled(tokio::time::sleep(RETRY)).await;
            }
        }
        while self.pending() && self.flush(to).await {}
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
        !self.ledger().is_empty()
    }

    /// Sends one report. Whether it was taken, or will never be.
    async fn flush(&self, to: &dyn Report) -> bool {
        let entries = self.ledger().take();
        if entries.is_empty() {
            return true;
        }
        let events = CredentialEvents { events: entries.iter().map(Entry::event).collect() };
        let sent = timeout(REPORT_DEADLINE, to.report(&events)).await.unwrap_or_else(|_| {
            Err(ReportError { message: "the session service did not answer in time".to_owned(), retryable: true })
        });
        let outcome = match sent {
            Ok(()) => {
                self.ledger().succeeded(entries);
                "taken"
            }
            Err(error) => {
                tracing::warn!(%error, events = entries.len(), "uses and refusals of credentials are not on record");
                self.ledger().failed(entries, error.retryable, Instant::now());
                if error.retryable { "failed" } else { "refused" }
            }
        };
        metrics::counter!("longhand_proxy_audit_reports_total", "outcome" => outcome).increment(1);
        outcome != "failed"
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
