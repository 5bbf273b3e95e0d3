//! What is known of an access token besides its files. Pure: the clock is the caller's.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use longhand_protocol::refresh::RefreshFailure;

use super::{problem::Problem, refresher::Timing};
use crate::secret::Secret;

/// What is known besides the files.
pub(super) struct State {
    /// What the files held when the rest was learnt: another content makes it void.
    pub(super) seen: Option<(Arc<Secret>, Option<Arc<Secret>>)>,
    /// What the provider gave.
    pub(super) held: Option<Held>,
    /// When the access token expires, if that is known.
    pub(super) expires_at: Option<Timestamp>,
    /// From when on it is renewed.
    pub(super) due_at: Option<Timestamp>,
    /// The Secret with the refresh token.
    pub(super) secret: String,
    pub(super) standing: Standing,
    /// Whether what the provider gave is not in the vault yet.
    pub(super) handing_over: bool,
}

pub(super) struct Held {
    pub(super) access: Arc<Secret>,
    pub(super) refresh: Option<Arc<Secret>>,
    pub(super) since: Instant,
}

/// Whether a renewal may be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    Open,
    /// The last one failed.
    Waiting {
        until: Instant,
        delay: Duration,
        cause: Problem,
    },
    Refused {
        failure: RefreshFailure,
        until: Instant,
    },
    Superseded,
}

/// A token as it is now.
pub(super) struct View {
    pub(super) access: Arc<Secret>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) due_at: Option<Timestamp>,
}

impl View {
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        self.due_at.is_some_and(|due| due <= now)
    }

    pub(super) fn is_good(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }
}

impl State {
    pub(super) fn view(&self, access: Arc<Secret>) -> View {
        View { access, expires_at: self.expires_at, due_at: self.due_at }
    }

    /// The name of the Secret with the refresh token, if the provider may be asked now.
    pub(super) fn may_ask(&self, now: Instant) -> Result<String, Problem> {
        match &self.standing {
            Standing::Superseded => Err(Problem::Superseded),
            Standing::Refused { failure, until } if now < *until => Err(Problem::Refused(*failure)),
            Standing::Waiting { until, .. } if now < *until => {
                Err(Problem::Waiting(until.duration_since(now).as_secs().max(1)))
            }
            _ if self.handing_over => Err(Problem::NotHandedOver),
            _ => Ok(self.secret.clone()),
        }
    }

    /// Why a token that has expired is not renewed, if that is known.
    pub(super) fn problem(&self) -> Option<Problem> {
        match &self.standing {
            Standing::Superseded => Some(Problem::Superseded),
            Standing::Refused { failure, .. } => Some(Problem::Refused(*failure)),
            Standing::Waiting { cause, .. } => Some(cause.clone()),
            Standing::Open => self.handing_over.then_some(Problem::NotHandedOver),
        }
    }

    /// Somebody wrote other tokens, of which nothing is known.
    pub(super) fn reset(&mut self, secret: &str) {
        (self.held, self.expires_at, self.due_at) = (None, None, None);
        secret.clone_into(&mut self.secret);
        self.standing = Standing::Open;
    }

    /// What follows from a failure.
    pub(super) fn note(&mut self, problem: &Problem, timing: Timing, now: Instant) {
        let delay = match &self.standing {
            Standing::Waiting { delay, .. } => (*delay * 2).min(timing.longest_backoff),
            _ => timing.backoff,
        };
        self.standing = match problem {
            Problem::Superseded => Standing::Superseded,
            Problem::Refused(failure) => Standing::Refused { failure: *failure, until: now + timing.longest_backoff },
            cause => Standing::Waiting { until: now + delay, delay, cause: cause.clone() },
        };
    }
}
