//! How events become records: numbering, the hash chain, and what the head keeps of them.

use jiff::Timestamp;
use longhand_protocol::event::{Event, EventBody, NewEvent, Record, Usage};
use longhand_protocol::wire::{Money, SessionStatus};
use longhand_protocol::{EventId, SessionId};
use serde::Serialize;

use crate::active::Active;
use crate::caps::Size;
use crate::cut::Cut;
use crate::objects::payload;
use crate::store::{Result, StoreError};

/// The end of a log, and what was last said of status and usage.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Head {
    /// The epoch of the last claim: so one guard fences a brain and finds the end.
    pub(crate) epoch: u64,
    /// The last sequence number; 0 while the log is empty.
    pub(crate) seq: u64,
    /// Hex SHA-256 of the last record's bytes; empty while there is none.
    pub(crate) hash: String,
    /// As the last status event says.
    pub(crate) status: Option<SessionStatus>,
    /// As the last usage event says.
    pub(crate) usage: Usage,
    /// What that costs, as the same event says.
    pub(crate) list_cost: Option<Money>,
    /// For how long the session ran.
    pub(crate) active: Active,
    /// When the last record was made, or the session.
    pub(crate) updated_at: Timestamp,
    /// When the session was archived.
    pub(crate) archived_at: Option<Timestamp>,
    /// The last record that is another session's; 0 when there is none.
    pub(crate) inherited: u64,
    /// The bytes of the session's own records, with those of large ones in the object store.
    pub(crate) bytes: u64,
    /// The log says that it comes near to its limit.
    pub(crate) warned: bool,
}

/// A record and its bytes as they are stored, which the next record's `prev_hash` covers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    pub(crate) record: Record,
    pub(crate) bytes: Vec<u8>,
}

impl Head {
    /// The head of an empty log.
    pub(crate) fn empty(created_at: Timestamp) -> Self {
        Self {
            epoch: 0,
            seq: 0,
            hash: String::new(),
            status: None,
            usage: Usage::default(),
            list_cost: None,
            active: Active::default(),
            updated_at: created_at,
            archived_at: None,
            inherited: 0,
            bytes: 0,
            warned: false,
        }
    }

    /// What the session's own log takes.
    pub(crate) fn size(&self) -> Size {
        Size { events: self.seq.saturating_sub(self.inherited), bytes: self.bytes }
    }

    /// Numbers `events` after this head and chains them; `self` becomes the head after them.
    ///
    /// Time never runs backwards in a log, whatever the replicas' clocks say.
    pub(crate) fn extend(&mut self, epoch: u64, events: Vec<NewEvent>, now: Timestamp) -> Result<Vec<Stored>> {
        let now = to_millis(now).max(self.updated_at);
        events.into_iter().map(|event| self.push(epoch, event, now)).collect()
    }

    /// The head of a history that ends with this record and goes on elsewhere.
    pub(crate) fn at(record: &Record, bytes: &[u8], cut: &Cut) -> Self {
        Self {
            epoch: 0,
            seq: record.seq,
            hash: hash(bytes),
            status: cut.status(),
            usage: cut.usage(),
            list_cost: cut.list_cost(),
            active: Active::default(),
            updated_at: record.event.processed_at.unwrap_or_default(),
            archived_at: None,
            inherited: record.seq,
            bytes: 0,
            warned: false,
        }
    }

    /// Ends the session, which the log says once, by an event of this identifier.
    pub(crate) fn archive(&mut self, id: &EventId, now: Timestamp) -> Result<Vec<Stored>> {
        let ended = self.status == Some(SessionStatus::Terminated);
        let terminated = (!ended).then(|| NewEvent { id: id.clone(), body: EventBody::SessionStatusTerminated {} });
        let stored = self.extend(0, terminated.into_iter().collect(), now)?;
        self.archived_at = Some(to_millis(now).max(self.updated_at));
        Ok(stored)
    }

    fn push(&mut self, epoch: u64, event: NewEvent, now: Timestamp) -> Result<Stored> {
        let seq = self.seq.saturating_add(1);
        let record = Record {
            seq,
            epoch,
            prev_hash: self.hash.clone(),
            event: Event { id: event.id, body: event.body, processed_at: Some(now) },
        };
        let bytes = encode(&record)?;
        self.seq = seq;
        self.hash = hash(&bytes);
        self.bytes = self.bytes.saturating_add(stored_bytes(&record, &bytes));
        self.updated_at = now;
        self.active.take(&record);
        if let Some(status) = status_of(&record.event.body) {
            self.status = Some(status);
        }
        match &record.event.body {
            EventBody::SessionUsage { usage } => {
                self.usage = usage.tokens;
                self.list_cost.clone_from(&usage.list_cost);
            }
            EventBody::SessionNearLimit { .. } => self.warned = true,
            _ => {}
        }
        Ok(Stored { record, bytes })
    }

    /// An error unless the session rests: no turn is open, none is wanted, and another can be.
    pub(crate) fn check_rest(&self, id: &SessionId, wake: bool) -> Result<()> {
        match self.shown_status(wake) {
            SessionStatus::Idle => Ok(()),
            SessionStatus::Terminated => Err(StoreError::Ended(id.clone())),
            SessionStatus::Running | SessionStatus::Rescheduling => Err(StoreError::AtWork(id.clone())),
        }
    }

    /// The status that the session shows.
    pub(crate) fn shown_status(&self, wake: bool) -> SessionStatus {
        match self.status {
            Some(status @ (SessionStatus::Rescheduling | SessionStatus::Terminated)) => status,
            _ if wake => SessionStatus::Running,
            status => status.unwrap_or(SessionStatus::Idle),
        }
    }
}

/// What clients see of a time.
fn to_millis(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

/// What a record takes, with what it refers to.
pub(crate) fn stored_bytes(record: &Record, bytes: &[u8]) -> u64 {
    let apart = payload::reference(&record.event.body).map_or(0, |reference| reference.bytes);
    u64::try_from(bytes.len()).unwrap_or(u64::MAX).saturating_add(apart)
}

/// The status that an event announces.
pub(crate) fn status_of(body: &EventBody) -> Option<SessionStatus> {
    match body {
        EventBody::SessionStatusRunning {} => Some(SessionStatus::Running),
        EventBody::SessionStatusIdle { .. } => Some(SessionStatus::Idle),
        EventBody::SessionStatusRescheduled {} => Some(SessionStatus::Rescheduling),
        EventBody::SessionStatusTerminated {} => Some(SessionStatus::Terminated),
        _ => None,
    }
}

/// Whether the identifier of a brain's event is remembered apart from the log: a call is answered by its identifier, so
/// it may not be opened twice.
pub(crate) fn is_remembered(body: &EventBody) -> bool {
    // By its name: the body of a large one is elsewhere.
    matches!(body.kind(), "agent.tool_use" | "agent.custom_tool_use")
}

/// Whether a stored record is what this author wanted to append under this identifier; a body that is not given is that
/// of an event that was queued.
pub(crate) fn is_repeated(stored: &Record, epoch: u64, id: &EventId, body: Option<&EventBody>) -> bool {
    stored.event.id == *id && stored.epoch == epoch && body.is_none_or(|body| same_body(&stored.event.body, body))
}

/// Which of `events` is the result of `call`, counted from 0.
pub(crate) fn result_of(call: &EventId, events: &[NewEvent]) -> Option<usize> {
    events.iter().position(|event| payload::answered(&event.body).as_ref() == Some(call))
}

/// What most records take, so that their bytes do not move while they are written.
const USUAL_BYTES: usize = 1_024;

/// The bytes that a value is stored as.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    match serde_json::to_writer(&mut bytes, value) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(StoreError::TooLarge(format!("it cannot be written as JSON: {error}"))),
    }
}

/// Hex SHA-256.
pub(crate) fn hash(bytes: &[u8]) -> String {
    longhand_protocol::export::sha256_hex(bytes)
}

/// Whether an event that is stored is the one that is given, as it would be after a round trip.
pub(crate) fn same_body(stored: &EventBody, given: &EventBody) -> bool {
    stored == given
        || serde_json::to_vec(given)
            .and_then(|bytes| serde_json::from_slice::<EventBody>(&bytes))
            .is_ok_and(|given| *stored == given)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use longhand_protocol::event::{EventBody, NewEvent, StopReason, Usage};
    use longhand_protocol::wire::SessionStatus;
    use rstest::rstest;
    use serde_json::json;

    use super::{Head, hash, payload, same_body};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn records_are_numbered_and_chained() {
        let mut head = Head::empty(at(1));
        let events = vec![
            NewEvent::new(EventBody::SessionStatusRunning {}),
            NewEvent::new(EventBody::SessionUsage { usage: Usage { input_tokens: 7, ..Usage::default() }.into() }),
        ];
        let stored = head.extend(3, events, at(2)).unwrap();
        assert_eq!(stored.iter().map(|stored| stored.record.seq).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(stored[0].record.prev_hash, "");
        assert_eq!(stored[1].record.prev_hash, hash(&stored[0].bytes));
        assert_eq!(head.hash, hash(&stored[1].bytes));
        assert_eq!((head.seq, head.usage.input_tokens, head.updated_at), (2, 7, at(2)));
        assert!(stored.iter().all(|stored| stored.record.epoch == 3));
    }

    #[test]
    fn what_is_stored_counts_also_what_is_apart() {
        let mut head = Head::empty(at(1));
        let text = "x".repeat(payload::INLINE_BYTES);
        let large = NewEvent::new(EventBody::AgentMessage { content: vec![json!({"type": "text", "text": text})] });
        let packed = payload::pack(&large).unwrap().unwrap();
        let stored = head.extend(0, vec![packed.event], at(1)).unwrap();
        let apart = u64::try_from(packed.payload.len()).unwrap();
        assert_eq!(head.bytes, u64::try_from(stored[0].bytes.len()).unwrap() + apart);
        let own = Head { inherited: 1, ..head };
        assert_eq!(own.size().events, 0);
    }

    #[test]
    fn time_never_runs_backwards() {
        let mut head = Head::empty(at(10));
        let stored =
            head.extend(0, vec![NewEvent::new(EventBody::UserInterrupt { session_thread_id: None })], at(5)).unwrap();
        assert_eq!(stored[0].record.event.processed_at, Some(at(10)));
    }

    #[test]
    fn the_hash_is_hex_sha256() {
        assert_eq!(hash(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[rstest]
    #[case(None, false, SessionStatus::Idle)]
    #[case(None, true, SessionStatus::Running)]
    #[case(Some(EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn }), false, SessionStatus::Idle)]
    #[case(Some(EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn }), true, SessionStatus::Running)]
    #[case(Some(EventBody::SessionStatusRescheduled {}), true, SessionStatus::Rescheduling)]
    #[case(Some(EventBody::SessionStatusTerminated {}), true, SessionStatus::Terminated)]
    fn the_status_follows_events_and_wake(
        #[case] last: Option<EventBody>,
        #[case] wake: bool,
        #[case] shown: SessionStatus,
    ) {
        let mut head = Head::empty(at(1));
        head.extend(0, last.into_iter().map(NewEvent::new).collect(), at(1)).unwrap();
        assert_eq!(head.shown_status(wake), shown);
    }

    #[test]
    fn a_body_is_the_same_after_a_round_trip() {
        let typed = EventBody::UserInterrupt { session_thread_id: None };
        let fields = json!({"a": 1}).as_object().unwrap().clone();
        let untyped = EventBody::Other { kind: "user.interrupt".into(), fields: serde_json::Map::new() };
        assert!(same_body(&typed, &untyped));
        assert!(!same_body(&typed, &EventBody::Other { kind: "user.interrupted".into(), fields }));
    }
}
