//! The contract, kept on etcd.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt as _};
use jiff::Timestamp;
use longhand_protocol::event::{NewEvent, Record};
use longhand_protocol::harness::{AgentSnapshot, Inbox, InboxItem};
use longhand_protocol::{EventId, SessionId};
use tokio::time::{Instant, timeout_at};

use super::keys::last_segment;
use super::payloads::Parcel;
use super::plan::{
    self, Append, Archive, Author, Claim, Create, Dispatch, Effect, Enqueue, Extended, Leap, Undispatch, state_looks,
    state_of,
};
use super::recent::Seen;
use super::tail::Tail;
use super::view::{Kv, Look};
use super::{EtcdStore, capped};
use crate::limits;
use crate::record::Head;
use crate::store::{
    Appended, CallState, Claimant, End, Export, Exported, FinishFrom, Holdings, Incarnation, Owner, Parent, Query,
    Result, SessionMeta, SessionState, SessionStore, Slice, StoreError, Takeover,
};

impl EtcdStore {
    async fn extend(&self, append: Append<'_>) -> Result<Appended> {
        let id = append.place.id;
        let (appended, head) = self.extend_within(append).await?;
        if let Some(head) = head {
            self.warn(id, &head).await;
        }
        Ok(appended)
    }

    /// Grows a log that has room; also gives its head, if it was written now.
    async fn extend_within(&self, append: Append<'_>) -> Result<(Appended, Option<Head>)> {
        let id = append.place.id;
        limits::check_append(append.promoted, append.events)?;
        let parcel = self.pack(id, append.events).await?;
        let append = Append { events: &parcel.events, ..append };
        let _turn = match append.author {
            Author::Brain { .. } => None,
            Author::Service => Some(self.inner.turns.wait(id, self.inner.etcd.timeout()).await?),
        };
        let assumed = self.seen(&append).and_then(|seen| append.assume(seen));
        let caps = &self.inner.options.caps;
        let plan = |view: &_| capped::appended(caps, id, append.events, append.plan(view, Timestamp::now())?);
        let (extended, removed) = self.inner.etcd.carry_out_with(self, &append.looks(), assumed, plan).await?;
        let Extended { mut appended, head } = extended;
        let head = head.map(|(head, bytes)| {
            self.inner.heads.put(id, head.seq, bytes);
            head
        });
        self.revoke_leases(&removed).await;
        self.confirm(id, &parcel).await;
        self.unpack(id, &mut appended.records, &parcel).await?;
        Ok((appended, head))
    }

    /// What this replica knows of the log that is to grow.
    fn seen(&self, append: &Append<'_>) -> Option<Seen> {
        let id = append.place.id;
        let recent = &self.inner.recent;
        Some(match append.author {
            Author::Brain { expected_head, .. } => {
                let queued = if append.promoted.is_empty() { BTreeMap::new() } else { recent.take_queue(id) };
                Seen { head: self.inner.heads.get(id, expected_head)?, meta: None, queued }
            }
            Author::Service => {
                Seen { head: self.inner.heads.latest(id)?, meta: recent.meta(id), queued: BTreeMap::new() }
            }
        })
    }

    /// Ends the leases of keys that are gone.
    pub(super) async fn revoke_leases(&self, removed: &[Kv]) {
        for kv in removed.iter().filter(|kv| kv.lease != 0) {
            self.inner.etcd.revoke(kv.lease).await;
        }
    }
}

#[async_trait]
impl SessionStore for EtcdStore {
    async fn create(&self, meta: SessionMeta) -> Result<()> {
        let create = Create { place: self.place(&meta.id), meta: &meta };
        self.inner.etcd.carry_out(&create.looks(), None, |view| create.plan(view)).await?;
        Ok(())
    }

    async fn state(&self, id: &SessionId) -> Result<SessionState> {
        let place = self.place(id);
        let view = self.inner.etcd.look(&state_looks(&place)).await?;
        let state = plan::state(&place, &view)?;
        if let Some(head) = view.get(&place.keys.head(id)) {
            self.inner.heads.saw(id, state.head, &head.value);
        }
        self.inner.recent.saw(&place, &view, &state);
        Ok(state)
    }

    async fn list(&self, after: Option<&SessionId>, limit: usize) -> Result<Vec<SessionMeta>> {
        let keys = &self.inner.keys;
        if limit == 0 {
            return Ok(Vec::new());
        }
        let most = i64::try_from(limit).unwrap_or(i64::MAX);
        let range = |prefix: String| {
            let from = after.map_or_else(|| prefix.clone(), |after| format!("{prefix}{after}\0"));
            Look::Range(from, format!("{}0", prefix.trim_end_matches('/')), most)
        };
        let looks = [keys.metas(), keys.deletings(), keys.importings()].map(range);
        let view = self.inner.etcd.look(&looks).await?;
        plan::list(keys, &view, limit)
    }

    async fn holdings(&self, namespace: &str) -> Result<Holdings> {
        self.counted(namespace).await
    }

    async fn fork(&self, meta: SessionMeta, from: &Parent) -> Result<()> {
        self.branch(meta, from).await
    }

    async fn export(&self, id: &SessionId) -> Result<Export> {
        self.export_log(id).await
    }

    async fn import(&self, meta: SessionMeta, end: &End, records: BoxStream<'_, Result<Exported>>) -> Result<()> {
        self.import_log(meta, end, records).await
    }

    async fn archive(&self, id: &SessionId) -> Result<Timestamp> {
        let archive = Archive { place: self.place(id), terminated: &EventId::generate() };
        let plan = |view: &_| archive.plan(view, Timestamp::now());
        let (archived_at, removed) = self.inner.etcd.carry_out(&archive.looks(), None, plan).await?;
        self.revoke_leases(&removed).await;
        Ok(archived_at)
    }

    async fn leap(&self, id: &SessionId) -> Result<u64> {
        let leap = Leap { place: self.place(id) };
        let (epoch, removed) = self.inner.etcd.carry_out(&leap.looks(), None, |view| leap.plan(view)).await?;
        self.revoke_leases(&removed).await;
        Ok(epoch)
    }

    async fn delete(&self, id: &SessionId) -> Result<()> {
        self.remove(id).await
    }

    async fn deliver_inputs(&self, id: &SessionId, from: u64, events: Vec<NewEvent>) -> Result<u64> {
        self.deliver(id, from, &events).await
    }

    async fn enqueue(&self, id: &SessionId, events: Vec<NewEvent>) -> Result<Vec<InboxItem>> {
        limits::check_enqueue(&events)?;
        let parcel = self.pack(id, &events).await?;
        let (place, caps) = (self.place(id), &self.inner.options.caps);
        let enqueue = Enqueue { place, events: &parcel.events, limit: self.inner.inbox_limit };
        let looks = [enqueue.looks(), capped::queue_looks(caps, place.keys, id)].concat();
        let plan = |view: &_| capped::queued(caps, &place, view, &parcel.events, enqueue.plan(view)?);
        let assumed = self.inner.recent.take_rest(id).and_then(|seen| enqueue.assume(seen));
        let (mut items, _) = self.inner.etcd.carry_out_with(self, &looks, assumed, plan).await?;
        self.confirm(id, &parcel).await;
        self.unpack_items(id, &mut items, &parcel).await?;
        Ok(items)
    }

    async fn inbox(&self, id: &SessionId) -> Result<Inbox> {
        let keys = &self.inner.keys;
        let looks = [Look::Key(keys.meta(id)), Look::Key(keys.wake(id)), Look::Prefix(keys.inboxes(id))];
        let (place, view) = (self.place(id), self.inner.etcd.look(&looks).await?);
        let mut inbox = plan::inbox(&place, &view)?;
        self.inner.recent.saw_queue(&place, &view, inbox.items.iter().map(|item| item.event.id.clone()));
        self.unpack_items(id, &mut inbox.items, &Parcel::default()).await?;
        Ok(inbox)
    }

    async fn wait_inbox(&self, id: &SessionId, after: i64, wait: Duration) -> Result<Inbox> {
        let deadline = Instant::now() + wait;
        let mut subscription = self.inner.wakes.subscribe(id);
        loop {
            let inbox = self.inbox(id).await?;
            if inbox.wake_revision.is_some_and(|revision| revision > after) {
                return Ok(inbox);
            }
            if !matches!(timeout_at(deadline, subscription.next()).await, Ok(Some(_))) {
                return self.inbox(id).await;
            }
        }
    }

    async fn claim(
        &self,
        id: &SessionId,
        claimant: &Claimant,
        takeover: Takeover,
        ttl: Duration,
    ) -> Result<(u64, Record)> {
        let woken = EventId::generate();
        let claim = |lease| Claim { place: self.place(id), claimant, takeover, lease, woken: &woken };
        // What is found while the lease is granted is compared like everything that is assumed.
        let looks = claim(0).looks();
        let (lease, found) = tokio::join!(self.inner.etcd.grant(ttl), self.inner.etcd.look(&looks));
        let (lease, found) = (lease?, found.ok());
        let claim = claim(lease);
        let plan = |view: &_| claim.plan(view, Timestamp::now());
        match self.inner.etcd.carry_out_with(self, &looks, found, plan).await {
            Ok((claimed, _)) => {
                if let Some(head) = claimed.head {
                    self.inner.heads.put(id, claimed.record.seq, head);
                }
                if let Some(old) = claimed.old_lease {
                    self.inner.etcd.revoke(old).await;
                }
                Ok((claimed.epoch, claimed.record))
            }
            Err(error) => {
                self.inner.etcd.revoke(lease).await;
                Err(error)
            }
        }
    }

    async fn renew(&self, id: &SessionId, epoch: u64) -> Result<()> {
        let (keys, place) = (&self.inner.keys, self.place(id));
        let looks = [keys.meta(id), keys.epoch(id), keys.owner(id)].map(Look::Key);
        let view = self.inner.etcd.look(&looks).await?;
        if view.get(&keys.meta(id)).is_none() {
            return Err(StoreError::NotFound(id.clone()));
        }
        place.check_epoch(&view, epoch)?;
        let Some(owner) = view.get(&keys.owner(id)) else {
            return Err(StoreError::ClaimLost { epoch });
        };
        let claimed: Owner = owner.decode()?;
        if claimed.epoch == epoch && self.inner.etcd.keep_alive(owner.lease).await? {
            Ok(())
        } else {
            Err(StoreError::ClaimLost { epoch })
        }
    }

    async fn append(&self, id: &SessionId, epoch: u64, expected_head: u64, events: Vec<NewEvent>) -> Result<Appended> {
        self.promote(id, epoch, expected_head, &[], events).await
    }

    async fn promote(
        &self,
        id: &SessionId,
        epoch: u64,
        expected_head: u64,
        inbox: &[EventId],
        then: Vec<NewEvent>,
    ) -> Result<Appended> {
        let author = Author::Brain { epoch, expected_head };
        let place = self.place(id);
        self.extend(Append { place, author, promoted: inbox, events: &then, effect: Effect::Nothing }).await
    }

    async fn idle(
        &self,
        id: &SessionId,
        epoch: u64,
        expected_head: u64,
        wake_revision: i64,
        events: Vec<NewEvent>,
    ) -> Result<Appended> {
        let author = Author::Brain { epoch, expected_head };
        let effect = Effect::Idle { wake_revision };
        self.extend(Append { place: self.place(id), author, promoted: &[], events: &events, effect }).await
    }

    async fn append_unfenced(&self, id: &SessionId, events: Vec<NewEvent>) -> Result<Appended> {
        let (place, author) = (self.place(id), Author::Service);
        self.extend(Append { place, author, promoted: &[], events: &events, effect: Effect::Nothing }).await
    }

    async fn change_agent(&self, id: &SessionId, agent: AgentSnapshot, event: NewEvent) -> Result<Appended> {
        let (place, effect) = (self.place(id), Effect::Agent { agent: &agent });
        self.extend(Append { place, author: Author::Service, promoted: &[], events: &[event], effect }).await
    }

    async fn slice(&self, id: &SessionId, query: &Query) -> Result<Slice> {
        self.scan(id, query).await
    }

    async fn position(&self, id: &SessionId, event: &EventId) -> Result<Option<u64>> {
        self.find(id, event).await
    }

    async fn tail(&self, id: &SessionId, after: u64) -> Result<BoxStream<'static, Result<Record>>> {
        let tail = Tail::new(self.clone(), id.clone(), after);
        self.read(id, after, 0).await?;
        let next = |mut tail: Tail| async move { tail.next().await.map(|record| (record, tail)) };
        Ok(futures::stream::unfold(tail, next).boxed())
    }

    async fn call(&self, id: &SessionId, call: &EventId) -> Result<CallState> {
        let keys = &self.inner.keys;
        let looks = [keys.head(id), keys.call(id, call), keys.done(id, call)].map(Look::Key);
        state_of(&self.place(id), &self.inner.etcd.look(&looks).await?, call)
    }

    async fn open_calls(&self, id: &SessionId) -> Result<Vec<(EventId, CallState)>> {
        let keys = &self.inner.keys;
        let prefix = keys.calls(id);
        let view = self.inner.etcd.look(&[Look::Key(keys.head(id)), Look::Prefix(prefix.clone())]).await?;
        if view.get(&keys.head(id)).is_none() {
            return Err(StoreError::NotFound(id.clone()));
        }
        let open = view.prefix(&prefix).map(|kv| {
            let call = last_segment(&kv.key).parse().map_err(|error: longhand_protocol::id::InvalidId| {
                StoreError::Corrupt { key: kv.key.clone(), reason: error.to_string() }
            })?;
            Ok((call, kv.decode()?))
        });
        open.collect()
    }

    async fn dispatch(&self, id: &SessionId, epoch: u64, call: &EventId, to: &Incarnation) -> Result<()> {
        let dispatch = Dispatch { place: self.place(id), epoch, call, to };
        self.inner.etcd.carry_out(&dispatch.looks(), dispatch.assume(), |view| dispatch.plan(view)).await?;
        Ok(())
    }

    async fn undispatch(&self, id: &SessionId, call: &EventId, from: &Incarnation) -> Result<()> {
        let undispatch = Undispatch { place: self.place(id), call, from };
        self.inner.etcd.carry_out(&undispatch.looks(), None, |view| undispatch.plan(view)).await?;
        Ok(())
    }

    async fn finish_call(
        &self,
        id: &SessionId,
        call: &EventId,
        from: &FinishFrom,
        events: Vec<NewEvent>,
    ) -> Result<Appended> {
        let (place, effect) = (self.place(id), Effect::Finish { call, from });
        self.extend(Append { place, author: Author::Service, promoted: &[], events: &events, effect }).await
    }
}
