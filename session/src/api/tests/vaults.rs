//! Vaults and credentials.

use http::StatusCode;
use rstest::rstest;
use serde_json::{Value, json};

use crate::auth::Access;
use crate::testing::World;

const ALICE: &str = "system:serviceaccount:team-a:alice";

const BOB: &str = "system:serviceaccount:team-a:bob";

fn world() -> World {
    let world = World::new();
    for verb in ["list", "create", "get", "update", "delete"] {
        world.cluster.allow(ALICE, Access::Kind("vaults", verb), "team-a");
    }
    world
}

async fn ok(world: &World, method: &str, path: &str, body: Value) -> Value {
    let answer = world.call(method, path, "alice", &body).await;
    assert_eq!(answer.status, StatusCode::OK, "{method} {path}: {}", answer.message());
    answer.body
}

fn id(value: &Value) -> &str {
    value["id"].as_str().unwrap()
}

fn bearer(token: &str) -> Value {
    json!({"auth": {"type": "static_bearer", "token": token, "mcp_server_url": "https://mcp.example/sse"},
        "display_name": "mine", "metadata": {"a": "1"}})
}

#[tokio::test]
async fn a_vault_lives_from_its_creation_to_its_end() {
    let world = world();
    let made = ok(&world, "POST", "/v1/vaults", json!({"display_name": "Keys", "metadata": {"a": "1"}})).await;
    assert_eq!((&made["type"], &made["display_name"]), (&json!("vault"), &json!("Keys")));
    let path = format!("/v1/vaults/{}", id(&made));
    let changed = ok(&world, "POST", &path, json!({"metadata": {"a": null, "b": "2"}})).await;
    assert_eq!(changed["metadata"], json!({"b": "2"}));
    assert_eq!(ok(&world, "GET", &path, Value::Null).await, changed);
    let archived = ok(&world, "POST", &format!("{path}/archive"), Value::Null).await;
    assert!(archived["archived_at"].is_string());
    assert_eq!(ok(&world, "POST", &format!("{path}/archive"), Value::Null).await, archived, "it is archived once");
    assert_eq!(ok(&world, "GET", "/v1/vaults", Value::Null).await["data"], json!([]));
    assert_eq!(ok(&world, "GET", "/v1/vaults?include_archived=true", Value::Null).await["data"], json!([archived]));
    let refused = world.call("POST", &path, "alice", &json!({"display_name": "x"})).await;
    assert!(refused.status == 400 && refused.message().contains("archived"), "{}", refused.message());
    let gone = ok(&world, "DELETE", &path, Value::Null).await;
    assert_eq!(gone, json!({"id": made["id"], "type": "vault_deleted"}));
    assert_eq!(world.call("GET", &path, "alice", &Value::Null).await.status, 404);
}

#[tokio::test]
async fn a_vault_of_kubectl_is_one_of_the_wire_api() {
    let world = world();
    world.cluster.add_vault("team-a", "models", json!({"credentials": [{"name": "api-key",
        "secretRef": {"name": "s", "key": "k"}, "allow": {"hosts": ["api.example"]}, "placement": {"type": "header", "header": "x-api-key"}}]}));
    let listed = ok(&world, "GET", "/v1/vaults", Value::Null).await;
    let vault = &listed["data"][0];
    assert_eq!(vault["display_name"], "models");
    let by_id = ok(&world, "GET", &format!("/v1/vaults/{}/credentials", id(vault)), Value::Null).await;
    assert_eq!(by_id, ok(&world, "GET", "/v1/vaults/models/credentials", Value::Null).await);
    assert_eq!(by_id["data"][0]["auth"], json!({"type": "static_bearer", "mcp_server_url": "https://api.example"}));
    let path = format!("/v1/vaults/models/credentials/{}", id(&by_id["data"][0]));
    ok(&world, "POST", &path, json!({"auth": {"type": "static_bearer", "token": "new"}})).await;
    let stored = world.cluster.vault_as_stored("team-a", "models").unwrap();
    let secret = &world.cluster.secrets()[0];
    assert_eq!(stored.spec.credentials[0].secret_ref.name, secret.name);
    assert_eq!(secret.owner_uid, "uid-models");
}

#[tokio::test]
async fn a_value_is_in_one_secret_and_nowhere_else() {
    let world = world();
    let vault = ok(&world, "POST", "/v1/vaults", json!({"display_name": "Keys"})).await;
    let all = format!("/v1/vaults/{}/credentials", id(&vault));
    let oauth = json!({"auth": {"type": "mcp_oauth", "access_token": "canary-1", "mcp_server_url": "https://mcp.example",
        "refresh": {"client_id": "id", "refresh_token": "canary-2", "token_endpoint": "https://login.example/t",
        "token_endpoint_auth": {"type": "client_secret_post", "client_secret": "canary-3"}}}});
    let variable = json!({"auth": {"type": "environment_variable", "secret_name": "KEY", "secret_value": "canary-4",
        "networking": {"type": "unrestricted"}}});
    let mut answers = Vec::new();
    for body in [bearer("canary-0"), oauth, variable] {
        answers.push(ok(&world, "POST", &all, body).await);
    }
    let rotated = format!("{all}/{}", id(&answers[0]));
    answers.push(ok(&world, "POST", &rotated, json!({"auth": {"type": "static_bearer", "token": "canary-5"}})).await);
    answers.push(ok(&world, "GET", &all, Value::Null).await);
    let validated = ok(&world, "POST", &format!("{all}/{}/mcp_oauth_validate", id(&answers[1])), Value::Null).await;
    assert_eq!((&validated["status"], &validated["has_refresh_token"]), (&json!("unknown"), &json!(true)));
    for wrong in [json!({"auth": "canary-6"}), json!({"auth": {"type": "static_bearer", "token": {"a": "canary-6"}}})] {
        let refused = world.call("POST", &all, "alice", &wrong).await;
        assert_eq!(refused.status, 400);
        answers.push(refused.body);
    }
    let name = world.cluster.secrets()[0].name.clone();
    let stored = world.cluster.vault_as_stored("team-a", name.rsplit_once("-cred").unwrap().0).unwrap();
    answers.push(serde_json::to_value(&stored).unwrap());
    for answer in &answers {
        assert!(!answer.to_string().contains("canary"), "{answer}");
    }
    let mut written: Vec<String> =
        world.cluster.secrets().into_iter().flat_map(|secret| secret.values.into_values()).collect();
    written.sort();
    assert_eq!(written, ["canary-0", "canary-1", "canary-2", "canary-3", "canary-4", "canary-5"]);
    assert_eq!(stored.spec.credentials[0].secret_ref.name, world.cluster.secrets()[3].name, "the last one counts");
}

#[tokio::test]
async fn an_old_value_goes_to_new_places_only_for_who_may_read_it() {
    let world = world();
    let vault = ok(&world, "POST", "/v1/vaults", json!({"display_name": "Keys"})).await;
    let all = format!("/v1/vaults/{}/credentials", id(&vault));
    let made = ok(
        &world,
        "POST",
        &all,
        json!({"auth": {"type": "environment_variable", "secret_name": "KEY",
        "secret_value": "v", "networking": {"type": "limited", "allowed_hosts": ["a.example"]}}}),
    )
    .await;
    let path = format!("{all}/{}", id(&made));
    let widen = json!({"auth": {"type": "environment_variable", "networking": {"type": "unrestricted"}}});
    let secret = world.cluster.secrets()[0].name.clone();
    world.cluster.allow(BOB, Access::Kind("vaults", "update"), "team-a");
    let refused = world.call("POST", &path, "bob", &widen).await;
    assert!(
        refused.status == 403 && refused.message().contains(&format!("get secrets {secret}")),
        "{}",
        refused.message()
    );
    world.cluster.allow(ALICE, Access::ReadSecret(&secret), "team-a");
    let widened = ok(&world, "POST", &path, widen).await;
    assert_eq!(widened["auth"]["networking"], json!({"type": "unrestricted"}));
}

#[tokio::test]
async fn a_refused_change_makes_no_secret() {
    let world = world();
    let vault = ok(&world, "POST", "/v1/vaults", json!({"display_name": "Keys"})).await;
    let all = format!("/v1/vaults/{}/credentials", id(&vault));
    let made = ok(&world, "POST", &all, bearer("a")).await;
    let path = format!("{all}/{}", id(&made));
    let wrong = json!({"auth": {"type": "static_bearer", "token": "b", "mcp_server_url": "https://evil.example"}});
    assert_eq!(world.call("POST", &path, "alice", &wrong).await.status, 400);
    let archived = ok(&world, "POST", &format!("{path}/archive"), Value::Null).await;
    assert!(archived["archived_at"].is_string());
    assert_eq!(world.call("POST", &path, "alice", &bearer("b")).await.status, 400);
    assert_eq!(world.cluster.secrets().len(), 1);
    assert_eq!(ok(&world, "GET", &all, Value::Null).await["data"], json!([]));
    let gone = ok(&world, "DELETE", &path, Value::Null).await;
    assert_eq!(gone, json!({"id": made["id"], "type": "vault_credential_deleted"}));
}

#[rstest]
#[case("GET", "/v1/vaults")]
#[case("POST", "/v1/vaults")]
#[case("GET", "/v1/vaults/models")]
#[case("GET", "/v1/vaults/none")]
#[case("DELETE", "/v1/vaults/models")]
#[case("POST", "/v1/vaults/models/archive")]
#[case("POST", "/v1/vaults/models/credentials")]
#[tokio::test]
async fn who_may_not_is_told_so_and_nothing_else(#[case] method: &str, #[case] path: &str) {
    let world = World::new();
    world.cluster.add_vault("team-a", "models", json!({"credentials": []}));
    let body = if method == "POST" { json!({"display_name": "x"}) } else { Value::Null };
    assert_eq!(world.call(method, path, "bob", &body).await.status, 403);
    assert_eq!(world.call(method, path, "nobody", &body).await.status, 401);
}

#[tokio::test]
async fn credentials_come_in_pages() {
    let world = world();
    ok(&world, "POST", "/v1/vaults", json!({"display_name": "Keys"})).await;
    let vault = ok(&world, "GET", "/v1/vaults", Value::Null).await["data"][0].clone();
    let all = format!("/v1/vaults/{}/credentials", id(&vault));
    let mut made = Vec::new();
    for token in ["a", "b", "c"] {
        made.push(ok(&world, "POST", &all, bearer(token)).await);
    }
    let first = ok(&world, "GET", &format!("{all}?limit=2"), Value::Null).await;
    assert_eq!(first["data"], json!(made[..2]));
    let next = first["next_page"].as_str().unwrap();
    let second = ok(&world, "GET", &format!("{all}?limit=2&page={next}"), Value::Null).await;
    assert_eq!((&second["data"], &second["next_page"]), (&json!(made[2..]), &Value::Null));
}
