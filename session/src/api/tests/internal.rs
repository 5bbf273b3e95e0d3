use longhand_crds::agent_session::Input;
use longhand_crds::{Retention, derived_session_id};
use longhand_session_log::SessionStore as _;
use rstest::rstest;
use serde_json::{Value, json};

use crate::testing::World;

const SESSION: &str = "/internal/v1/namespaces/team-a/sessions/one";

fn input(text: &str) -> Input {
    Input { text: text.to_owned() }
}

#[rstest]
#[case("PUT", SESSION)]
#[case("GET", SESSION)]
#[case("GET", "/internal/v1/sessions")]
#[case("DELETE", "/internal/v1/sessions/sesn_x")]
#[case("POST", "/internal/v1/namespaces/team-a/sandboxes/s/drain")]
#[tokio::test]
async fn only_the_operator_gets_in(#[case] method: &str, #[case] path: &str) {
    let world = World::new();
    let body = if method == "PUT" {
        json!({"uid": "u"})
    } else if method == "POST" {
        json!({"podUid": "p", "idleSeconds": 1})
    } else {
        Value::Null
    };
    for (token, status) in [("alice", 403), ("pod-1", 403), ("stranger", 401)] {
        assert_eq!(world.call(method, path, token, &body).await.status, status, "{token}");
    }
}

#[tokio::test]
async fn a_resource_has_its_log_and_its_input_once() {
    let world = World::new();
    world.cluster.add_session("team-a", "one", "uid-one");
    world.cluster.change_session("team-a", "one", |session| session.spec.input = vec![input("a"), input("b")]);
    let ensure = json!({"uid": "uid-one"});
    for _ in 0..3 {
        let answer = world.call("PUT", SESSION, "operator", &ensure).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let summary = &answer.body;
        assert_eq!(summary["sessionId"], derived_session_id("uid-one").as_str());
        assert_eq!((&summary["deliveredInputs"], &summary["wake"]), (&json!(2), &json!(true)));
        assert_eq!(
            (&summary["status"], &summary["epoch"], &summary["head"]),
            (&json!("running"), &json!(0), &json!(0))
        );
    }
    world.cluster.change_session("team-a", "one", |session| session.spec.input.push(input("c")));
    let answer = world.call("PUT", SESSION, "operator", &ensure).await;
    assert_eq!(answer.body["deliveredInputs"], 3);
    let queued = world.store.inbox(&derived_session_id("uid-one")).await.unwrap().items;
    let texts: Vec<Value> =
        queued.iter().map(|item| serde_json::to_value(&item.event).unwrap()["content"][0]["text"].clone()).collect();
    assert_eq!(texts, ["a", "b", "c"]);
    let answer = world.call("GET", SESSION, "operator", &Value::Null).await;
    assert_eq!(answer.body["deliveredInputs"], 3);
}

#[tokio::test]
async fn more_input_than_one_transaction_takes_is_delivered_in_order() {
    let world = World::new();
    world.cluster.add_session("team-a", "one", "uid-one");
    let inputs = (0..64).map(|number| input(&number.to_string())).collect();
    world.cluster.change_session("team-a", "one", |session| session.spec.input = inputs);
    let answer = world.call("PUT", SESSION, "operator", &json!({"uid": "uid-one"})).await;
    assert_eq!(answer.body["deliveredInputs"], 64, "{answer:?}");
    assert_eq!(world.store.inbox(&derived_session_id("uid-one")).await.unwrap().items.len(), 64);
}

#[tokio::test]
async fn what_cannot_be_ensured_is_named() {
    let world = World::new();
    let answer = world.call("PUT", SESSION, "operator", &json!({"uid": "uid-one"})).await;
    assert_eq!(answer.status, 404);
    world.cluster.add_session("team-a", "one", "uid-one");
    let answer = world.call("PUT", SESSION, "operator", &json!({"uid": "uid-two"})).await;
    assert_eq!(answer.status, 409);
    world.cluster.change_session("team-a", "one", |session| session.spec.agent_ref.name = "nobody".to_owned());
    let answer = world.call("PUT", SESSION, "operator", &json!({"uid": "uid-one"})).await;
    assert_eq!(answer.status, 409);
    assert!(answer.message().contains("team-a/nobody"), "{}", answer.message());
    assert_eq!(world.call("GET", SESSION, "operator", &Value::Null).await.status, 404);
    world.cluster.add_agent("team-a", "nobody");
    let answer = world.call("PUT", SESSION, "operator", &json!({"uid": "uid-one"})).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_log_goes_only_when_its_resource_is_gone() {
    let world = World::new();
    let one = world.session("one", "pod-1").await;
    let two = world.session("two", "pod-1").await;
    let answer = world.call("GET", "/internal/v1/sessions?limit=1", "operator", &Value::Null).await;
    let first = &answer.body["sessions"][0];
    assert_eq!(first["namespace"], "team-a");
    let after = first["sessionId"].as_str().unwrap();
    let answer = world.call("GET", &format!("/internal/v1/sessions?after={after}"), "operator", &Value::Null).await;
    assert_eq!(answer.body["sessions"].as_array().unwrap().len(), 1);

    let path = format!("/internal/v1/sessions/{one}");
    let answer = world.call("DELETE", &path, "operator", &json!({})).await;
    assert_eq!(answer.status, 409);
    world.cluster.remove_session("team-a", "one");
    // Another session of the same name is another session.
    world.cluster.add_session("team-a", "one", "uid-of-another");
    for _ in 0..2 {
        assert_eq!(world.call("DELETE", &path, "operator", &json!({})).await.status, 200);
    }
    assert!(world.store.state(&one).await.is_err());
    assert!(world.store.state(&two).await.is_ok());
}

#[tokio::test]
async fn a_deleted_session_is_kept_as_its_retention_says() {
    let world = World::new();
    let ensure = json!({"uid": "uid-one"});
    world.cluster.add_session("team-a", "one", "uid-one");
    world.cluster.change_session("team-a", "one", |session| {
        session.spec.retention = Some(Retention { delete_after_seconds: Some(3_600), archive_after_seconds: Some(60) });
    });
    world.call("PUT", SESSION, "operator", &ensure).await;
    let id = derived_session_id("uid-one");
    let path = format!("/internal/v1/sessions/{id}");
    assert_eq!(world.call("DELETE", &path, "operator", &Value::Null).await.status, 409);
    world.cluster.remove_session("team-a", "one");
    for _ in 0..2 {
        assert_eq!(world.call("DELETE", &path, "operator", &Value::Null).await.status, 200);
        let kept = world.store.state(&id).await.unwrap();
        assert!(kept.archived_at.is_some() && kept.wake_revision.is_none());
        assert_eq!(kept.meta.retention.archive_after_seconds, Some(60));
    }
}
