//! Following one log: what there is, then what the hub sees, and again what there is whenever that has a gap.

use std::collections::VecDeque;
use std::time::Duration;

use longhand_protocol::SessionId;
use longhand_protocol::event::Record;
use tokio::time::{Instant, timeout};

use super::EtcdStore;
use super::hub::{Signal, Subscription};
use crate::store::{Result, SessionStore as _, StoreError};

/// How many records are read at once.
const PAGE: usize = 128;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A log that is being followed.
pub(super) struct Tail {
    store: EtcdStore,
    id: SessionId,
    /// The last record that was given.
    after: u64,
    read: VecDeque<Record>,
    /// There may be records above those in `read` that the subscription will not bring.
    behind: bool,
    subscription: Subscription,
    away_since: Option<Instant>,
    pause: Duration,
    ended: bool,
}

impl Tail {
    /// The subscription has to come first: what is read later covers what it missed.
    pub(super) fn new(store: EtcdStore, id: SessionId, after: u64) -> Self {
        let subscription = store.inner.logs.subscribe(&id);
        Self {
            store,
            id,
            after,
            read: VecDeque::new(),
            behind: true,
            subscription,
            away_since: None,
            pause: FIRST_PAUSE,
            ended: false,
        }
    }

    /// The next record, or the error that ends it.
    pub(super) async fn next(&mut self) -> Option<Result<Record>> {
        if self.ended {
            return None;
        }
        let next = self.advance().await;
        match &next {
            Ok(record) => self.after = record.seq,
            Err(_) => self.ended = true,
        }
        Some(next)
    }

    async fn advance(&mut self) -> Result<Record> {
        loop {
            if let Some(record) = self.read.pop_front() {
                return Ok(record);
            }
            if self.behind {
                self.catch_up().await?;
                continue;
            }
            let patience = (self.store.inner.away_limit / 4).min(LONGEST_PAUSE);
            match timeout(patience, self.subscription.next()).await {
                Ok(Some(Signal::Record(record))) if Some(record.seq) == self.after.checked_add(1) => {
                    return Ok(Record::clone(&record));
                }
                Ok(Some(Signal::Record(record))) => self.behind = record.seq > self.after,
                Ok(Some(Signal::Look)) => self.behind = true,
                Ok(None) => return Err(StoreError::Unavailable("the store is closed".to_owned())),
                Err(_) => self.check_away(self.store.inner.logs.away().since())?,
            }
        }
    }

    async fn catch_up(&mut self) -> Result<()> {
        match self.store.read(&self.id, self.after, PAGE).await {
            Ok(slice) => {
                self.away_since = None;
                self.pause = FIRST_PAUSE;
                let last = slice.records.last().map_or(self.after, |record| record.seq);
                self.behind = last < slice.head;
                self.read.extend(slice.records);
                Ok(())
            }
            Err(StoreError::Unavailable(reason)) => {
                tracing::debug!(session = %self.id, reason, "a tail waits for etcd");
                let since = *self.away_since.get_or_insert_with(Instant::now);
                self.check_away(Some(since))?;
                tokio::time::sleep(self.pause).await;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn check_away(&self, since: Option<Instant>) -> Result<()> {
        let limit = self.store.inner.away_limit;
        match since {
            Some(since) if since.elapsed() >= limit => {
                Err(StoreError::Unavailable(format!("etcd has been away for more than {limit:?}")))
            }
            _ => Ok(()),
        }
    }
}
