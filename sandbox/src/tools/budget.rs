//! When blocking work has to stop.

use std::io::{self, Read};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

/// Why work has to stop before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stopped {
    /// Somebody cancelled the call.
    #[error("interrupted")]
    Interrupted,
    /// Its time is over.
    #[error("timed out")]
    TimedOut,
}

/// The time that a piece of blocking work has; it asks now and then.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    until: Instant,
    cancel: CancellationToken,
}

impl Budget {
    pub(super) fn new(until: Instant, cancel: CancellationToken) -> Self {
        Self { until, cancel }
    }

    pub(super) fn check(&self) -> Result<(), Stopped> {
        if self.cancel.is_cancelled() {
            Err(Stopped::Interrupted)
        } else if Instant::now() >= self.until {
            Err(Stopped::TimedOut)
        } else {
            Ok(())
        }
    }
}

/// A reader that fails when the budget is spent.
pub(super) struct Within<'a, R> {
    pub(super) budget: &'a Budget,
    pub(super) inner: R,
}

impl<R: Read> Read for Within<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.budget.check().map_err(io::Error::other)?;
        self.inner.read(buffer)
    }
}

#[cfg(test)]
pub(super) fn ample() -> Budget {
    Budget::new(Instant::now() + std::time::Duration::from_secs(60), CancellationToken::new())
}

#[cfg(test)]
pub(super) fn spent() -> Budget {
    Budget::new(Instant::now(), CancellationToken::new())
}
