//! Requests that nobody thought of, made by schemathesis from the OpenAPI document. They are the same each time.

use std::process::Stdio;
use std::time::Duration;

use hyper_util::service::TowerToHyperService;
use longhand_process::http::{Limits, Listener};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::auth::Access;
use crate::testing::{World, say};

const ALICE: &str = "system:serviceaccount:team-a:alice";

const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_schema_conformance,response_headers_conformance";
/// For each operation.
const EXAMPLES: &str = "25";
/// Of each kind.
const THINGS: usize = 40;
const DEADLINE: Duration = Duration::from_secs(300);

/// Needs `SCHEMATHESIS_PYTHON`, a Python that has it; `hack/fuzz-api` makes one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute and needs a program: run hack/fuzz-api"]
async fn no_request_breaks_the_service() {
    let python =
        std::env::var("SCHEMATHESIS_PYTHON").expect("SCHEMATHESIS_PYTHON names a Python that has schemathesis");
    let world = World::new();
    for verb in ["list", "create", "get", "update", "delete"] {
        world.cluster.allow(ALICE, Access::Kind("vaults", verb), "team-a");
    }
    let id = world.session("one", "pod-1").await;
    let sent = world.call("POST", &format!("/v1/sessions/{id}/events"), "alice", &json!({"events": [say("hi")]})).await;
    assert_eq!(sent.status, 200);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let close = CancellationToken::new();
    let service = TowerToHyperService::new(world.app.clone().router());
    let server = tokio::spawn(Listener::plain(listener).serve(service, Limits::default(), close.clone()));

    // It leaves files where it runs.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("schemathesis.toml"), known(&things(&world).await)).unwrap();
    let mut command = Command::new(python);
    command
        .current_dir(&folder)
        .args(["-m", "schemathesis.cli", "run", &format!("{base}/openapi.json"), "--url", &base])
        .args(["--header", "Authorization: Bearer alice", "--no-color"])
        // Not those that follow from answers, which have random identifiers. How slow the machine is changes nothing.
        .args(["--phases", "examples,coverage,fuzzing", "--generation-deterministic", "--workers", "1"])
        .args(["--max-examples", EXAMPLES, "--checks", CHECKS, "--suppress-health-check", "all"])
        // A stream does not end, an import is no JSON and a folder a tar, and with a namespace in front it is all the same.
        .args(["--exclude-path-regex", "/(stream|import)$|/sandboxes/.*/archive$|^/namespaces/"])
        .args(["--request-timeout", "60", "--continue-on-failure"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let status = timeout(DEADLINE, command.status()).await.expect("schemathesis ends in time").unwrap();
    close.cancel();
    server.await.unwrap();
    assert!(status.success(), "schemathesis found something: see above");
}

/// What a path can name, by the name of its parameter: otherwise most requests would meet nothing. So many, since requests
/// delete and archive them.
async fn things(world: &World) -> [(&'static str, Vec<String>); 5] {
    let mut vaults = Vec::new();
    for name in 0..THINGS {
        let name = format!("vault {name}");
        vaults.push(made(world, "/v1/vaults", &json!({"display_name": name})).await);
    }
    let login = json!({
        "display_name": "a",
        "auth": {"type": "static_bearer", "mcp_server_url": "https://mcp.test/a", "token": "t"},
    });
    let credential = made(world, &format!("/v1/vaults/{}/credentials", vaults[0]), &login).await;
    let (mut agents, mut environments, mut sessions) = (Vec::new(), Vec::new(), Vec::new());
    for name in 0..THINGS {
        let (name, config) = (format!("thing-{name}"), if name % 2 == 0 { "cloud" } else { "self_hosted" });
        sessions.push(world.session(&name, "pod-1").await.to_string());
        agents.push(made(world, "/v1/agents", &json!({"name": name, "model": "claude"})).await);
        environments.push(made(world, "/v1/environments", &json!({"name": name, "config": {"type": config}})).await);
    }
    [
        ("agent", agents),
        ("environment", environments),
        ("session", sessions),
        ("vault", vaults),
        ("credential", vec![credential]),
    ]
}

async fn made(world: &World, path: &str, body: &Value) -> String {
    let answer = world.call("POST", path, "alice", body).await;
    assert_eq!(answer.status, 200, "{path}: {:?}", answer.body);
    answer.body["id"].as_str().unwrap().to_owned()
}

/// Schemathesis' configuration: three of four paths name what there is.
fn known(things: &[(&str, Vec<String>)]) -> String {
    let dictionaries = things.iter().map(|(name, ids)| format!("[dictionaries.{name}]\nvalues = {ids:?}\n"));
    let bound =
        things.iter().map(|(name, _)| format!("\"path.{name}\" = {{ dictionary = \"{name}\", probability = 0.75 }}\n"));
    dictionaries.chain(["[parameters]\n".to_owned()]).chain(bound).collect()
}
