//! Wake keys: which sessions have open work.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use longhand_crds::AgentSession;
use longhand_protocol::SessionId;
use longhand_protocol::internal::Wake;
use longhand_session_log::wake::WakeEvent;

use crate::context::Guarded;

/// The wake keys that there are, and since when this replica has seen each.
#[derive(Debug, Default)]
pub struct Wakes(RwLock<BTreeMap<SessionId, Seen>>);

#[derive(Clone, Debug)]
struct Seen {
    wake: Wake,
    since: Timestamp,
}

impl Wakes {
    /// Takes a change in; returns the resources that it concerns.
    pub fn apply(&self, change: WakeEvent, now: Timestamp) -> Vec<ObjectRef<Guarded<AgentSession>>> {
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match change {
            WakeEvent::Snapshot(all) => {
                let mut before = std::mem::take(&mut *keys);
                for (id, wake) in all {
                    let since = before.remove(&id).map_or(now, |seen| seen.since);
                    keys.insert(id, Seen { wake, since });
                }
                before.values().chain(keys.values()).map(|seen| reference(&seen.wake)).collect()
            }
            WakeEvent::Set(id, wake) => {
                let resource = reference(&wake);
                let since = keys.get(&id).map_or(now, |seen| seen.since);
                keys.insert(id, Seen { wake, since });
                vec![resource]
            }
            WakeEvent::Cleared(id) => keys.remove(&id).map(|seen| reference(&seen.wake)).into_iter().collect(),
        }
    }

    /// Since when work has been open in this session, if it is.
    #[must_use]
    pub fn open_since(&self, session: &SessionId) -> Option<Timestamp> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(session).map(|seen| seen.since)
    }
}

fn reference(wake: &Wake) -> ObjectRef<Guarded<AgentSession>> {
    ObjectRef::new(&wake.name).within(&wake.namespace)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use longhand_crds::derived_session_id;
    use longhand_protocol::internal::Wake;

    use longhand_session_log::wake::WakeEvent;

    use super::Wakes;

    fn wake(name: &str) -> Wake {
        Wake { namespace: "ns".into(), name: name.into(), uid: name.into() }
    }

    fn apply(wakes: &Wakes, change: WakeEvent, second: i64) -> Vec<String> {
        wakes.apply(change, Timestamp::from_second(second).unwrap()).into_iter().map(|resource| resource.name).collect()
    }

    #[test]
    fn a_snapshot_concerns_what_came_what_stayed_and_what_went() {
        let wakes = Wakes::default();
        assert_eq!(apply(&wakes, WakeEvent::Set(derived_session_id("a"), wake("a")), 1), ["a"]);
        assert_eq!(apply(&wakes, WakeEvent::Set(derived_session_id("b"), wake("b")), 2), ["b"]);
        let all = vec![(derived_session_id("b"), wake("b")), (derived_session_id("c"), wake("c"))];
        let mut concerned = apply(&wakes, WakeEvent::Snapshot(all), 3);
        concerned.sort();
        assert_eq!(concerned, ["a", "b", "c"]);
        assert_eq!(wakes.open_since(&derived_session_id("a")), None);
        assert_eq!(wakes.open_since(&derived_session_id("b")), Timestamp::from_second(2).ok());
        assert_eq!(wakes.open_since(&derived_session_id("c")), Timestamp::from_second(3).ok());
    }

    #[test]
    fn a_key_set_again_keeps_its_time_until_it_is_cleared() {
        let wakes = Wakes::default();
        for second in [1, 2] {
            apply(&wakes, WakeEvent::Set(derived_session_id("a"), wake("a")), second);
        }
        assert_eq!(wakes.open_since(&derived_session_id("a")), Timestamp::from_second(1).ok());
        assert_eq!(apply(&wakes, WakeEvent::Cleared(derived_session_id("a")), 3), ["a"]);
        assert_eq!(wakes.open_since(&derived_session_id("a")), None);
        assert_eq!(apply(&wakes, WakeEvent::Cleared(derived_session_id("a")), 4), Vec::<String>::new());
    }
}
