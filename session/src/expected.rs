//! Sessions that a harness is about to take again: it waits for their next message in its grace, and what the API server says of
//! them is asked for while that message is being queued.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use longhand_crds::AgentSession;
use longhand_protocol::SessionId;
use longhand_session_log::store::SessionState;

use crate::app::App;
use crate::cache::TtlCache;
use crate::sessions::resource_of;

/// Each is an object of the API server, for a moment.
const EXPECTED: usize = 1_024;
/// A harness that waits claims its session within this time.
const GOOD_FOR: Duration = Duration::from_millis(250);

type Lookup = Shared<BoxFuture<'static, Option<Arc<AgentSession>>>>;

/// The resources of sessions that are about to be claimed.
pub struct Expected(TtlCache<SessionId, Lookup>);

impl fmt::Debug for Expected {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Expected")
    }
}

impl Default for Expected {
    fn default() -> Self {
        Self(TtlCache::new(EXPECTED))
    }
}

impl Expected {
    /// A message has come to a session. If its last harness is known here and has given it up, it may be in its grace.
    pub(crate) fn begin(app: &App, state: &SessionState) {
        let id = &state.meta.id;
        if state.owner.is_some() || state.archived_at.is_some() || app.claims.get(id).is_none() {
            return;
        }
        let (asking, meta) = (app.clone(), state.meta.clone());
        let lookup = async move {
            let resource = resource_of(&asking, &meta).await;
            let failed = |error| tracing::debug!(session = %meta.id, ?error, "a session cannot be looked up yet");
            resource.map_err(failed).ok().flatten().map(Arc::new)
        };
        let lookup = lookup.boxed().shared();
        tokio::spawn(lookup.clone());
        app.expected.0.put(id.clone(), lookup, GOOD_FOR);
    }

    /// What was asked for, once; nothing if it was not, or if there was no answer.
    pub(crate) async fn take(&self, session: &SessionId) -> Option<Arc<AgentSession>> {
        self.0.remove(session)?.await
    }
}
