//! The operator's view of the log: which sessions have open work. It needs no right to read anything else.

use std::collections::BTreeMap;

use futures::future::try_join_all;
use futures::stream::{Stream, StreamExt as _};
use longhand_protocol::SessionId;
use longhand_protocol::internal::Wake;

use crate::etcd::{Away, Connection, Endpoints, EtcdOptions, Happened, Layout, Start, Watch};
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

/// A watch over all wake keys, of one or more etcd clusters.
pub struct WakeWatch {
    shards: Vec<Connection>,
    keys: Layout,
}

impl WakeWatch {
    /// A watch on these etcd clusters, which may be away for now.
    ///
    /// # Errors
    /// [`crate::StoreError::Unavailable`] if an endpoint is not an address.
    pub async fn connect(clusters: &[Endpoints], options: &EtcdOptions) -> Result<Self> {
        let shards = try_join_all(clusters.iter().map(|cluster| Connection::connect(&cluster.0, options))).await?;
        Ok(Self { shards, keys: Layout::new(&options.prefix) })
    }

    /// What happens, without end: it outlives restarts and compactions of etcd.
    pub fn stream(self) -> impl Stream<Item = WakeEvent> + Send + 'static {
        let mut merge = Merge::new(self.shards.len());
        let shards = self.shards.into_iter().enumerate().map(|(number, etcd)| {
            let watch = Watch::new(etcd, self.keys.wakes(), Start::Snapshot, Away::default());
            let next = |(mut watch, keys): (Watch, Layout)| async move {
                let events: Vec<WakeEvent> =
                    watch.next().await.into_iter().filter_map(|happened| wake_event(&keys, happened)).collect();
                Some((events, (watch, keys)))
            };
            futures::stream::unfold((watch, self.keys.clone()), next).map(move |events| (number, events)).boxed()
        });
        futures::stream::select_all(shards).flat_map(move |(shard, events)| {
            let merged: Vec<WakeEvent> = events.into_iter().flat_map(|event| merge.take(shard, event)).collect();
            futures::stream::iter(merged)
        })
    }
}

/// What several clusters say, as if they were one.
struct Merge {
    /// The wake keys of each, once it has told them.
    shards: Vec<Option<BTreeMap<SessionId, Wake>>>,
}

impl Merge {
    fn new(shards: usize) -> Self {
        Self { shards: vec![None; shards] }
    }

    /// Takes in what one says. A snapshot speaks of all sessions, so until each cluster has told its own, those of the
    /// others come one by one: work goes on while a cluster is away.
    fn take(&mut self, shard: usize, event: WakeEvent) -> Vec<WakeEvent> {
        let Some(known) = self.shards.get_mut(shard) else { return Vec::new() };
        match event {
            WakeEvent::Set(id, wake) => {
                known.get_or_insert_default().insert(id.clone(), wake.clone());
                vec![WakeEvent::Set(id, wake)]
            }
            WakeEvent::Cleared(id) => {
                known.get_or_insert_default().remove(&id);
                vec![WakeEvent::Cleared(id)]
            }
            WakeEvent::Snapshot(all) => {
                let before = known.replace(all.iter().cloned().collect()).unwrap_or_default();
                if self.shards.iter().all(Option::is_some) {
                    let every = self.shards.iter().flatten().flatten();
                    return vec![WakeEvent::Snapshot(every.map(|(id, wake)| (id.clone(), wake.clone())).collect())];
                }
                let gone = before.into_keys().filter(|id| all.iter().all(|(now, _)| now != id)).map(WakeEvent::Cleared);
                let gone: Vec<WakeEvent> = gone.collect();
                gone.into_iter().chain(all.into_iter().map(|(id, wake)| WakeEvent::Set(id, wake))).collect()
            }
        }
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

    use super::{Happened, Layout, Merge, WakeEvent, wake_event};
    use crate::etcd::Kv;

    fn kv(key: &str, value: &str) -> Kv {
        Kv { key: key.into(), value: value.into(), ..Kv::default() }
    }

    #[test]
    fn what_cannot_be_read_is_skipped() {
        let keys = Layout::new("/p");
        let wake = Wake { namespace: "n".into(), name: "a".into(), uid: "u".into(), ..Wake::default() };
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

    #[test]
    fn clusters_are_told_as_one() {
        let wake = Wake { namespace: "n".into(), name: "a".into(), uid: "u".into(), ..Wake::default() };
        let [one, two, three]: [longhand_protocol::SessionId; 3] =
            ["sesn_1", "sesn_2", "sesn_3"].map(|id| id.parse().unwrap());
        let set = |id: &longhand_protocol::SessionId| WakeEvent::Set(id.clone(), wake.clone());
        let snapshot = |ids: &[&longhand_protocol::SessionId]| {
            WakeEvent::Snapshot(ids.iter().map(|id| ((*id).clone(), wake.clone())).collect())
        };
        let mut merge = Merge::new(2);
        assert_eq!(merge.take(0, snapshot(&[&one, &three])), [set(&one), set(&three)]);
        assert_eq!(merge.take(0, snapshot(&[&one])), [WakeEvent::Cleared(three.clone()), set(&one)]);
        assert_eq!(merge.take(1, snapshot(&[&two])), [snapshot(&[&one, &two])]);
        assert_eq!(merge.take(1, set(&three)), [set(&three)]);
        assert_eq!(merge.take(0, snapshot(&[])), [snapshot(&[&two, &three])]);
        assert_eq!(merge.take(1, WakeEvent::Cleared(two.clone())), [WakeEvent::Cleared(two)]);
        assert_eq!(merge.take(0, snapshot(&[&one])), [snapshot(&[&one, &three])]);
    }

    #[test]
    fn one_cluster_is_told_as_it_is() {
        let mut merge = Merge::new(1);
        assert_eq!(merge.take(0, WakeEvent::Snapshot(vec![])), [WakeEvent::Snapshot(vec![])]);
    }
}
