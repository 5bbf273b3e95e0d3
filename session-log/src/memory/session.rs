//! One session in memory.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use longhand_protocol::EventId;
use longhand_protocol::event::{Event, EventBody, NewEvent, Record};
use longhand_protocol::harness::{AgentSnapshot, Inbox, InboxItem};
use longhand_protocol::trace::{self, TraceParent};
use longhand_protocol::wire::{Order, SessionStatus};
use tokio::time::Instant;

use super::Bounds;
use crate::caps::Caps;
use crate::cut::{Cause, Cut};
use crate::import::Complete;
use crate::limits;
use crate::objects::payload;
use crate::record::{self, Head, Stored, result_of};
use crate::store::{
    Appended, CallState, Claimant, EPOCH_LEAP, End, Exported, FinishFrom, Owner, Parent, Query, Result, SessionMeta,
    SessionState, Slice, StoreError, Takeover,
};

#[derive(Clone)]
pub(super) struct Session {
    pub(super) meta: SessionMeta,
    pub(super) owner: Option<Claim>,
    pub(super) calls: BTreeMap<EventId, CallState>,
    epoch: u64,
    head: Head,
    log: Vec<Record>,
    /// Where the events are whose identifiers are remembered: all but what brains say of themselves.
    seqs: HashMap<EventId, u64>,
    inbox: Vec<NewEvent>,
    wake: Option<i64>,
    /// What the open work belongs to.
    trace: Option<TraceParent>,
    /// Once it has ended it takes no new events of clients, whatever is appended after that.
    ended: bool,
}

#[derive(Clone)]
pub(super) struct Claim {
    owner: Owner,
    ttl: Duration,
    until: Instant,
}

/// What a brain's change of the log must find.
pub(super) struct Fence {
    pub(super) epoch: u64,
    pub(super) expected_head: u64,
    /// Set when the change gives the session up.
    pub(super) wake_revision: Option<i64>,
}

impl Session {
    pub(super) fn new(meta: SessionMeta) -> Self {
        Self {
            head: Head::empty(meta.created_at),
            meta,
            owner: None,
            calls: BTreeMap::new(),
            epoch: 0,
            log: Vec::new(),
            seqs: HashMap::new(),
            inbox: Vec::new(),
            wake: None,
            trace: None,
            ended: false,
        }
    }

    pub(super) fn state(&self) -> SessionState {
        SessionState {
            meta: self.meta.clone(),
            epoch: self.epoch,
            head: self.head.seq,
            owner: self.live_claim().map(|claim| claim.owner.clone()),
            wake_revision: self.wake,
            status: self.head.shown_status(self.wake.is_some()),
            usage: self.head.usage,
            list_cost: self.head.list_cost.clone(),
            active: self.head.active,
            updated_at: self.head.updated_at,
            size: self.head.size(),
            archived_at: self.head.archived_at,
            fork: None,
        }
    }

    pub(super) fn inbox(&self) -> Inbox {
        let items = self.inbox.iter().cloned().map(queued).collect();
        Inbox { wake_revision: self.wake, items, traceparent: self.trace.filter(|_| self.wake.is_some()) }
    }

    /// A session whose history is this one's up to `from.seq`.
    pub(super) fn fork(&self, meta: SessionMeta, from: &Parent) -> Result<Self> {
        let head = self.head.seq;
        if from.seq > head {
            return Err(StoreError::NoSuchEvent { session: from.session.clone(), seq: from.seq, head });
        }
        let log: Vec<Record> = self.log.iter().filter(|record| record.seq <= from.seq).cloned().collect();
        let mut cut = Cut::default();
        log.iter().rev().for_each(|record| cut.take(record));
        let mut fork = Self::new(SessionMeta { parent: Some(from.clone()), ..meta });
        if let Some(last) = log.last() {
            fork.head = Head::at(last, &record::encode(last)?, &cut);
        }
        fork.log = log;
        let closing = cut.closing(&fork.meta.id, Cause::Fork)?;
        fork.push(0, closing)?;
        Ok(fork)
    }

    pub(super) fn import(meta: SessionMeta, records: Vec<Record>, complete: Complete) -> Result<Self> {
        let mut session = Self::new(SessionMeta { parent: None, ..meta });
        session.head = complete.head;
        session.epoch = complete.epoch;
        for record in records {
            session.seqs.insert(record.event.id.clone(), record.seq);
            if let Some(call) = payload::answered(&record.event.body) {
                session.calls.insert(call, CallState::Finished { seq: record.seq });
            }
            session.log.push(record);
        }
        let closing = complete.cut.closing(&session.meta.id, Cause::Import)?;
        for record in session.push(0, closing)?.records {
            if let Some(call) = payload::answered(&record.event.body) {
                session.calls.insert(call, CallState::Finished { seq: record.seq });
            }
        }
        Ok(session)
    }

    pub(super) fn export(&self) -> Result<(End, Vec<Exported>)> {
        let Head { seq: head, hash, archived_at, .. } = self.head.clone();
        let export =
            |record: &Record| Ok(Exported { seq: record.seq, bytes: record::encode(record)?, payloads: Vec::new() });
        let records = self.log.iter().map(export).collect::<Result<_>>()?;
        Ok((End { epoch: self.epoch, head, hash, archived_at }, records))
    }

    /// By looking at everything.
    pub(super) fn slice(&self, query: &Query) -> Slice {
        let placed = |seq: u64| seq > query.after && query.before.is_none_or(|before| seq < before);
        let mut wanted: Vec<&Record> =
            self.log.iter().filter(|record| placed(record.seq) && query.admits(record)).collect();
        if query.order == Order::Desc {
            wanted.reverse();
        }
        let more = wanted.len() > query.limit;
        wanted.truncate(query.limit);
        let next = wanted.last().filter(|_| more).map(|record| record.seq);
        Slice { records: wanted.into_iter().cloned().collect(), head: self.head.seq, next }
    }

    pub(super) fn position(&self, event: &EventId) -> Option<u64> {
        self.log.iter().find(|record| record.event.id == *event).map(|record| record.seq)
    }

    pub(super) fn archive(&mut self) -> Result<Timestamp> {
        if let Some(archived_at) = self.head.archived_at {
            return Ok(archived_at);
        }
        self.epoch += 1;
        let now = Timestamp::now();
        let stored = self.head.archive(&EventId::generate(), now)?;
        self.keep(stored);
        (self.owner, self.wake) = (None, None);
        Ok(self.head.archived_at.unwrap_or(now))
    }

    pub(super) fn leap(&mut self) -> u64 {
        self.epoch = self.epoch.saturating_add(EPOCH_LEAP);
        self.owner = None;
        self.epoch
    }

    fn check_live(&self) -> Result<()> {
        if self.ended {
            return Err(StoreError::Ended(self.meta.id.clone()));
        }
        Ok(())
    }

    fn live_claim(&self) -> Option<&Claim> {
        self.owner.as_ref().filter(|claim| claim.until > Instant::now())
    }

    pub(super) fn deliver(&mut self, from: u64, events: Vec<NewEvent>, bounds: Bounds, revision: i64) -> Result<u64> {
        if from == self.meta.delivered_inputs && !events.is_empty() {
            let count = u64::try_from(events.len()).unwrap_or(u64::MAX);
            self.enqueue(events, bounds, revision)?;
            self.meta.delivered_inputs += count;
        }
        Ok(self.meta.delivered_inputs)
    }

    pub(super) fn enqueue(&mut self, events: Vec<NewEvent>, bounds: Bounds, revision: i64) -> Result<Vec<InboxItem>> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let known: Vec<Option<Event>> = events.iter().map(|event| self.find(&event.id)).collect();
        if let Some(position) = known.iter().position(Option::is_some) {
            let same = |(given, known): (&NewEvent, &Option<Event>)| {
                known.as_ref().is_some_and(|known| record::same_body(&known.body, &given.body))
            };
            if events.iter().zip(&known).all(same) {
                return Ok(known.into_iter().flatten().map(|event| InboxItem { event }).collect());
            }
            return Err(StoreError::Duplicate(events[position].id.clone()));
        }
        self.check_live()?;
        if self.inbox.len() >= bounds.inbox {
            return Err(StoreError::InboxFull { limit: bounds.inbox });
        }
        let sizes = events.iter().map(|event| Ok(record::encode(event)?.len())).collect::<Result<Vec<_>>>()?;
        limits::check_bytes(sizes.iter().sum())?;
        bounds.caps.check_queue(&self.meta.id, &self.head, self.inbox.len(), self.wake.is_some(), &events)?;
        self.inbox.extend(events.iter().cloned());
        (self.wake, self.trace) = (Some(revision), trace::current());
        Ok(events.into_iter().map(queued).collect())
    }

    /// An event that is queued or in the log.
    fn find(&self, id: &EventId) -> Option<Event> {
        let queued = self.inbox.iter().find(|event| event.id == *id).map(|event| queued(event.clone()).event);
        queued.or_else(|| self.seqs.get(id).and_then(|seq| self.record(*seq)).map(|record| record.event.clone()))
    }

    fn record(&self, seq: u64) -> Option<&Record> {
        self.log.get(usize::try_from(seq).ok()?.checked_sub(1)?)
    }

    pub(super) fn claim(&mut self, claimant: &Claimant, takeover: Takeover, ttl: Duration) -> Result<(u64, Record)> {
        if self.head.archived_at.is_some() {
            return Err(StoreError::Ended(self.meta.id.clone()));
        }
        let other = self.live_claim().filter(|claim| claim.owner.claimant.pod_uid != claimant.pod_uid);
        if let (Takeover::IfFree, Some(claim)) = (takeover, other) {
            return Err(StoreError::Owned { pod_uid: claim.owner.claimant.pod_uid.clone() });
        }
        self.epoch += 1;
        let owner = Owner { claimant: claimant.clone(), epoch: self.epoch };
        self.owner = Some(Claim { owner, ttl, until: Instant::now() + ttl });
        let woken = EventBody::SessionWoken { epoch: self.epoch, harness: claimant.pod_name.clone() };
        let mut appended = self.push(self.epoch, vec![NewEvent::new(woken)])?;
        self.remember(&appended.records);
        Ok((self.epoch, appended.records.remove(0)))
    }

    pub(super) fn renew(&mut self, epoch: u64) -> Result<()> {
        self.check_epoch(epoch)?;
        if self.live_claim().is_none() {
            return Err(StoreError::ClaimLost { epoch });
        }
        if let Some(claim) = &mut self.owner {
            claim.until = Instant::now() + claim.ttl;
        }
        Ok(())
    }

    pub(super) fn check_epoch(&self, epoch: u64) -> Result<()> {
        if epoch == self.epoch && epoch > 0 {
            Ok(())
        } else {
            Err(StoreError::Fenced { given: epoch, current: self.epoch })
        }
    }

    pub(super) fn append_fenced(
        &mut self,
        fence: &Fence,
        promoted: &[EventId],
        then: &[NewEvent],
        caps: &Caps,
    ) -> Result<Appended> {
        if let Some(appended) = self.appended_after(fence, promoted, then) {
            return Ok(appended);
        }
        self.check_epoch(fence.epoch)?;
        self.check_new(then.iter().filter(|event| record::is_remembered(&event.body)))?;
        if self.head.seq != fence.expected_head {
            return Err(StoreError::HeadMoved { head: self.head.seq });
        }
        let mut events = Vec::new();
        for id in promoted {
            let queued = self.inbox.iter().position(|event| event.id == *id && !self.seqs.contains_key(id));
            events.push(self.inbox.remove(queued.ok_or_else(|| StoreError::NotQueued(id.clone()))?));
        }
        events.extend(then.iter().cloned());
        if let Some(revision) = fence.wake_revision {
            if self.wake != Some(revision) || !self.inbox.is_empty() {
                return Err(StoreError::WakeMoved);
            }
            self.wake = None;
            self.owner = None;
        }
        let appended = self.push(fence.epoch, events)?;
        self.remember(&appended.records[..promoted.len()]);
        self.bound(caps, then)?;
        Ok(appended)
    }

    pub(super) fn append_unfenced(&mut self, events: &[NewEvent], caps: &Caps) -> Result<Appended> {
        if let Some(appended) = self.appended_before(events) {
            return Ok(appended);
        }
        self.check_new(events)?;
        let appended = self.push(0, events.to_vec())?;
        self.bound(caps, events)?;
        Ok(appended)
    }

    pub(super) fn change_agent(&mut self, agent: AgentSnapshot, event: NewEvent) -> Result<Appended> {
        if let Some(appended) = self.appended_before(std::slice::from_ref(&event)) {
            return Ok(appended);
        }
        self.check_new(std::slice::from_ref(&event))?;
        self.head.check_rest(&self.meta.id, self.wake.is_some())?;
        self.meta.agent = agent;
        self.push(0, vec![event])
    }

    pub(super) fn finish_call(
        &mut self,
        call: &EventId,
        from: &FinishFrom,
        events: &[NewEvent],
        revision: i64,
        caps: &Caps,
    ) -> Result<Appended> {
        if let Some(appended) = self.appended_before(events) {
            return Ok(appended);
        }
        self.check_new(events)?;
        let state = self.call(call)?;
        let wanted = match from {
            FinishFrom::Open => CallState::Open,
            FinishFrom::Dispatched(incarnation) => CallState::Dispatched { incarnation: incarnation.clone() },
        };
        if *state != wanted {
            return Err(StoreError::CallState { call: call.clone(), state: state.clone() });
        }
        let result = result_of(call, events);
        let appended = self.push(0, events.to_vec())?;
        let seq = result.and_then(|index| appended.records.get(index)).map_or(appended.head, |record| record.seq);
        self.calls.insert(call.clone(), CallState::Finished { seq });
        if self.head.archived_at.is_none() {
            (self.wake, self.trace) = (Some(revision), trace::current());
        }
        self.bound(caps, events)?;
        Ok(appended)
    }

    pub(super) fn call(&self, call: &EventId) -> Result<&CallState> {
        self.calls.get(call).ok_or_else(|| StoreError::UnknownCall(call.clone()))
    }

    pub(super) fn move_call(&mut self, call: &EventId, from: &CallState, to: CallState) -> Result<()> {
        let state = self.call(call)?;
        if *state != *from && *state != to {
            return Err(StoreError::CallState { call: call.clone(), state: state.clone() });
        }
        self.calls.insert(call.clone(), to);
        Ok(())
    }

    /// The records of a brain's append that is repeated: they come right after what it had read.
    fn appended_after(&self, fence: &Fence, promoted: &[EventId], events: &[NewEvent]) -> Option<Appended> {
        let queued = promoted.iter().map(|id| (id, None));
        let given: Vec<_> = queued.chain(events.iter().map(|event| (&event.id, Some(&event.body)))).collect();
        let after = usize::try_from(fence.expected_head).ok().filter(|_| fence.expected_head >= self.head.inherited)?;
        let records = self.log.get(after..after.checked_add(given.len())?)?.to_vec();
        let same =
            records.iter().zip(given).all(|(stored, (id, body))| record::is_repeated(stored, fence.epoch, id, body));
        let head = records.last()?.seq;
        same.then_some(Appended { records, head })
    }

    /// The records of an append of the service that is repeated.
    fn appended_before(&self, events: &[NewEvent]) -> Option<Appended> {
        let found = events.iter().map(|event| self.seqs.get(&event.id).and_then(|seq| self.record(*seq)).cloned());
        let records: Vec<Record> = found.collect::<Option<_>>()?;
        let given = events.iter().map(|event| (&event.id, Some(&event.body)));
        let same = records.iter().zip(given).all(|(stored, (id, body))| record::is_repeated(stored, 0, id, body));
        let in_a_row = records.windows(2).all(|pair| pair[0].seq + 1 == pair[1].seq);
        let head = records.last()?.seq;
        (same && in_a_row).then_some(Appended { records, head })
    }

    fn remember(&mut self, records: &[Record]) {
        self.seqs.extend(records.iter().map(|record| (record.event.id.clone(), record.seq)));
    }

    fn check_new<'a>(&self, events: impl IntoIterator<Item = &'a NewEvent>) -> Result<()> {
        match events.into_iter().find(|event| self.seqs.contains_key(&event.id)) {
            Some(event) => Err(StoreError::Duplicate(event.id.clone())),
            None => Ok(()),
        }
    }

    /// Refuses what was appended if there was no room for it; the log says once that it comes near to a limit.
    fn bound(&mut self, caps: &Caps, events: &[NewEvent]) -> Result<()> {
        caps.check_append(&self.meta.id, &self.head, events)?;
        match caps.warning(&self.meta.id, &self.head) {
            Some(warning) => self.push(0, vec![warning]).map(drop),
            None => Ok(()),
        }
    }

    fn push(&mut self, epoch: u64, events: Vec<NewEvent>) -> Result<Appended> {
        let stored = self.head.extend(epoch, events, Timestamp::now())?;
        limits::check_bytes(stored.iter().map(|stored| stored.bytes.len()).sum())?;
        let records = self.keep(stored);
        Ok(Appended { records, head: self.head.seq })
    }

    fn keep(&mut self, stored: Vec<Stored>) -> Vec<Record> {
        self.ended |= self.head.archived_at.is_some() || self.head.status == Some(SessionStatus::Terminated);
        let records: Vec<Record> = stored.into_iter().map(|stored| stored.record).collect();
        for record in &records {
            if record.epoch == 0 || record::is_remembered(&record.event.body) {
                self.remember(std::slice::from_ref(record));
            }
            if matches!(record.event.body, EventBody::AgentToolUse { .. }) {
                self.calls.insert(record.event.id.clone(), CallState::Open);
            }
            self.log.push(record.clone());
        }
        records
    }
}

fn queued(event: NewEvent) -> InboxItem {
    InboxItem { event: Event { id: event.id, body: event.body, processed_at: None } }
}
