//! Watches for what clients send.

use std::time::Duration;

use longhand_protocol::client::{Backoff, HarnessClient, Result};
use longhand_protocol::harness::Inbox;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::core::has_interrupt;

/// One long poll.
const POLL: Duration = Duration::from_secs(25);
/// A poll that brings something leaves its connection to the claim that follows: others may have been idle for too long.
const AFTER_NEWS: Duration = Duration::from_millis(5);
/// A server that answers long polls at once is not asked faster than this.
const MIN_PERIOD: Duration = Duration::from_secs(1);

/// What clients send, seen by one long poll after another for as long as the session is served.
///
/// A poll that is given up takes its connection with it. So there is one for all waits, and it has a connection that the
/// calls of the way from a message to its answer need not open.
pub(super) struct Watch {
    seen: watch::Receiver<Seen>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    /// What the last poll gave.
    inbox: Option<Inbox>,
    /// The last poll was refused for good.
    closed: bool,
}

impl Seen {
    fn is_newer(&self, after: i64) -> bool {
        self.inbox.as_ref().is_some_and(|inbox| inbox.wake_revision > Some(after))
    }
}

impl Watch {
    /// Watches from the revision `after` of the wake key on.
    pub(super) fn begin(client: HarnessClient, after: i64) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        Self { seen, _task: AbortOnDropHandle::new(tokio::spawn(poll_on(client, after, sender))) }
    }

    /// Returns when an interrupt is queued that the look at revision `after` of the wake key did not show.
    pub(super) async fn interrupt(&self, after: i64) -> Inbox {
        let interrupts = |seen: &Seen| seen.is_newer(after) && seen.inbox.as_ref().is_some_and(has_interrupt);
        let mut watched = self.seen.clone();
        let found = watched.wait_for(interrupts).await.ok().and_then(|seen| seen.inbox.clone());
        match found {
            Some(inbox) => inbox,
            // The task has ended, which it does with this alone: then there is nobody to interrupt.
            None => std::future::pending().await,
        }
    }

    /// Whether work came within `grace` that the look at revision `after` of the wake key did not show.
    pub(super) async fn work(&self, after: i64, grace: Duration) -> bool {
        let mut watched = self.seen.clone();
        let found = watched.wait_for(|seen| seen.is_newer(after) || seen.closed);
        match tokio::time::timeout(grace, found).await {
            Ok(Ok(seen)) => seen.is_newer(after),
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

async fn poll_on(client: HarnessClient, mut after: i64, sender: watch::Sender<Seen>) {
    let mut backoff = backoff();
    loop {
        match poll(&client, after).await {
            Ok(inbox) => {
                after = inbox.wake_revision.unwrap_or(after).max(after);
                backoff = self::backoff();
                sender.send_replace(Seen { inbox: Some(inbox), closed: false });
                tokio::time::sleep(AFTER_NEWS).await;
            }
            // Whether the claim is over is found out by the lease.
            Err(error) => {
                tracing::debug!(%error, "the inbox cannot be watched");
                if !error.is_retryable() {
                    sender.send_modify(|seen| seen.closed = true);
                }
                tokio::time::sleep(backoff.step()).await;
            }
        }
    }
}

fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(5))
}

/// One look at the inbox that takes until there is something new, but not for ever.
async fn poll(client: &HarnessClient, after: i64) -> Result<Inbox> {
    let begun = Instant::now();
    let inbox = client.wait_inbox(after, POLL).await?;
    if inbox.wake_revision.is_none_or(|revision| revision <= after) {
        tokio::time::sleep_until(begun + MIN_PERIOD).await;
    }
    Ok(inbox)
}
