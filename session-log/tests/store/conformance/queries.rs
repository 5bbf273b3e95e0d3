//! Slices of every kind, and where an event is.

use std::time::Duration;

use jiff::Timestamp;
use longhand_protocol::event::{EventBody, NewEvent};
use longhand_protocol::wire::Order;
use longhand_protocol::{Record, SessionId};
use longhand_session_log::SessionStore;
use longhand_session_log::store::Query;

use super::{Fixture, claim, idle_event, message, messages, running, session};

fn seqs(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.seq).collect()
}

/// A log of 300 events, every third of which is ours, every fifth a message of the agent.
async fn log(store: &dyn SessionStore) -> SessionId {
    let id = session(store).await;
    let event = |number: u64| match number {
        number if number.is_multiple_of(3) => {
            EventBody::SandboxReady { sandbox: "default".into(), pod_uid: number.to_string() }
        }
        number if number.is_multiple_of(5) => EventBody::AgentMessage { content: vec![] },
        _ => EventBody::SessionStatusRunning {},
    };
    for page in 0..6 {
        let events = (1..=50).map(|number| NewEvent::new(event(page * 50 + number))).collect();
        store.append_unfenced(&id, events).await.unwrap();
        // So that not all events have the same time.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    id
}

/// Every page of a query.
async fn all(store: &dyn SessionStore, id: &SessionId, query: &Query) -> Vec<Record> {
    let (mut records, mut next) = (Vec::new(), Some(query.clone()));
    while let Some(query) = next {
        let slice = store.slice(id, &query).await.unwrap();
        assert!(slice.records.len() <= query.limit);
        next = slice.next.map(|next| query.clone().from(next));
        records.extend(slice.records);
    }
    records
}

pub(crate) async fn slices_from_the_end_and_around(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = log(&*store).await;
    let last = store.slice(&id, &Query::last(3)).await.unwrap();
    assert_eq!((seqs(&last.records), last.head, last.next), (vec![300, 299, 298], 300, Some(298)));
    let next = store.slice(&id, &Query::last(200).from(298)).await.unwrap();
    assert_eq!(seqs(&next.records), (98..=297).rev().collect::<Vec<_>>());
    let rest = store.slice(&id, &Query::last(200).from(98)).await.unwrap();
    assert_eq!((seqs(&rest.records), rest.next), ((1..=97).rev().collect::<Vec<_>>(), None));

    let event = store.read(&id, 149, 1).await.unwrap().records.remove(0).event;
    let position = store.position(&id, &event.id).await.unwrap();
    assert_eq!(position, Some(150));
    assert_eq!(fixture.replica().await.position(&id, &event.id).await.unwrap(), position);
    let around = store.slice(&id, &Query::around(150, 2)).await.unwrap();
    assert_eq!(seqs(&around.records), [148, 149, 150, 151, 152]);
    let start = store.slice(&id, &Query::around(1, 2)).await.unwrap();
    assert_eq!((seqs(&start.records), start.next), (vec![1, 2, 3], None));
    assert_eq!(store.position(&id, &running().id).await.unwrap(), None);
}

pub(crate) async fn what_is_queued_has_no_position(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    let queued = message("a");
    store.enqueue(&id, vec![queued.clone()]).await.unwrap();
    assert_eq!(store.position(&id, &queued.id).await.unwrap(), None);
    let (epoch, head) = claim(&*store, &id, "a").await;
    store.promote(&id, epoch, head, &[queued.id.clone()], vec![]).await.unwrap();
    assert_eq!(store.position(&id, &queued.id).await.unwrap(), Some(2));
}

/// Patterns of types, and which of the log's events they take.
type Case = (&'static [&'static str], fn(u64) -> bool);

pub(crate) async fn slices_by_type(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = log(&*store).await;
    let cases: [Case; 6] = [
        (&["x.*"], |seq| seq % 3 == 0),
        (&["*"], |seq| seq % 3 != 0),
        (&["agent.*"], |seq| seq % 3 != 0 && seq % 5 == 0),
        (&["agent.message", "x.sandbox.ready"], |seq| seq % 3 == 0 || seq % 5 == 0),
        (&["x.sandbox.*", "*"], |_| true),
        (&["user.message"], |_| false),
    ];
    for (types, wanted) in cases {
        for order in [Order::Asc, Order::Desc] {
            for limit in [1_000, 7] {
                let types = types.iter().map(|kind| (*kind).to_owned()).collect();
                let query = Query { types, order, before: Some(290), ..Query::after(10, limit) };
                let mut expected: Vec<u64> = (11..290).filter(|seq| wanted(*seq)).collect();
                if order == Order::Desc {
                    expected.reverse();
                }
                assert_eq!(seqs(&all(&*store, &id, &query).await), expected, "{query:?}");
            }
        }
    }
}

pub(crate) async fn slices_by_time(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = log(&*store).await;
    let everything = all(&*store, &id, &Query::after(0, 1_000)).await;
    let time = |seq: usize| everything[seq - 1].event.processed_at.unwrap();
    assert!(time(1) < time(300));
    let bounds = [
        None,
        Some(Timestamp::UNIX_EPOCH),
        Some(time(100)),
        Some(time(101)),
        Some(time(300)),
        Some(time(250) + Duration::from_secs(60)),
    ];
    for since in bounds {
        for until in bounds {
            let within = |record: &&Record| {
                let time = record.event.processed_at.unwrap();
                since.is_none_or(|since| time >= since) && until.is_none_or(|until| time < until)
            };
            let mut expected: Vec<u64> = everything.iter().filter(within).map(|record| record.seq).collect();
            let query = Query { since, until, ..Query::after(0, 90) };
            assert_eq!(seqs(&all(&*store, &id, &query).await), expected, "{query:?}");
            expected.reverse();
            let query = Query { order: Order::Desc, ..query };
            assert_eq!(seqs(&all(&*store, &id, &query).await), expected, "{query:?}");
        }
    }
}

pub(crate) async fn an_acknowledged_event_is_in_the_next_slice(fixture: &dyn Fixture) {
    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    for number in 1..=50 {
        let head = store.append_unfenced(&id, messages(&["a", "b"])).await.unwrap().head;
        assert_eq!(head, number * 2);
        let slice = other.slice(&id, &Query::last(1)).await.unwrap();
        assert_eq!((slice.head, seqs(&slice.records)), (head, vec![head]));
    }
}

pub(crate) async fn an_archived_session_is_over(fixture: &dyn Fixture) {
    use longhand_protocol::wire::SessionStatus;
    use longhand_session_log::StoreError;
    use longhand_session_log::store::{FinishFrom, Takeover};

    use super::{TTL, assert_err, kinds, pod, tool_result, tool_use};

    let (store, other) = (fixture.store(), fixture.replica().await);
    let id = session(&*store).await;
    let queued = message("a");
    store.enqueue(&id, vec![queued.clone()]).await.unwrap();
    let (epoch, head) = claim(&*store, &id, "a").await;
    let call = tool_use();
    store.append(&id, epoch, head, vec![call.clone()]).await.unwrap();
    let archived_at = store.archive(&id).await.unwrap();
    assert_eq!(other.archive(&id).await.unwrap(), archived_at);

    let state = store.state(&id).await.unwrap();
    assert_eq!((state.status, state.archived_at), (SessionStatus::Terminated, Some(archived_at)));
    assert_eq!((state.epoch, state.owner, state.wake_revision), (epoch + 1, None, None));
    let expected = ["x.session.woken", "agent.tool_use", "session.status_terminated"];
    assert_eq!(kinds(&*store, &id).await, expected);
    assert_err!(store.append(&id, epoch, state.head, vec![running()]).await, StoreError::Fenced { .. });
    assert_err!(store.claim(&id, &pod("b"), Takeover::Always, TTL).await, StoreError::Ended(_));
    assert_err!(other.enqueue(&id, vec![message("b")]).await, StoreError::Ended(_));
    // What was taken up before is found again, and a result is always taken.
    assert_eq!(other.enqueue(&id, vec![queued.clone()]).await.unwrap()[0].event.id, queued.id);
    store.finish_call(&id, &call.id, &FinishFrom::Open, vec![tool_result(&call.id, "done")]).await.unwrap();
    assert_eq!(store.state(&id).await.unwrap().wake_revision, None);
}

pub(crate) async fn a_session_that_ended_is_archived_without_another_word(fixture: &dyn Fixture) {
    let store = fixture.store();
    let id = session(&*store).await;
    store.append_unfenced(&id, vec![NewEvent::new(EventBody::SessionStatusTerminated {})]).await.unwrap();
    store.archive(&id).await.unwrap();
    assert_eq!(store.state(&id).await.unwrap().head, 1);
}

pub(crate) async fn a_leap_fences_every_epoch_that_was_given(fixture: &dyn Fixture) {
    use longhand_session_log::StoreError;
    use longhand_session_log::store::EPOCH_LEAP;

    use super::assert_err;

    let store = fixture.store();
    let id = session(&*store).await;
    let (epoch, head) = claim(&*store, &id, "a").await;
    assert_eq!(store.leap(&id).await.unwrap(), epoch + EPOCH_LEAP);
    assert_err!(store.append(&id, epoch, head, vec![idle_event()]).await, StoreError::Fenced { .. });
    assert_err!(store.renew(&id, epoch).await, StoreError::Fenced { .. });
    let state = store.state(&id).await.unwrap();
    assert_eq!((state.owner, state.head), (None, head));
    assert_eq!(claim(&*store, &id, "b").await, (epoch + EPOCH_LEAP + 1, head + 1));
}
