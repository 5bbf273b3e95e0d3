//! Waits for what clients send.

use std::time::Duration;

use longhand_protocol::client::{Backoff, HarnessClient, Result};
use longhand_protocol::harness::Inbox;
use tokio::time::Instant;

use crate::core::has_interrupt;

/// One long poll.
const POLL: Duration = Duration::from_secs(25);
/// A server that answers long polls at once is not asked faster than this.
const MIN_PERIOD: Duration = Duration::from_secs(1);

/// Returns when an interrupt is queued.
pub(super) async fn interrupt(client: &HarnessClient, mut after: i64) -> Inbox {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        match poll(client, after, POLL).await {
            Ok(inbox) if has_interrupt(&inbox) => return inbox,
            Ok(inbox) => {
                after = inbox.wake_revision.unwrap_or(after).max(after);
                backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
            }
            // Whether the claim is over is found out by the lease.
            Err(error) => {
                tracing::debug!(%error, "the inbox cannot be watched");
                tokio::time::sleep(backoff.step()).await;
            }
        }
    }
}

/// Whether work came within `grace`.
pub(super) async fn work(client: &HarnessClient, grace: Duration) -> bool {
    let deadline = Instant::now() + grace;
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        match tokio::time::timeout(left, poll(client, 0, POLL)).await {
            Ok(Ok(inbox)) if inbox.wake_revision.is_some() => return true,
            Ok(Err(error)) if error.is_retryable() => {
                tracing::debug!(%error, "the inbox cannot be watched");
                tokio::time::sleep(backoff.step().min(left)).await;
            }
            Ok(Err(error)) => {
                tracing::info!(%error, "the inbox is closed to this pod");
                return false;
            }
            Ok(Ok(_)) | Err(_) => {}
        }
    }
}

/// One look at the inbox that takes until there is something new, but not for ever.
async fn poll(client: &HarnessClient, after: i64, wait: Duration) -> Result<Inbox> {
    let begun = Instant::now();
    let inbox = client.wait_inbox(after, wait).await?;
    let news = inbox.wake_revision.is_some_and(|revision| revision > after) || has_interrupt(&inbox);
    if !news {
        tokio::time::sleep_until(begun + MIN_PERIOD).await;
    }
    Ok(inbox)
}
