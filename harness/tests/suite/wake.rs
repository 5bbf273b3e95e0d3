//! How much of a long log is read, and how fast an interrupt is obeyed.

use std::time::{Duration, Instant};

use crate::shell::{World, say, until, within};
use crate::support::model::Turn;
use crate::support::{claim, interrupt, kinds, log, now, send, session_id, store, text};
use longhand_harness::Exit;
use longhand_harness::core::{Effect, Input, Next, State, Transcript, checkpoint, step};
use longhand_protocol::event::{EventBody, NewEvent, StopReason, Usage};
use longhand_session_log::SessionStore as _;
use longhand_session_log::memory::MemoryStore;
use serde_json::json;

/// A session with so many turns of six events each, served by brains that write checkpoints where one is due.
fn long(turns: usize) -> MemoryStore {
    let store = store();
    let epoch = claim(&store);
    let mut state = State::claimed(crate::support::session(), Transcript::default());
    let mut head = 1;
    for turn in 0..turns {
        let span = NewEvent::new(EventBody::SpanModelRequestStart {});
        let end = EventBody::SpanModelRequestEnd {
            model_request_start_id: span.id.clone(),
            is_error: false,
            model_usage: Usage { input_tokens: 1, output_tokens: 1, ..Usage::default() },
        };
        let answer = EventBody::ModelResponse {
            content: vec![json!({"type": "text", "text": format!("answer {turn}")})],
            stop_reason: Some("end_turn".to_owned()),
            model: None,
            tool_events: vec![],
            limited: false,
        };
        let noted = EventBody::Other { kind: "x.noted".to_owned(), fields: serde_json::Map::new() };
        let events = vec![
            NewEvent::new(EventBody::SessionStatusRunning {}),
            span,
            NewEvent::new(answer),
            NewEvent::new(end),
            NewEvent::new(noted.clone()),
            NewEvent::new(noted),
        ];
        head = now(store.append(&session_id(), epoch, head, events)).unwrap().head;
    }
    // One brain reads all of it and ends the turn, as the last one of many would have.
    let wake = now(store.state(&session_id())).unwrap().wake_revision;
    assert_eq!(wake, None);
    send(&store, [text("hello")]);
    let (next_state, mut next) = step(state, Input::Claimed);
    state = next_state;
    loop {
        let effect = match next {
            Next::Do(effect) => effect,
            other => panic!("{other:?}"),
        };
        let input = match effect {
            Effect::Read { after } => {
                let slice = now(store.read(&session_id(), after, 10_000)).unwrap();
                Input::Records { records: slice.records, head: slice.head }
            }
            Effect::Look => Input::Inbox(now(store.inbox(&session_id())).unwrap()),
            Effect::Promote { expected_head, inbox, then } => {
                let appended = now(store.promote(&session_id(), epoch, expected_head, &inbox, then)).unwrap();
                Input::Records { records: appended.records, head: appended.head }
            }
            Effect::Append { expected_head, events } => {
                let due = events.iter().any(|event| event.body.kind() == checkpoint::KIND);
                let appended = now(store.append(&session_id(), epoch, expected_head, events)).unwrap();
                if due {
                    return store;
                }
                Input::Records { records: appended.records, head: appended.head }
            }
            Effect::CallModel { .. } => return store,
            other => panic!("{other:?}"),
        };
        (state, next) = step(state, input);
    }
}

/// What a brain reads that wakes a session of so many events.
async fn read_on_wake(turns: usize) -> (usize, usize) {
    let store = long(turns);
    let events = log(&store).len();
    let world = World::start(store, [say("done")], 0).await;
    let (exit, store, service, _) = world.exit().await;
    assert!(matches!(&exit, Exit::Done(_)), "{exit:?}");
    assert!(
        matches!(crate::support::last(&log(&store)), EventBody::SessionStatusIdle { .. }),
        "{:?}",
        &kinds(&log(&store))[events..]
    );
    let read = *service.read.lock().unwrap();
    (events, read)
}

#[tokio::test]
async fn a_session_of_a_hundred_thousand_events_wakes_as_one_of_a_hundred() {
    let (events, read) = read_on_wake(17).await;
    assert!((100..120).contains(&events) && read <= 120, "{read} of {events}");
    let (events, read) = read_on_wake(16_700).await;
    assert!(events > 100_000 && read <= 120, "{read} of {events}");
}

/// The time from the moment when an interrupt is queued to the end of the turn; what is best of a few tries, since the
/// machine may be busy with something else.
#[tokio::test]
async fn an_interrupt_ends_the_turn_within_200_milliseconds() {
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let store = store();
        send(&store, [text("one")]);
        let world = World::start(store, [Turn::Hang("half")], 0).await;
        within(world.model.hanging.notified()).await;
        let begun = Instant::now();
        send(&world.store, [interrupt()]);
        until(&world.store, "session.status_idle", 1).await;
        best = best.min(begun.elapsed());
        world.shutdown.cancel();
        drop(world.exit().await);
        if best < Duration::from_millis(200) {
            break;
        }
    }
    assert!(best < Duration::from_millis(200), "{best:?}");
}

#[tokio::test]
async fn what_several_clients_send_is_answered_in_the_order_in_which_it_came() {
    let store = store();
    send(&store, [text("a"), text("b")]);
    let wait = Turn::Wait(vec![json!({"type": "text", "text": "1"})], "end_turn");
    let world = World::start(store, [wait, say("2")], 0).await;
    within(world.model.hanging.notified()).await;
    for word in ["c", "d", "e"] {
        send(&world.store, [text(word)]);
    }
    world.model.go_on.notify_one();
    let (_, store, _, model) = world.exit().await;
    let said: Vec<String> = log(&store)
        .iter()
        .filter_map(|record| match &record.event.body {
            EventBody::UserMessage { content } => Some(content[0]["text"].as_str().unwrap().to_owned()),
            EventBody::AgentMessage { content } => Some(content[0]["text"].as_str().unwrap().to_owned()),
            _ => None,
        })
        .collect();
    assert_eq!(said, ["a", "b", "1", "c", "d", "e", "2"]);
    assert_eq!(model.bodies().len(), 2, "what was queued is one turn");
    let EventBody::SessionStatusIdle { stop_reason } = crate::support::last(&log(&store)).clone() else { panic!() };
    assert_eq!(stop_reason, StopReason::EndTurn);
}
