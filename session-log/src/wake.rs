//! The operator's view of the log: which sessions have open work. It needs no right to read anything else.

use futures::stream::{Stream, StreamExt as _};
use longhand_protocol::SessionId;
use longhand_protocol::internal::Wake;

use crate::etcd::{Away, Connection, EtcdOptions, Happened, Layout, Start, Watch};
use crate::store::Result;

/// What happened to wake keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WakeEvent {
    /// All there are; what is not named has no open work. First, and again whenever changes may have been missed.
    Snapshot(Vec<(SessionId, Wake)>),
    /// Work is open in this session. May be repeated.
    Set(SessionId, Wake),
    /// Nothing is left to do in this session.
    Cleared(SessionId),
}

/// A watch over all wake keys.
pub struct WakeWatch {
    etcd: Connection,
    keys: Layout,
}

impl WakeWatch {
    /// A watch on the etcd at these endpoints, which may be away for now.
    ///
    /// # Errors
    /// [`crate::StoreError::Unavailable`] if an endpoint is not an address.
    pub async fn connect(endpoints: &[String], options: &EtcdOptions) -> Result<Self> {
        let etcd = Connection::connect(endpoints, options.timeout).await?;
        Ok(Self { etcd, keys: Layout::new(&options.prefix) })
    }

    /// What happens, without end: it outlives restarts and compactions of etcd.
    pub fn stream(self) -> impl Stream<Item = WakeEvent> + Send + 'static {
        let watch = Watch::new(self.etcd, self.keys.wakes(), Start::Snapshot, Away::default());
        let batches = futures::stream::unfold((watch, self.keys), |(mut watch, keys)| async move {
            let events: Vec<WakeEvent> =
                watch.next().await.into_iter().filter_map(|happened| wake_event(&keys, happened)).collect();
            Some((futures::stream::iter(events), (watch, keys)))
        });
        batches.flatten()
    }
}

fn wake_event(keys: &Layout, happened: Happened) -> Option<WakeEvent> {
    let wake = |kv: &crate::etcd::Kv| match kv.decode::<Wake>() {
        Ok(wake) => Some((keys.woken(&kv.key)?, wake)),
        Err(error) => {
            tracing::error!(%error, "a wake key is skipped; its session stays asleep until it is written again");
            None
        }
    };
    match happened {
        Happened::Restarted(kvs) => Some(WakeEvent::Snapshot(kvs.iter().filter_map(wake).collect())),
        Happened::Put(kv) => wake(&kv).map(|(id, wake)| WakeEvent::Set(id, wake)),
        Happened::Removed(key) => keys.woken(&key).map(WakeEvent::Cleared),
    }
}

#[cfg(test)]
mod tests {
    use longhand_protocol::internal::Wake;

    use super::{Happened, Layout, WakeEvent, wake_event};
    use crate::etcd::Kv;

    fn kv(key: &str, value: &str) -> Kv {
        Kv { key: key.into(), value: value.into(), ..Kv::default() }
    }

    #[test]
    fn what_cannot_be_read_is_skipped() {
        let keys = Layout::new("/p");
        let wake = Wake { namespace: "n".into(), name: "a".into(), uid: "u".into() };
        let text = serde_json::to_string(&wake).unwrap();
        let kvs = vec![kv("/p/wake/sesn_1", &text), kv("/p/wake/sesn_2", "?"), kv("/p/wake/other", &text)];
        let id: longhand_protocol::SessionId = "sesn_1".parse().unwrap();
        assert_eq!(
            wake_event(&keys, Happened::Restarted(kvs)),
            Some(WakeEvent::Snapshot(vec![(id.clone(), wake.clone())]))
        );
        assert_eq!(
            wake_event(&keys, Happened::Put(kv("/p/wake/sesn_1", &text))),
            Some(WakeEvent::Set(id.clone(), wake))
        );
        assert_eq!(wake_event(&keys, Happened::Put(kv("/p/wake/sesn_1", "?"))), None);
        assert_eq!(wake_event(&keys, Happened::Removed("/p/wake/sesn_1".into())), Some(WakeEvent::Cleared(id)));
    }
}
