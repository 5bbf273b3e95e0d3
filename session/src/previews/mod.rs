//! Previews of messages that are being written, on their way from a harness to those who watch, at any replica. Never
//! stored.

mod outbox;
mod peers;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longhand_protocol::SessionId;
use longhand_protocol::event::Preview;
use longhand_protocol::internal::PeerPost;
use tokio::sync::broadcast;

pub use self::peers::Addressing;
use self::peers::Peers;

/// How many posts of a harness a slow client may lag behind before it is dropped.
const BUFFERED: usize = 256;

/// What a harness posts at once.
pub type Frames = Arc<[Preview]>;

/// Who watches what.
#[derive(Debug, Default)]
pub struct Previews {
    sessions: Mutex<HashMap<SessionId, broadcast::Sender<Frames>>>,
    peers: Peers,
}

impl Previews {
    /// Every preview of the session from now on.
    pub fn subscribe(&self, session: &SessionId) -> broadcast::Receiver<Frames> {
        let mut sessions = self.sessions();
        sessions.retain(|_, sender| sender.receiver_count() > 0);
        sessions.entry(session.clone()).or_insert_with(|| broadcast::Sender::new(BUFFERED)).subscribe()
    }

    /// Shows what a harness has posted here to those who watch, here and at the other replicas.
    pub fn post(&self, session: &SessionId, frames: Vec<Preview>) {
        let post = PeerPost { session: session.clone(), frames };
        self.peers.tell(&post);
        self.show(post);
    }

    /// Shows previews to those who watch here.
    pub fn show(&self, post: PeerPost) {
        if let Some(sender) = self.sessions().get(&post.session) {
            // An error says that nobody watches any more.
            let _ = sender.send(post.frames.into());
        }
    }

    /// Finds the other replicas and tells them what is posted here, for ever.
    pub async fn reach_peers(&self, addressing: Addressing) {
        self.peers.follow(addressing).await;
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<SessionId, broadcast::Sender<Frames>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
