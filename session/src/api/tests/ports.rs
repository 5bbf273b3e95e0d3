//! Servers in sandboxes over HTTP, by hosts of their own.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::header::{AUTHORIZATION, COOKIE, HOST, LOCATION, SET_COOKIE};
use http::{HeaderMap, StatusCode};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use longhand_crds::Sandbox;
use longhand_process::http::{Limits, Listener};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::auth::Access;
use crate::resources::Resources as _;
use crate::testing::hands::{Hands, hands};
use crate::testing::{SOON, World};

const ALICE: &str = "system:serviceaccount:team-a:alice";

type Heard = Arc<Mutex<Vec<(String, HeaderMap)>>>;

/// A server that says what it was asked for, sets a cookie, and speaks another protocol to who wants to.
async fn inside(heard: Heard) -> u16 {
    async fn answer(State(heard): State<Heard>, mut request: Request) -> Response {
        heard.lock().await.push((request.uri().to_string(), request.headers().clone()));
        if request.headers().contains_key("upgrade") {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                let heard = stream.read_u8().await.unwrap();
                stream.write_all(&[heard, heard]).await.unwrap();
                stream.shutdown().await.unwrap();
            });
            let headers = [("connection", "upgrade"), ("upgrade", "websocket"), ("set-cookie", "a=b")];
            return (StatusCode::SWITCHING_PROTOCOLS, headers).into_response();
        }
        let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
        (StatusCode::ACCEPTED, [("set-cookie", "a=b"), ("x-app", "1")], body).into_response()
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let service = TowerToHyperService::new(axum::Router::new().fallback(answer).with_state(heard));
    tokio::spawn(Listener::plain(listener).serve(service, Limits::default(), CancellationToken::new()));
    port
}

struct Served {
    world: World,
    _hands: Hands,
    heard: Heard,
    port: u16,
    /// The answer of the API.
    link: Value,
    host: String,
}

impl Served {
    async fn new() -> Self {
        let world = World::new();
        let bench =
            json!({"metadata": {"namespace": "team-a", "name": "bench"}, "spec": {"templateRef": {"name": "tools"}}});
        world.cluster.ensure_sandbox(serde_json::from_value::<Sandbox>(bench).unwrap()).await.unwrap();
        let hands = hands(&world.signer, "hands-1").await;
        world.cluster.sandbox_ready("bench", "hands-1", &hands.address);
        let access = Access::InSandbox { part: "portforward", verb: "create", name: "bench" };
        world.cluster.allow(ALICE, access, "team-a");
        let heard = Heard::default();
        let port = inside(Arc::clone(&heard)).await;
        let path = format!("/v1/sandboxes/bench/ports/{port}");
        let answer = world.call("POST", &path, "alice", &Value::Null).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let host = answer.body["origin"].as_str().unwrap().strip_prefix("https://").unwrap().to_owned();
        Self { world, _hands: hands, heard, port, link: answer.body, host }
    }

    fn token(&self) -> &str {
        self.link["token"].as_str().unwrap()
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &'static str) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let router = self.world.app.clone().router();
        timeout(SOON, router.oneshot(request.body(Body::from(body)).unwrap())).await.unwrap().unwrap()
    }
}

async fn text(response: Response) -> String {
    let bytes = timeout(SOON, axum::body::to_bytes(response.into_body(), usize::MAX)).await.unwrap().unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn a_link_becomes_a_cookie_that_the_server_never_sees() {
    let served = Served::new().await;
    let host = served.host.as_str();
    assert!(host.starts_with(&format!("{}-bench-", served.port)) && host.ends_with(".ports.test"), "{host}");
    let url = served.link["url"].as_str().unwrap().strip_prefix(served.link["origin"].as_str().unwrap()).unwrap();
    let entered = served.ask("GET", url, &[("host", host)], "").await;
    assert_eq!((entered.status(), entered.headers()[LOCATION].to_str().unwrap()), (StatusCode::SEE_OTHER, "/"));
    let cookie = entered.headers()[SET_COOKIE].to_str().unwrap();
    assert!(
        cookie.starts_with("__Host-longhand-port=") && cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax; Secure")
    );
    let cookie = cookie.split(';').next().unwrap();

    let asked = [
        ("host", host),
        ("cookie", cookie),
        ("authorization", "Bearer of-the-app"),
        ("origin", served.link["origin"].as_str().unwrap()),
    ];
    let answer = served.ask("POST", "/v1/sessions?x=1", &asked, "a body").await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    assert!(answer.headers().contains_key("x-app") && !answer.headers().contains_key(SET_COOKIE));
    assert_eq!(text(answer).await, "a body");
    let heard = served.heard.lock().await;
    let (path, headers) = &heard[0];
    assert_eq!((heard.len(), path.as_str()), (1, "/v1/sessions?x=1"), "the path is the server's, whatever it is here");
    assert!(!headers.contains_key(COOKIE) && !headers.contains_key(AUTHORIZATION), "{headers:?}");
    assert_eq!(headers[HOST], format!("localhost:{}", served.port).as_str());
}

#[tokio::test]
async fn nobody_is_let_in_who_has_no_pass_for_this_very_port() {
    let served = Served::new().await;
    let (host, token) = (served.host.as_str(), served.token());
    let url = served.link["url"].as_str().unwrap();
    let link = url.split_once('=').unwrap().1;
    let other = format!("1{host}");
    let refused = [
        (vec![("host", host)], 401),
        (vec![("host", host), ("x-longhand-port-token", "x")], 401),
        (vec![("host", host), ("x-longhand-port-token", link)], 401),
        (vec![("host", host), ("authorization", "Bearer alice")], 401),
        (vec![("host", other.as_str()), ("x-longhand-port-token", token)], 401),
    ];
    for (headers, status) in refused {
        let answer = served.ask("GET", "/", &headers, "").await;
        assert_eq!(answer.status().as_u16(), status, "{headers:?}");
        assert!(text(answer).await.contains("authentication_error"));
    }
    // A page of another sandbox speaks for nobody.
    let cookie = format!("__Host-longhand-port={token}");
    let foreign = [("host", host), ("cookie", cookie.as_str()), ("origin", "https://81-x.ports.test")];
    assert_eq!(served.ask("POST", "/", &foreign, "").await.status(), 403);
    // The API is not below the domain of ports, and its tokens are good for nothing there.
    assert_eq!(served.ask("GET", "/v1/sessions", &[("host", host), ("x-api-key", "alice")], "").await.status(), 401);
    assert!(served.heard.lock().await.is_empty());

    assert_eq!(served.ask("GET", "/", &[("host", host), ("x-longhand-port-token", token)], "").await.status(), 202);
    assert!(!served.heard.lock().await[0].1.contains_key("x-longhand-port-token"));
    // Who made the pass may not any more; another replica has not heard of it before.
    served.world.cluster.forbid_everything();
    let replica = served.world.replica();
    let request = Request::get("/").header("host", host).header("x-longhand-port-token", token);
    let answer = replica.app.clone().router().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 403);
    assert_eq!(served.heard.lock().await.len(), 1);
}

#[tokio::test]
async fn a_websocket_goes_through() {
    let served = Served::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = TowerToHyperService::new(served.world.app.clone().router());
    tokio::spawn(Listener::plain(listener).serve(service, Limits::default(), CancellationToken::new()));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "GET /socket HTTP/1.1\r\nhost: {}\r\nx-longhand-port-token: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        served.host,
        served.token()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(timeout(SOON, stream.read_u8()).await.unwrap().unwrap());
    }
    let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
    assert!(
        answer.starts_with("http/1.1 101 ") && answer.contains("upgrade: websocket") && !answer.contains("set-cookie"),
        "{answer}"
    );
    stream.write_all(b"x").await.unwrap();
    let mut said = Vec::new();
    timeout(SOON, stream.read_to_end(&mut said)).await.unwrap().unwrap();
    assert_eq!(said, b"xx");
}
