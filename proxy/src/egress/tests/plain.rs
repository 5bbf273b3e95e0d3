//! Plain HTTP to hosts that nothing is bound to.

use std::net::Ipv4Addr;

use longhand_protocol::egress::Seed;
use rstest::rstest;
use tokio::net::{TcpListener, TcpStream};

use super::support::{Options, PUBLIC, Running, Wire, within};
use crate::egress::testing::FakeSockets;

async fn start() -> (Running, TcpListener) {
    let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let sockets =
        FakeSockets::default().name("api.example", &[&[PUBLIC]]).server(PUBLIC, upstream.local_addr().unwrap());
    (Running::start(Options::new(&["api.example"], sockets)).await, upstream)
}

async fn accept(upstream: &TcpListener) -> Wire<TcpStream> {
    Wire::new(within(upstream.accept()).await.unwrap().0)
}

fn request(proxy: &Running, line: &str, headers: &str) -> String {
    format!("{line} HTTP/1.1\r\nhost: api.example\r\nproxy-authorization: Bearer {}\r\n{headers}\r\n", proxy.token())
}

#[tokio::test]
async fn a_request_passes_without_what_is_of_this_hop() {
    let (proxy, upstream) = start().await;
    let mut client = proxy.client().await;
    let headers = "connection: keep-alive, x-hop\r\nx-hop: 1\r\nproxy-connection: keep-alive\r\nte: trailers\r\n\
        authorization: Bearer own\r\nx-a: 1\r\ncontent-length: 2\r\n";
    client.send(request(&proxy, "POST http://api.example/a%20b?c=d", headers) + "hi").await;
    let mut server = accept(&upstream).await;
    let got = server.message().await;
    assert!(
        got.starts_with("POST /a%20b?c=d HTTP/1.1\r\nhost: api.example\r\n") && got.ends_with("\r\n\r\nhi"),
        "{got}"
    );
    let mut headers: Vec<&str> = got.lines().skip(2).take_while(|line| !line.is_empty()).collect();
    headers.sort_unstable();
    assert_eq!(headers, ["authorization: Bearer own", "content-length: 2", "x-a: 1"]);
    let answer = "HTTP/1.1 302 Found\r\nlocation: http://evil.test/\r\nset-cookie: a=b\r\nconnection: close\r\n\
        proxy-authenticate: Basic\r\ncontent-length: 2\r\n\r\nok";
    server.send(answer).await;
    let answer = client.message().await;
    // A redirect is the program's to follow, and judged again.
    assert!(answer.starts_with("HTTP/1.1 302 Found\r\nlocation: http://evil.test/\r\nset-cookie: a=b\r\n"), "{answer}");
    assert!(!answer.contains("connection: close") && answer.ends_with("\r\n\r\nok"), "{answer}");

    // The same connection may ask for something else, and is judged again.
    client.send(request(&proxy, "GET http://evil.test/", "").replace("host: api.example", "host: evil.test")).await;
    assert!(client.message().await.starts_with("HTTP/1.1 403 "));
}

#[tokio::test]
async fn bodies_pass_as_they_come() {
    let (proxy, upstream) = start().await;
    let mut client = proxy.client().await;
    client.send(request(&proxy, "POST http://api.example/", "transfer-encoding: chunked\r\n")).await;
    let mut server = accept(&upstream).await;
    let head = server.until("\r\n\r\n").await;
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    client.send("3\r\none\r\n").await;
    assert_eq!(server.until("one").await, "3\r\none");
    server.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
    client.until("first").await;
    client.send("3\r\ntwo\r\n0\r\n\r\n").await;
    server.until("two\r\n0\r\n\r\n").await;
    server.send("6\r\nsecond\r\n0\r\n\r\n").await;
    client.until("second\r\n0\r\n\r\n").await;
}

#[rstest]
#[case::path("GET http://api.example/PLACEHOLDER", "")]
#[case::query("GET http://api.example/?key=PLACEHOLDER", "")]
#[case::header("GET http://api.example/", "authorization: Bearer PLACEHOLDER\r\n")]
#[case::other_header("GET http://api.example/", "x-key: PLACEHOLDER\r\n")]
#[tokio::test]
async fn a_placeholder_goes_nowhere(#[case] line: &str, #[case] headers: &str) {
    let (proxy, _upstream) = start().await;
    let placeholder = Seed::from([7; 32]).placeholder("team", "github");
    let fill = |text: &str| text.replace("PLACEHOLDER", &placeholder);
    let mut client = proxy.client().await;
    client.send(request(&proxy, &fill(line), &fill(headers))).await;
    let answer = client.message().await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("placeholder_unbound"), "{answer}");
    assert!(proxy.sockets.dialled().is_empty());
    assert_eq!(&*proxy.service.at_least(1).await[0].host, "api.example");
}

#[tokio::test]
async fn a_placeholder_in_a_body_goes_nowhere_however_it_is_cut() {
    let (proxy, upstream) = start().await;
    let placeholder = Seed::from([7; 32]).placeholder("team", "github");
    let (first, second) = placeholder.split_at(20);
    let mut client = proxy.client().await;
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    client.send(request(&proxy, "POST http://api.example/", "transfer-encoding: chunked\r\n")).await;
    client.send(chunk(&format!("key={first}"))).await;
    let mut server = accept(&upstream).await;
    server.until("key=").await;
    client.send(chunk(second)).await;
    let answer = client.message().await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("placeholder_unbound"), "{answer}");
    assert!(!server.rest().await.contains(second));
    let event = proxy.service.at_least(1).await.remove(0);
    assert_eq!((&*event.host, &*event.method), ("api.example", "POST"));
}

#[tokio::test]
async fn a_client_may_send_its_body_after_the_answer() {
    let (proxy, upstream) = start().await;
    let mut client = proxy.client().await;
    for host in ["evil.test", "api.example"] {
        let early = host == "api.example";
        let post = request(&proxy, &format!("POST http://{host}/"), "content-length: 4\r\n");
        client.send(post.replace("host: api.example", &format!("host: {host}"))).await;
        if early {
            let mut server = accept(&upstream).await;
            server.until("\r\n\r\n").await;
            server.send("HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
        }
        let answer = client.message().await;
        assert!(answer.starts_with(if early { "HTTP/1.1 413 " } else { "HTTP/1.1 403 " }), "{answer}");
        client.send("body").await;
    }
    // What was answered early has ended, so that the connection serves the next request.
    client.send(request(&proxy, "GET http://evil.test/", "").replace("host: api.example", "host: evil.test")).await;
    assert!(client.message().await.starts_with("HTTP/1.1 403 "));
}

#[rstest]
#[case::lengths("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")]
#[case::switch("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")]
#[case::junk("SSH-2.0-x\r\n")]
#[case::silence("")]
#[tokio::test]
async fn a_bad_answer_is_not_passed_on(#[case] answer: &str) {
    let (proxy, upstream) = start().await;
    let mut client = proxy.client().await;
    client.send(request(&proxy, "GET http://api.example/", "")).await;
    let mut server = accept(&upstream).await;
    server.until("\r\n\r\n").await;
    server.send(answer).await;
    drop(server);
    let got = client.message().await;
    assert!(got.starts_with("HTTP/1.1 502 ") && !got.contains("x-longhand-denied"), "{got}");
}
