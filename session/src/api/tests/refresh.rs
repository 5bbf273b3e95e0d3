//! Refreshes of OAuth access tokens.

use longhand_crds::LocalRef;
use longhand_protocol::SessionId;
use longhand_session_log::SessionStore as _;
use rstest::rstest;
use serde_json::{Value, json};

use crate::testing::World;

/// A session with a vault of its own, whose pod has claimed it.
async fn world() -> (World, SessionId) {
    let world = World::new();
    world.cluster.add_vault("team-a", "keys", json!({"credentials": [credential("tickets")]}));
    let id = session(&world, "one", "pod-1").await;
    (world, id)
}

async fn session(world: &World, name: &str, pod: &str) -> SessionId {
    let id = world.session(name, pod).await;
    world.cluster.change_session("team-a", name, |session| {
        session.spec.vault_refs = vec![LocalRef { name: "keys".to_owned() }];
    });
    world.claim(&id, pod).await;
    id
}

fn credential(name: &str) -> Value {
    json!({"name": name, "secretRef": {"name": "first", "key": "token"}, "allow": {"hosts": ["mcp.example"]},
        "placement": {"type": "bearer"}, "oauth": {"expiresAt": "2026-01-01T00:00:00Z", "refresh": {"clientID": "c",
            "tokenEndpoint": "https://t.example/x", "tokenEndpointAuth": "none",
            "refreshTokenRef": {"name": "first", "key": "refresh-token"}}}})
}

fn request(step: &str, changes: &Value) -> Value {
    let mut request = json!({"vault": "keys", "credential": "tickets", "secret": "first", "step": step});
    if step == "refreshed" {
        request["attempt"] = json!("a1");
        request["access_token"] = json!("at-canary");
        request["refresh_token"] = json!("rt-canary");
        request["expires_at"] = json!("2030-01-01T00:00:00Z");
    }
    for (key, value) in changes.as_object().unwrap() {
        request[key] = value.clone();
    }
    request
}

fn path(id: &SessionId) -> String {
    format!("/harness/v1/sessions/{id}/credential_refresh")
}

async fn answered(world: &World, id: &SessionId, pod: &str, request: Value) -> Value {
    let answer = world.call("POST", &path(id), &format!("proxy:{pod}"), &request).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

async fn begun(world: &World, id: &SessionId, pod: &str) -> Value {
    answered(world, id, pod, request("begin", &json!({}))).await
}

async fn refused(world: &World, id: &SessionId, token: &str, request: Value) -> u16 {
    world.call("POST", &path(id), token, &request).await.status.as_u16()
}

#[tokio::test]
async fn a_refreshed_token_is_a_new_secret_that_the_vault_points_to() {
    let (world, id) = world().await;
    assert_eq!(begun(&world, &id, "pod-1").await, json!({"outcome": "go"}));
    let answer = answered(&world, &id, "pod-1", request("refreshed", &json!({}))).await;
    let secret = world.cluster.secrets().remove(0);
    assert_eq!(answer, json!({"outcome": "stored", "secret": secret.name}));
    assert_eq!((secret.namespace.as_str(), secret.owner_uid.as_str()), ("team-a", "uid-keys"));
    let values: Vec<(&str, &str)> = secret.values.iter().map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(values, [("refresh-token", "rt-canary"), ("token", "at-canary")]);
    let vault = world.cluster.vault_as_stored("team-a", "keys").unwrap();
    let credential = &vault.spec.credentials[0];
    assert_eq!(credential.secret_ref.name, secret.name);
    assert_eq!(credential.refresh().unwrap().refresh_token_ref.name, secret.name);
    assert!(!serde_json::to_string(&vault).unwrap().contains("canary"));
    assert_eq!(world.kinds(&id).await, ["x.session.woken", "x.credential.refreshed"]);
    let log = serde_json::to_string(&world.store.read(&id, 0, 9).await.unwrap().records).unwrap();
    assert!(log.contains("keys/tickets") && !log.contains("canary"), "{log}");

    // The answer was lost, and the same is asked again.
    assert_eq!(answered(&world, &id, "pod-1", request("refreshed", &json!({}))).await, answer);
    assert_eq!((world.cluster.secrets().len(), world.kinds(&id).await.len()), (1, 2));
}

#[tokio::test]
async fn of_two_sessions_one_asks_the_provider() {
    let (world, one) = world().await;
    let two = session(&world, "two", "pod-2").await;
    assert_eq!(begun(&world, &one, "pod-1").await["outcome"], "go");
    assert_eq!(begun(&world, &two, "pod-2").await["outcome"], "busy");
    answered(&world, &one, "pod-1", request("refreshed", &json!({}))).await;
    assert_eq!(begun(&world, &two, "pod-2").await["outcome"], "superseded");
    let late = answered(&world, &two, "pod-2", request("refreshed", &json!({}))).await;
    assert_eq!(late["outcome"], "superseded");
    assert_eq!(world.cluster.secrets().len(), 1);
}

#[tokio::test]
async fn what_a_provider_gave_is_kept_although_the_session_is_lost() {
    let (world, id) = world().await;
    begun(&world, &id, "pod-1").await;
    world.cluster.name_harness("team-a", "one", Some("pod-2"));
    world.claim(&id, "pod-2").await;
    world.app.claims.remove(&id);
    let stranger = request("refreshed", &json!({}));
    assert_eq!(refused(&world, &id, "proxy:pod-elsewhere", stranger.clone()).await, 403);
    assert_eq!(answered(&world, &id, "pod-1", stranger.clone()).await["outcome"], "stored");
    assert!(
        !world.kinds(&id).await.contains(&"x.credential.refreshed".to_owned()),
        "it speaks for the session no more"
    );
    let again = request("refreshed", &json!({"attempt": "a2"}));
    assert_eq!(refused(&world, &id, "proxy:pod-1", again).await, 403, "that was all that it was let");
}

#[tokio::test]
async fn who_changes_the_vault_meanwhile_is_not_overwritten() {
    let (world, id) = world().await;
    begun(&world, &id, "pod-1").await;
    world.cluster.overtake(|vault| vault.spec.display_name = Some("other".to_owned()));
    assert_eq!(answered(&world, &id, "pod-1", request("refreshed", &json!({}))).await["outcome"], "stored");
    let vault = world.cluster.vault_as_stored("team-a", "keys").unwrap();
    assert_eq!(vault.spec.display_name.as_deref(), Some("other"));
    let held = vault.spec.credentials[0].secret_ref.name.clone();
    let next = json!({"secret": held});
    assert_eq!(answered(&world, &id, "pod-1", request("begin", &next)).await["outcome"], "go");
    world.cluster.overtake(|vault| {
        let refresh = vault.spec.credentials[0].oauth.as_mut().unwrap().refresh.as_mut().unwrap();
        refresh.refresh_token_ref.name = "by-hand".to_owned();
    });
    let next = json!({"secret": held, "attempt": "a2"});
    assert_eq!(answered(&world, &id, "pod-1", request("refreshed", &next)).await["outcome"], "superseded");
    let vault = world.cluster.vault_as_stored("team-a", "keys").unwrap();
    assert_eq!(vault.spec.credentials[0].secret_ref.name, held);
}

#[tokio::test]
async fn a_refusal_of_the_provider_is_on_record() {
    let (world, id) = world().await;
    begun(&world, &id, "pod-1").await;
    let failed = request("failed", &json!({"failure": "invalid_grant"}));
    assert_eq!(answered(&world, &id, "pod-1", failed).await, json!({"outcome": "noted"}));
    assert_eq!(begun(&world, &id, "pod-1").await, json!({"outcome": "failed", "failure": "invalid_grant"}));
    let vault = world.cluster.vault_as_stored("team-a", "keys").unwrap();
    assert!(vault.metadata.annotations.unwrap()["oauth.longhand.dev/tickets"].contains("invalid_grant"));
}

#[tokio::test]
async fn no_provider_is_asked_where_no_secret_may_be_made() {
    let (world, id) = world().await;
    world.cluster.refuse_secrets();
    let answer = world.call("POST", &path(&id), "proxy:pod-1", &request("begin", &json!({}))).await;
    assert!(answer.status == 400 && answer.message().contains("does not let it"), "{answer:?}");
    let vault = world.cluster.vault_as_stored("team-a", "keys").unwrap();
    assert_eq!(vault.metadata.annotations, None, "and nobody waits for it");
}

#[rstest]
#[case::the_harness_itself("pod-1", json!({}), 401)]
#[case::another_pod("proxy:pod-2", json!({}), 403)]
#[case::another_namespace("proxy:pod-elsewhere", json!({}), 403)]
#[case::a_user("proxy:alice", json!({}), 403)]
#[case::of_another_vault("proxy:pod-1", json!({"vault": "others"}), 403)]
#[case::no_name("proxy:pod-1", json!({"vault": "../keys"}), 400)]
#[case::no_step("proxy:pod-1", json!({"step": "end"}), 400)]
#[case::tokens_too_early("proxy:pod-1", json!({"access_token": "a"}), 400)]
#[case::no_tokens("proxy:pod-1", json!({"step": "refreshed"}), 400)]
#[case::no_attempt("proxy:pod-1", json!({"step": "refreshed", "access_token": "a"}), 400)]
#[case::an_attempt_that_is_a_path("proxy:pod-1", json!({"step": "refreshed", "access_token": "a", "attempt": "../x"}), 400)]
#[case::no_reason("proxy:pod-1", json!({"step": "failed"}), 400)]
#[case::something_else("proxy:pod-1", json!({"value": "v"}), 400)]
#[tokio::test]
async fn only_the_proxy_of_the_session_refreshes_its_credentials(
    #[case] token: &str,
    #[case] changes: Value,
    #[case] status: u16,
) {
    let (world, id) = world().await;
    world.cluster.add_vault("team-a", "others", json!({"credentials": [credential("tickets")]}));
    assert_eq!(refused(&world, &id, token, request("begin", &changes)).await, status);
    for name in ["keys", "others"] {
        let vault = world.cluster.vault_as_stored("team-a", name).unwrap();
        assert_eq!(vault.metadata.annotations, None);
    }
    assert!(world.cluster.secrets().is_empty());
}

#[tokio::test]
async fn a_credential_of_the_agent_is_the_session_s_too() {
    let (world, _) = world().await;
    let id = world.session("plain", "pod-2").await;
    world.claim(&id, "pod-2").await;
    let begin = request("begin", &json!({}));
    assert_eq!(refused(&world, &id, "proxy:pod-2", begin.clone()).await, 403);
    let server = json!({"name": "tickets", "url": "https://mcp.example/mcp", "credential": {"vault": "keys", "name": "tickets"}});
    let server = serde_json::from_value(server).unwrap();
    world.cluster.agents.edit("team-a", "helper", |agent| agent.spec.mcp_servers = vec![server]);
    assert_eq!(answered(&world, &id, "pod-2", begin).await["outcome"], "go");
}
