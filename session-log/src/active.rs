//! For how long a session ran, as the times of its status events say. Pure.

use jiff::{SignedDuration, Timestamp};
use longhand_protocol::event::{EventBody, Record};
use longhand_protocol::wire::SessionStatus;
use serde::{Deserialize, Serialize};

use crate::record::status_of;

/// For how long a session ran: from each `session.status_running` to the status after it. A fork begins anew, since it
/// shares the history and not the time that it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Active {
    /// Turns that have ended, in milliseconds.
    ended_ms: i64,
    /// Since when the turn goes on that has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
}

impl Active {
    /// With the turn that goes on, until `now`.
    #[must_use]
    pub fn total(&self, now: Timestamp) -> SignedDuration {
        let running = self.since.map_or(SignedDuration::ZERO, |since| now.duration_since(since));
        SignedDuration::from_millis(self.ended_ms).saturating_add(running.max(SignedDuration::ZERO))
    }

    /// Takes in the next record.
    pub(crate) fn take(&mut self, record: &Record) {
        if let Some(at) = record.event.processed_at {
            self.follow(&record.event.body, at);
        }
    }

    /// Takes in what was said at a time.
    pub(crate) fn follow(&mut self, body: &EventBody, at: Timestamp) {
        match status_of(body) {
            None => {}
            Some(SessionStatus::Running) => self.since = Some(self.since.unwrap_or(at)),
            Some(SessionStatus::Idle | SessionStatus::Rescheduling | SessionStatus::Terminated) => {
                let ended = self.total(at).as_millis();
                *self = Self { ended_ms: i64::try_from(ended).unwrap_or(i64::MAX), since: None };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};
    use longhand_protocol::event::{EventBody, StopReason};

    use super::Active;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn after(events: &[(EventBody, i64)]) -> Active {
        let mut active = Active::default();
        events.iter().for_each(|(body, second)| active.follow(body, at(*second)));
        active
    }

    #[test]
    fn it_is_the_time_between_running_and_the_next_status() {
        let (running, idle) =
            (EventBody::SessionStatusRunning {}, EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn });
        let turn =
            [(running.clone(), 10), (EventBody::AgentThinking {}, 12), (running.clone(), 13), (idle.clone(), 15)];
        assert_eq!(after(&[]).total(at(99)), SignedDuration::ZERO);
        assert_eq!(after(&turn[..3]).total(at(14)), SignedDuration::from_secs(4), "the turn goes on");
        assert_eq!(after(&turn).total(at(99)), SignedDuration::from_secs(5));
        let then = [(idle, 20), (running.clone(), 30), (EventBody::SessionStatusRescheduled {}, 31), (running, 40)];
        let active = after(&[&turn[..], &then].concat());
        assert_eq!(active.total(at(42)), SignedDuration::from_secs(8));
        assert_eq!(active.total(at(1)), SignedDuration::from_secs(6), "clocks of replicas differ");
    }
}
