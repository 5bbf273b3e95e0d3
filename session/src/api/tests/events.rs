use axum::body::Body;
use longhand_protocol::event::{EventBody, NewEvent};
use longhand_session_log::SessionStore as _;
use rstest::rstest;
use serde_json::{Value, json};

use crate::testing::{Answer, World, message, say};

fn texts(answer: &Answer) -> Vec<String> {
    let text = |event: &Value| match event["content"][0]["text"].as_str() {
        Some(text) => text.to_owned(),
        None => event["type"].as_str().unwrap().to_owned(),
    };
    answer.body["data"].as_array().unwrap().iter().map(text).collect()
}

/// Five messages in the log after `x.session.woken`, two more in the inbox.
async fn world() -> (World, String) {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let epoch = world.claim(&id, "pod-1").await;
    let events = (1..=5).map(|number| NewEvent::new(message(&number.to_string()))).collect();
    world.store.append(&id, epoch, 1, events).await.unwrap();
    let path = format!("/v1/sessions/{id}/events");
    let answer = world.call("POST", &path, "alice", &json!({"events": [say("6"), say("7")]})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.body["data"][0]["processed_at"], Value::Null);
    assert!(answer.body["data"][1]["id"].as_str().unwrap().starts_with("sevt_"));
    (world, path)
}

#[rstest]
#[case("", &["1", "2", "3", "4", "5", "6", "7"])]
#[case("order=asc&after_seq=3", &["3", "4", "5", "6", "7"])]
#[case("order=desc", &["7", "6", "5", "4", "3", "2", "1"])]
#[case("order=desc&after_seq=4", &["7", "6", "5", "4"])]
#[case("before_seq=4", &["1", "2"])]
#[case("before_seq=4&order=desc", &["2", "1"])]
#[case("after_seq=2&before_seq=6", &["2", "3", "4"])]
#[case("after_seq=2&before_seq=6&order=desc", &["4", "3", "2"])]
#[case("around_seq=4&radius=1", &["2", "3", "4"])]
#[case("around_seq=4&radius=1&order=desc", &["4", "3", "2"])]
#[case("around_seq=6", &["1", "2", "3", "4", "5"])]
#[case("around_seq=2&radius=1&types[]=x.*", &["x.session.woken"])]
#[case("around_seq=2&radius=0&types[]=*", &["1"])]
#[case("around_seq=900", &[])]
#[case("types[]=agent.*&before_seq=3", &["1"])]
#[case("types[]=user.message", &["6", "7"])]
#[case("types[]=x.*", &["x.session.woken"])]
#[case("types[]=x.session.woken&types[]=user.message", &["x.session.woken", "6", "7"])]
#[tokio::test]
async fn events_are_listed_whole_and_in_pages(#[case] query: &str, #[case] expected: &[&str]) {
    let (world, path) = world().await;
    let answer = world.call("GET", &format!("{path}?{query}"), "alice", &Value::Null).await;
    assert_eq!(texts(&answer), expected, "{answer:?}");
    assert_eq!(answer.body["next_page"], Value::Null);
    for limit in 1..=4 {
        let mut all = Vec::new();
        let mut page = String::new();
        loop {
            let answer = world.call("GET", &format!("{path}?{query}&limit={limit}{page}"), "alice", &Value::Null).await;
            let found = texts(&answer);
            assert!(found.len() <= limit);
            all.extend(found);
            match answer.body["next_page"].as_str() {
                Some(next) => page = format!("&page={next}"),
                None => break,
            }
        }
        assert_eq!(all, expected, "in pages of {limit}");
    }
}

#[tokio::test]
async fn sequence_numbers_are_an_extension() {
    let (world, path) = world().await;
    let answer = world.call("GET", &format!("{path}?limit=1"), "alice", &Value::Null).await;
    let event = answer.body["data"][0].as_object().unwrap();
    assert!(!event.contains_key("seq"));
    assert!(event["processed_at"].is_string());
    let answer = world.call("GET", &format!("{path}?include_seq=true"), "alice", &Value::Null).await;
    assert_eq!(answer.body["data"][0]["seq"], 2);
    assert!(answer.body["data"][6].get("seq").is_none());
}

#[rstest]
#[case("order=desc&page={asc}", "order")]
#[case("page=nonsense", "`page`")]
#[case("limit=1001", "`limit`")]
#[case("created_at[gt]=yesterday", "`created_at[gt]`")]
#[case("order=up", "`order`")]
#[tokio::test]
async fn a_wrong_query_is_400_and_named(#[case] query: &str, #[case] part: &str) {
    let (world, path) = world().await;
    let answer = world.call("GET", &format!("{path}?limit=2"), "alice", &Value::Null).await;
    let query = query.replace("{asc}", answer.body["next_page"].as_str().unwrap());
    let answer = world.call("GET", &format!("{path}?{query}"), "alice", &Value::Null).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.message().contains(part), "{}", answer.message());
}

#[rstest]
#[case("{", "malformed")]
#[case(r#"{"events": []}"#, "at least one")]
#[case(r#"{"events": [], "more": 1}"#, "`more`: is not a field")]
#[case(r#"{"events": [{"type": "user.interrupt"}, {"type": "user.message"}]}"#, "`events[1].content`: is required")]
#[case(r#"{"events": [{"type": "system.message", "content": []}]}"#, "`events[0].content`")]
#[case(r#"{"events": [{"type": "agent.message", "content": []}]}"#, "`events[0].type`")]
#[case(r#"{"events": [{"type": "user.interrupt", "id": "sevt_1"}]}"#, "`events[0].id`")]
#[case(r#"{"events": [{"type": "user.message", "content": [{"type": "video"}]}]}"#, "`events[0].content[0].type`")]
#[tokio::test]
async fn a_malformed_event_is_400_and_nothing_is_queued(#[case] body: &'static str, #[case] part: &str) {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let headers = [("authorization", "Bearer alice")];
    let answer = world.raw("POST", &format!("/v1/sessions/{id}/events"), &headers, Body::from(body)).await;
    assert_eq!((answer.status.as_u16(), &answer.body["error"]["type"]), (400, &json!("invalid_request_error")));
    assert!(answer.message().contains(part), "{}", answer.message());
    assert!(world.store.inbox(&id).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_body_that_is_too_large_is_413() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let headers = [("authorization", "Bearer alice")];
    let body = Body::from(vec![b' '; 8 * 1024 * 1024 + 1]);
    let answer = world.raw("POST", &format!("/v1/sessions/{id}/events"), &headers, body).await;
    assert_eq!((answer.status.as_u16(), &answer.body["error"]["type"]), (413, &json!("request_too_large")));
}

#[tokio::test]
async fn an_inbox_that_is_full_is_429() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    for _ in 0..20 {
        let events = (0..50).map(|_| NewEvent::new(EventBody::UserInterrupt { session_thread_id: None })).collect();
        world.store.enqueue(&id, events).await.unwrap();
    }
    let answer =
        world.call("POST", &format!("/v1/sessions/{id}/events"), "alice", &json!({"events": [say("x")]})).await;
    assert_eq!((answer.status.as_u16(), &answer.body["error"]["type"]), (429, &json!("rate_limit_error")));
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn events_are_found_around_one_of_them() {
    let (world, path) = world().await;
    let all = world.call("GET", &format!("{path}?include_seq=true"), "alice", &Value::Null).await.body["data"].clone();
    let (third, queued) = (all[2]["id"].as_str().unwrap(), all[6]["id"].as_str().unwrap());
    let around = format!("{path}?around_id={third}&radius=1");
    assert_eq!(texts(&world.call("GET", &around, "alice", &Value::Null).await), ["2", "3", "4"]);
    let last = world.call("GET", &format!("{path}?order=desc&limit=2&before_seq=99"), "alice", &Value::Null).await;
    assert_eq!(texts(&last), ["5", "4"], "the end of the log, without what is queued");
    for (event, part) in [(queued, "has no event"), ("sevt_unknown", "has no event"), ("toolu_1", "`around_id`")] {
        let answer = world.call("GET", &format!("{path}?around_id={event}"), "alice", &Value::Null).await;
        assert_eq!(answer.status, 400);
        assert!(answer.message().contains(part), "{}", answer.message());
    }
    let thread = path.trim_end_matches("/events");
    let threads = world.call("GET", &format!("{thread}/threads"), "alice", &Value::Null).await;
    let thread = format!(
        "{thread}/threads/{}/events?around_id={third}&radius=0",
        threads.body["data"][0]["id"].as_str().unwrap()
    );
    assert_eq!(texts(&world.call("GET", &thread, "alice", &Value::Null).await), ["3"]);
}

#[rstest]
#[case("around_seq=3&around_id=sevt_1", "exclude each other")]
#[case("around_seq=3&after_seq=1", "exclude each other")]
#[case("around_seq=3&before_seq=9", "exclude each other")]
#[case("radius=3", "`radius` needs")]
#[case("around_seq=3&radius=500", "0 to 499")]
#[case("after_seq=5&before_seq=6", "`before_seq`")]
#[case("before_seq=-1", "`before_seq`")]
#[case("around_seq=0", "`around_seq`")]
#[case("around=3", "`around`")]
#[tokio::test]
async fn places_that_do_not_go_together_are_refused(#[case] query: &str, #[case] part: &str) {
    let (world, path) = world().await;
    let answer = world.call("GET", &format!("{path}?{query}"), "alice", &Value::Null).await;
    assert_eq!((answer.status.as_u16(), &answer.body["error"]["type"]), (400, &json!("invalid_request_error")));
    assert!(answer.message().contains(part), "{}", answer.message());
}
