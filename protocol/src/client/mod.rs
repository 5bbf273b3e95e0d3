//! Clients of the public API, of the harness API and of the operator's API.
//!
//! Every call has a deadline, and every failure says whether it may be repeated ([`Error::is_retryable`]).

mod files;
pub mod harness;
pub mod internal;
pub mod sandboxes;
mod server;
pub mod sse;
pub mod token;
mod transfer;
mod transport;
pub mod wire;

use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;
pub use reqwest::Url;

pub use self::harness::{HarnessClient, ParkedClient};
pub use self::internal::{InternalClient, PeerClient};
pub use self::server::Server;
pub use self::token::TokenSource;
pub use self::transport::retry_after;
pub use self::wire::WireClient;
use crate::error::ErrorBody;
use crate::harness::Conflict;

/// What a client returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered that it will not, or cannot.
    #[error(transparent)]
    Api(Box<ApiError>),
    /// The log has moved on.
    #[error("the log refused the change: {0:?}")]
    Conflict(Conflict),
    /// No connection: nothing was sent.
    #[error("cannot connect for {call}: {source}")]
    Connect {
        /// Method and path.
        call: String,
        /// What the transport says.
        source: reqwest::Error,
    },
    /// The connection broke after the request was sent, or in the middle of it: whether it took effect is not known.
    #[error("the connection broke during {call}: {source}")]
    Broken {
        /// Method and path.
        call: String,
        /// What the transport says.
        source: reqwest::Error,
    },
    /// The deadline passed: whether the request took effect is not known.
    #[error("{call} was not answered within {after:?}")]
    Timeout {
        /// Method and path.
        call: String,
        /// The deadline.
        after: Duration,
    },
    /// The answer is not what this build understands.
    #[error("the answer to {call} cannot be read: {reason}")]
    Decode {
        /// Method and path.
        call: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What shall be sent is not what JSON can say.
    #[error("the body of {call} cannot be written: {reason}")]
    Encode {
        /// Method and path.
        call: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The token file cannot be read.
    #[error("cannot read the token {}: {source}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The token has characters that no header may have.
    #[error("the token has characters that an HTTP header may not have")]
    MalformedToken,
    /// The base URL cannot be used.
    #[error("`{url}` is not a base URL: use http://host:port or https://host:port")]
    BaseUrl {
        /// What was given.
        url: String,
    },
    /// The file of trusted authorities is empty.
    #[error("there is no certificate in PEM among the authorities to trust")]
    NoAuthority,
    /// The HTTP client cannot be made.
    #[error("cannot set up the HTTP client: {0}")]
    Setup(#[source] reqwest::Error),
}

/// An answer that is not a success.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{call}: {status}: {}", body.message)]
pub struct ApiError {
    /// Method and path.
    pub call: String,
    /// The HTTP status.
    pub status: StatusCode,
    /// What the server said.
    pub body: ErrorBody,
    /// By which the server's logs know the request.
    pub request_id: Option<String>,
    /// How long to wait before another try, if the server said so.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// Whether the same call may succeed later. A call that changes something must be idempotent to be repeated.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Api(error) => is_retryable_status(error.status),
            Self::Connect { .. } | Self::Broken { .. } | Self::Timeout { .. } => true,
            // The kubelet swaps the file of a projected token; a reader may come in between.
            Self::Token { .. } => true,
            Self::Conflict(_)
            | Self::Decode { .. }
            | Self::Encode { .. }
            | Self::MalformedToken
            | Self::BaseUrl { .. }
            | Self::NoAuthority
            | Self::Setup(_) => false,
        }
    }

    /// The HTTP status, if the server answered with an error.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Api(error) => Some(error.status),
            _ => None,
        }
    }

    /// How long the server asks to wait before another try.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Api(error) => error.retry_after,
            _ => None,
        }
    }
}

fn is_retryable_status(status: StatusCode) -> bool {
    status == StatusCode::REQUEST_TIMEOUT || status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

/// Waits that grow from try to try up to a bound, spread so that many clients do not come back at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    /// Starts with `first`, doubles up to `max`.
    #[must_use]
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { next: first, max }
    }

    /// The next wait: between half of it and all of it.
    pub fn step(&mut self) -> Duration {
        let wait = self.next.min(self.max);
        self.next = wait.saturating_mul(2).min(self.max);
        wait.mul_f64(rand::Rng::random_range(&mut rand::rng(), 0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Backoff;

    #[test]
    fn waits_grow_up_to_the_bound() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        for (low, high) in [(50, 100), (100, 200), (175, 350), (175, 350)] {
            let wait = backoff.step();
            assert!(wait >= Duration::from_millis(low) && wait <= Duration::from_millis(high), "{wait:?}");
        }
    }
}
