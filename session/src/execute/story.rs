//! What the log says of a tool call: what is to run, what the client has said to that, and whether it has stopped the turn since.

use std::convert::Infallible;

use futures::StreamExt as _;
use longhand_protocol::EventId;
use longhand_protocol::event::{EventBody, Verdict};
use tokio::time::sleep;

use longhand_session_log::StoreError;
use longhand_session_log::store::Query;

use super::ExecuteError;
use super::run::{Call, LOOK_AGAIN};

/// A call that is open is nearly always so near to the end of the log.
const WINDOW: u64 = 128;
/// One that was just put on record is so near: an answer has at most so many events.
const NEAR: usize = 48;

/// A call as the log tells of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Story {
    /// The event that wants it.
    pub(super) intent: EventBody,
    /// Its number.
    pub(super) seq: u64,
    /// What came after it.
    pub(super) since: Since,
    /// The number of the last event that this tells of.
    pub(super) end: u64,
}

/// What came after the intent of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Since {
    /// Whether it may run, if the client has said so; what it says later counts for nothing.
    pub(super) answer: Option<Answer>,
    /// Whether the client has stopped the turn.
    pub(super) interrupted: bool,
    /// How often its sandbox was lost under it and it was to be run again.
    pub(super) retried: u32,
}

/// What a client has said to a call that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It may run.
    Allow,
    /// It may not, perhaps with a reason for the model.
    Deny(Option<String>),
}

impl Since {
    /// Takes the event after those that were taken.
    pub(super) fn take(&mut self, call: &EventId, body: &EventBody) {
        match body {
            EventBody::UserInterrupt { .. } => self.interrupted = true,
            EventBody::ToolRetried { tool_use_id, .. } if tool_use_id == call => {
                self.retried = self.retried.saturating_add(1);
            }
            EventBody::UserToolConfirmation { tool_use_id, result, deny_message }
                if tool_use_id == call && self.answer.is_none() =>
            {
                self.answer = Some(match result {
                    Verdict::Allow => Answer::Allow,
                    Verdict::Deny => Answer::Deny(deny_message.clone()),
                });
            }
            _ => {}
        }
    }

    /// What comes after all that was taken.
    pub(super) fn followed_by(self, later: Self) -> Self {
        Self {
            answer: self.answer.or(later.answer),
            interrupted: self.interrupted || later.interrupted,
            retried: self.retried.saturating_add(later.retried),
        }
    }
}

impl Call<'_> {
    /// What the end of the log says of the call, if that is all.
    pub(super) async fn near_the_end(&self) -> Result<Option<Story>, StoreError> {
        let slice = self.executor.store.slice(&self.session, &Query::last(NEAR)).await?;
        let Some(end) = slice.records.first().map(|record| record.seq) else { return Ok(None) };
        let Some(at) = slice.records.iter().position(|record| record.event.id == self.call) else { return Ok(None) };
        let mut records = slice.records;
        let mut since = Since::default();
        let later = records.split_off(at);
        records.iter().rev().for_each(|record| since.take(&self.call, &record.event.body));
        let intent = later.into_iter().next();
        Ok(intent.map(|record| Story { intent: record.event.body, seq: record.seq, since, end }))
    }

    /// Reads the log from its end, which is `head`, back to the intent.
    pub(super) async fn story(&self, head: u64) -> Result<Story, ExecuteError> {
        let mut end = head;
        let mut later = Since::default();
        while end > 0 {
            let begin = end.saturating_sub(WINDOW);
            let mut after = begin;
            let mut found = None;
            let mut since = Since::default();
            while after < end {
                let slice = self.executor.store.read(&self.session, after, window(end - after)).await?;
                let Some(last) = slice.records.last() else { break };
                after = last.seq;
                for record in slice.records {
                    if record.event.id == self.call {
                        found = Some((record.seq, record.event.body));
                        since = Since::default();
                    } else {
                        since.take(&self.call, &record.event.body);
                    }
                }
            }
            later = since.followed_by(later);
            if let Some((seq, intent)) = found {
                return Ok(Story { intent, seq, since: later, end: head });
            }
            end = begin;
        }
        Err(ExecuteError::NotACall(self.call.clone()))
    }

    /// Says when the client stops the turn after the event `after`. Never returns.
    pub(super) async fn watch_interrupts(&self, mut after: u64) -> Infallible {
        loop {
            if let Ok(mut tail) = self.executor.store.tail(&self.session, after).await {
                while let Some(Ok(record)) = tail.next().await {
                    after = record.seq;
                    if matches!(record.event.body, EventBody::UserInterrupt { .. }) {
                        self.interrupted.cancel();
                    }
                }
            }
            // The store is away, or the session is gone: whoever sees the call through finds that out.
            sleep(LOOK_AGAIN).await;
        }
    }
}

fn window(events: u64) -> usize {
    usize::try_from(events).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use longhand_protocol::EventId;
    use longhand_protocol::event::{EventBody, Verdict};

    use super::{Answer, Since};

    fn confirmation(call: &EventId, result: Verdict, message: Option<&str>) -> EventBody {
        let deny_message = message.map(ToOwned::to_owned);
        EventBody::UserToolConfirmation { tool_use_id: call.clone(), result, deny_message }
    }

    fn since(call: &EventId, bodies: &[EventBody]) -> Since {
        let mut since = Since::default();
        bodies.iter().for_each(|body| since.take(call, body));
        since
    }

    #[test]
    fn the_first_word_on_a_call_counts() {
        let (call, other) = (EventId::generate(), EventId::generate());
        let said = [
            EventBody::SessionStatusRunning {},
            confirmation(&other, Verdict::Allow, None),
            confirmation(&call, Verdict::Deny, Some("no")),
            confirmation(&call, Verdict::Allow, None),
        ];
        let denied = Some(Answer::Deny(Some("no".to_owned())));
        assert_eq!(since(&call, &said), Since { answer: denied.clone(), ..Since::default() });
        // Wherever the log is cut in two.
        for at in 0..=said.len() {
            let (early, late) = said.split_at(at);
            assert_eq!(since(&call, early).followed_by(since(&call, late)).answer, denied);
        }
    }

    #[test]
    fn an_interrupt_is_for_every_call() {
        let call = EventId::generate();
        let interrupt = EventBody::UserInterrupt { session_thread_id: None };
        assert!(since(&call, &[interrupt]).interrupted);
        assert!(!since(&call, &[confirmation(&call, Verdict::Allow, None)]).interrupted);
    }
}
