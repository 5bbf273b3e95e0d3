//! What the replica's watches see, fanned out to those who wait for one session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use longhand_protocol::SessionId;
use longhand_protocol::event::Record;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::keys::Keys;
use super::view::Kv;
use super::watch::{Away, Happened, PrefixWatch};
use crate::objects::payload;

/// How many records one who waits may lag behind before it has to read again.
const BUFFER: usize = 256;

/// What one who waits for a session learns.
#[derive(Clone, Debug)]
pub(crate) enum Signal {
    /// A new record; perhaps one that is known already.
    Record(Arc<Record>),
    /// Something changed: look.
    Look,
}

type Channels = Mutex<HashMap<SessionId, broadcast::Sender<Signal>>>;

/// One watch and those who wait.
#[derive(Default)]
pub(crate) struct Hub {
    channels: Channels,
    away: Away,
}

impl Hub {
    pub(crate) fn away(&self) -> &Away {
        &self.away
    }

    /// Everything that happens to the session from now on.
    pub(crate) fn subscribe(self: &Arc<Self>, id: &SessionId) -> Subscription {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = channels.entry(id.clone()).or_insert_with(|| broadcast::channel(BUFFER).0);
        Subscription { receiver: Some(sender.subscribe()), hub: Arc::clone(self), id: id.clone() }
    }

    fn send(&self, id: &SessionId, signal: impl FnOnce() -> Option<Signal>) {
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = channels.get(id) {
            // There may be nobody left, who then needs nothing.
            let _ = signal().map(|signal| sender.send(signal));
        }
    }

    fn send_all(&self) {
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        for sender in channels.values() {
            let _ = sender.send(Signal::Look);
        }
    }

    fn prune(&self, id: &SessionId) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if channels.get(id).is_some_and(|sender| sender.receiver_count() == 0) {
            channels.remove(id);
        }
    }

    /// Follows the logs of all sessions until `stop`.
    pub(crate) async fn follow_logs(self: Arc<Self>, mut watch: PrefixWatch, keys: Keys, stop: CancellationToken) {
        while let Some(happened) = stop.run_until_cancelled(watch.next()).await {
            for item in happened {
                self.log_happened(&keys, item);
            }
        }
    }

    fn log_happened(&self, keys: &Keys, happened: Happened) {
        match happened {
            Happened::Restarted(_) => self.send_all(),
            Happened::Put(kv) => {
                if let Some((id, _)) = keys.record(&kv.key) {
                    self.send(&id, || Some(signal(&kv)));
                }
            }
            // Those that are trimmed can still be read.
            Happened::Removed(_) => {}
        }
    }

    /// Tells those who wait for a session to look whenever the key changes that stands for it, until `stop`.
    pub(crate) async fn follow_keys(
        self: Arc<Self>,
        mut watch: PrefixWatch,
        session: impl Fn(&str) -> Option<SessionId> + Send,
        stop: CancellationToken,
    ) {
        while let Some(happened) = stop.run_until_cancelled(watch.next()).await {
            for item in happened {
                let key = match item {
                    Happened::Restarted(_) => {
                        self.send_all();
                        continue;
                    }
                    Happened::Put(kv) => kv.key,
                    Happened::Removed(key) => key,
                };
                if let Some(id) = session(&key) {
                    self.send(&id, || Some(Signal::Look));
                }
            }
        }
    }
}

/// A record as it is, or, if its body is elsewhere, that there is one to read.
fn signal(kv: &Kv) -> Signal {
    match kv.decode::<Record>() {
        Ok(record) if payload::reference(&record.event.body).is_none() => Signal::Record(Arc::new(record)),
        _ => Signal::Look,
    }
}

/// What happens to one session.
pub(crate) struct Subscription {
    hub: Arc<Hub>,
    id: SessionId,
    receiver: Option<broadcast::Receiver<Signal>>,
}

impl Subscription {
    /// The next signal; `None` when there will be none.
    pub(crate) async fn next(&mut self) -> Option<Signal> {
        match self.receiver.as_mut()?.recv().await {
            Ok(signal) => Some(signal),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Signal::Look),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.receiver = None;
        self.hub.prune(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{BUFFER, Hub, Keys, Kv, Signal};
    use crate::etcd::watch::Happened;

    #[tokio::test]
    async fn who_lags_behind_is_told_to_look() {
        let (hub, id) = (Arc::new(Hub::default()), "sesn_1".parse().unwrap());
        let mut subscription = hub.subscribe(&id);
        for _ in 0..=BUFFER {
            hub.send(&id, || Some(Signal::Look));
        }
        assert!(matches!(subscription.next().await, Some(Signal::Look)));
    }

    #[tokio::test]
    async fn only_the_session_that_changed_is_told() {
        let (hub, keys) = (Arc::new(Hub::default()), Keys::new("/p/"));
        let (one, two) = ("sesn_1".parse().unwrap(), "sesn_2".parse().unwrap());
        let (mut of_one, mut of_two) = (hub.subscribe(&one), hub.subscribe(&two));
        hub.log_happened(&keys, Happened::Removed(keys.log(&one, 1)));
        hub.log_happened(&keys, Happened::Put(Kv { key: keys.log(&two, 1), value: b"?".to_vec(), ..Kv::default() }));
        hub.log_happened(&keys, Happened::Put(Kv { key: keys.log(&one, 2), value: b"?".to_vec(), ..Kv::default() }));
        assert!(matches!(of_two.next().await, Some(Signal::Look)));
        assert!(matches!(of_one.next().await, Some(Signal::Look)));
        assert!(of_one.receiver.as_ref().is_some_and(tokio::sync::broadcast::Receiver::is_empty));
    }

    #[test]
    fn nothing_is_kept_for_those_who_left() {
        let (hub, id) = (Arc::new(Hub::default()), "sesn_1".parse().unwrap());
        let (first, second) = (hub.subscribe(&id), hub.subscribe(&id));
        drop(first);
        assert_eq!(hub.channels.lock().unwrap().len(), 1);
        drop(second);
        assert!(hub.channels.lock().unwrap().is_empty());
    }
}
