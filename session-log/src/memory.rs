//! The oracle: a store in memory behind one lock, simple enough to be right by inspection.
//!
//! It keeps the contract of [`SessionStore`] except durability.

mod session;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt as _};
use jiff::Timestamp;
use longhand_protocol::event::{NewEvent, Record};
use longhand_protocol::harness::{AgentSnapshot, Inbox, InboxItem};
use longhand_protocol::{EventId, SessionId};
use tokio::sync::watch;
use tokio::time::Instant;

use self::session::{Fence, Session};
use crate::caps::Caps;
use crate::import::Incoming;
use crate::limits;
use crate::store::{
    Appended, CallState, Claimant, End, Export, Exported, FinishFrom, Holdings, Incarnation, Parent, Query, Result,
    SessionMeta, SessionState, SessionStore, Slice, StoreError, Takeover,
};

/// How many records a tail takes up at once.
const TAIL_PAGE: usize = 64;

/// A store in memory. Clones share it.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// The revision of the last change.
    changed: watch::Sender<i64>,
    bounds: Bounds,
}

/// What a session may hold.
#[derive(Clone, Copy)]
struct Bounds {
    inbox: usize,
    caps: Caps,
}

#[derive(Default)]
struct State {
    revision: i64,
    sessions: BTreeMap<SessionId, Session>,
    service: BTreeMap<String, Vec<u8>>,
}

impl State {
    /// A session that shares the history of this one.
    fn fork_of(&self, id: &SessionId) -> Option<SessionId> {
        let is_fork = |session: &&Session| session.meta.parent.as_ref().is_some_and(|parent| parent.session == *id);
        self.sessions.values().find(is_fork).map(|fork| fork.meta.id.clone())
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(crate::DEFAULT_INBOX_LIMIT)
    }
}

impl MemoryStore {
    /// An empty store whose inboxes hold `inbox_limit` events each.
    #[must_use]
    pub fn new(inbox_limit: usize) -> Self {
        Self::bounded(inbox_limit, Caps::default())
    }

    /// The same; each session's log is bounded too.
    #[must_use]
    pub fn bounded(inbox_limit: usize, caps: Caps) -> Self {
        let (state, changed) = (Mutex::default(), watch::Sender::new(0));
        Self { shared: Arc::new(Shared { state, changed, bounds: Bounds { inbox: inbox_limit, caps } }) }
    }

    /// Sets what the replicas of the service share under `name`, unless it is set already; returns what is stored.
    #[must_use]
    pub fn get_or_create(&self, name: &str, value: &[u8]) -> Vec<u8> {
        self.lock().service.entry(name.to_owned()).or_insert_with(|| value.to_vec()).clone()
    }

    /// Ends the claim of a session as if its time had run out.
    pub fn expire_claim(&self, id: &SessionId) {
        if let Some(session) = self.lock().sessions.get_mut(id) {
            session.owner = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn view<T>(&self, id: &SessionId, look: impl FnOnce(&Session) -> Result<T>) -> Result<T> {
        look(self.lock().sessions.get(id).ok_or_else(|| StoreError::NotFound(id.clone()))?)
    }

    /// Makes a change at a revision of its own; a change that fails leaves the session as it was.
    fn change<T>(&self, id: &SessionId, change: impl FnOnce(&mut Session, i64) -> Result<T>) -> Result<T> {
        let mut state = self.lock();
        let revision = state.revision + 1;
        let session = state.sessions.get_mut(id).ok_or_else(|| StoreError::NotFound(id.clone()))?;
        let mut next = session.clone();
        let outcome = change(&mut next, revision)?;
        *session = next;
        state.revision = revision;
        drop(state);
        self.shared.changed.send_replace(revision);
        Ok(outcome)
    }
}

#[async_trait]
impl SessionStore for MemoryStore {
    async fn create(&self, meta: SessionMeta) -> Result<()> {
        let mut state = self.lock();
        if state.sessions.contains_key(&meta.id) {
            return Err(StoreError::Exists(meta.id));
        }
        state.sessions.insert(meta.id.clone(), Session::new(meta));
        Ok(())
    }

    async fn state(&self, id: &SessionId) -> Result<SessionState> {
        let state = self.lock();
        let session = state.sessions.get(id).ok_or_else(|| StoreError::NotFound(id.clone()))?;
        Ok(SessionState { fork: state.fork_of(id), ..session.state() })
    }

    async fn list(&self, after: Option<&SessionId>, limit: usize) -> Result<Vec<SessionMeta>> {
        let state = self.lock();
        let later = state.sessions.iter().filter(|(id, _)| after.is_none_or(|after| *id > after));
        Ok(later.take(limit).map(|(_, session)| session.meta.clone()).collect())
    }

    async fn holdings(&self, namespace: &str) -> Result<Holdings> {
        let state = self.lock();
        let own = state.sessions.values().filter(|session| session.meta.namespace == namespace);
        let held = own.fold(Holdings::default(), |held, session| {
            let bytes = session.state().size.bytes;
            held.plus(Holdings { sessions: 1, bytes, ..Holdings::default() })
        });
        Ok(Holdings { counted_at: Some(Timestamp::now()), ..held })
    }

    async fn fork(&self, meta: SessionMeta, from: &Parent) -> Result<()> {
        let mut state = self.lock();
        let missing = || StoreError::NotFound(from.session.clone());
        let parent = state.sessions.get(&from.session).ok_or_else(missing)?;
        if parent.meta.namespace != meta.namespace {
            return Err(missing());
        }
        let (id, fork) = (meta.id.clone(), parent.fork(meta, from)?);
        if state.sessions.contains_key(&id) {
            return Err(StoreError::Exists(id));
        }
        state.sessions.insert(id, fork);
        Ok(())
    }

    async fn export(&self, id: &SessionId) -> Result<Export> {
        self.view(id, |session| {
            let (end, records) = session.export()?;
            let records = futures::stream::iter(records.into_iter().map(Ok)).boxed();
            Ok(Export { meta: session.meta.clone(), end, records })
        })
    }

    async fn import(&self, meta: SessionMeta, end: &End, mut records: BoxStream<'_, Result<Exported>>) -> Result<()> {
        let exists = |state: &State| match state.sessions.contains_key(&meta.id) {
            true => Err(StoreError::Exists(meta.id.clone())),
            false => Ok(()),
        };
        exists(&self.lock())?;
        let (mut incoming, mut log) = (Incoming::default(), Vec::new());
        while let Some(exported) = records.next().await {
            log.push(incoming.take(&exported?)?);
            self.shared.bounds.caps.check_import(&meta.id, incoming.size())?;
        }
        let session = Session::import(meta.clone(), log, incoming.finish(end, meta.created_at)?)?;
        let mut state = self.lock();
        exists(&state)?;
        state.sessions.insert(meta.id.clone(), session);
        Ok(())
    }

    async fn archive(&self, id: &SessionId) -> Result<Timestamp> {
        self.change(id, |session, _| session.archive())
    }

    async fn leap(&self, id: &SessionId) -> Result<u64> {
        self.change(id, |session, _| Ok(session.leap()))
    }

    async fn delete(&self, id: &SessionId) -> Result<()> {
        let mut state = self.lock();
        if let Some(fork) = state.fork_of(id) {
            return Err(StoreError::HasForks { session: id.clone(), fork });
        }
        if state.sessions.remove(id).is_some() {
            state.revision += 1;
            let revision = state.revision;
            drop(state);
            self.shared.changed.send_replace(revision);
        }
        Ok(())
    }

    async fn deliver_inputs(&self, id: &SessionId, from: u64, events: Vec<NewEvent>) -> Result<u64> {
        let bounds = self.shared.bounds;
        self.change(id, |session, revision| session.deliver(from, events, bounds, revision))
    }

    async fn enqueue(&self, id: &SessionId, events: Vec<NewEvent>) -> Result<Vec<InboxItem>> {
        limits::check_enqueue(&events)?;
        let bounds = self.shared.bounds;
        self.change(id, |session, revision| session.enqueue(events, bounds, revision))
    }

    async fn inbox(&self, id: &SessionId) -> Result<Inbox> {
        self.view(id, |session| Ok(session.inbox()))
    }

    async fn wait_inbox(&self, id: &SessionId, after: i64, wait: Duration) -> Result<Inbox> {
        let deadline = Instant::now() + wait;
        let mut changed = self.shared.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let inbox = self.inbox(id).await?;
            if inbox.wake_revision.is_some_and(|revision| revision > after)
                || !matches!(tokio::time::timeout_at(deadline, changed.changed()).await, Ok(Ok(())))
            {
                return Ok(inbox);
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
        self.change(id, |session, _| session.claim(claimant, takeover, ttl))
    }

    async fn renew(&self, id: &SessionId, epoch: u64) -> Result<()> {
        self.change(id, |session, _| session.renew(epoch))
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
        limits::check_append(inbox, &then)?;
        let fence = Fence { epoch, expected_head, wake_revision: None };
        let caps = self.shared.bounds.caps;
        self.change(id, |session, _| session.append_fenced(&fence, inbox, &then, &caps))
    }

    async fn idle(
        &self,
        id: &SessionId,
        epoch: u64,
        expected_head: u64,
        wake_revision: i64,
        events: Vec<NewEvent>,
    ) -> Result<Appended> {
        limits::check_append(&[], &events)?;
        let fence = Fence { epoch, expected_head, wake_revision: Some(wake_revision) };
        let caps = self.shared.bounds.caps;
        self.change(id, |session, _| session.append_fenced(&fence, &[], &events, &caps))
    }

    async fn append_unfenced(&self, id: &SessionId, events: Vec<NewEvent>) -> Result<Appended> {
        limits::check_append(&[], &events)?;
        let caps = self.shared.bounds.caps;
        self.change(id, |session, _| session.append_unfenced(&events, &caps))
    }

    async fn change_agent(&self, id: &SessionId, agent: AgentSnapshot, event: NewEvent) -> Result<Appended> {
        limits::check_append(&[], std::slice::from_ref(&event))?;
        self.change(id, |session, _| session.change_agent(agent, event))
    }

    async fn slice(&self, id: &SessionId, query: &Query) -> Result<Slice> {
        self.view(id, |session| Ok(session.slice(query)))
    }

    async fn position(&self, id: &SessionId, event: &EventId) -> Result<Option<u64>> {
        self.view(id, |session| Ok(session.position(event)))
    }

    async fn tail(&self, id: &SessionId, after: u64) -> Result<BoxStream<'static, Result<Record>>> {
        self.read(id, after, 0).await?;
        let start = (self.clone(), id.clone(), self.shared.changed.subscribe(), Some(after));
        let pages = futures::stream::unfold(start, |(store, id, mut changed, after)| async move {
            let mut after = after?;
            loop {
                changed.mark_unchanged();
                match store.read(&id, after, TAIL_PAGE).await {
                    Err(error) => return Some((vec![Err(error)], (store, id, changed, None))),
                    Ok(page) if !page.records.is_empty() => {
                        after = page.records.last().map_or(after, |record| record.seq);
                        let records = page.records.into_iter().map(Ok).collect();
                        return Some((records, (store, id, changed, Some(after))));
                    }
                    Ok(_) => changed.changed().await.ok()?,
                }
            }
        });
        Ok(pages.map(futures::stream::iter).flatten().boxed())
    }

    async fn call(&self, id: &SessionId, call: &EventId) -> Result<CallState> {
        self.view(id, |session| session.call(call).cloned())
    }

    async fn open_calls(&self, id: &SessionId) -> Result<Vec<(EventId, CallState)>> {
        self.view(id, |session| {
            let open = session.calls.iter().filter(|(_, state)| !matches!(state, CallState::Finished { .. }));
            Ok(open.map(|(id, state)| (id.clone(), state.clone())).collect())
        })
    }

    async fn dispatch(&self, id: &SessionId, epoch: u64, call: &EventId, to: &Incarnation) -> Result<()> {
        self.change(id, |session, _| {
            session.check_epoch(epoch)?;
            let next = CallState::Dispatched { incarnation: to.clone() };
            session.move_call(call, &CallState::Open, next)
        })
    }

    async fn undispatch(&self, id: &SessionId, call: &EventId, from: &Incarnation) -> Result<()> {
        self.change(id, |session, _| {
            session.move_call(call, &CallState::Dispatched { incarnation: from.clone() }, CallState::Open)
        })
    }

    async fn finish_call(
        &self,
        id: &SessionId,
        call: &EventId,
        from: &FinishFrom,
        events: Vec<NewEvent>,
    ) -> Result<Appended> {
        limits::check_append(&[], &events)?;
        let caps = self.shared.bounds.caps;
        self.change(id, |session, revision| session.finish_call(call, from, &events, revision, &caps))
    }
}
