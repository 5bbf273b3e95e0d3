//! Requests that carry an `Idempotency-Key`: which were made, and how each was answered first.
//!
//! A request is taken up before it is carried out, under a name that its caller and key give, with a seed that is drawn
//! then. What it makes is named by the seed. So whoever carries it out once more, since the one before died or the answer
//! was lost, finds what was made, on whichever replica; and the first answer that is kept is the answer from then on.
//! [`KEPT`] after it was taken up a request is forgotten, and its key is as good as new.

mod etcd;
mod memory;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

pub use self::etcd::EtcdRequests;
pub use self::memory::MemoryRequests;
use crate::store::Result;

/// For how long a request is remembered.
pub const KEPT: SignedDuration = SignedDuration::from_hours(24);

/// What a request was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, which is JSON.
    pub body: String,
}

/// What is to be done about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It is to be carried out.
    Go {
        /// What it makes is named by this.
        seed: String,
        /// Nobody has begun to carry it out before.
        first: bool,
    },
    /// It was carried out, and this was the answer.
    Answered(Answer),
    /// Another request has the same name.
    Other,
}

/// A request that was taken up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Taken {
    /// Of all that the request says.
    digest: String,
    seed: String,
    since: Timestamp,
}

impl Taken {
    fn new(digest: &str, since: Timestamp) -> Self {
        Self { digest: digest.to_owned(), seed: format!("{:032x}", rand::random::<u128>()), since }
    }

    fn is_over(&self, now: Timestamp) -> bool {
        now.duration_since(self.since) >= KEPT
    }

    /// What is to be done about a request that says this, when this one was taken up before it and answered so.
    fn meet(&self, digest: &str, answer: Option<Answer>) -> Begun {
        if self.digest != digest {
            return Begun::Other;
        }
        answer.map_or_else(|| Begun::Go { seed: self.seed.clone(), first: false }, Begun::Answered)
    }
}

/// Where requests are remembered. Names and digests are hex.
#[async_trait]
pub trait Requests: Send + Sync + 'static {
    /// Takes a request up, unless it was within [`KEPT`] before `now`.
    ///
    /// # Errors
    /// [`crate::StoreError::Unavailable`] if the store is away.
    async fn begin(&self, name: &str, digest: &str, now: Timestamp) -> Result<Begun>;

    /// Keeps the answer to a request that was taken up with this seed; returns the one that is kept.
    ///
    /// # Errors
    /// [`crate::StoreError::Unavailable`] if the store is away.
    async fn answer(&self, name: &str, seed: &str, answer: Answer) -> Result<Answer>;

    /// Forgets a request that was taken up with this seed and has made nothing.
    ///
    /// # Errors
    /// [`crate::StoreError::Unavailable`] if the store is away.
    async fn forget(&self, name: &str, seed: &str) -> Result<()>;

    /// Removes what was taken up more than [`KEPT`] before `now`; returns how many requests.
    ///
    /// # Errors
    /// [`crate::StoreError::Unavailable`] if the store is away; what was removed until then is gone.
    async fn sweep(&self, now: Timestamp) -> Result<u64>;
}
