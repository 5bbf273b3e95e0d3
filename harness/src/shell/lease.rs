//! Keeps the claim alive, and says when it is over.

use std::time::Duration;

use longhand_protocol::client::HarnessClient;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;

use super::service::{CallError, End, PATIENCE, classify};

/// Renews the claim of `epoch` three times within `ttl`; the task ends when the claim does.
pub(super) fn keep(client: HarnessClient, epoch: u64, ttl: Duration) -> AbortOnDropHandle<End> {
    AbortOnDropHandle::new(tokio::spawn(renew(client, epoch, ttl)))
}

async fn renew(client: HarnessClient, epoch: u64, ttl: Duration) -> End {
    let period = (ttl / 3).max(Duration::from_millis(50));
    let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewed = Instant::now();
    loop {
        ticks.tick().await;
        let error = match client.lease(epoch, period).await {
            Ok(()) => {
                renewed = Instant::now();
                continue;
            }
            Err(error) => error,
        };
        if error.is_retryable() {
            // Nobody else serves the session as long as nobody can claim it, and if somebody does, the fence holds.
            if renewed.elapsed() > PATIENCE {
                return End::Lost(error.to_string());
            }
            tracing::warn!(%error, "the claim was not renewed");
            continue;
        }
        return match classify(epoch, &error) {
            CallError::End(end) => end,
            CallError::Moved(_) | CallError::Refused(_) => End::Lost(error.to_string()),
        };
    }
}
