//! The session service, as far as refreshes are concerned.

use std::time::Duration;

use futures::future::BoxFuture;
use longhand_protocol::{
    client::{self, HarnessClient},
    refresh::{RefreshAnswer, SentRefresh},
};

/// How long one call may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Who lets a proxy go ahead, and keeps what it was given.
pub trait Service: Send + Sync {
    /// Asks or tells; may be repeated.
    fn refresh<'a>(&'a self, request: &'a SentRefresh<'a>) -> BoxFuture<'a, Result<RefreshAnswer, client::Error>>;
}

impl Service for HarnessClient {
    fn refresh<'a>(&'a self, request: &'a SentRefresh<'a>) -> BoxFuture<'a, Result<RefreshAnswer, client::Error>> {
        Box::pin(self.credential_refresh(request, DEADLINE))
    }
}
