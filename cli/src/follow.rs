//! Following a session: its events as they happen, and whether it is done.

use futures::StreamExt as _;
use jiff::tz::TimeZone;
use longhand_protocol::client::sse::{StreamItem, StreamOptions};
use longhand_protocol::client::wire::EventQuery;
use longhand_protocol::event::{EventBody, RetryStatus};
use longhand_protocol::wire::{NumberedEvent, Order, SessionStatus};
use longhand_protocol::{EventId, SessionId, client};

use crate::args::{Format, View};
use crate::error::Result;
use crate::output;
use crate::render;
use crate::service::Service;

/// The types that a view asks for: none means all but Longhand's own.
#[must_use]
pub fn types(view: View) -> Vec<String> {
    if view.all { vec!["*".to_owned(), "x.*".to_owned()] } else { Vec::new() }
}

/// Writes an event as the view wants it.
///
/// # Errors
/// When standard output is closed or full.
pub fn show(event: &NumberedEvent, view: View) -> Result<()> {
    match view.output {
        Format::Json => output::json(event),
        Format::Text => output::line(&render::event(event, &TimeZone::system())),
    }
}

/// Shows the log after `after` as it is now.
///
/// # Errors
/// When the session service refuses or is away.
pub async fn history(service: &mut Service, session: &SessionId, after: u64, view: View) -> Result<()> {
    let mut query =
        EventQuery { types: types(view), after_seq: Some(after), include_seq: true, ..EventQuery::default() };
    let client = service.client().await?;
    loop {
        let page = client.list_events(session, &query).await.map_err(|error| service.explain(error))?;
        for event in &page.data {
            show(event, view)?;
        }
        match page.next_page {
            Some(next) => query.page = Some(next),
            None => return Ok(()),
        }
    }
}

/// The newest sequence number of the log, 0 if it is empty. Queued messages, which have none yet, come before it in the list.
///
/// # Errors
/// When the session service refuses or is away.
pub async fn newest(service: &mut Service, session: &SessionId) -> Result<u64> {
    let mut query = EventQuery { order: Order::Desc, limit: Some(10), include_seq: true, ..EventQuery::default() };
    let client = service.client().await?;
    loop {
        let page = client.list_events(session, &query).await.map_err(|error| service.explain(error))?;
        match (page.data.iter().find_map(|event| event.seq), page.next_page) {
            (Some(seq), _) => return Ok(seq),
            (None, Some(next)) => query.page = Some(next),
            (None, None) => return Ok(0),
        }
    }
}

/// How a followed turn ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The session is idle, or waits for the client.
    Idle,
    /// The turn failed for good.
    Failed,
}

/// What the events say so far.
#[derive(Debug, Default)]
pub struct Progress {
    waits_for: Option<EventId>,
    failed: bool,
}

/// What an event means for who follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to come.
    Working,
    /// This may be the end; the service knows.
    MaybeIdle,
    /// This is the end.
    Terminated,
}

impl Progress {
    /// Nothing seen yet; idle means nothing before the event `waits_for`.
    #[must_use]
    pub const fn new(waits_for: Option<EventId>) -> Self {
        Self { waits_for, failed: false }
    }

    /// Takes in the next event.
    pub fn observe(&mut self, id: &EventId, body: &EventBody) -> Step {
        if self.waits_for.as_ref() == Some(id) {
            self.waits_for = None;
        }
        match body {
            EventBody::SessionStatusRunning {} => self.failed = false,
            // The turn goes on without the server.
            EventBody::SessionError { error } if error.kind.is_partial() => {}
            EventBody::SessionError { error } => self.failed = error.retry_status != RetryStatus::Retrying,
            EventBody::SessionStatusTerminated {} => return Step::Terminated,
            EventBody::SessionStatusIdle { .. } if self.waits_for.is_none() => return Step::MaybeIdle,
            _ => {}
        }
        Step::Working
    }

    /// How it ended, if this was the end.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        if self.failed { Outcome::Failed } else { Outcome::Idle }
    }
}

/// When following ends.
pub trait Until {
    /// Whether to stop after this event.
    fn is_last(
        &mut self,
        service: &mut Service,
        event: &NumberedEvent,
    ) -> impl Future<Output = Result<Option<Outcome>>>;
}

/// Never.
pub struct Forever;

impl Until for Forever {
    async fn is_last(&mut self, _: &mut Service, _: &NumberedEvent) -> Result<Option<Outcome>> {
        Ok(None)
    }
}

/// When the session has nothing left to do, and `delivered` says that nothing is on its way to it.
pub struct Idle<D> {
    /// The session.
    pub session: SessionId,
    /// What was seen so far.
    pub progress: Progress,
    /// Whether all input has arrived.
    pub delivered: D,
}

impl<D: AsyncFn() -> Result<bool>> Until for Idle<D> {
    async fn is_last(&mut self, service: &mut Service, event: &NumberedEvent) -> Result<Option<Outcome>> {
        match self.progress.observe(&event.event.id, &event.event.body) {
            Step::Working => Ok(None),
            Step::Terminated => Ok(Some(Outcome::Failed)),
            Step::MaybeIdle => {
                let at_rest = (self.delivered)().await? && self.is_at_rest(service, event.seq).await?;
                Ok(at_rest.then(|| self.progress.outcome()))
            }
        }
    }
}

impl<D> Idle<D> {
    /// Idle, and the event `seq` the last that anyone would see.
    async fn is_at_rest(&self, service: &mut Service, seq: Option<u64>) -> Result<bool> {
        let client = service.client().await?;
        let state = client.session(&self.session).await.map_err(|error| service.explain(error))?;
        Ok(state.status == SessionStatus::Idle && seq >= Some(newest(service, &self.session).await?))
    }
}

/// Shows events after `position` as they happen, until `until` says so. A broken connection is taken up again, with a new token if
/// the old one has expired.
///
/// # Errors
/// When the session service refuses, or is away for long.
pub async fn follow(
    service: &mut Service,
    session: &SessionId,
    mut position: u64,
    view: View,
    until: &mut impl Until,
) -> Result<Outcome> {
    loop {
        let options = StreamOptions { after_seq: Some(position), types: types(view), ..StreamOptions::default() };
        let mut stream = service.client().await?.stream_events(session, options);
        let broken: client::Error = loop {
            match stream.next().await {
                Some(Ok(StreamItem::Event { seq, event })) => {
                    let event = NumberedEvent { event: *event, seq };
                    show(&event, view)?;
                    position = seq.unwrap_or(position);
                    if let Some(outcome) = until.is_last(service, &event).await? {
                        return Ok(outcome);
                    }
                }
                Some(Ok(StreamItem::Preview(_))) => {}
                Some(Err(error)) => break error,
                None => {
                    break client::Error::Decode { call: "the event stream".to_owned(), reason: "it ended".to_owned() };
                }
            }
        };
        service.renew(broken).await?;
    }
}

#[cfg(test)]
mod tests {
    use longhand_protocol::{EventBody, EventId};
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{Outcome, Progress, Step};

    fn observe(progress: &mut Progress, id: &EventId, wire: Value) -> Step {
        let body: EventBody = serde_json::from_value(wire).unwrap();
        progress.observe(id, &body)
    }

    fn idle() -> Value {
        json!({"type": "session.status_idle", "stop_reason": {"type": "end_turn"}})
    }

    fn failure(retry: &str) -> Value {
        json!({"type": "session.error", "error": {"type": "unknown_error", "message": "m", "retry_status": {"type": retry}}})
    }

    #[test]
    fn an_older_idle_is_not_the_end() {
        let (own, other) = (EventId::generate(), EventId::generate());
        let mut progress = Progress::new(Some(own.clone()));
        assert_eq!(observe(&mut progress, &other, idle()), Step::Working);
        let message = json!({"type": "user.message", "content": [{"type": "text", "text": "hi"}]});
        assert_eq!(observe(&mut progress, &own, message), Step::Working);
        assert_eq!(observe(&mut progress, &other, idle()), Step::MaybeIdle);
    }

    #[rstest]
    #[case(&["retrying"], Outcome::Idle)]
    #[case(&["exhausted"], Outcome::Failed)]
    #[case(&["terminal"], Outcome::Failed)]
    fn an_error_that_is_not_retried_is_a_failure(#[case] errors: &[&str], #[case] expected: Outcome) {
        let (id, mut progress) = (EventId::generate(), Progress::new(None));
        for error in errors {
            observe(&mut progress, &id, failure(error));
        }
        assert_eq!(observe(&mut progress, &id, idle()), Step::MaybeIdle);
        assert_eq!(progress.outcome(), expected);
    }

    #[test]
    fn a_new_turn_forgets_the_failure_of_the_last() {
        let (id, mut progress) = (EventId::generate(), Progress::new(None));
        observe(&mut progress, &id, failure("terminal"));
        observe(&mut progress, &id, json!({"type": "session.status_running"}));
        assert_eq!(progress.outcome(), Outcome::Idle);
    }

    #[test]
    fn termination_is_the_end() {
        let (id, mut progress) = (EventId::generate(), Progress::new(Some(EventId::generate())));
        assert_eq!(observe(&mut progress, &id, json!({"type": "session.status_terminated"})), Step::Terminated);
    }
}
