use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use longhand_protocol::egress::{Claims, PORT};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::execute::tests::{execute, made, result, said};
use crate::testing::World;
use crate::testing::hands::{Hands, hands};

/// A proxy that sends an authority, says `reached` to everything else, and keeps the heads.
struct Proxy {
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// On an address of its own, since the port is always the same.
    async fn start(world: &World, pod: &str, last: u8) -> Self {
        let address = Ipv4Addr::new(127, 84, 0, last);
        let listener = TcpListener::bind((address, PORT)).await.unwrap();
        world.cluster.addresses.lock().unwrap().insert(pod.to_owned(), IpAddr::V4(address));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(stream, Arc::clone(&kept)));
            }
        });
        Self { heads, task }
    }

    /// The claims of the tokens in the requests so far, with the first lines.
    fn seen(&self) -> Vec<(String, Claims)> {
        let heads = self.heads.lock().unwrap();
        let read = |head: &String| {
            let token = head.lines().find_map(|line| line.strip_prefix("proxy-authorization: Bearer ")).unwrap();
            let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
            (head.lines().next().unwrap().to_owned(), serde_json::from_slice(&claims).unwrap())
        };
        heads.iter().map(read).collect()
    }
}

async fn answer(stream: TcpStream, heads: Arc<Mutex<Vec<String>>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let body = if head.starts_with("GET /ca.pem ") { "-----BEGIN CERTIFICATE-----" } else { "reached" };
        heads.lock().unwrap().push(head);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

fn vault(world: &World) {
    let credential = json!({
        "name": "github", "secretRef": {"name": "s", "key": "k"}, "allow": {"hosts": ["api.test"]},
        "placement": {"type": "environmentVariable", "variable": {"name": "GITHUB_TOKEN", "locations": ["header"]}},
    });
    world.cluster.add_vault("team-a", "work", json!({ "credentials": [credential] }));
    world.cluster.change_session("team-a", "one", |session| {
        session.spec.vault_refs = vec![longhand_crds::LocalRef { name: "work".to_owned() }];
    });
}

async fn run(world: &World, command: &str) -> (longhand_protocol::SessionId, u64, Hands, String) {
    let (id, epoch, call) = world.session_with_call("one", "bash", json!({ "command": command })).await;
    vault(world);
    let hands = hands(&world.signer, "hands-1").await;
    let running = execute(world, &id, epoch, &call);
    let name = made(world).await;
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    let text = said(&result(running).await.unwrap()).0;
    (id, epoch, hands, text)
}

#[tokio::test]
async fn a_call_finds_the_proxy_of_its_session_and_placeholders() {
    let world = World::new();
    let proxy = Proxy::start(&world, "pod-1", 1).await;
    let command = "curl -sS -m 10 http://api.test/x; echo; echo $GITHUB_TOKEN";
    let (id, epoch, _hands, text) = run(&world, command).await;
    let (reached, placeholder) = text.trim_end().split_once('\n').unwrap();
    assert_eq!(reached, "reached");
    let seen = proxy.seen();
    assert_eq!(seen[0].0, "GET /ca.pem HTTP/1.1");
    assert_eq!(seen[1].0, "GET http://api.test/x HTTP/1.1");
    let claims = &seen[1].1;
    assert_eq!((claims.sub.clone(), claims.sandbox.as_str()), (id.clone(), "default"));
    assert_eq!(
        (claims.aud.as_str(), claims.pod.as_str(), claims.harness.as_str()),
        ("longhand-egress", "hands-1", "pod-1")
    );
    assert_eq!(claims.exp - claims.iat, 24 * 60 * 60);
    assert_eq!(claims.seed.placeholder("work", "github"), placeholder);
    // The next call finds everything as it is.
    let second = world.tool_use(&id, epoch, "bash", json!({"command": "echo $GITHUB_TOKEN"})).await;
    let text = said(&result(execute(&world, &id, epoch, &second)).await.unwrap()).0;
    assert_eq!(text.trim_end(), placeholder);
    assert_eq!(proxy.seen().len(), 2, "it was not bound again");
}

#[tokio::test]
async fn the_token_of_a_repository_is_a_way_out_for_git() {
    let world = World::new();
    let proxy = Proxy::start(&world, "pod-1", 5).await;
    let (id, epoch, call) = world.session_with_call("one", "bash", json!({"command": "echo ran"})).await;
    let hands = hands(&world.signer, "hands-1").await;
    let resource = json!({"name": "r", "mountPath": hands.file("r").to_str().unwrap(), "githubRepository": {
        "url": "https://git.test/o/r.git", "tokenRef": {"name": "s", "key": "token"}}});
    world.cluster.change_session("team-a", "one", |session| {
        session.spec.resources = vec![serde_json::from_value(resource).unwrap()];
    });
    let running = execute(&world, &id, epoch, &call);
    let name = made(&world).await;
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    // This proxy speaks no TLS.
    let (text, is_error) = said(&result(running).await.unwrap());
    assert!(is_error && text.contains("not run") && text.contains("https://git.test/o/r.git"), "{text}");
    let seen = proxy.seen();
    let (line, claims) = seen.last().unwrap();
    assert!(line.starts_with("CONNECT git.test:443 "), "{line}");
    assert_eq!((claims.sub.clone(), claims.pod.as_str()), (id, "hands-1"));
}

#[tokio::test]
async fn another_harness_is_another_proxy_and_the_placeholders_stay() {
    let world = World::new();
    let (_first, second) = (Proxy::start(&world, "pod-1", 2).await, Proxy::start(&world, "pod-2", 3).await);
    let (id, _, _hands, before) = run(&world, "echo $GITHUB_TOKEN").await;
    world.cluster.name_harness("team-a", "one", Some("pod-2"));
    let epoch = world.claim(&id, "pod-2").await;
    let call =
        world.tool_use(&id, epoch, "bash", json!({"command": "echo $GITHUB_TOKEN; curl -sS -m 10 http://api.test/"}));
    let text = said(&result(execute(&world, &id, epoch, &call.await)).await.unwrap()).0;
    assert_eq!(text, format!("{before}reached"));
    assert_eq!(second.seen().last().unwrap().1.harness, "pod-2");
}

#[tokio::test]
async fn a_call_runs_although_its_way_out_is_not_there() {
    let world = World::new();
    let (_, _, _hands, text) = run(&world, "echo ran; curl -sS -m 10 http://api.test/").await;
    assert!(text.starts_with("ran\nlonghand: this sandbox has no way out"), "{text}");
}

#[tokio::test]
async fn a_session_without_egress_is_bound_to_nothing() {
    let world = World::new();
    let proxy = Proxy::start(&world, "pod-1", 4).await;
    let (id, epoch, call) = world.session_with_call("one", "bash", json!({"command": "true"})).await;
    let hands = hands(&world.signer, "hands-1").await;
    let running = execute(&world, &id, epoch, &call);
    let name = made(&world).await;
    world.cluster.sandbox_ready(&name, "hands-1", &hands.address);
    result(running).await.unwrap();
    assert!(proxy.seen().is_empty());
}
