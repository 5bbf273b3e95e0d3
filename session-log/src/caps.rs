//! How large a session's log may become, and what still goes into one that is full. Pure.
//!
//! A limit counts what is the session's own. A fork begins with nothing: what it shares is counted where it is kept.
//!
//! At its limit a log takes nothing new: no events of clients, and no model request. What was begun comes to an end. An
//! answer of the model that was on its way still has room in a reserve above the limit; what closes something (a result, an
//! error, the end of a turn or of the session) or says what became of it is always taken. So a session that has reached its
//! limit ends its turn and is idle, and its log is never more than a little longer than the limit.

use longhand_protocol::event::{EventBody, NewEvent};
use longhand_protocol::{EventId, SessionId};
use sha2::{Digest as _, Sha256};

use crate::objects::payload;
use crate::record::{Head, encode};
use crate::store::{Capped, Result, StoreError};

/// Events that a log takes above its limit for what was begun below it.
pub const RESERVE_EVENTS: u64 = 256;
/// Bytes that a log takes above its limit for what was begun below it.
pub const RESERVE_BYTES: u64 = 64 * 1024 * 1024;

/// What a session's own log takes, without what it shares with the session that it was forked from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// The number of its events.
    pub events: u64,
    /// The bytes that they are stored in, with those of large ones in the object store.
    pub bytes: u64,
}

/// How large a session's own log may become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// The most events; 0 is no limit.
    pub events: u64,
    /// The most bytes; 0 is no limit.
    pub bytes: u64,
    /// The log says that it comes near to a limit from this share of it on, in percent; 0 is never.
    pub warning_percent: u64,
}

/// A limit that a log comes near to, or has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Near {
    /// What is limited.
    pub what: Capped,
    /// How many there are.
    pub used: u64,
    /// How many there may be.
    pub limit: u64,
}

impl Near {
    /// Whether nothing new is taken any more.
    #[must_use]
    pub const fn is_reached(&self) -> bool {
        self.used >= self.limit
    }
}

/// Whether an event enters a log that is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    /// It begins something: not above the limit.
    Begins,
    /// It is a part of what was begun: not above the reserve.
    GoesOn,
    /// It closes something, or says what became of it: always.
    Always,
}

/// By its type, since the body of a large event is elsewhere.
fn admission(kind: &str) -> Admission {
    match kind {
        // An update of the session is a client's wish.
        "span.model_request_start" | "session.updated" => Admission::Begins,
        "agent.tool_result" | "agent.mcp_tool_result" | "user.tool_result" | "span.model_request_end" => {
            Admission::Always
        }
        kind => {
            let told = ["session.", "x.session.", "x.sandbox.", "x.tool.", "x.context."];
            if told.iter().any(|family| kind.starts_with(family)) { Admission::Always } else { Admission::GoesOn }
        }
    }
}

impl Caps {
    /// Whether nothing is limited.
    #[must_use]
    pub const fn are_none(&self) -> bool {
        self.events == 0 && self.bytes == 0
    }

    /// The limit that a log of this size comes near to; of two the one that more is used of.
    #[must_use]
    pub fn near(&self, size: Size) -> Option<Near> {
        let share = |near: &Near| u128::from(near.used).saturating_mul(1 << 32) / u128::from(near.limit.max(1));
        let is_near = |near: &Near| {
            let (used, limit) = (u128::from(near.used), u128::from(near.limit));
            let warned = self.warning_percent > 0 && used * 100 >= limit * u128::from(self.warning_percent);
            near.limit > 0 && (warned || near.is_reached())
        };
        self.each(size).into_iter().filter(is_near).max_by_key(share)
    }

    /// The event by which a log with this head says that it comes near to a limit, if it has not said so.
    pub(crate) fn warning(&self, id: &SessionId, head: &Head) -> Option<NewEvent> {
        let near = self.near(head.size()).filter(|_| self.warning_percent > 0 && !head.warned)?;
        let Near { what, used, limit } = near;
        let id = EventId::from_digest(&Sha256::digest(format!("near_limit/{id}")).into());
        Some(NewEvent { id, body: EventBody::SessionNearLimit { what, used, limit } })
    }

    fn each(&self, size: Size) -> [Near; 2] {
        [
            Near { what: Capped::Events, used: size.events, limit: self.events },
            Near { what: Capped::Bytes, used: size.bytes, limit: self.bytes },
        ]
    }

    /// The first limit that a log of this size exceeds by more than these reserves.
    fn check(&self, id: &SessionId, size: Size, reserves: [u64; 2]) -> Result<()> {
        let exceeded =
            |(near, reserve): &(Near, u64)| near.limit > 0 && near.used > near.limit.saturating_add(*reserve);
        match self.each(size).into_iter().zip(reserves).find(exceeded) {
            None => Ok(()),
            Some((Near { what, limit, .. }, _)) => Err(StoreError::LimitReached { session: id.clone(), what, limit }),
        }
    }

    /// Whether a log that would have this head after `events` were appended takes them. Those that were promoted with them
    /// were counted when they were queued.
    pub(crate) fn check_append(&self, id: &SessionId, after: &Head, events: &[NewEvent]) -> Result<()> {
        let any = |wanted| events.iter().any(|event| admission(event.body.kind()) == wanted);
        if any(Admission::Begins) {
            self.check(id, after.size(), [0, 0])?;
        }
        if any(Admission::GoesOn) {
            self.check(id, after.size(), [RESERVE_EVENTS, RESERVE_BYTES])?;
        }
        Ok(())
    }

    /// Whether events of a client are queued for a log with this head, for which `queued` are waiting already. An interrupt
    /// ends what runs, so that it is taken while the session is awake.
    pub(crate) fn check_queue(
        &self,
        id: &SessionId,
        head: &Head,
        queued: usize,
        awake: bool,
        events: &[NewEvent],
    ) -> Result<()> {
        if self.are_none() || awake && events.iter().all(|event| event.body.kind() == "user.interrupt") {
            return Ok(());
        }
        let Size { events: own, bytes } = head.size();
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let mut size = Size { events: own.saturating_add(count(queued)).saturating_add(count(events.len())), bytes };
        for event in events {
            let apart = payload::reference(&event.body).map_or(0, |reference| reference.bytes);
            size.bytes = size.bytes.saturating_add(count(encode(event)?.len())).saturating_add(apart);
        }
        self.check(id, size, [0, 0])
    }

    /// Whether a log that was kept elsewhere may be kept here. It may have used its reserve there.
    pub(crate) fn check_import(&self, id: &SessionId, size: Size) -> Result<()> {
        self.check(id, size, [RESERVE_EVENTS * 2, RESERVE_BYTES * 2])
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use longhand_protocol::event::{EventBody, NewEvent};
    use rstest::rstest;
    use serde_json::{Map, json};

    use super::{Caps, Near, RESERVE_BYTES, RESERVE_EVENTS, Size};
    use crate::record::Head;
    use crate::store::{Capped, Result, StoreError};

    const CAPS: Caps = Caps { events: 100, bytes: 10_000, warning_percent: 80 };

    fn head(events: u64, bytes: u64) -> Head {
        Head { seq: 7 + events, inherited: 7, bytes, ..Head::empty(Timestamp::UNIX_EPOCH) }
    }

    fn of(kind: &str) -> NewEvent {
        let fields = Map::from_iter([("text".to_owned(), json!("x"))]);
        NewEvent::new(EventBody::Other { kind: kind.to_owned(), fields })
    }

    fn reached(outcome: &Result<()>) -> Option<Capped> {
        match outcome {
            Ok(()) => None,
            Err(StoreError::LimitReached { what, .. }) => Some(*what),
            Err(other) => panic!("{other}"),
        }
    }

    #[rstest]
    #[case("span.model_request_start", 0)]
    #[case("session.updated", 0)]
    #[case("agent.message", RESERVE_EVENTS)]
    #[case("agent.tool_use", RESERVE_EVENTS)]
    #[case("agent.custom_tool_use", RESERVE_EVENTS)]
    #[case("x.model_response", RESERVE_EVENTS)]
    #[case("of.tomorrow", RESERVE_EVENTS)]
    #[case("agent.tool_result", u64::MAX)]
    #[case("user.tool_result", u64::MAX)]
    #[case("span.model_request_end", u64::MAX)]
    #[case("session.error", u64::MAX)]
    #[case("session.usage", u64::MAX)]
    #[case("session.status_idle", u64::MAX)]
    #[case("session.status_running", u64::MAX)]
    #[case("session.status_terminated", u64::MAX)]
    #[case("x.session.woken", u64::MAX)]
    #[case("x.sandbox.ready", u64::MAX)]
    #[case("x.tool.outcome_unknown", u64::MAX)]
    fn what_ends_something_is_taken_above_the_limit(#[case] kind: &str, #[case] reserve: u64) {
        let id = "sesn_1".parse().unwrap();
        let last = 100_u64.saturating_add(reserve).min(1_000_000);
        assert_eq!(reached(&CAPS.check_append(&id, &head(last, 0), &[of(kind)])), None);
        if reserve < u64::MAX {
            let refused = CAPS.check_append(&id, &head(last + 1, 0), &[of("session.error"), of(kind)]);
            assert_eq!(reached(&refused), Some(Capped::Events));
        }
    }

    #[test]
    fn bytes_have_their_own_limit() {
        let id = "sesn_1".parse().unwrap();
        let begins = [of("span.model_request_start")];
        assert_eq!(reached(&CAPS.check_append(&id, &head(1, 10_000), &begins)), None);
        assert_eq!(reached(&CAPS.check_append(&id, &head(1, 10_001), &begins)), Some(Capped::Bytes));
        let message = [of("agent.message")];
        assert_eq!(reached(&CAPS.check_append(&id, &head(1, 10_000 + RESERVE_BYTES), &message)), None);
        assert_eq!(reached(&CAPS.check_append(&id, &head(1, 10_001 + RESERVE_BYTES), &message)), Some(Capped::Bytes));
        assert_eq!(reached(&Caps::default().check_append(&id, &head(1 << 40, 1 << 60), &message)), None);
    }

    #[rstest]
    #[case(97, 0, 3, None)]
    #[case(97, 1, 3, Some(Capped::Events))]
    #[case(98, 0, 3, Some(Capped::Events))]
    #[case(200, 0, 1, Some(Capped::Events))]
    fn what_is_queued_counts(#[case] own: u64, #[case] queued: usize, #[case] new: usize, #[case] why: Option<Capped>) {
        let events = vec![of("user.message"); new];
        let refused = CAPS.check_queue(&"sesn_1".parse().unwrap(), &head(own, 0), queued, true, &events);
        assert_eq!(reached(&refused), why);
    }

    #[test]
    fn large_messages_count_with_what_is_apart() {
        let id = "sesn_1".parse().unwrap();
        let event = |bytes: usize| {
            let text = "x".repeat(bytes);
            NewEvent::new(EventBody::UserMessage { content: vec![json!({"type": "text", "text": text})] })
        };
        let large = crate::objects::payload::pack(&event(70_000)).unwrap().unwrap().event;
        assert_eq!(reached(&CAPS.check_queue(&id, &head(1, 0), 0, true, &[event(100)])), None);
        assert_eq!(reached(&CAPS.check_queue(&id, &head(1, 0), 0, true, &[large])), Some(Capped::Bytes));
        assert_eq!(reached(&CAPS.check_queue(&id, &head(1, 9_950), 0, true, &[event(100)])), Some(Capped::Bytes));
    }

    #[test]
    fn what_runs_can_be_interrupted() {
        let id = "sesn_1".parse().unwrap();
        let interrupt = [of("user.interrupt")];
        assert_eq!(reached(&CAPS.check_queue(&id, &head(500, 0), 0, true, &interrupt)), None);
        assert_eq!(reached(&CAPS.check_queue(&id, &head(500, 0), 0, false, &interrupt)), Some(Capped::Events));
        let both = [of("user.interrupt"), of("user.message")];
        assert_eq!(reached(&CAPS.check_queue(&id, &head(500, 0), 0, true, &both)), Some(Capped::Events));
    }

    #[rstest]
    #[case(79, 0, None)]
    #[case(80, 0, Some((Capped::Events, false)))]
    #[case(80, 9_000, Some((Capped::Bytes, false)))]
    #[case(100, 9_000, Some((Capped::Events, true)))]
    #[case(0, 12_000, Some((Capped::Bytes, true)))]
    fn the_limit_that_is_nearest_is_named(
        #[case] events: u64,
        #[case] bytes: u64,
        #[case] expected: Option<(Capped, bool)>,
    ) {
        let near = CAPS.near(Size { events, bytes });
        assert_eq!(near.map(|near: Near| (near.what, near.is_reached())), expected);
    }

    #[test]
    fn no_limit_is_near_to_nothing() {
        assert_eq!(Caps::default().near(Size { events: u64::MAX, bytes: u64::MAX }), None);
        let silent = Caps { warning_percent: 0, ..CAPS };
        assert_eq!(silent.near(Size { events: 99, bytes: 0 }), None);
        assert!(silent.near(Size { events: 100, bytes: 0 }).unwrap().is_reached());
    }
}
