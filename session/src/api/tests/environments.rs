use rstest::rstest;
use serde_json::{Value, json};

use crate::testing::{Answer, World};

const ENVIRONMENTS: &str = "/v1/environments";

async fn post(world: &World, path: &str, body: Value) -> Answer {
    world.call("POST", path, "alice", &body).await
}

async fn get(world: &World, path: &str) -> Answer {
    world.call("GET", path, "alice", &Value::Null).await
}

async fn made(world: &World, name: &str) -> String {
    let answer = post(world, ENVIRONMENTS, json!({"name": name})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    format!("{ENVIRONMENTS}/{}", answer.body["id"].as_str().unwrap())
}

fn names(answer: &Answer) -> Vec<&str> {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body["data"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
}

#[rstest]
#[case("GET", "/v1/environments", "list sandboxtemplates.")]
#[case("POST", "/v1/environments", "create sandboxtemplates.")]
#[case("GET", "/v1/environments/tools", "get sandboxtemplates.")]
#[case("POST", "/v1/environments/tools", "update sandboxtemplates.")]
#[case("DELETE", "/v1/environments/tools", "delete sandboxtemplates.")]
#[case("POST", "/v1/environments/tools/archive", "update sandboxtemplates.")]
#[tokio::test]
async fn who_may_not_is_told_what(#[case] method: &str, #[case] path: &str, #[case] what: &str) {
    let world = World::new();
    let answer = world.call(method, path, "bob", &json!({"name": "n"})).await;
    assert_eq!(answer.status, 403, "{answer:?}");
    assert!(answer.message().contains(what), "{}", answer.message());
    assert_eq!(world.cluster.environments.names(), ["tools"]);
}

#[tokio::test]
async fn an_environment_is_made_and_looked_at() {
    let world = World::new();
    let config = json!({"type": "cloud",
        "networking": {"type": "limited", "allowed_hosts": ["api.example.com"], "allow_mcp_servers": true,
            "allow_package_managers": true},
        "packages": {"type": "packages", "apt": [], "cargo": [], "gem": [], "go": [], "npm": [], "pip": ["pandas"]}});
    let body =
        json!({"name": "data", "description": "d", "metadata": {"k": "v"}, "scope": "organization", "config": config});
    let answer = post(&world, ENVIRONMENTS, body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let id = answer.body["id"].as_str().unwrap();
    assert!(id.starts_with("env_"), "{id}");
    let expected = json!({
        "id": id, "type": "environment", "name": "data", "description": "d", "config": config, "metadata": {"k": "v"},
        "scope": "organization", "created_at": answer.body["created_at"], "updated_at": answer.body["updated_at"],
        "archived_at": null,
    });
    assert_eq!(answer.body, expected);
    assert_eq!(get(&world, &format!("{ENVIRONMENTS}/{id}")).await.body, expected);
    let of_kubectl = get(&world, "/v1/environments/tools").await;
    assert_eq!(of_kubectl.body["config"]["networking"]["type"], "limited", "{of_kubectl:?}");
}

#[tokio::test]
async fn a_name_belongs_to_one_environment_at_a_time() {
    let world = World::new();
    let path = made(&world, "one").await;
    let other = made(&world, "two").await;
    for (path, body) in [
        (ENVIRONMENTS, json!({"name": "one"})),
        (ENVIRONMENTS, json!({"name": "tools"})),
        (&*other, json!({"name": "one"})),
    ] {
        let answer = post(&world, path, body).await;
        assert_eq!((answer.status.as_u16(), &answer.body["error"]["type"]), (409, &json!("invalid_request_error")));
        assert_eq!(answer.headers["x-should-retry"], "false");
    }
    assert_eq!(post(&world, &path, json!({"name": "one", "description": "still mine"})).await.status, 200);
    assert_eq!(post(&world, &format!("{path}/archive"), json!({})).await.status, 200);
    assert_eq!(post(&world, &other, json!({"name": "one"})).await.status, 200);
    assert_eq!(world.cluster.environments.names().len(), 3);
}

#[tokio::test]
async fn an_archived_environment_is_hidden_and_does_not_change() {
    let world = World::new();
    let path = made(&world, "one").await;
    let archived = post(&world, &format!("{path}/archive"), json!({})).await;
    assert!(archived.body["archived_at"].is_string(), "{archived:?}");
    assert_eq!(post(&world, &format!("{path}/archive"), json!({})).await.body, archived.body);
    assert_eq!(post(&world, &path, json!({"description": "x"})).await.status, 400);
    assert_eq!(names(&get(&world, ENVIRONMENTS).await), ["tools"]);
    assert_eq!(names(&get(&world, "/v1/environments?include_archived=true&limit=1").await), ["one"]);
}

#[tokio::test]
async fn an_environment_that_a_session_uses_stays() {
    let world = World::new();
    let path = made(&world, "one").await;
    let deleted = world.call("DELETE", &path, "alice", &Value::Null).await;
    assert_eq!(deleted.body["type"], "environment_deleted", "{deleted:?}");
    assert_eq!(get(&world, &path).await.status, 404);
    for name in ["a", "b", "c"] {
        world.cluster.add_session("team-a", name, &format!("uid-{name}"));
    }
    let answer = world.call("DELETE", "/v1/environments/tools", "alice", &Value::Null).await;
    assert_eq!(answer.status, 409, "{answer:?}");
    assert_eq!(world.cluster.environments.names(), ["tools"]);
}

#[tokio::test]
async fn an_update_outlives_races_with_other_writers() {
    let world = World::new();
    let path = made(&world, "one").await;
    world.cluster.environments.lose_races(3);
    let answer = post(&world, &path, json!({"description": "new"})).await;
    assert_eq!((answer.status.as_u16(), &answer.body["description"]), (200, &json!("new")), "{answer:?}");
}
