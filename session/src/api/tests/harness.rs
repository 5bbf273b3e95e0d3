use longhand_protocol::EventId;
use longhand_protocol::event::{EventBody, NewEvent, StopReason};
use longhand_session_log::SessionStore as _;
use rstest::rstest;
use serde_json::{Value, json};

use crate::testing::{World, say};

fn path(id: &impl std::fmt::Display, verb: &str) -> String {
    format!("/harness/v1/sessions/{id}/{verb}")
}

fn event(kind: &str, fields: Value) -> Value {
    let mut event = fields;
    event["type"] = json!(kind);
    event["id"] = json!(EventId::generate());
    event
}

fn idle() -> Value {
    event("session.status_idle", json!({"stop_reason": {"type": "end_turn"}}))
}

#[tokio::test]
async fn a_turn_from_claim_to_idle() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let sent = json!({"events": [say("hi")]});
    assert_eq!(world.call("POST", &format!("/v1/sessions/{id}/events"), "alice", &sent).await.status, 200);
    let claim = world.call("POST", &path(&id, "claim"), "pod-1", &json!({})).await.body;
    assert_eq!((&claim["epoch"], &claim["head"], &claim["lease_ttl_seconds"]), (&json!(1), &json!(1), &json!(15)));
    assert_eq!(claim["session"]["sandboxes"], json!(["default"]));
    assert_eq!(world.call("POST", &path(&id, "lease"), "pod-1", &json!({"epoch": 1})).await.status, 200);

    let inbox = world.call("GET", &path(&id, "inbox"), "pod-1", &Value::Null).await.body;
    let queued = &inbox["items"][0]["event"]["id"];
    let then = event("session.status_running", json!({}));
    let promote = json!({"epoch": 1, "expected_head": 1, "inbox": [queued], "then": [then]});
    let promoted = world.call("POST", &path(&id, "promote"), "pod-1", &promote).await;
    assert_eq!((promoted.status.as_u16(), &promoted.body["head"]), (200, &json!(3)));

    let stale = json!({"epoch": 1, "expected_head": 1, "events": [event("agent.thinking", json!({}))]});
    let moved = world.call("POST", &path(&id, "append"), "pod-1", &stale).await;
    assert_eq!(moved.status, 409);
    assert_eq!(moved.headers["x-should-retry"], "false");
    assert_eq!(moved.body["error"]["details"], json!({"conflict": "head_moved", "head": 3}));
    let gone = world
        .call("POST", &path(&id, "promote"), "pod-1", &json!({"epoch": 1, "expected_head": 3, "inbox": ["sevt_x"]}))
        .await;
    assert_eq!((gone.status.as_u16(), &gone.body["error"]["details"]), (409, &json!({"conflict": "not_queued"})));

    let read = world.call("GET", &path(&id, "events?after=1&limit=1"), "pod-1", &Value::Null).await.body;
    assert_eq!((&read["head"], &read["records"][0]["seq"]), (&json!(3), &json!(2)));

    let wake = inbox["wake_revision"].as_i64().unwrap();
    let end = |wake: i64| json!({"epoch": 1, "expected_head": 3, "wake_revision": wake, "events": [idle()]});
    let moved = world.call("POST", &path(&id, "idle"), "pod-1", &end(wake - 1)).await;
    assert_eq!((moved.status.as_u16(), &moved.body["error"]["details"]), (409, &json!({"conflict": "wake_moved"})));
    assert_eq!(world.call("POST", &path(&id, "idle"), "pod-1", &end(wake)).await.status, 200);
    assert_eq!(world.store.state(&id).await.unwrap().owner, None);

    // Nobody owns it, and the pod is still the one that shall: it waits for the next message.
    let lost = world.call("POST", &path(&id, "lease"), "pod-1", &json!({"epoch": 1})).await;
    assert_eq!(
        (lost.status.as_u16(), &lost.body["error"]["details"]),
        (412, &json!({"conflict": "fenced", "epoch": 1}))
    );
    let waiting = path(&id, &format!("inbox?wait_seconds=20&after_revision={wake}"));
    let next = json!({"events": [say("again")]});
    let (inbox, sent) = tokio::join!(world.call("GET", &waiting, "pod-1", &Value::Null), async {
        world.call("POST", &format!("/v1/sessions/{id}/events"), "alice", &next).await
    });
    assert_eq!((sent.status, inbox.body["items"].as_array().unwrap().len()), (http::StatusCode::OK, 1));
}

/// A harness that says what it has read is told by the claim what it would ask for next.
#[tokio::test]
async fn a_claim_brings_what_was_not_read_yet() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let sent = json!({"events": [say("hi")]});
    assert_eq!(world.call("POST", &format!("/v1/sessions/{id}/events"), "alice", &sent).await.status, 200);
    let claim = |body: Value| {
        let (world, path) = (&world, path(&id, "claim"));
        async move { world.call("POST", &path, "pod-1", &body).await.body }
    };
    let seqs = |claimed: &Value| -> Vec<u64> {
        let records = claimed["since"]["records"].as_array().unwrap();
        records.iter().map(|record| record["seq"].as_u64().unwrap()).collect()
    };
    let first = claim(json!({"after": 0})).await;
    assert_eq!((seqs(&first), first["head"].as_u64()), (vec![1], Some(1)), "{first}");
    let inbox = world.call("GET", &path(&id, "inbox"), "pod-1", &Value::Null).await.body;
    assert_eq!(first["since"]["inbox"], inbox);
    assert_eq!(inbox["items"].as_array().unwrap().len(), 1);
    let page = world.call("GET", &path(&id, "events?after=0&inbox=true"), "pod-1", &Value::Null).await.body;
    assert_eq!((&page["inbox"], &page["records"]), (&inbox, &first["since"]["records"]));
    // Again, as after an answer that was lost; and of what was read, nothing.
    assert_eq!(seqs(&claim(json!({"after": 1})).await), [2]);
    assert_eq!(seqs(&claim(json!({"after": 0})).await), [1, 2, 3]);
    assert_eq!(claim(json!({})).await["since"], Value::Null, "who does not ask is told what it always was");
    // More than a page is for the harness to ask for, from where it wants.
    let state = world.store.state(&id).await.unwrap();
    let notes: Vec<_> = (0..60).map(|_| longhand_protocol::NewEvent::new(EventBody::AgentThinking {})).collect();
    let mut head = state.head;
    for _ in 0..9 {
        let notes = notes.iter().map(|note| longhand_protocol::NewEvent::new(note.body.clone())).collect();
        head = world.store.append(&id, state.epoch, head, notes).await.unwrap().head;
    }
    assert_eq!(claim(json!({"after": 0})).await["since"], Value::Null);
    assert_eq!(seqs(&claim(json!({"after": head})).await).len(), 2);
}

/// What the API server says of a session whose harness waits in its grace is asked for once, while the message is queued.
#[tokio::test]
async fn a_session_in_its_grace_is_looked_up_while_its_message_is_queued() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let claim = async |pod: &str| world.call("POST", &path(&id, "claim"), pod, &json!({"after": 0})).await;
    let send = async || {
        let sent = json!({"events": [say("hi")]});
        assert_eq!(world.call("POST", &format!("/v1/sessions/{id}/events"), "alice", &sent).await.status, 200);
    };
    let give_up = async || {
        let (state, inbox) = (world.store.state(&id).await.unwrap(), world.store.inbox(&id).await.unwrap());
        let queued: Vec<EventId> = inbox.items.into_iter().map(|item| item.event.id).collect();
        let head = world.store.promote(&id, state.epoch, state.head, &queued, Vec::new()).await.unwrap().head;
        let idle = NewEvent::new(EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn });
        world.store.idle(&id, state.epoch, head, inbox.wake_revision.unwrap(), vec![idle]).await.unwrap();
    };
    send().await;
    assert_eq!(claim("pod-1").await.status, 200);
    give_up().await;
    world.cluster.take_reads();
    send().await;
    assert_eq!(claim("pod-1").await.status, 200);
    assert_eq!(world.cluster.take_reads(), ["AgentSession team-a/one"]);
    // It is good for one claim: the next one finds what has changed.
    give_up().await;
    world.cluster.name_harness("team-a", "one", Some("pod-2"));
    assert_eq!(claim("pod-1").await.status, 403);
    assert_eq!(world.cluster.take_reads(), ["AgentSession team-a/one"]);
}

/// The pod that has had the session takes it again without waiting for what the API server says, and only while nobody
/// has it; a pod that the operator no longer names does not keep it.
#[tokio::test]
async fn a_pod_that_had_the_session_takes_it_again_while_nobody_has_it() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let claim = async |pod: &str| world.call("POST", &path(&id, "claim"), pod, &json!({})).await.status.as_u16();
    assert_eq!(claim("pod-1").await, 200);
    assert_eq!(claim("pod-1").await, 200);
    world.cluster.name_harness("team-a", "one", Some("pod-2"));
    assert_eq!(claim("pod-1").await, 403);
    assert_eq!(claim("pod-2").await, 200);
    assert_eq!(claim("pod-1").await, 403, "it is no longer the one that had it");
    let state = world.store.state(&id).await.unwrap();
    assert_eq!(state.owner.unwrap().claimant.pod_uid, "pod-2");
}

#[tokio::test]
async fn only_the_pod_that_the_operator_names_claims() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    for token in ["pod-2", "pod-elsewhere", "alice"] {
        let answer = world.call("POST", &path(&id, "claim"), token, &json!({})).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["error"]["type"]),
            (403, &json!("permission_error")),
            "{token}"
        );
    }
    assert_eq!(world.call("POST", &path(&id, "claim"), "stranger", &json!({})).await.status, 401);
    assert_eq!(world.store.state(&id).await.unwrap().epoch, 0);
    // The resource of another session that has taken over the name counts for nothing.
    world.cluster.change_session("team-a", "one", |session| session.metadata.uid = Some("another".to_owned()));
    assert_eq!(world.call("POST", &path(&id, "claim"), "pod-1", &json!({})).await.status, 403);
}

#[tokio::test]
async fn a_claim_waits_for_the_operator() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    world.cluster.name_harness("team-a", "one", None);
    let (claim, body) = (path(&id, "claim"), json!({}));
    let (answer, ()) = tokio::join!(world.call("POST", &claim, "pod-2", &body), async {
        tokio::task::yield_now().await;
        world.cluster.name_harness("team-a", "one", Some("pod-2"));
    });
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn a_zombie_is_412_and_changes_nothing() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    world
        .store
        .enqueue(&id, vec![longhand_protocol::NewEvent::new(EventBody::UserInterrupt { session_thread_id: None })])
        .await
        .unwrap();
    assert_eq!(world.call("POST", &path(&id, "claim"), "pod-1", &json!({})).await.status, 200);
    world.cluster.name_harness("team-a", "one", Some("pod-2"));
    assert_eq!(world.call("POST", &path(&id, "claim"), "pod-2", &json!({})).await.body["epoch"], 2);
    let before = world.kinds(&id).await;
    let wake = world.store.inbox(&id).await.unwrap().wake_revision.unwrap();
    let append = json!({"epoch": 1, "expected_head": 2, "events": [event("agent.thinking", json!({}))]});
    let idle = json!({"epoch": 1, "expected_head": 2, "wake_revision": wake, "events": [idle()]});
    let promote = json!({"epoch": 1, "expected_head": 2, "inbox": ["sevt_x"]});
    let execute = json!({"epoch": 1, "tool_use_id": "sevt_x"});
    let lease = json!({"epoch": 1});
    let calls = [("append", append), ("idle", idle), ("promote", promote), ("execute", execute), ("lease", lease)];
    for (verb, body) in calls {
        let answer = world.call("POST", &path(&id, verb), "pod-1", &body).await;
        assert_eq!(answer.status, 412, "{verb}: {answer:?}");
        assert_eq!(answer.body["error"]["details"], json!({"conflict": "fenced", "epoch": 2}), "{verb}");
    }
    for verb in ["events", "inbox"] {
        let answer = world.call("GET", &path(&id, verb), "pod-1", &Value::Null).await;
        assert_eq!(answer.status, 403, "{verb}");
    }
    assert_eq!(world.kinds(&id).await, before);
    // The right epoch from the wrong pod is no better.
    let append = json!({"epoch": 2, "expected_head": 2, "events": [event("agent.thinking", json!({}))]});
    assert_eq!(world.call("POST", &path(&id, "append"), "pod-1", &append).await.status, 403);
    assert_eq!(world.call("POST", &path(&id, "append"), "pod-2", &append).await.status, 200);
}

#[rstest]
#[case("agent.tool_result", json!({"tool_use_id": "sevt_1", "content": null, "is_error": null}))]
#[case("user.message", json!({"content": []}))]
#[case("session.status_idle", json!({"stop_reason": {"type": "end_turn"}}))]
#[case("session.status_terminated", json!({}))]
#[case("x.session.woken", json!({"epoch": 9, "harness": "h"}))]
#[case("x.sandbox.lost", json!({"sandbox": "default", "cause": "c"}))]
#[case("x.credential.used", json!({"credential": "v/c", "sandbox": "default", "host": "h", "port": 443, "method": "GET", "count": 1, "at": "2026-01-01T00:00:00Z"}))]
#[case("x.credential.used", json!({}))]
#[case("x.tool.outcome_unknown", json!({"tool_use_id": "sevt_1", "cause": "c"}))]
#[tokio::test]
async fn a_brain_appends_only_what_is_its_own(#[case] kind: &str, #[case] fields: Value) {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let epoch = world.claim(&id, "pod-1").await;
    let foreign = event(kind, fields);
    let append = json!({"epoch": epoch, "expected_head": 1, "events": [foreign]});
    let promote = json!({"epoch": epoch, "expected_head": 1, "inbox": ["sevt_1"], "then": [foreign]});
    let end = json!({"epoch": epoch, "expected_head": 1, "wake_revision": 1, "events": [foreign, idle()]});
    for (verb, body) in [("append", append), ("promote", promote), ("idle", end)] {
        let answer = world.call("POST", &path(&id, verb), "pod-1", &body).await;
        assert_eq!(answer.status, 400, "{verb}: {answer:?}");
        assert!(answer.message().contains(kind), "{}", answer.message());
    }
    assert_eq!(world.kinds(&id).await, ["x.session.woken"]);
}

fn mcp_use(permission: &str) -> Value {
    let fields = json!({"mcp_server_name": "s", "name": "t", "input": {}, "evaluated_permission": permission});
    event("agent.mcp_tool_use", fields)
}

#[tokio::test]
async fn a_brain_appends_what_becomes_of_calls_of_mcp_servers() {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let epoch = world.claim(&id, "pod-1").await;
    let catalog = event("x.mcp.catalog", json!({"mcp_server_name": "s", "url": "https://s.test", "tools": []}));
    let (call, other) = (mcp_use("allow"), mcp_use("allow"));
    let started = event("x.tool.started", json!({"tool_use_ids": [call["id"], other["id"]]}));
    let result =
        event("agent.mcp_tool_result", json!({"mcp_tool_use_id": call["id"], "content": [], "is_error": true}));
    let unknown = |call: &Value| event("x.tool.outcome_unknown", json!({"tool_use_id": call["id"], "cause": "c"}));
    let append = |events: Value| json!({"epoch": epoch, "expected_head": 1, "events": events});
    let foreign = append(json!([unknown(&other), result]));
    let refused = world.call("POST", &path(&id, "append"), "pod-1", &foreign).await;
    assert_eq!(refused.status, 400, "of a call that it does not answer: {refused:?}");
    let all = append(json!([catalog, call, other, started, unknown(&call), result]));
    let answer = world.call("POST", &path(&id, "append"), "pod-1", &all).await;
    assert_eq!((answer.status.as_u16(), &answer.body["head"]), (200, &json!(7)), "{answer:?}");
}

#[rstest]
#[case("ask", 200)]
#[case("allow", 400)]
#[tokio::test]
async fn a_call_of_an_mcp_server_is_confirmed_like_any(#[case] permission: &str, #[case] status: u16) {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let epoch = world.claim(&id, "pod-1").await;
    let call = mcp_use(permission);
    let append = json!({"epoch": epoch, "expected_head": 1, "events": [call]});
    assert_eq!(world.call("POST", &path(&id, "append"), "pod-1", &append).await.status, 200);
    let confirmation = json!({"type": "user.tool_confirmation", "tool_use_id": call["id"], "result": "allow"});
    let sent = json!({"events": [confirmation]});
    let answer = world.call("POST", &format!("/v1/sessions/{id}/events"), "alice", &sent).await;
    assert_eq!(answer.status.as_u16(), status, "{answer:?}");
    // It is no tool of a sandbox.
    let execute = json!({"epoch": epoch, "tool_use_id": call["id"]});
    assert!(!world.call("POST", &path(&id, "execute"), "pod-1", &execute).await.status.is_success());
}

#[rstest]
#[case("append", json!({"epoch": 1, "expected_head": 1, "events": []}), "`events`")]
#[case("promote", json!({"epoch": 1, "expected_head": 1, "inbox": []}), "`inbox`")]
#[case("idle", json!({"epoch": 1, "expected_head": 1, "wake_revision": 1, "events": []}), "session.status_idle")]
#[case("claim", json!({"pod": "p"}), "unknown field `pod`")]
#[case("lease", json!({}), "missing field `epoch`")]
#[case("execute", json!({"epoch": 1, "tool_use_id": "toolu_1"}), "sevt_")]
#[tokio::test]
async fn a_malformed_request_is_400(#[case] verb: &str, #[case] body: Value, #[case] part: &str) {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    world.claim(&id, "pod-1").await;
    let answer = world.call("POST", &path(&id, verb), "pod-1", &body).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.message().contains(part), "{}", answer.message());
}

#[rstest]
#[case("", &[1, 2, 3, 4, 5, 6], None)]
#[case("after=2&limit=2", &[3, 4], Some(4))]
#[case("before=4", &[1, 2, 3], None)]
#[case("order=desc&limit=2", &[6, 5], Some(5))]
#[case("around=3&radius=1", &[2, 3, 4], None)]
#[case("around_id=sevt_4&radius=1&order=desc", &[5, 4, 3], None)]
#[case("types[]=agent.*", &[3, 5], None)]
#[case("types[]=agent.*&limit=1", &[3], Some(3))]
#[case("types[]=x.*", &[1, 2, 4, 6], None)]
#[case("created_at[gt]=2999-01-01T00:00:00Z", &[], None)]
#[tokio::test]
async fn a_brain_reads_any_slice(#[case] query: &str, #[case] seqs: &[u64], #[case] next: Option<u64>) {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    let epoch = world.claim(&id, "pod-1").await;
    let body = |seq: u64| match seq % 2 {
        0 => EventBody::ModelResponse {
            content: vec![],
            stop_reason: None,
            model: None,
            tool_events: vec![],
            limited: false,
        },
        _ => EventBody::AgentThinking {},
    };
    let named = |seq: u64| longhand_protocol::NewEvent { id: format!("sevt_{seq}").parse().unwrap(), body: body(seq) };
    world.store.append(&id, epoch, 1, (2..=6).map(named).collect()).await.unwrap();
    let page = world.call("GET", &path(&id, &format!("events?{query}")), "pod-1", &Value::Null).await;
    let found: Vec<u64> =
        page.body["records"].as_array().unwrap().iter().map(|record| record["seq"].as_u64().unwrap()).collect();
    assert_eq!((found.as_slice(), page.body["next"].as_u64(), &page.body["head"]), (seqs, next, &json!(6)));
}

#[rstest]
#[case("around=1&after=1", "`around` and `after`")]
#[case("around_id=sevt_9", "has no event sevt_9")]
#[case("order=up", "`order`")]
#[case("after_seq=1", "`after_seq`")]
#[tokio::test]
async fn a_slice_that_makes_no_sense_is_400(#[case] query: &str, #[case] part: &str) {
    let world = World::new();
    let id = world.session("one", "pod-1").await;
    world.claim(&id, "pod-1").await;
    let answer = world.call("GET", &path(&id, &format!("events?{query}")), "pod-1", &Value::Null).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.message().contains(part), "{}", answer.message());
}
