//! What is not on record yet, bounded however much happens. Pure, but for the clock that is handed in.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use jiff::Timestamp;
use longhand_protocol::egress::{CredentialEvent, CredentialOutcome, MAX_EVENTS};
use tokio::{sync::oneshot, time::Instant};

use super::{Subject, Unrecorded};

/// Uses that are kept apart by their path; more are counted together.
const MAX_PATHS: usize = 128;
/// Uses that wait to be on record; more are refused.
const MAX_USES: usize = 1_024;
/// Credentials at hosts that are known to be on record; the use of others is on record before each request.
const MAX_RECORDED: usize = 4_096;
/// Refusals that are listed one by one before others are only counted...
const DENIALS_AT_ONCE: u32 = 64;
/// ...until another may be listed.
const DENIAL_EVERY: Duration = Duration::from_secs(1);
/// What stands for refusals that are not listed.
const UNLISTED: &str = "refusals that are too many to be listed";

/// Equal events.
#[derive(Debug)]
pub(super) struct Entry {
    key: Key,
    count: u64,
    at: Timestamp,
    /// Who waits until it is durable.
    waiting: Vec<oneshot::Sender<()>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    outcome: CredentialOutcome,
    /// Whether the request goes out only once it is durable.
    awaited: bool,
    credential: Option<String>,
    subject: Subject,
    reason: Option<String>,
}

impl Entry {
    pub(super) fn event(&self) -> CredentialEvent {
        let Key { outcome, credential, subject, reason, .. } = self.key.clone();
        let Subject { sandbox, host, port, method, path_sha256 } = subject;
        CredentialEvent {
            outcome,
            credential,
            sandbox: sandbox.to_string(),
            host,
            port,
            method,
            path_sha256,
            reason,
            count: self.count,
            at: self.at,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// In the order in which they began.
    pending: Vec<Entry>,
    /// Where in `pending` equal events are.
    index: HashMap<Key, usize>,
    /// What was durable once: a credential at a host.
    recorded: HashSet<(String, String)>,
    /// Refusals that were listed since the allowance was full.
    listed: u32,
    listed_since: Option<Instant>,
    failing_since: Option<Instant>,
}

impl Ledger {
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// For how long no report was taken.
    pub(super) fn outage(&self, now: Instant) -> Duration {
        self.failing_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Adds a use. What is returned resolves once it is durable, which the first at a host has to wait for, and every one
    /// that `must_wait`.
    pub(super) fn used(
        &mut self,
        credential: &str,
        subject: &Subject,
        at: Timestamp,
        must_wait: bool,
    ) -> Result<Option<oneshot::Receiver<()>>, Unrecorded> {
        let uses = self.pending.len();
        let awaited = must_wait || !self.recorded.contains(&(credential.to_owned(), subject.host.clone()));
        let mut key = Key {
            outcome: CredentialOutcome::Used,
            awaited,
            credential: Some(credential.to_owned()),
            subject: subject.clone(),
            reason: None,
        };
        if uses >= MAX_PATHS && !self.index.contains_key(&key) {
            key.subject.path_sha256 = None;
        }
        if uses >= MAX_USES && !self.index.contains_key(&key) {
            return Err(Unrecorded);
        }
        let entry = self.count(key, at);
        Ok(awaited.then(|| {
            let (done, durable) = oneshot::channel();
            entry.waiting.push(done);
            durable
        }))
    }

    /// Adds a refusal.
    pub(super) fn denied(
        &mut self,
        credential: Option<&str>,
        subject: &Subject,
        reason: &str,
        at: Timestamp,
        now: Instant,
    ) {
        let mut key = Key {
            outcome: CredentialOutcome::Denied,
            awaited: false,
            credential: credential.map(ToOwned::to_owned),
            subject: subject.clone(),
            reason: Some(reason.to_owned()),
        };
        if !self.index.contains_key(&key) && !self.may_list(now) {
            key.credential = None;
            key.reason = Some(UNLISTED.to_owned());
            key.subject = Subject {
                sandbox: subject.sandbox.clone(),
                host: "*".to_owned(),
                port: 0,
                method: "*".to_owned(),
                path_sha256: None,
            };
        }
        self.count(key, at);
    }

    /// What a report holds: the oldest that fit.
    pub(super) fn take(&mut self) -> Vec<Entry> {
        let rest = self.pending.split_off(self.pending.len().min(MAX_EVENTS));
        let taken = std::mem::replace(&mut self.pending, rest);
        self.reindex();
        taken
    }

    /// What was taken is durable.
    pub(super) fn succeeded(&mut self, entries: Vec<Entry>) {
        self.failing_since = None;
        for Entry { key, waiting, .. } in entries {
            let Key { outcome, credential, subject, .. } = key;
            if let Some(credential) = credential
                && outcome == CredentialOutcome::Used
                && self.recorded.len() < MAX_RECORDED
            {
                self.recorded.insert((credential, subject.host));
            }
            // A waiter that is gone has given up, and its request did not go out.
            waiting.into_iter().for_each(|waiter| _ = waiter.send(()));
        }
    }

    /// What was taken is not on record. What somebody waited for did not happen; the rest is tried again if that may help.
    pub(super) fn failed(&mut self, entries: Vec<Entry>, retryable: bool, now: Instant) {
        self.failing_since.get_or_insert(now);
        if !retryable {
            return;
        }
        let mut pending: Vec<Entry> = entries.into_iter().filter(|entry| !entry.key.awaited).collect();
        let newer = std::mem::take(&mut self.pending);
        let again: HashMap<Key, usize> =
            pending.iter().enumerate().map(|(position, entry)| (entry.key.clone(), position)).collect();
        for entry in newer {
            match again.get(&entry.key).and_then(|position| pending.get_mut(*position)) {
                Some(older) => older.count = older.count.saturating_add(entry.count),
                None => pending.push(entry),
            }
        }
        self.pending = pending;
        self.reindex();
    }

    fn count(&mut self, key: Key, at: Timestamp) -> &mut Entry {
        let position = *self.index.entry(key.clone()).or_insert(self.pending.len());
        if position == self.pending.len() {
            self.pending.push(Entry { key, count: 0, at, waiting: Vec::new() });
        }
        let entry = &mut self.pending[position];
        entry.count = entry.count.saturating_add(1);
        entry
    }

    /// Whether one more refusal may be listed: many at first, then one a second, so that a program cannot fill a log.
    fn may_list(&mut self, now: Instant) -> bool {
        let since = *self.listed_since.get_or_insert(now);
        let regained = now.saturating_duration_since(since).as_secs() / DENIAL_EVERY.as_secs();
        if regained > 0 {
            self.listed = self.listed.saturating_sub(u32::try_from(regained).unwrap_or(u32::MAX));
            self.listed_since = Some(now);
        }
        let may = self.listed < DENIALS_AT_ONCE;
        if may {
            self.listed += 1;
        }
        may
    }

    fn reindex(&mut self) {
        self.index = self.pending.iter().enumerate().map(|(position, entry)| (entry.key.clone(), position)).collect();
    }
}
