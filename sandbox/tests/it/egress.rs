//! The way out, with real programs and a proxy that is made up.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use longhand_sandbox::client::SandboxError;
use longhand_sandbox::wire::EgressBinding;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::sandboxd::Sandboxd;
use crate::support::{LONG, eventually};

const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

/// What a request's head said, lower-cased, but for its first line.
type Heads = Arc<Mutex<Vec<String>>>;

/// Answers `GET /ca.pem`, echoes in tunnels, and says `reached` to every other request, whose heads it keeps.
struct Proxy {
    address: SocketAddr,
    heads: Heads,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    async fn start(authority: &'static str) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), authority).await
    }

    async fn at(address: SocketAddr, authority: &'static str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let (address, heads) = (listener.local_addr().unwrap(), Heads::default());
        let kept = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            // What it has accepted goes with it.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, authority, Arc::clone(&kept)));
            }
        });
        Self { address, heads, task }
    }

    fn binding(&self, token: &str) -> EgressBinding {
        EgressBinding {
            proxy: self.address.to_string(),
            token: token.to_owned(),
            variables: BTreeMap::from([("GITHUB_TOKEN".to_owned(), "lhp_placeholder".to_owned())]),
        }
    }

    fn seen(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn serve(stream: TcpStream, authority: &'static str, heads: Heads) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let answer = |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if head.starts_with("GET /ca.pem ") {
            stream.write_all(answer(authority).as_bytes()).await.unwrap();
            continue;
        }
        heads.lock().unwrap().push(head.clone());
        if head.starts_with("CONNECT ") {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let mut buffer = [0; 64];
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                stream.write_all(&buffer[..length]).await.unwrap();
            }
            return;
        }
        stream.write_all(answer("reached").as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn without_a_binding_a_program_is_told_why_it_reaches_nothing() {
    let sandboxd = Sandboxd::start("0");
    let output = sandboxd.run("a", "curl -sS -m 10 http://example.test/; env | grep -c lhp_").await;
    assert!(output.content.starts_with("longhand: this sandbox has no way out"), "{}", output.content);
    assert!(output.content.contains("\n0\n"), "{}", output.content);
}

#[tokio::test]
async fn programs_reach_the_proxy_and_never_see_its_token() {
    let (sandboxd, proxy) = (Sandboxd::start("0"), Proxy::start(PEM).await);
    // Before the binding, so that the shell that goes on has to be told.
    sandboxd.run("before", "true").await;
    let bound = sandboxd.client.bind_egress(&sandboxd.target, &proxy.binding("sesame")).await.unwrap();
    assert!(bound.bound);
    let command =
        "curl -sS -m 10 -x \"$http_proxy\" --proxy-header 'Proxy-Authorization: Bearer mine' http://example.test/x?y";
    let output = sandboxd.run("a", command).await;
    assert_eq!(output.content, "reached");
    let head = proxy.seen().remove(0);
    assert!(head.starts_with("GET http://example.test/x?y HTTP/1.1\r\n"), "{head}");
    assert_eq!(head.to_lowercase().matches("proxy-authorization:").count(), 1, "{head}");
    assert!(head.contains("Bearer sesame") && !head.contains("mine"), "{head}");
    let output =
        sandboxd.run("b", "echo $GITHUB_TOKEN; cat \"$CURL_CA_BUNDLE\" | tail -3; env; cat /proc/self/environ").await;
    assert!(output.content.starts_with("lhp_placeholder\n-----BEGIN CERTIFICATE-----\nAAAA\n"), "{}", output.content);
    assert!(!output.content.contains("sesame"));
    let output = sandboxd.run("c", "echo mine > \"$CURL_CA_BUNDLE\"; tail -1 \"$CURL_CA_BUNDLE\"").await;
    assert!(output.content.ends_with("-----END CERTIFICATE-----\n"), "{}", output.content);
}

#[tokio::test]
async fn tunnels_carry_bytes_both_ways_and_end_with_the_binding() {
    let (sandboxd, proxy) = (Sandboxd::start("0"), Proxy::start(PEM).await);
    sandboxd.client.bind_egress(&sandboxd.target, &proxy.binding("sesame")).await.unwrap();
    let relay = sandboxd.run("a", "echo -n ${HTTPS_PROXY#http://}").await.content;
    let mut tunnel = TcpStream::connect(&relay).await.unwrap();
    tunnel.write_all(b"CONNECT example.test:443 HTTP/1.1\r\nHost: example.test:443\r\n\r\n").await.unwrap();
    let mut tunnel = BufReader::new(tunnel);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(tunnel.read_line(&mut head).await.unwrap(), 0, "{head}");
    }
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    tunnel.write_all(b"\x16\x03\x01").await.unwrap();
    let mut echoed = [0; 3];
    tokio::time::timeout(LONG, tunnel.read_exact(&mut echoed)).await.unwrap().unwrap();
    assert_eq!(&echoed, b"\x16\x03\x01");
    assert!(proxy.seen()[0].starts_with("CONNECT example.test:443 HTTP/1.1\r\n"), "{:?}", proxy.seen());
    // Another token of the same proxy interrupts nothing.
    sandboxd.client.bind_egress(&sandboxd.target, &proxy.binding("renewed")).await.unwrap();
    tunnel.write_all(b"on").await.unwrap();
    tokio::time::timeout(LONG, tunnel.read_exact(&mut echoed[..2])).await.unwrap().unwrap();
    assert!(!sandboxd.client.unbind_egress(&sandboxd.target).await.unwrap().bound);
    let end = tokio::time::timeout(LONG, tunnel.read(&mut echoed)).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

#[tokio::test]
async fn another_proxy_takes_the_place_of_the_first() {
    let (sandboxd, first, second) =
        (Sandboxd::start("0"), Proxy::start(PEM).await, Proxy::start("-----BEGIN CERTIFICATE-----\nBBBB").await);
    for (proxy, end) in [(&first, "AAAA\n-----END CERTIFICATE-----\n"), (&second, "BBBB")] {
        sandboxd.client.bind_egress(&sandboxd.target, &proxy.binding("sesame")).await.unwrap();
        let output = sandboxd
            .run(&proxy.address.to_string(), "curl -sS -m 10 http://example.test/; cat \"$SSL_CERT_FILE\"")
            .await;
        assert!(output.content.starts_with("reached") && output.content.ends_with(end), "{}", output.content);
    }
    assert_eq!((first.seen().len(), second.seen().len()), (1, 1));
}

#[tokio::test]
async fn a_proxy_that_was_started_anew_is_trusted_anew() {
    let (sandboxd, first) = (Sandboxd::start("0"), Proxy::start(PEM).await);
    let address = first.address;
    sandboxd.client.bind_egress(&sandboxd.target, &first.binding("sesame")).await.unwrap();
    drop(first);
    eventually("the address is free", async || TcpStream::connect(address).await.is_err()).await;
    let output = sandboxd.run("between", "curl -sS -m 10 http://example.test/").await;
    assert!(
        output.content.contains("the session's proxy") && output.content.contains("cannot be reached"),
        "{}",
        output.content
    );
    let _second = Proxy::at(address, "-----BEGIN CERTIFICATE-----\nBBBB").await;
    let number = std::sync::atomic::AtomicU32::new(0);
    eventually("the other authority is in the bundle", async || {
        let number = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        sandboxd.run(&format!("look-{number}"), "cat \"$SSL_CERT_FILE\"").await.content.ends_with("BBBB")
    })
    .await;
}

#[tokio::test]
async fn what_is_no_proxy_leaves_the_binding_as_it_was() {
    let (sandboxd, proxy, other) =
        (Sandboxd::start("0"), Proxy::start(PEM).await, Proxy::start("no certificate").await);
    sandboxd.client.bind_egress(&sandboxd.target, &proxy.binding("sesame")).await.unwrap();
    let refused = sandboxd.client.bind_egress(&sandboxd.target, &other.binding("sesame")).await;
    assert!(matches!(refused, Err(SandboxError::NotStarted(_) | SandboxError::Protocol { .. })), "{refused:?}");
    for wrong in [
        EgressBinding { proxy: "proxy.test:8084".to_owned(), ..proxy.binding("sesame") },
        EgressBinding { variables: BTreeMap::from([("A=B".to_owned(), String::new())]), ..proxy.binding("sesame") },
        proxy.binding("a\nb"),
    ] {
        assert!(sandboxd.client.bind_egress(&sandboxd.target, &wrong).await.is_err(), "{wrong:?}");
    }
    assert_eq!(sandboxd.run("a", "curl -sS -m 10 http://example.test/").await.content, "reached");
}

#[tokio::test]
async fn only_a_token_of_the_session_service_binds() {
    let sandboxd = Sandboxd::start("0");
    let body = br#"{"proxy": "127.0.0.1:1", "token": "x"}"#;
    let answer = sandboxd.raw_with("PUT /v1/egress", "nonsense", body).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    let relay = sandboxd.run("a", "curl -s -m 10 -o /dev/null -w '%{http_code}' \"$http_proxy\"/").await;
    assert_eq!(relay.content, "503", "nothing of sandboxd's own is behind the relay");
}

#[tokio::test]
async fn a_sandbox_that_needs_a_fence_is_ready_only_behind_one() {
    let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let canaries = format!("api=tcp://{}", open.local_addr().unwrap());
    let settings = [("SANDBOXD_CANARIES", canaries.as_str()), ("SANDBOXD_REQUIRE_FENCE", "true")];
    let sandboxd = Sandboxd::with(&settings);
    let answer = sandboxd.raw("GET /readyz", "").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("no network policy"), "{answer}");
    let fence = sandboxd.raw("GET /v1/fence", "").await;
    assert!(fence.ends_with(r#"{"state":"open","tried":["api"],"reached":["api"]}"#), "{fence}");
    drop(open);
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while !sandboxd.raw("GET /readyz", "").await.starts_with("HTTP/1.1 200") {
        assert!(std::time::Instant::now() < until, "never ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
