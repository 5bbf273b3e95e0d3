use axum::body::Body;
use rstest::rstest;
use serde_json::{Value, json};

use crate::testing::{Answer, World};

const AGENTS: &str = "/v1/agents";

async fn post(world: &World, path: &str, body: Value) -> Answer {
    world.call("POST", path, "alice", &body).await
}

async fn get(world: &World, path: &str) -> Answer {
    world.call("GET", path, "alice", &Value::Null).await
}

async fn made(world: &World, name: &str) -> String {
    let answer = post(world, AGENTS, json!({"name": name, "model": "claude"})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    format!("{AGENTS}/{}", answer.body["id"].as_str().unwrap())
}

fn names(answer: &Answer) -> Vec<&str> {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body["data"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
}

#[rstest]
#[case("GET", "/v1/agents", "list agents.")]
#[case("POST", "/v1/agents", "create agents.")]
#[case("GET", "/v1/agents/helper", "get agents.")]
#[case("POST", "/v1/agents/helper", "update agents.")]
#[case("POST", "/v1/agents/helper/archive", "update agents.")]
#[case("GET", "/v1/agents/helper/versions", "get agents.")]
#[tokio::test]
async fn who_may_not_is_told_what(#[case] method: &str, #[case] path: &str, #[case] what: &str) {
    let world = World::new();
    let answer = world.call(method, path, "bob", &json!({"name": "n", "model": "m"})).await;
    assert_eq!(answer.status, 403, "{answer:?}");
    assert!(answer.message().contains(what), "{}", answer.message());
    assert_eq!(world.cluster.agents.names(), ["helper"]);
    assert_eq!(world.cluster.revisions.names(), Vec::<String>::new());
}

#[tokio::test]
async fn an_agent_is_made_with_its_first_version() {
    let world = World::new();
    let answer = post(&world, "/v1/agents?beta=true", json!({"name": "My agent", "model": "claude"})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let id = answer.body["id"].as_str().unwrap();
    assert!(id.starts_with("agent_"), "{id}");
    let expected = json!({
        "id": id, "type": "agent", "version": 1, "name": "My agent", "description": null,
        "model": {"id": "claude", "effort": null, "speed": null, "inference_geo": null}, "system": null, "tools": [],
        "mcp_servers": [], "skills": [], "multiagent": null, "metadata": {},
        "execution_identity": {"type": "service_account"}, "created_at": answer.body["created_at"],
        "updated_at": answer.body["updated_at"], "archived_at": null,
    });
    assert_eq!(answer.body, expected);
    let name = &world.cluster.agents.names()[0];
    assert!(name.starts_with("agent-"), "{name}");
    assert_eq!(world.cluster.revisions.names(), [format!("{name}-v1")]);
    for path in [format!("{AGENTS}/{id}"), format!("{AGENTS}/{name}"), format!("/namespaces/team-a{AGENTS}/{id}")] {
        assert_eq!(get(&world, &path).await.body, expected, "{path}");
    }
}

#[tokio::test]
async fn what_kubectl_makes_and_edits_is_shown_and_versioned() {
    let world = World::new();
    world.cluster.agents.apply(
        "team-a",
        json!({"metadata": {"name": "coder"}, "spec": {
            "model": {"id": "m", "maxTokens": 5}, "tools": [{"type": "mcp_toolset", "mcpServerName": "s"}],
            "mcpServers": [{"name": "s", "url": "https://s.test"}],
        }}),
    );
    let first = get(&world, "/v1/agents/coder").await;
    assert_eq!((&first.body["version"], &first.body["name"]), (&json!(1), &json!("coder")), "{first:?}");
    assert_eq!(first.body["tools"][0]["default_config"]["permission_policy"], json!({"type": "always_ask"}));
    world.cluster.agents.edit("team-a", "coder", |agent| agent.spec.system = Some("be kind".to_owned()));
    let id = first.body["id"].as_str().unwrap();
    let second = get(&world, &format!("{AGENTS}/{id}")).await;
    assert_eq!((&second.body["version"], &second.body["system"]), (&json!(2), &json!("be kind")));
    let then = get(&world, &format!("{AGENTS}/{id}?version=1")).await;
    assert_eq!(then.body, first.body);
    assert_eq!(get(&world, &format!("{AGENTS}/{id}?version=0")).await.body, second.body, "0 is as good as none");
    // What the wire does not know stays.
    let third = post(&world, &format!("{AGENTS}/{id}"), json!({"name": "other", "version": 2})).await;
    assert_eq!((&third.body["version"], &third.body["system"]), (&json!(3), &json!("be kind")), "{third:?}");
    world.cluster.agents.edit("team-a", "coder", |agent| assert_eq!(agent.spec.model.max_tokens, 5));
}

#[tokio::test]
async fn an_update_is_a_version_unless_nothing_changes() {
    let world = World::new();
    let path = made(&world, "one").await;
    let same = post(&world, &path, json!({"name": "one", "version": 1})).await;
    assert_eq!((same.status.as_u16(), &same.body["version"]), (200, &json!(1)));
    let two = post(&world, &path, json!({"name": "two", "metadata": {"k": "v"}})).await;
    assert_eq!((&two.body["version"], &two.body["metadata"]), (&json!(2), &json!({"k": "v"})));
    let late = post(&world, &path, json!({"name": "late", "version": 1})).await;
    assert_eq!((late.status.as_u16(), &late.body["error"]["type"]), (409, &json!("invalid_request_error")));
    assert_eq!(late.headers["x-should-retry"], "false");
    assert!(late.message().contains("version 2"), "{}", late.message());
    assert_eq!(get(&world, &path).await.body, two.body);
}

#[tokio::test]
async fn an_update_outlives_races_with_other_writers() {
    let world = World::new();
    let path = made(&world, "one").await;
    world.cluster.agents.lose_races(3);
    let answer = post(&world, &path, json!({"name": "two", "version": 1})).await;
    assert_eq!((answer.status.as_u16(), &answer.body["version"]), (200, &json!(2)), "{answer:?}");
    world.cluster.agents.lose_races(100);
    let answer = post(&world, &path, json!({"name": "three"})).await;
    assert_eq!(answer.status, 409);
    assert_eq!(world.cluster.revisions.names().len(), 2);
}

#[tokio::test]
async fn an_archived_agent_is_hidden_and_does_not_change() {
    let world = World::new();
    let path = made(&world, "one").await;
    let archived = post(&world, &format!("{path}/archive"), json!({})).await;
    assert_eq!((archived.status.as_u16(), &archived.body["version"]), (200, &json!(1)));
    assert!(archived.body["archived_at"].is_string(), "{archived:?}");
    assert_eq!(archived.body["updated_at"], archived.body["archived_at"]);
    let again = post(&world, &format!("{path}/archive"), Value::Null).await;
    assert_eq!(again.body, archived.body);
    assert_eq!(post(&world, &path, json!({"name": "two"})).await.status, 400);
    assert_eq!(names(&get(&world, AGENTS).await), ["helper"]);
    assert_eq!(names(&get(&world, "/v1/agents?include_archived=true").await), ["one", "helper"]);
}

#[tokio::test]
async fn agents_are_listed_in_pages_the_newest_first() {
    let world = World::new();
    for name in ["a", "b", "c", "d"] {
        made(&world, name).await;
    }
    world.cluster.add_agent("team-b", "elsewhere");
    let (mut all, mut path) = (Vec::new(), "/v1/agents?limit=2".to_owned());
    loop {
        let answer = get(&world, &path).await;
        all.extend(names(&answer).into_iter().map(ToOwned::to_owned));
        assert_eq!(answer.body.as_object().unwrap().len(), 2, "data and next_page only");
        match answer.body["next_page"].as_str() {
            Some(page) => path = format!("/v1/agents?limit=2&page={page}"),
            None => break,
        }
    }
    assert_eq!(all, ["d", "c", "b", "a", "helper"]);
    let b = get(&world, AGENTS).await.body["data"][2]["created_at"].as_str().unwrap().to_owned();
    assert_eq!(names(&get(&world, &format!("/v1/agents?created_at[gte]={b}")).await), ["d", "c", "b"]);
    assert_eq!(names(&get(&world, &format!("/v1/agents?created_at[lte]={b}")).await), ["b", "a", "helper"]);
}

#[tokio::test]
async fn versions_are_listed_in_pages_the_newest_first() {
    let world = World::new();
    let path = made(&world, "1").await;
    for name in ["2", "3", "4", "5"] {
        assert_eq!(post(&world, &path, json!({"name": name})).await.status, 200);
    }
    let first = get(&world, &format!("{path}/versions?limit=3")).await;
    assert_eq!(names(&first), ["5", "4", "3"]);
    assert_eq!(first.body["data"][0], get(&world, &path).await.body);
    let page = first.body["next_page"].as_str().unwrap();
    let second = get(&world, &format!("{path}/versions?limit=3&page={page}")).await;
    assert_eq!((names(&second), &second.body["next_page"]), (vec!["2", "1"], &Value::Null));
}

#[rstest]
#[case("GET", "/v1/agents?limit=-1", 400, "`limit`")]
#[case("GET", "/v1/agents?limit=101", 400, "`limit`")]
#[case("GET", "/v1/agents?page=page", 400, "`page`")]
#[case("GET", "/v1/agents?created_at[gte]=now", 400, "`created_at[gte]`")]
#[case("GET", "/v1/agents?odd=1", 400, "`odd`")]
#[case("GET", "/v1/agents/nobody", 404, "`nobody`")]
#[case("GET", "/v1/agents/agent_unknown", 404, "`agent_unknown`")]
#[case("GET", "/v1/agents/No_Name", 404, "`No_Name`")]
#[case("GET", "/v1/agents/helper?version=2", 404, "version 2")]
#[case("GET", "/v1/agents/helper?version=-1", 400, "`version`")]
#[case("GET", "/v1/agents/helper?version=x", 400, "`version`")]
#[case("GET", "/v1/agents/helper/versions?page=page", 400, "`page`")]
#[case("POST", "/v1/agents/nobody", 404, "`nobody`")]
#[case("DELETE", "/v1/agents/helper", 405, "")]
#[tokio::test]
async fn what_cannot_be_is_named(#[case] method: &str, #[case] path: &str, #[case] status: u16, #[case] part: &str) {
    let world = World::new();
    let answer = world.call(method, path, "alice", &json!({})).await;
    assert_eq!(answer.status, status, "{answer:?}");
    assert!(answer.message().contains(part), "{}", answer.message());
}

#[tokio::test]
async fn an_idempotency_key_makes_one_agent() {
    let world = World::new();
    let send = async |key: &str, name: &str| {
        let headers = [("authorization", "Bearer alice"), ("idempotency-key", key)];
        let body = Body::from(json!({"name": name, "model": "m"}).to_string());
        world.raw("POST", AGENTS, &headers, body).await
    };
    let first = send("k1", "one").await;
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(send("k1", "one").await.body, first.body);
    assert_eq!(send("k1", "two").await.status, 409);
    assert_ne!(send("k2", "one").await.body["id"], first.body["id"]);
    assert_eq!(world.cluster.agents.names().len(), 3);
}
