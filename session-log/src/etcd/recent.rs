//! What this replica has just seen of sessions, so that the next change needs no look of its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use longhand_protocol::internal::Wake;
use longhand_protocol::{EventId, SessionId};
use tokio::time::Instant;

use super::plan::{Place, StoredHead};
use super::view::View;
use crate::record::encode;
use crate::store::SessionState;

/// Each takes about half a kilobyte.
const SESSIONS: usize = 8_192;
/// Sessions whose queued events are known.
const QUEUES: usize = 256;
/// What is queued in a session is known as long as it is not more.
const MAX_QUEUE_BYTES: usize = 64 * 1024;
/// A request looks at a session and then queues its message.
const RESTS_FOR: Duration = Duration::from_secs(1);

/// What was seen of a session. A transaction compares what it relies on, so that what is out of date costs a round trip.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The head as it is stored.
    pub(crate) head: StoredHead,
    /// Of the metadata, what never changes.
    pub(crate) meta: Option<Vec<u8>>,
    /// Queued events as they are stored, which never change either.
    pub(crate) queued: BTreeMap<EventId, Vec<u8>>,
}

struct Session {
    meta: Vec<u8>,
    /// When it was seen to rest, and its head then.
    rested: Option<(Instant, StoredHead)>,
}

/// What was seen of all sessions.
#[derive(Default)]
pub(super) struct Recent {
    sessions: Mutex<HashMap<SessionId, Session>>,
    queues: Mutex<HashMap<SessionId, BTreeMap<EventId, Vec<u8>>>>,
}

impl Recent {
    /// A session was looked at.
    pub(super) fn saw(&self, place: &Place<'_>, view: &View, state: &SessionState) {
        let meta = &state.meta;
        let (namespace, name, uid) = (meta.namespace.clone(), meta.name.clone(), meta.uid.clone());
        let wake = Wake { namespace, name, uid, traceparent: None };
        let Ok(meta) = encode(&wake) else { return };
        let rests = state.wake_revision.is_none() && state.archived_at.is_none();
        let head = place.stored_head(view).filter(|_| rests);
        let rested = head.map(|head| (Instant::now(), head));
        put(&self.sessions, SESSIONS, place.id, Session { meta, rested });
    }

    /// What is queued was looked at.
    pub(super) fn saw_queue(&self, place: &Place<'_>, view: &View, events: impl Iterator<Item = EventId>) {
        let Place { keys, id, .. } = *place;
        let stored = |event: EventId| view.get(&keys.inbox(id, &event)).map(|kv| (event, kv.value.clone()));
        let queue: BTreeMap<EventId, Vec<u8>> = events.filter_map(stored).collect();
        if queue.is_empty() || queue.values().map(Vec::len).sum::<usize>() > MAX_QUEUE_BYTES {
            self.queues.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        } else {
            put(&self.queues, QUEUES, id, queue);
        }
    }

    /// What never changes of the session's metadata.
    pub(super) fn meta(&self, id: &SessionId) -> Option<Vec<u8>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(id).map(|session| session.meta.clone())
    }

    /// What was queued in the session, which is taken up now.
    pub(super) fn take_queue(&self, id: &SessionId) -> BTreeMap<EventId, Vec<u8>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).remove(id).unwrap_or_default()
    }

    /// A session that rested a moment ago, once: it does not when something was queued.
    pub(super) fn take_rest(&self, id: &SessionId) -> Option<Seen> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.get_mut(id)?;
        let (_, head) = session.rested.take().filter(|(at, _)| at.elapsed() < RESTS_FOR)?;
        Some(Seen { head, meta: Some(session.meta.clone()), queued: BTreeMap::new() })
    }

    /// The session is gone.
    pub(super) fn forget(&self, id: &SessionId) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

fn put<T>(all: &Mutex<HashMap<SessionId, T>>, capacity: usize, id: &SessionId, value: T) {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    if all.len() >= capacity && !all.contains_key(id) {
        all.clear();
    }
    all.insert(id.clone(), value);
}
