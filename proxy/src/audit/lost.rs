//! What stands for events that the session service takes in no report. Pure.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use longhand_protocol::egress::{CredentialEvent, CredentialOutcome, Text};
use tokio::time::Instant;

/// In place of a host and a method.
pub(super) const NOT_LISTED: &str = "*";
const REASON: &str =
    "decisions on credentials that could not be put on record: the session service refused their events";
/// When it is refused too: the first wait, and the longest.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// How many decisions are on record by their number alone.
#[derive(Debug)]
pub(super) struct Lost {
    /// Of the first of them.
    sandbox: Arc<str>,
    count: u64,
    at: Timestamp,
    due: Instant,
    delay: Duration,
}

impl Lost {
    pub(super) fn new(sandbox: Arc<str>, count: u64, at: Timestamp, now: Instant) -> Self {
        Self { sandbox, count, at, due: now, delay: RETRY }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due <= now
    }

    /// To be tried after a longer and longer time.
    pub(super) fn later(self, now: Instant) -> Self {
        Self { due: now + self.delay, delay: (self.delay * 2).min(LONGEST_RETRY), ..self }
    }

    /// Both in one, which is sent when the one that is later may be.
    pub(super) fn and(self, other: Self) -> Self {
        let (first, then) = if self.at <= other.at { (self, other) } else { (other, self) };
        Self {
            count: first.count.saturating_add(then.count),
            due: first.due.max(then.due),
            delay: first.delay.max(then.delay),
            ..first
        }
    }

    pub(super) fn event(&self) -> CredentialEvent {
        CredentialEvent {
            outcome: CredentialOutcome::Denied,
            credential: None,
            sandbox: Text::new(&*self.sandbox),
            host: NOT_LISTED.into(),
            port: 0,
            method: NOT_LISTED.into(),
            path_sha256: None,
            reason: Some(REASON.into()),
            count: self.count,
            at: self.at,
        }
    }
}
