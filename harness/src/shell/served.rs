//! Which sessions a process serves. One that is offered again meanwhile is looked at once more when it rests: two tasks would
//! fence each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longhand_protocol::SessionId;

/// The sessions, and whether each was offered again.
#[derive(Debug, Default)]
pub(super) struct Served(Mutex<HashMap<SessionId, bool>>);

/// A session that is served until this is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    served: Arc<Served>,
    session: SessionId,
    left: bool,
}

impl Served {
    /// Begins to serve a session; `None` if somebody does, who is told that it was offered again.
    pub(super) fn enter(self: &Arc<Self>, session: &SessionId) -> Option<Entry> {
        let mut sessions = self.sessions();
        if let Some(again) = sessions.get_mut(session) {
            *again = true;
            return None;
        }
        sessions.insert(session.clone(), false);
        Some(Entry { served: Arc::clone(self), session: session.clone(), left: false })
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<SessionId, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// This, if the session was offered again since; else it is not served any more.
    pub(super) fn again(mut self) -> Option<Self> {
        let mut sessions = self.served.sessions();
        let offered = sessions.get_mut(&self.session).is_some_and(std::mem::take);
        if !offered {
            // In the same moment: an offer that comes now finds nobody.
            sessions.remove(&self.session);
        }
        drop(sessions);
        if offered {
            return Some(self);
        }
        // Whoever enters from now on is not this one's to remove.
        self.left = true;
        None
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.left {
            self.served.sessions().remove(&self.session);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use longhand_protocol::SessionId;

    use super::Served;

    #[test]
    fn a_session_is_served_once_at_a_time_and_looked_at_again() {
        let served = Arc::new(Served::default());
        let (one, two): (SessionId, SessionId) = ("sesn_1".parse().unwrap(), "sesn_2".parse().unwrap());
        let entry = served.enter(&one).unwrap();
        assert!(served.enter(&two).is_some());
        assert!(served.enter(&one).is_none());
        let entry = entry.again().unwrap();
        assert!(entry.again().is_none());
        let entry = served.enter(&one).unwrap();
        drop(entry);
        assert!(served.enter(&one).is_some(), "also after a panic");
    }
}
