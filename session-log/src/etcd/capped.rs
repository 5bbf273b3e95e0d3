//! Keeping a log within its limits: what a plan would write is checked before it is written.

use longhand_protocol::SessionId;
use longhand_protocol::event::NewEvent;

use super::EtcdStore;
use super::plan::{Extended, Place, Plan};
use super::view::{Look, View};
use crate::caps::Caps;
use crate::record::Head;
use crate::store::{Result, SessionStore as _, StoreError};

/// The plan of an append of these events, if the log has room for it.
pub(super) fn appended(
    caps: &Caps,
    id: &SessionId,
    events: &[NewEvent],
    plan: Plan<Extended>,
) -> Result<Plan<Extended>> {
    if let (false, Plan::Write(_, Extended { head: Some((after, _)), .. })) = (caps.are_none(), &plan) {
        caps.check_append(id, after, events)?;
    }
    Ok(plan)
}

/// What [`queued`] needs to know besides what its plan does.
pub(super) fn queue_looks(caps: &Caps, place: &Place<'_>) -> Vec<Look> {
    let wake = Look::Key(place.keys.wake(place.id));
    if caps.are_none() { Vec::new() } else { place.head_looks().into_iter().chain([wake]).collect() }
}

/// The plan that queues these events, if the log has room for them.
pub(super) fn queued<T>(
    caps: &Caps,
    place: &Place<'_>,
    view: &View,
    events: &[NewEvent],
    mut plan: Plan<T>,
) -> Result<Plan<T>> {
    if let (false, Plan::Write(write, _)) = (caps.are_none(), &mut plan) {
        let Place { keys, id, .. } = *place;
        let awake = view.get(&keys.wake(id)).is_some();
        caps.check_queue(id, &place.head(view)?, view.count(&keys.inboxes(id)), awake, events)?;
        if view.is_assumed() {
            place.guard_head(view, write)?;
        }
    }
    Ok(plan)
}

impl EtcdStore {
    /// Has the log say that it comes near to a limit, if this head is the first that does. If that fails, the next append
    /// finds it unsaid.
    pub(super) async fn warn(&self, id: &SessionId, head: &Head) {
        let caps = &self.inner.options.caps;
        if caps.are_none() {
            return;
        }
        let Some(warning) = caps.warning(id, head) else { return };
        match self.append_unfenced(id, vec![warning]).await {
            // Another replica was faster.
            Ok(_) | Err(StoreError::Duplicate(_)) => {}
            Err(error) => tracing::debug!(session = %id, %error, "the log does not say yet that it is nearly full"),
        }
    }
}
