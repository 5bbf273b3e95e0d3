//! Several etcd clusters that share the sessions between them.
//!
//! A session is on the cluster with the number `first eight bytes of the SHA-256 of its identifier, big-endian, modulo the
//! count of clusters`, counted from 0 in the order in which they are given. So neither their order nor their count may
//! change while there are sessions: each cluster keeps its number and the count, and [`ShardedStore::check`] compares
//! them. What the replicas of the service share is on the first.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::try_join_all;
use futures::stream::BoxStream;
use jiff::Timestamp;
use longhand_protocol::event::{NewEvent, Record};
use longhand_protocol::harness::{AgentSnapshot, Inbox, InboxItem};
use longhand_protocol::{EventId, SessionId};
use sha2::{Digest as _, Sha256};

use super::{Endpoints, EtcdOptions, EtcdStore};
use crate::store::{
    Appended, CallState, Claimant, End, Export, Exported, FinishFrom, Holdings, Incarnation, Parent, Query, Result,
    SessionMeta, SessionState, SessionStore, Slice, StoreError, Takeover,
};

/// What each cluster keeps of its place among the others.
const SHARD: &str = "shard";

/// A store on one or more etcd clusters. Clones share the connections.
#[derive(Clone)]
pub struct ShardedStore {
    shards: Arc<[EtcdStore]>,
}

impl ShardedStore {
    /// A store on these clusters, which may be away for now.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if there is none, or an endpoint is not an address.
    pub async fn connect(clusters: &[Endpoints], options: &EtcdOptions) -> Result<Self> {
        if clusters.is_empty() {
            return Err(StoreError::Unavailable("no etcd is given".to_owned()));
        }
        let connect = clusters.iter().map(|cluster| EtcdStore::connect(&cluster.0, options.clone()));
        Ok(Self { shards: try_join_all(connect).await?.into() })
    }

    /// The stores, in order.
    #[must_use]
    pub fn shards(&self) -> &[EtcdStore] {
        &self.shards
    }

    /// Whether each cluster is the one that it was when it was first used.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if one is not; [`StoreError::Unavailable`] if one is away.
    pub async fn check(&self) -> Result<()> {
        let count = self.shards.len();
        try_join_all(self.shards.iter().enumerate().map(|(number, shard)| async move {
            let wanted = format!("{number}/{count}");
            let stored = shard.get_or_create(SHARD, wanted.as_bytes()).await?;
            let stored = String::from_utf8_lossy(&stored);
            if stored == wanted {
                return Ok(());
            }
            let reason = format!(
                "the etcd that is given as {wanted} was {stored} before; give all of them in the same order, or move the \
                 sessions by export and import"
            );
            Err(StoreError::Corrupt { key: SHARD.to_owned(), reason })
        }))
        .await?;
        Ok(())
    }

    /// See [`EtcdStore::get_or_create`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the first etcd is away.
    pub async fn get_or_create(&self, name: &str, value: &[u8]) -> Result<Vec<u8>> {
        self.shards[0].get_or_create(name, value).await
    }

    /// The queues of self-hosted environments, on the first etcd.
    #[must_use]
    pub fn work(&self) -> crate::work::EtcdWork {
        self.shards[0].work()
    }

    /// Requests with an `Idempotency-Key`, on the first etcd.
    #[must_use]
    pub fn requests(&self) -> crate::requests::EtcdRequests {
        self.shards[0].requests()
    }

    /// Files that clients upload, on the first etcd.
    #[must_use]
    pub fn files(&self) -> crate::files::Files {
        self.shards[0].files()
    }

    /// Whether every etcd answers.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if one does not.
    pub async fn ping(&self) -> Result<()> {
        try_join_all(self.shards.iter().map(EtcdStore::ping)).await?;
        Ok(())
    }

    /// The store that the session is in.
    #[must_use]
    pub fn shard(&self, id: &SessionId) -> &EtcdStore {
        &self.shards[place(id, self.shards.len())]
    }
}

/// Which of `count` clusters a session is on.
fn place(id: &SessionId, count: usize) -> usize {
    let digest = Sha256::digest(id.to_string());
    let number = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let count = u64::try_from(count).unwrap_or(u64::MAX).max(1);
    usize::try_from(number % count).unwrap_or(0)
}

#[async_trait]
impl SessionStore for ShardedStore {
    async fn create(&self, meta: SessionMeta) -> Result<()> {
        self.shard(&meta.id).create(meta).await
    }

    async fn state(&self, id: &SessionId) -> Result<SessionState> {
        self.shard(id).state(id).await
    }

    async fn list(&self, after: Option<&SessionId>, limit: usize) -> Result<Vec<SessionMeta>> {
        let pages = try_join_all(self.shards.iter().map(|shard| shard.list(after, limit))).await?;
        let mut metas = pages.concat();
        metas.sort_by(|a, b| a.id.cmp(&b.id));
        metas.truncate(limit);
        Ok(metas)
    }

    async fn holdings(&self, namespace: &str) -> Result<Holdings> {
        let parts = try_join_all(self.shards.iter().map(|shard| shard.holdings(namespace))).await?;
        Ok(parts.into_iter().fold(Holdings::default(), Holdings::plus))
    }

    fn fork_id(&self, of: &SessionId) -> SessionId {
        let (count, wanted) = (self.shards.len(), place(of, self.shards.len()));
        // Each is right with the same chance, one in `count`.
        loop {
            let id = SessionId::generate();
            if place(&id, count) == wanted {
                return id;
            }
        }
    }

    async fn fork(&self, meta: SessionMeta, from: &Parent) -> Result<()> {
        let count = self.shards.len();
        if place(&meta.id, count) != place(&from.session, count) {
            return Err(StoreError::Elsewhere { fork: meta.id, session: from.session.clone() });
        }
        self.shard(&meta.id).fork(meta, from).await
    }

    async fn export(&self, id: &SessionId) -> Result<Export> {
        self.shard(id).export(id).await
    }

    async fn import(&self, meta: SessionMeta, end: &End, records: BoxStream<'_, Result<Exported>>) -> Result<()> {
        self.shard(&meta.id).import(meta, end, records).await
    }

    async fn archive(&self, id: &SessionId) -> Result<Timestamp> {
        self.shard(id).archive(id).await
    }

    async fn leap(&self, id: &SessionId) -> Result<u64> {
        self.shard(id).leap(id).await
    }

    async fn delete(&self, id: &SessionId) -> Result<()> {
        self.shard(id).delete(id).await
    }

    async fn deliver_inputs(&self, id: &SessionId, from: u64, events: Vec<NewEvent>) -> Result<u64> {
        self.shard(id).deliver_inputs(id, from, events).await
    }

    async fn enqueue(&self, id: &SessionId, events: Vec<NewEvent>) -> Result<Vec<InboxItem>> {
        self.shard(id).enqueue(id, events).await
    }

    async fn inbox(&self, id: &SessionId) -> Result<Inbox> {
        self.shard(id).inbox(id).await
    }

    async fn wait_inbox(&self, id: &SessionId, after: i64, wait: Duration) -> Result<Inbox> {
        self.shard(id).wait_inbox(id, after, wait).await
    }

    async fn claim(
        &self,
        id: &SessionId,
        claimant: &Claimant,
        takeover: Takeover,
        ttl: Duration,
    ) -> Result<(u64, Record)> {
        self.shard(id).claim(id, claimant, takeover, ttl).await
    }

    async fn renew(&self, id: &SessionId, epoch: u64) -> Result<()> {
        self.shard(id).renew(id, epoch).await
    }

    async fn append(&self, id: &SessionId, epoch: u64, expected_head: u64, events: Vec<NewEvent>) -> Result<Appended> {
        self.shard(id).append(id, epoch, expected_head, events).await
    }

    async fn promote(
        &self,
        id: &SessionId,
        epoch: u64,
        expected_head: u64,
        inbox: &[EventId],
        then: Vec<NewEvent>,
    ) -> Result<Appended> {
        self.shard(id).promote(id, epoch, expected_head, inbox, then).await
    }

    async fn idle(
        &self,
        id: &SessionId,
        epoch: u64,
        expected_head: u64,
        wake_revision: i64,
        events: Vec<NewEvent>,
    ) -> Result<Appended> {
        self.shard(id).idle(id, epoch, expected_head, wake_revision, events).await
    }

    async fn append_unfenced(&self, id: &SessionId, events: Vec<NewEvent>) -> Result<Appended> {
        self.shard(id).append_unfenced(id, events).await
    }

    async fn change_agent(&self, id: &SessionId, agent: AgentSnapshot, event: NewEvent) -> Result<Appended> {
        self.shard(id).change_agent(id, agent, event).await
    }

    async fn slice(&self, id: &SessionId, query: &Query) -> Result<Slice> {
        self.shard(id).slice(id, query).await
    }

    async fn position(&self, id: &SessionId, event: &EventId) -> Result<Option<u64>> {
        self.shard(id).position(id, event).await
    }

    async fn tail(&self, id: &SessionId, after: u64) -> Result<BoxStream<'static, Result<Record>>> {
        self.shard(id).tail(id, after).await
    }

    async fn call(&self, id: &SessionId, call: &EventId) -> Result<CallState> {
        self.shard(id).call(id, call).await
    }

    async fn open_calls(&self, id: &SessionId) -> Result<Vec<(EventId, CallState)>> {
        self.shard(id).open_calls(id).await
    }

    async fn dispatch(&self, id: &SessionId, epoch: u64, call: &EventId, to: &Incarnation) -> Result<()> {
        self.shard(id).dispatch(id, epoch, call, to).await
    }

    async fn undispatch(&self, id: &SessionId, call: &EventId, from: &Incarnation) -> Result<()> {
        self.shard(id).undispatch(id, call, from).await
    }

    async fn finish_call(
        &self,
        id: &SessionId,
        call: &EventId,
        from: &FinishFrom,
        events: Vec<NewEvent>,
    ) -> Result<Appended> {
        self.shard(id).finish_call(id, call, from, events).await
    }
}

#[cfg(test)]
mod tests {
    use longhand_protocol::SessionId;

    use super::place;

    /// These may never change: sessions would not be found.
    #[test]
    fn a_session_stays_where_it_is() {
        let places = |count| ["sesn_1", "sesn_2", "sesn_3", "sesn_4"].map(|id| place(&id.parse().unwrap(), count));
        assert_eq!(places(1), [0, 0, 0, 0]);
        assert_eq!(places(2), [0, 0, 1, 0]);
        assert_eq!(places(5), [2, 2, 0, 3]);
    }

    #[test]
    fn sessions_are_spread_evenly() {
        let mut counts = [0_usize; 4];
        for _ in 0..4_000 {
            counts[place(&SessionId::generate(), 4)] += 1;
        }
        assert!(counts.iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
    }
}
