//! A piece of work and the rules by which it changes. Pure.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use longhand_protocol::SessionId;
use longhand_protocol::wire::work::{LeaseState, WorkState};
use rand::Rng as _;
use serde::{Deserialize, Serialize};

/// What a first heartbeat expects.
pub const NO_HEARTBEAT: &str = "NO_HEARTBEAT";
/// For how long a worker has its work unless it asks for another time, in seconds.
pub const DEFAULT_TTL: u32 = 60;
/// The shortest and the longest time that a worker may ask for, in seconds.
pub const TTLS: std::ops::RangeInclusive<u32> = 10..=600;

const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
const ID_LENGTH: usize = 24;
const MOST_PAIRS: usize = 16;
const LONGEST_KEY: usize = 64;
const LONGEST_VALUE: usize = 512;

/// A piece of work: a session whose tools a worker shall run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkItem {
    /// Its identifier, `work_...`.
    pub id: String,
    /// The session.
    pub session: SessionId,
    /// Where it stands.
    pub state: WorkState,
    /// How often it was given to a worker. Who has an older attempt has lost it.
    pub attempt: u64,
    /// Who it was given to, by the name that the worker gave itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Pairs that workers keep with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// For how long a worker has it, in seconds.
    pub ttl_seconds: u32,
    /// When it was queued first.
    pub created_at: Timestamp,
    /// When it was given to a worker who has not acknowledged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<Timestamp>,
    /// When the worker said that it begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged_at: Option<Timestamp>,
    /// When the worker first said that it is at work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it last said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_heartbeat_at: Option<Timestamp>,
    /// Until when the worker has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leased_until: Option<Timestamp>,
    /// When it was asked to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_requested_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_at: Option<Timestamp>,
}

/// Why a piece of work did not change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The worker's view of the lease is not the one on record.
    #[error("the work was queued again or another worker has it: `expected_last_heartbeat` is not the last heartbeat")]
    Precondition(LeaseState),
    /// It is stopping or has ended.
    #[error("the work is {0:?} and takes no such change")]
    State(WorkState),
    /// Another worker has it.
    #[error("the work was queued again and given to another worker")]
    Lost,
    /// The pairs are too many or too long.
    #[error(
        "`metadata` must have at most {MOST_PAIRS} pairs, keys of 1 to {LONGEST_KEY} and values of at most {LONGEST_VALUE} characters"
    )]
    Metadata,
}

/// What a heartbeat gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// What the next one has to expect.
    pub last_heartbeat: Option<Timestamp>,
    /// Whether the worker still has the work.
    pub extended: bool,
}

impl WorkItem {
    /// Work for a session.
    #[must_use]
    pub fn new(session: SessionId, now: Timestamp) -> Self {
        let mut random = rand::rng();
        let letters = (0..ID_LENGTH).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]));
        Self {
            id: "work_".chars().chain(letters).collect(),
            session,
            state: WorkState::Queued,
            attempt: 0,
            worker: None,
            metadata: BTreeMap::new(),
            ttl_seconds: DEFAULT_TTL,
            created_at: now,
            taken_at: None,
            acknowledged_at: None,
            started_at: None,
            latest_heartbeat_at: None,
            leased_until: None,
            stop_requested_at: None,
            stopped_at: None,
        }
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.state == WorkState::Stopped
    }

    /// Whether it waits for a worker: nobody has it, or who took it has not acknowledged it within `reclaim`, or was not
    /// heard of for its time.
    #[must_use]
    pub fn waits(&self, now: Timestamp, reclaim: SignedDuration) -> bool {
        match self.state {
            WorkState::Queued => self.taken_at.is_none_or(|at| now.duration_since(at) >= reclaim),
            WorkState::Starting | WorkState::Active => self.is_overdue(now),
            WorkState::Stopping | WorkState::Stopped => false,
        }
    }

    /// Whether a worker has it and was not heard of for its time.
    #[must_use]
    pub fn is_overdue(&self, now: Timestamp) -> bool {
        self.leased_until.is_some_and(|until| until < now)
    }

    /// The attempt that serves it, if one does.
    #[must_use]
    pub fn served_by(&self, now: Timestamp) -> Option<u64> {
        let serving = matches!(self.state, WorkState::Starting | WorkState::Active | WorkState::Stopping);
        (serving && !self.is_overdue(now)).then_some(self.attempt)
    }

    /// Whether the worker of this attempt may still speak for it.
    #[must_use]
    pub fn admits(&self, attempt: u64) -> bool {
        self.attempt == attempt && !self.has_ended()
    }

    /// Ends what was asked to stop and whose worker is not heard of; whether it did.
    pub fn settle(&mut self, now: Timestamp) -> bool {
        let over = self.state == WorkState::Stopping && self.is_overdue(now);
        if over {
            self.end(now);
        }
        over
    }

    /// Gives it to a worker, who has to acknowledge it.
    pub fn take(&mut self, worker: Option<&str>, now: Timestamp) {
        self.state = WorkState::Queued;
        self.attempt = self.attempt.saturating_add(1);
        self.worker = worker.map(ToOwned::to_owned);
        self.taken_at = Some(now);
        self.ttl_seconds = DEFAULT_TTL;
        (self.acknowledged_at, self.latest_heartbeat_at, self.leased_until) = (None, None, None);
    }

    /// Its worker begins. Saying so again changes nothing.
    ///
    /// # Errors
    /// [`Refused::State`] when it is stopping or has ended, [`Refused::Lost`] when another worker has it.
    pub fn acknowledge(&mut self, attempt: Option<u64>, now: Timestamp) -> Result<(), Refused> {
        self.check_attempt(attempt)?;
        match self.state {
            WorkState::Queued => {
                self.state = WorkState::Starting;
                self.acknowledged_at = Some(now);
                self.lease(now);
                Ok(())
            }
            WorkState::Starting | WorkState::Active => Ok(()),
            WorkState::Stopping | WorkState::Stopped => Err(Refused::State(self.state)),
        }
    }

    /// Its worker is at work. `expected` is the last heartbeat that it knows of, or [`NO_HEARTBEAT`]; without, it is not
    /// compared. Where the work is stopping or has ended, nothing is compared and nothing is extended.
    ///
    /// # Errors
    /// [`Refused::Precondition`] when the work is not this worker's.
    pub fn heartbeat(
        &mut self,
        expected: Option<&str>,
        ttl_seconds: Option<u32>,
        attempt: Option<u64>,
        now: Timestamp,
    ) -> Result<Beat, Refused> {
        let known = self.latest_heartbeat_at;
        if matches!(self.state, WorkState::Stopping | WorkState::Stopped) {
            return Ok(Beat { last_heartbeat: known, extended: false });
        }
        let fits = match (expected, known) {
            (None, _) | (Some(NO_HEARTBEAT), None) => true,
            (Some(expected), Some(known)) => expected == known.to_string(),
            (Some(_), None) => false,
        };
        if !fits || self.state == WorkState::Queued || attempt.is_some_and(|attempt| attempt != self.attempt) {
            return Err(Refused::Precondition(self.lease_state()));
        }
        // Each heartbeat is another one, however fast they come and whatever the replicas' clocks say.
        let now = known.map_or(now, |known| now.max(known + SignedDuration::from_micros(1)));
        self.state = WorkState::Active;
        self.started_at.get_or_insert(now);
        self.latest_heartbeat_at = Some(now);
        self.ttl_seconds = ttl_seconds.unwrap_or(self.ttl_seconds).clamp(*TTLS.start(), *TTLS.end());
        self.lease(now);
        Ok(Beat { last_heartbeat: Some(now), extended: true })
    }

    /// Asks its worker to end, or ends it at once: by force, or when nobody has it.
    ///
    /// # Errors
    /// [`Refused::State`] when it has ended, [`Refused::Lost`] when another worker has it.
    pub fn stop(&mut self, force: bool, attempt: Option<u64>, now: Timestamp) -> Result<(), Refused> {
        if self.has_ended() {
            return Err(Refused::State(self.state));
        }
        self.check_attempt(attempt)?;
        self.stop_requested_at.get_or_insert(now);
        if force || self.state == WorkState::Queued {
            self.end(now);
        } else {
            self.state = WorkState::Stopping;
        }
        Ok(())
    }

    /// Changes pairs: a text sets, nothing removes.
    ///
    /// # Errors
    /// [`Refused::Metadata`] when there are too many or too long ones then.
    pub fn patch(&mut self, patch: &BTreeMap<String, Option<String>>) -> Result<(), Refused> {
        for (key, value) in patch {
            match value {
                Some(value) => self.metadata.insert(key.clone(), value.clone()),
                None => self.metadata.remove(key),
            };
        }
        let fits = |(key, value): (&String, &String)| {
            (1..=LONGEST_KEY).contains(&key.chars().count()) && value.chars().count() <= LONGEST_VALUE
        };
        if self.metadata.len() <= MOST_PAIRS && self.metadata.iter().all(fits) {
            Ok(())
        } else {
            Err(Refused::Metadata)
        }
    }

    /// The lease, as a worker is told that has lost it.
    #[must_use]
    pub fn lease_state(&self) -> LeaseState {
        LeaseState {
            last_heartbeat: self.latest_heartbeat_at.map(|at| at.to_string()),
            lease_extended: false,
            state: self.state,
            ttl_seconds: self.ttl_seconds,
        }
    }

    fn check_attempt(&self, attempt: Option<u64>) -> Result<(), Refused> {
        if attempt.is_none_or(|attempt| attempt == self.attempt) { Ok(()) } else { Err(Refused::Lost) }
    }

    fn lease(&mut self, now: Timestamp) {
        self.leased_until = Some(now.saturating_add(SignedDuration::from_secs(self.ttl_seconds.into())).unwrap_or(now));
    }

    fn end(&mut self, now: Timestamp) {
        self.state = WorkState::Stopped;
        self.stopped_at = Some(now);
        self.leased_until = None;
    }
}
