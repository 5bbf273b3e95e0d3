//! Wake keys: which sessions have open work.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use longhand_crds::AgentSession;
use longhand_protocol::SessionId;
use longhand_protocol::internal::Wake;
use longhand_protocol::trace::TraceParent;
use longhand_session_log::wake::WakeEvent;

use crate::context::Guarded;

/// The wake keys that there are, and since when this replica has seen each.
#[derive(Debug, Default)]
pub struct Wakes(RwLock<Keys>);

/// So many sessions are known to have worked before their status says so.
const WORKED: usize = 65_536;

#[derive(Debug, Default)]
struct Keys {
    open: BTreeMap<SessionId, Seen>,
    /// Sessions whose key was removed, and by the how manyth change.
    worked: BTreeMap<SessionId, u64>,
    changes: u64,
}

impl Keys {
    /// Work that ended may have been over before anybody looked.
    fn ended(&mut self, id: SessionId) {
        self.changes = self.changes.saturating_add(1);
        if self.worked.len() >= WORKED {
            self.worked.pop_first();
        }
        self.worked.insert(id, self.changes);
    }
}

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
                let mut before = std::mem::take(&mut keys.open);
                for (id, wake) in all {
                    let since = before.remove(&id).map_or(now, |seen| seen.since);
                    keys.open.insert(id, Seen { wake, since });
                }
                let gone = before.values().map(|seen| reference(&seen.wake)).collect::<Vec<_>>();
                before.into_keys().for_each(|id| keys.ended(id));
                gone.into_iter().chain(keys.open.values().map(|seen| reference(&seen.wake))).collect()
            }
            WakeEvent::Set(id, wake) => {
                let resource = reference(&wake);
                let since = keys.open.get(&id).map_or(now, |seen| seen.since);
                keys.open.insert(id, Seen { wake, since });
                vec![resource]
            }
            WakeEvent::Cleared(id) => {
                let seen = keys.open.remove(&id);
                if seen.is_some() {
                    keys.ended(id);
                }
                seen.map(|seen| reference(&seen.wake)).into_iter().collect()
            }
        }
    }

    /// Since when work has been open in this session, if it is.
    #[must_use]
    pub fn open_since(&self, session: &SessionId) -> Option<Timestamp> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).open.get(session).map(|seen| seen.since)
    }

    /// What the open work of this session belongs to, if it is traced.
    #[must_use]
    pub fn traceparent(&self, session: &SessionId) -> Option<TraceParent> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).open.get(session)?.wake.traceparent
    }

    /// That work ended in this session, and was not settled: by which change.
    #[must_use]
    pub fn worked(&self, session: &SessionId) -> Option<u64> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).worked.get(session).copied()
    }

    /// The session's status speaks of all work up to this change.
    pub fn settle(&self, session: &SessionId, change: u64) {
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if keys.worked.get(session) == Some(&change) {
            keys.worked.remove(session);
        }
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
        Wake { namespace: "ns".into(), name: name.into(), uid: name.into(), ..Wake::default() }
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
        let worked = wakes.worked(&derived_session_id("a")).unwrap();
        assert_eq!(apply(&wakes, WakeEvent::Cleared(derived_session_id("a")), 4), Vec::<String>::new());
        apply(&wakes, WakeEvent::Set(derived_session_id("a"), wake("a")), 5);
        apply(&wakes, WakeEvent::Cleared(derived_session_id("a")), 6);
        wakes.settle(&derived_session_id("a"), worked);
        let again = wakes.worked(&derived_session_id("a")).unwrap();
        assert!(again > worked, "work that came since is not settled by what was known before");
        wakes.settle(&derived_session_id("a"), again);
        assert_eq!(wakes.worked(&derived_session_id("a")), None);
    }
}
