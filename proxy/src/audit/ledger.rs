//! What is not on record yet, bounded however much happens. Pure, but for the clock that is handed in.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use longhand_protocol::egress::{
    CredentialEvent, CredentialOutcome, MAX_CREDENTIAL, MAX_EVENTS, MAX_HOST, MAX_REASON, Text,
};
use tokio::{sync::oneshot, time::Instant};

use super::{
    Subject, Unrecorded,
    lost::{Lost, NOT_LISTED},
};

/// Uses that are kept apart by their path; more are counted together.
const MAX_PATHS: usize = 128;
/// What waits to be on record of all sandboxes, and as much again of the harness, which they cannot keep from its model; more uses are
/// refused, and more refusals only counted.
const MAX_PENDING: usize = 1_024;
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
    credential: Option<Text<MAX_CREDENTIAL>>,
    subject: Subject,
    reason: Option<Text<MAX_REASON>>,
}

impl Entry {
    /// What of it happened, or will once it is durable.
    fn still_wanted(mut self) -> Option<Self> {
        if self.key.awaited {
            self.waiting.retain(|waiting| !waiting.is_closed());
            self.count = u64::try_from(self.waiting.len()).unwrap_or(u64::MAX);
        }
        (self.count > 0).then_some(self)
    }

    pub(super) fn event(&self) -> CredentialEvent {
        let Key { outcome, credential, subject, reason, .. } = self.key.clone();
        let Subject { sandbox, host, port, method, path_sha256 } = subject;
        CredentialEvent {
            outcome,
            credential,
            sandbox: Text::new(&*sandbox),
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

/// What goes into one report.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) entries: Vec<Entry>,
    /// How much stands for what no report can hold.
    lost: Option<Lost>,
}

impl Batch {
    pub(super) fn events(&self) -> Vec<CredentialEvent> {
        self.entries.iter().map(Entry::event).chain(self.lost.as_ref().map(Lost::event)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() + usize::from(self.lost.is_some())
    }

    /// Its first event alone, if there is one.
    pub(super) fn first(&mut self) -> Option<Self> {
        if self.entries.is_empty() {
            let lost = self.lost.take()?;
            return Some(Self { entries: Vec::new(), lost: Some(lost) });
        }
        Some(Self { entries: vec![self.entries.remove(0)], lost: None })
    }
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// In the order in which they began.
    pending: Vec<Entry>,
    /// Where in `pending` equal events are.
    index: HashMap<Key, usize>,
    /// What was durable once: a credential at a host.
    recorded: HashSet<(Text<MAX_CREDENTIAL>, Text<MAX_HOST>)>,
    /// What the service would not take, as a number.
    lost: Option<Lost>,
    /// Of sandboxes, and of the harness.
    of_sandboxes: Allowance,
    of_harness: Allowance,
    failing_since: Option<Instant>,
}

impl Ledger {
    /// Whether there is nothing that may be sent now.
    pub(super) fn is_empty(&self, now: Instant) -> bool {
        self.pending.is_empty() && !self.lost.as_ref().is_some_and(|lost| lost.is_due(now))
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
        let uses = self.waiting_with(subject);
        let credential = Text::new(credential);
        let awaited = must_wait || !self.recorded.contains(&(credential.clone(), subject.host.clone()));
        let mut key = Key {
            outcome: CredentialOutcome::Used,
            awaited,
            credential: Some(credential),
            subject: subject.clone(),
            reason: None,
        };
        if uses >= MAX_PATHS && !self.index.contains_key(&key) {
            key.subject.path_sha256 = None;
        }
        if uses >= MAX_PENDING && !self.index.contains_key(&key) {
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
            credential: credential.map(Text::from),
            subject: subject.clone(),
            reason: Some(Text::from(reason)),
        };
        let may_be_listed =
            self.index.contains_key(&key) || (self.waiting_with(subject) < MAX_PENDING && self.may_list(subject, now));
        if !may_be_listed {
            key.credential = None;
            key.reason = Some(Text::from(UNLISTED));
            key.subject = unlisted(subject.sandbox.clone());
        }
        self.count(key, at);
    }

    /// What a report holds: the oldest that fit.
    pub(super) fn take(&mut self, now: Instant) -> Batch {
        let lost = self.lost.take_if(|lost| lost.is_due(now));
        let most = MAX_EVENTS - usize::from(lost.is_some());
        let rest = self.pending.split_off(self.pending.len().min(most));
        let entries = std::mem::replace(&mut self.pending, rest);
        self.reindex();
        Batch { entries, lost }
    }

    /// What was taken is durable.
    pub(super) fn succeeded(&mut self, batch: Batch) {
        self.failing_since = None;
        for Entry { key, waiting, .. } in batch.entries {
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

    /// What was taken is not on record, and is tried again. What somebody waited for and waits for no more did not happen.
    pub(super) fn failed(&mut self, batch: Batch, now: Instant) {
        self.failing_since.get_or_insert(now);
        let mut pending: Vec<Entry> = batch.entries.into_iter().filter_map(Entry::still_wanted).collect();
        let newer = std::mem::take(&mut self.pending);
        let again: HashMap<Key, usize> =
            pending.iter().enumerate().map(|(position, entry)| (entry.key.clone(), position)).collect();
        for entry in newer {
            match again.get(&entry.key).and_then(|position| pending.get_mut(*position)) {
                Some(older) => {
                    older.count = older.count.saturating_add(entry.count);
                    older.waiting.extend(entry.waiting);
                }
                None => pending.push(entry),
            }
        }
        self.pending = pending;
        self.reindex();
        if let Some(lost) = batch.lost {
            self.lose(lost);
        }
    }

    /// What was taken, one event, is what the service takes from nobody: a number stands for it from now on. How much is newly
    /// lost by that.
    pub(super) fn refused(&mut self, batch: Batch, now: Instant) -> u64 {
        self.failing_since.get_or_insert(now);
        let mut count: u64 = 0;
        for Entry { key, count: some, at, .. } in batch.entries {
            // What somebody waited for did not happen.
            if !key.awaited {
                count = count.saturating_add(some);
                self.lose(Lost::new(key.subject.sandbox, some, at, now));
            }
        }
        if let Some(lost) = batch.lost {
            self.lose(lost.later(now));
        }
        count
    }

    fn lose(&mut self, lost: Lost) {
        self.lost = Some(match self.lost.take() {
            Some(other) => other.and(lost),
            None => lost,
        });
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

    /// How much waits of those that share what may wait with this one.
    fn waiting_with(&self, subject: &Subject) -> usize {
        let share = |entry: &&Entry| is_harness(&entry.key.subject) == is_harness(subject);
        // Nobody's share is full, whoever's it is.
        if self.pending.len() < MAX_PATHS { self.pending.len() } else { self.pending.iter().filter(share).count() }
    }

    fn may_list(&mut self, subject: &Subject, now: Instant) -> bool {
        let allowance = if is_harness(subject) { &mut self.of_harness } else { &mut self.of_sandboxes };
        allowance.take(now)
    }

    fn reindex(&mut self) {
        self.index = self.pending.iter().enumerate().map(|(position, entry)| (entry.key.clone(), position)).collect();
    }
}

/// How many refusals may be listed: many at first, then one a second, so that a program cannot fill a log.
#[derive(Debug, Default)]
struct Allowance {
    /// Those that were listed since it was full.
    listed: u32,
    since: Option<Instant>,
}

impl Allowance {
    /// Whether one more may be listed.
    fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let regained = now.saturating_duration_since(since).as_secs() / DENIAL_EVERY.as_secs();
        if regained > 0 {
            self.listed = self.listed.saturating_sub(u32::try_from(regained).unwrap_or(u32::MAX));
            self.since = Some(now);
        }
        let may = self.listed < DENIALS_AT_ONCE;
        if may {
            self.listed += 1;
        }
        may
    }
}

fn is_harness(subject: &Subject) -> bool {
    subject.sandbox.is_empty()
}

/// Of what is only counted.
fn unlisted(sandbox: Arc<str>) -> Subject {
    Subject { sandbox, host: NOT_LISTED.into(), port: 0, method: NOT_LISTED.into(), path_sha256: None }
}
