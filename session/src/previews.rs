//! Previews of messages that are being written, on their way from a harness to those who watch. Never stored.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longhand_protocol::SessionId;
use longhand_protocol::event::Preview;
use tokio::sync::broadcast;

/// How many posts of a harness a slow client may lag behind before it is dropped.
const BUFFERED: usize = 256;

/// What a harness posts at once.
pub type Frames = Arc<[Preview]>;

/// Who watches what.
#[derive(Debug, Default)]
pub struct Previews {
    sessions: Mutex<HashMap<SessionId, broadcast::Sender<Frames>>>,
}

impl Previews {
    /// Every preview of the session from now on.
    pub fn subscribe(&self, session: &SessionId) -> broadcast::Receiver<Frames> {
        let mut sessions = self.sessions();
        sessions.retain(|_, sender| sender.receiver_count() > 0);
        sessions.entry(session.clone()).or_insert_with(|| broadcast::Sender::new(BUFFERED)).subscribe()
    }

    /// Shows previews to those who watch.
    pub fn publish(&self, session: &SessionId, frames: Vec<Preview>) {
        if let Some(sender) = self.sessions().get(session) {
            // An error says that nobody watches any more.
            let _ = sender.send(frames.into());
        }
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<SessionId, broadcast::Sender<Frames>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use longhand_protocol::event::{Preview, PreviewEvent};
    use longhand_protocol::{EventId, SessionId};
    use tokio::sync::broadcast::error::TryRecvError;

    use super::Previews;

    fn start() -> Vec<Preview> {
        vec![Preview::EventStart { event: PreviewEvent { kind: "agent.message".to_owned(), id: EventId::generate() } }]
    }

    #[test]
    fn watchers_see_their_session_only_and_leave_nothing_behind() {
        let previews = Previews::default();
        let (a, b) = (SessionId::generate(), SessionId::generate());
        previews.publish(&a, start());
        let mut watching = previews.subscribe(&a);
        previews.publish(&b, start());
        assert_eq!(watching.try_recv(), Err(TryRecvError::Empty));
        let frames = start();
        previews.publish(&a, frames.clone());
        assert_eq!(watching.try_recv().unwrap().to_vec(), frames);
        drop(watching);
        let _other = previews.subscribe(&b);
        assert_eq!(previews.sessions().len(), 1);
    }

    #[test]
    fn a_slow_watcher_is_told_that_it_lags() {
        let previews = Previews::default();
        let session = SessionId::generate();
        let mut watching = previews.subscribe(&session);
        for _ in 0..300 {
            previews.publish(&session, start());
        }
        assert!(matches!(watching.try_recv(), Err(TryRecvError::Lagged(_))));
    }
}
