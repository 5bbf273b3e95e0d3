//! One prefix, watched for as long as it is asked for, whatever becomes of etcd meanwhile.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};
use tokio::time::{Instant, timeout};

use super::client::{Etcd, to_kv};
use super::view::Kv;

/// How long a watch may be silent before it is asked whether it lives, and again before it is given up.
const SILENCE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What a watch begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Everything that there is.
    Snapshot,
    /// Nothing: who follows reads by themselves.
    Now,
}

/// What happened under a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    /// Changes may have been missed, since the history before is gone; with [`Start::Snapshot`], what there is now.
    Restarted(Vec<Kv>),
    /// A key was written. After a reconnection the last ones come again.
    Put(Kv),
    /// A key was removed.
    Removed(String),
}

/// Since when a watch has been without etcd.
#[derive(Clone, Debug, Default)]
pub(crate) struct Away(Arc<Mutex<Option<Instant>>>);

impl Away {
    /// For how long.
    pub(crate) fn since(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, away: bool) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *since = if away { since.or_else(|| Some(Instant::now())) } else { None };
    }
}

/// A watch over a prefix.
pub(crate) struct PrefixWatch {
    etcd: Etcd,
    prefix: String,
    start: Start,
    away: Away,
    stream: Option<WatchStream>,
    /// Where to go on: nothing before it is missing.
    resume_at: Option<i64>,
    asked: bool,
    pause: Duration,
}

impl PrefixWatch {
    pub(crate) fn new(etcd: Etcd, prefix: String, start: Start, away: Away) -> Self {
        Self { etcd, prefix, start, away, stream: None, resume_at: None, asked: false, pause: FIRST_PAUSE }
    }

    /// What happened next; at least one item. Never ends: it reconnects, with growing pauses.
    pub(crate) async fn next(&mut self) -> Vec<Happened> {
        loop {
            let Some(stream) = &mut self.stream else {
                if let Some(restarted) = self.open().await {
                    return vec![restarted];
                }
                continue;
            };
            match timeout(SILENCE, stream.message()).await {
                Ok(Ok(Some(response))) => {
                    self.asked = false;
                    if response.canceled() {
                        self.canceled(&response).await;
                        continue;
                    }
                    if self.is_rewound(&response) {
                        self.begin_anew("etcd was restored to an earlier revision");
                        continue;
                    }
                    let happened = self.take(&response);
                    if !happened.is_empty() {
                        return happened;
                    }
                }
                Ok(Ok(None)) => self.lost("the stream ended").await,
                Ok(Err(error)) => self.lost(&error.to_string()).await,
                Err(_) if self.asked => self.lost("it does not answer").await,
                Err(_) => {
                    self.asked = true;
                    if let Err(error) = stream.request_progress().await {
                        self.lost(&error.to_string()).await;
                    }
                }
            }
        }
    }

    async fn canceled(&mut self, response: &WatchResponse) {
        if response.compact_revision() == 0 {
            return self.lost(response.cancel_reason()).await;
        }
        self.begin_anew("the history that it needs is compacted");
    }

    fn begin_anew(&mut self, reason: &str) {
        tracing::info!(prefix = self.prefix, reason, "a watch begins anew");
        self.stream = None;
        self.resume_at = None;
    }

    /// Whether etcd is at a revision before those that were seen. It would be silent until it is there again.
    fn is_rewound(&self, response: &WatchResponse) -> bool {
        let now = response.header().map(etcd_client::ResponseHeader::revision);
        now.zip(self.resume_at).is_some_and(|(now, resume_at)| now < resume_at.saturating_sub(1))
    }

    async fn lost(&mut self, reason: &str) {
        tracing::warn!(prefix = self.prefix, reason, "a watch is broken and is made again");
        self.stream = None;
        self.away.set(true);
        self.etcd.distrust(reason).await;
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// Opens the watch; says so if it does not go on where it was.
    async fn open(&mut self) -> Option<Happened> {
        self.asked = false;
        let (from, restarted) = match self.resume_at {
            Some(revision) => (revision, None),
            None => match self.read().await {
                Ok((kvs, revision)) => (revision.saturating_add(1), Some(Happened::Restarted(kvs))),
                Err(error) => {
                    self.lost(&error.to_string()).await;
                    return None;
                }
            },
        };
        let options =
            WatchOptions::new().with_prefix().with_start_revision(from).with_progress_notify().with_fragment();
        match self.etcd.watch(&self.prefix, options).await {
            Ok(stream) => {
                self.stream = Some(stream);
                self.resume_at = Some(from);
                self.away.set(false);
                restarted
            }
            Err(error) => {
                self.lost(&error.to_string()).await;
                None
            }
        }
    }

    async fn read(&self) -> crate::store::Result<(Vec<Kv>, i64)> {
        match self.start {
            Start::Snapshot => self.etcd.snapshot(&self.prefix).await,
            Start::Now => Ok((Vec::new(), self.etcd.revision(&self.prefix).await?)),
        }
    }

    fn take(&mut self, response: &WatchResponse) -> Vec<Happened> {
        self.pause = FIRST_PAUSE;
        let mut happened = Vec::with_capacity(response.events().len());
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            // One revision may come in several responses, so the last one is asked for again.
            self.resume_at = self.resume_at.max(Some(kv.mod_revision()));
            match (to_kv(kv), event.event_type()) {
                (Ok(kv), EventType::Put) => happened.push(Happened::Put(kv)),
                (Ok(kv), EventType::Delete) => happened.push(Happened::Removed(kv.key)),
                (Err(error), _) => tracing::warn!(%error, "a watched key is skipped"),
            }
        }
        if happened.is_empty() && !response.created() {
            let progress = response.header().map(|header| header.revision().saturating_add(1));
            self.resume_at = self.resume_at.max(progress);
        }
        happened
    }
}
