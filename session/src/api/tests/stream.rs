use longhand_protocol::event::{Delta, DeltaContent, EventBody, NewEvent, Preview, PreviewEvent};
use longhand_protocol::{EventId, SessionId};
use longhand_session_log::SessionStore as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::testing::{Frame, HEARTBEAT, World, message};

async fn world() -> (World, SessionId, u64, String) {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let epoch = world.claim(&id, "pod-1").await;
    let path = format!("/v1/sessions/{id}/events/stream");
    (world, id, epoch, path)
}

async fn write(world: &World, id: &SessionId, epoch: u64, body: EventBody) -> u64 {
    let head = world.store.state(id).await.unwrap().head;
    world.store.append(id, epoch, head, vec![NewEvent::new(body)]).await.unwrap().head
}

fn seqs(frames: &[Frame]) -> Vec<u64> {
    frames.iter().map(|frame| frame.id.unwrap()).collect()
}

#[tokio::test]
async fn a_stream_begins_now_and_resumes_without_gap_or_repetition() {
    let (world, id, epoch, path) = world().await;
    write(&world, &id, epoch, message("before")).await;
    let mut stream = world.stream(&path, "alice", &[]).await;
    for number in 3..=6 {
        assert_eq!(write(&world, &id, epoch, message(&number.to_string())).await, number);
    }
    let frames = stream.take(2).await;
    assert_eq!(seqs(&frames), [3, 4]);
    assert_eq!(frames[0].data["content"][0]["text"], "3");
    drop(stream);
    write(&world, &id, epoch, message("7")).await;
    let mut resumed = world.stream(&format!("{path}?after_seq=1"), "alice", &[("last-event-id", "4")]).await;
    assert_eq!(seqs(&resumed.take(3).await), [5, 6, 7]);
    let mut replayed = world.stream(&format!("{path}?after_seq=0&types[]=*&types[]=x.*"), "alice", &[]).await;
    assert_eq!(seqs(&replayed.take(7).await), [1, 2, 3, 4, 5, 6, 7]);
    let answer = world.call("GET", &format!("{path}?after_seq=99"), "alice", &Value::Null).await;
    assert_eq!(answer.status, 400);
}

async fn post(world: &World, id: &SessionId, epoch: u64, frames: &[Preview]) -> u16 {
    let body = json!({"epoch": epoch, "frames": frames});
    world.call("POST", &format!("/harness/v1/sessions/{id}/deltas"), "pod-1", &body).await.status.as_u16()
}

fn delta(id: &EventId, text: &str) -> Preview {
    let content = DeltaContent::Text { text: text.to_owned() };
    Preview::EventDelta { event_id: id.clone(), delta: Delta::ContentDelta { index: 0, content } }
}

#[tokio::test]
async fn previews_go_to_who_asked_and_end_with_the_message() {
    let (world, id, epoch, path) = world().await;
    let mut plain = world.stream(&path, "alice", &[]).await;
    let mut asked = world.stream(&format!("{path}?event_deltas[]=agent.message"), "alice", &[]).await;
    let event = NewEvent::new(message("hello"));
    let start = Preview::EventStart { event: PreviewEvent { kind: "agent.message".to_owned(), id: event.id.clone() } };
    assert_eq!(post(&world, &id, epoch, &[start, delta(&event.id, "hel")]).await, 200);
    assert_eq!(post(&world, &id, epoch, &[delta(&event.id, "lo")]).await, 200);
    let frames = asked.take(3).await;
    assert!(frames.iter().all(|frame| frame.id.is_none()), "a preview is nothing to resume from");
    assert_eq!(frames[0].data, json!({"type": "event_start", "event": {"type": "agent.message", "id": event.id}}));
    let text: String =
        frames[1..].iter().map(|frame| frame.data["delta"]["content"]["text"].as_str().unwrap()).collect();
    assert_eq!(text, "hello");
    world.store.append(&id, epoch, 1, vec![event.clone()]).await.unwrap();
    assert_eq!(asked.next().await.unwrap().id, Some(2));
    assert_eq!(post(&world, &id, epoch, &[delta(&event.id, "late")]).await, 200);
    write(&world, &id, epoch, message("next")).await;
    assert_eq!(asked.next().await.unwrap().id, Some(3));
    assert_eq!(seqs(&plain.take(2).await), [2, 3]);
}

#[tokio::test]
async fn a_zombie_previews_nothing() {
    let (world, id, epoch, _) = world().await;
    world.cluster.name_harness("team-a", "one", Some("pod-2"));
    world.claim(&id, "pod-2").await;
    let body = json!({"epoch": epoch, "frames": []});
    let answer = world.call("POST", &format!("/harness/v1/sessions/{id}/deltas"), "pod-1", &body).await;
    assert_eq!(answer.status, 412);
}

#[tokio::test]
async fn a_stream_ends_with_the_session_the_permission_and_the_service() {
    let (world, id, _, path) = world().await;
    let mut stream = world.stream(&path, "alice", &[]).await;
    world.store.delete(&id).await.unwrap();
    assert_eq!(stream.next().await.unwrap().kind(), "session.deleted");
    assert_eq!(stream.next().await, None);
    assert_eq!(stream.retry, None, "there is nothing to come back for");

    let id = world.session("two", "pod-1").await;
    let path = format!("/v1/sessions/{id}/events/stream");
    let mut stream = world.stream(&path, "alice", &[]).await;
    world.stop.cancel();
    assert_eq!(stream.next().await, None);
    assert!(stream.retry.is_some(), "its client is told to come back");
}

#[tokio::test(start_paused = true)]
async fn a_reader_whose_permission_is_taken_away_is_cut_off() {
    let (world, _, _, path) = world().await;
    let mut stream = world.stream(&path, "alice", &[]).await;
    world.cluster.forbid_everything();
    assert_eq!(stream.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_stream_on_which_nothing_happens_has_a_heartbeat() {
    let (world, id, epoch, path) = world().await;
    let mut stream = world.stream(&path, "alice", &[]).await;
    let begun = Instant::now();
    for beats in 1..=3 {
        assert_eq!(stream.chunk().await.as_deref(), Some(":\n\n"));
        let (due, waited) = (HEARTBEAT * beats, begun.elapsed());
        assert!((due..due + HEARTBEAT / 2).contains(&waited), "beat {beats} after {waited:?}");
    }
    let seq = write(&world, &id, epoch, message("a")).await;
    assert_eq!(stream.next().await.unwrap().id, Some(seq));
}
