//! What one transaction can hold.
//!
//! Etcd takes 128 operations and 1.5 MiB in one request. Both bounds are kept in terms of events, the same for every
//! store, so that a caller can know them.

use std::collections::HashSet;

use longhand_protocol::EventId;
use longhand_protocol::event::{EventBody, NewEvent};

use crate::store::{Result, StoreError};

/// The most weight that one transaction takes; the other operations of etcd's 128 are for the session's own keys.
pub const MAX_WEIGHT: usize = 120;
/// The most bytes of stored events that one transaction takes; the rest of etcd's 1.5 MiB is for keys.
pub const MAX_BYTES: usize = 1_500_000;
/// What a queued event weighs when it enters the inbox.
pub const ENQUEUE_WEIGHT: usize = 2;
/// What a queued event weighs when it moves to the log.
pub const PROMOTE_WEIGHT: usize = 3;

/// What an event weighs when it is appended: its record, its identifier, and the call that it opens.
#[must_use]
pub fn append_weight(event: &NewEvent) -> usize {
    if matches!(event.body, EventBody::AgentToolUse { .. }) { 3 } else { 2 }
}

/// Checks a change of the log before anything is looked up.
pub(crate) fn check_append(promoted: &[EventId], events: &[NewEvent]) -> Result<()> {
    distinct(promoted.iter().chain(events.iter().map(|event| &event.id)))?;
    check_weight(promoted.len() * PROMOTE_WEIGHT + events.iter().map(append_weight).sum::<usize>())
}

/// Checks events for the inbox before anything is looked up.
pub(crate) fn check_enqueue(events: &[NewEvent]) -> Result<()> {
    distinct(events.iter().map(|event| &event.id))?;
    check_weight(events.len() * ENQUEUE_WEIGHT)
}

fn distinct<'a>(ids: impl Iterator<Item = &'a EventId>) -> Result<()> {
    let mut seen = HashSet::new();
    for id in ids {
        if !seen.insert(id) {
            return Err(StoreError::Duplicate(id.clone()));
        }
    }
    Ok(())
}

fn check_weight(weight: usize) -> Result<()> {
    if weight > MAX_WEIGHT {
        return Err(StoreError::TooLarge(format!(
            "its events weigh {weight} and one transaction takes {MAX_WEIGHT}; send fewer at once"
        )));
    }
    Ok(())
}

/// Checks what is about to be stored.
pub(crate) fn check_bytes(bytes: usize) -> Result<()> {
    if bytes > MAX_BYTES {
        return Err(StoreError::TooLarge(format!(
            "its events take {bytes} bytes and one transaction takes {MAX_BYTES}; send fewer or smaller ones"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use longhand_protocol::EventId;
    use longhand_protocol::event::{EventBody, NewEvent, Permission};
    use rstest::rstest;

    use super::{check_append, check_bytes, check_enqueue};
    use crate::store::StoreError;

    fn plain(count: usize) -> Vec<NewEvent> {
        (0..count).map(|_| NewEvent::new(EventBody::SessionStatusRunning {})).collect()
    }

    fn calls(count: usize) -> Vec<NewEvent> {
        let body = EventBody::AgentToolUse {
            name: "bash".into(),
            input: serde_json::Value::Null,
            evaluated_permission: Permission::Allow,
            sandbox: None,
        };
        (0..count).map(|_| NewEvent::new(body.clone())).collect()
    }

    fn ids(count: usize) -> Vec<EventId> {
        (0..count).map(|_| EventId::generate()).collect()
    }

    #[rstest]
    #[case(ids(0), plain(60), true)]
    #[case(ids(0), plain(61), false)]
    #[case(ids(0), calls(40), true)]
    #[case(ids(0), calls(41), false)]
    #[case(ids(40), plain(0), true)]
    #[case(ids(40), plain(1), false)]
    fn an_append_is_bounded(#[case] promoted: Vec<EventId>, #[case] events: Vec<NewEvent>, #[case] fits: bool) {
        let checked = check_append(&promoted, &events);
        assert_eq!(checked.is_ok(), fits, "{checked:?}");
        assert!(fits || matches!(checked, Err(StoreError::TooLarge(_))));
    }

    #[test]
    fn an_enqueue_is_bounded() {
        assert!(check_enqueue(&plain(60)).is_ok());
        assert!(matches!(check_enqueue(&plain(61)), Err(StoreError::TooLarge(_))));
    }

    #[test]
    fn bytes_are_bounded() {
        assert!(check_bytes(1_500_000).is_ok());
        assert!(matches!(check_bytes(1_500_001), Err(StoreError::TooLarge(_))));
    }

    #[test]
    fn an_event_is_not_in_a_request_twice() {
        let event = plain(1).remove(0);
        let twice = [event.clone(), event.clone()];
        assert!(matches!(check_enqueue(&twice), Err(StoreError::Duplicate(id)) if id == event.id));
        assert!(matches!(check_append(std::slice::from_ref(&event.id), &twice[..1]), Err(StoreError::Duplicate(_))));
    }
}
