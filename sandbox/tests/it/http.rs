//! The router on a loopback port, through the client, and by hand where the client would not do it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{LONG, POD, bash, call, eventually, exists, target};
use longhand_sandbox::client::{NotStarted, SandboxClient, SandboxError, Target};
use longhand_sandbox::server::reaper::Children;
use longhand_sandbox::server::{Config, Options, Server};
use longhand_sandbox::token::{Signer, Verifier};
use longhand_sandbox::wire::{CallId, ErrorBody, ErrorCode, ToolOutput};
use rstest::rstest;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Fixture {
    client: SandboxClient,
    signer: Signer,
    target: Target,
    workspace: tempfile::TempDir,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl Fixture {
    async fn new() -> Self {
        Self::with_grace(Duration::from_secs(20)).await
    }

    async fn with_grace(grace: Duration) -> Self {
        Self::with("127.0.0.1:0", grace).await
    }

    async fn listening(on: &str) -> Self {
        Self::with(on, Duration::from_secs(20)).await
    }

    async fn with(listen: &str, grace: Duration) -> Self {
        let (signer, _) = Signer::generate().unwrap();
        let workspace = tempfile::tempdir().unwrap();
        let config = Config {
            listen: listen.parse().unwrap(),
            verifier: Verifier::new(&signer.public_key(), POD).unwrap(),
            workspace: workspace.path().to_owned(),
            grace,
            environment: vec![("PATH".into(), std::env::var_os("PATH").unwrap())],
            options: Options::default(),
        };
        let server = Server::bind(config, Children::default()).await.unwrap();
        let target = target(&server.address());
        let stop = CancellationToken::new();
        let server = tokio::spawn(server.run(stop.clone()));
        Self { client: SandboxClient::new(signer.clone()), signer, target, workspace, stop, server }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.workspace.path().join(name)
    }

    async fn run(&self, id: &str, command: &str) -> Result<ToolOutput, SandboxError> {
        self.client.execute(&self.target, &bash(id, command), LONG).await
    }

    fn spawn(&self, id: &str, command: &str) -> JoinHandle<Result<ToolOutput, SandboxError>> {
        let (client, target, call) = (self.client.clone(), self.target.clone(), bash(id, command));
        tokio::spawn(async move { client.execute(&target, &call, LONG).await })
    }

    async fn running(&self, count: usize) {
        let what = format!("{count} calls run");
        eventually(&what, async || self.client.activity(&self.target).await.unwrap().running_calls == count).await;
    }

    /// A request by hand; the status and the body of the answer.
    async fn raw(&self, head: &str, token: Option<&str>, body: &[u8]) -> (u16, String) {
        let authorization = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let head = format!(
            "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{authorization}content-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(&self.target.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // A refusal may come, and the connection go, before all of the body is taken.
        stream.write_all(body).await.ok();
        let mut answer = Vec::new();
        tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await.unwrap().ok();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn token(&self) -> String {
        self.signer.sign(POD).unwrap()
    }
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn every_tool_answers() {
    let f = Fixture::new().await;
    let run = async |id: &str, name: &str, input: Value| {
        f.client.execute(&f.target, &call(id, name, input), LONG).await.unwrap()
    };
    let file =
        f.path("dir/a.txt").canonicalize().unwrap_or(f.workspace.path().canonicalize().unwrap().join("dir/a.txt"));
    let file = file.display();
    let written = run("1", "write", json!({"file_path": "dir/a.txt", "content": "one\ntwo\n"})).await;
    assert_eq!(written, ToolOutput::ok(format!("created {file} (8 bytes)")));
    let edited = run("2", "edit", json!({"file_path": "dir/a.txt", "old_string": "two", "new_string": "2"})).await;
    assert_eq!(edited, ToolOutput::ok(format!("edited {file} in 1 place")));
    let read = run("3", "read", json!({"file_path": "dir/a.txt", "view_range": [2, -1]})).await;
    assert_eq!(read, ToolOutput::ok("2\n"));
    assert_eq!(run("4", "glob", json!({"pattern": "**/*.txt"})).await, ToolOutput::ok(file.to_string()));
    assert_eq!(run("5", "grep", json!({"pattern": "^o"})).await, ToolOutput::ok(format!("{file}:1:one")));
    assert_eq!(run("6", "bash", json!({"command": "cat dir/a.txt"})).await, ToolOutput::ok("one\n2\n"));
    let unknown = run("7", "web_fetch", json!({})).await;
    assert!(unknown.is_error && unknown.content.contains("there is no tool \"web_fetch\""));
    assert!(run("8", "read", json!("x")).await.is_error);
}

#[tokio::test]
async fn two_requests_with_one_id_run_it_once() {
    let f = Fixture::new().await;
    let command = "echo ran >> count; while [ ! -e go ] && [ -d $PWD ]; do sleep 0.02; done; echo done";
    let (first, second) = (f.spawn("same", command), f.spawn("same", command));
    exists(&f.path("count")).await;
    f.running(1).await;
    std::fs::write(f.path("go"), "").unwrap();
    let (first, second) = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
    assert_eq!((first.content.as_str(), &first), ("done\n", &second));
    assert_eq!(f.run("same", command).await.unwrap(), first, "a late request gets the kept result");
    assert_eq!(lines(&f.path("count")), 1);
}

#[tokio::test]
async fn one_id_cannot_mean_two_calls() {
    let f = Fixture::new().await;
    f.run("a", "true").await.unwrap();
    assert!(matches!(f.run("a", "false").await, Err(SandboxError::Mismatch { call_id }) if call_id.as_str() == "a"));
}

#[tokio::test]
async fn a_call_goes_on_without_its_client_and_can_be_joined_again() {
    let f = Fixture::new().await;
    let command = "echo ran >> count; while [ ! -e go ] && [ -d $PWD ]; do sleep 0.02; done; echo done";
    let first = f.spawn("a", command);
    exists(&f.path("count")).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    f.running(1).await;
    std::fs::write(f.path("go"), "").unwrap();
    let joined = f.client.attach(&f.target, &bash("a", command), LONG).await.unwrap();
    assert_eq!(joined.content, "done\n");
    assert_eq!(lines(&f.path("count")), 1);
    let unknown = f.client.attach(&f.target, &bash("b", "touch never"), LONG).await;
    assert!(matches!(unknown, Err(SandboxError::UnknownCall { .. })));
    assert!(!f.path("never").exists());
}

#[tokio::test]
async fn a_deadline_ends_the_wait_and_not_the_call() {
    let f = Fixture::new().await;
    let call = bash("a", "while [ ! -e go ] && [ -d $PWD ]; do sleep 0.02; done; echo done");
    let late = f.client.execute(&f.target, &call, Duration::from_millis(200)).await;
    assert!(matches!(late, Err(SandboxError::Deadline { .. })), "{late:?}");
    std::fs::write(f.path("go"), "").unwrap();
    assert_eq!(f.client.execute(&f.target, &call, LONG).await.unwrap().content, "done\n");
}

#[tokio::test]
async fn a_cancelled_call_says_that_it_was_interrupted() {
    let f = Fixture::new().await;
    let call_id = CallId::new("a").unwrap();
    assert!(!f.client.cancel(&f.target, &call_id).await.unwrap().cancelled);
    let waiting = f.spawn("a", "echo begun; touch begun; sleep 60");
    exists(&f.path("begun")).await;
    assert!(f.client.cancel(&f.target, &call_id).await.unwrap().cancelled);
    assert_eq!(waiting.await.unwrap().unwrap(), ToolOutput::error("begun\ninterrupted"));
    assert!(!f.client.cancel(&f.target, &call_id).await.unwrap().cancelled);
}

#[tokio::test]
async fn too_many_calls_are_refused_with_a_time_to_come_back() {
    let f = Fixture::new().await;
    let calls: Vec<_> = (0..32).map(|n| f.spawn(&format!("c{n}"), "while [ ! -e go ]; do sleep 0.1; done")).collect();
    f.running(32).await;
    let refused = f.run("one-more", "touch never").await;
    assert!(
        matches!(refused, Err(SandboxError::NotStarted(NotStarted::Busy { retry_after })) if retry_after.as_secs() == 1)
    );
    std::fs::write(f.path("go"), "").unwrap();
    for call in calls {
        assert!(!call.await.unwrap().unwrap().is_error);
    }
    assert!(!f.path("never").exists());
    f.run("one-more", "true").await.unwrap();
}

#[tokio::test]
async fn draining_waits_for_idleness_and_then_refuses_for_good() {
    let f = Fixture::new().await;
    let first = f.run("first", "echo 1").await.unwrap();
    let answer = f.client.drain(&f.target, Duration::from_secs(3600)).await.unwrap();
    assert!(!answer.drained && !answer.activity.draining);
    let waiting = f.spawn("a", "while [ ! -e go ] && [ -d $PWD ]; do sleep 0.02; done");
    f.running(1).await;
    let answer = f.client.drain(&f.target, Duration::ZERO).await.unwrap();
    assert!(!answer.drained);
    assert_eq!((answer.activity.running_calls, answer.activity.idle_seconds), (1, 0));
    std::fs::write(f.path("go"), "").unwrap();
    waiting.await.unwrap().unwrap();
    assert!(f.client.drain(&f.target, Duration::ZERO).await.unwrap().drained);
    assert!(f.client.drain(&f.target, Duration::from_secs(3600)).await.unwrap().drained);
    let refused = f.run("late", "touch never").await;
    assert!(matches!(refused, Err(SandboxError::NotStarted(NotStarted::Draining))));
    assert!(!f.path("never").exists());
    assert_eq!(f.run("first", "echo 1").await.unwrap(), first, "what is known is still told");
    assert!(f.client.activity(&f.target).await.unwrap().draining);
    assert_eq!(f.raw("GET /readyz", None, b"").await.0, 200);
}

#[tokio::test]
async fn draining_and_a_new_call_cannot_both_win() {
    for round in 0..50 {
        let f = Arc::new(Fixture::new().await);
        let (drain, run) = tokio::join!(f.client.drain(&f.target, Duration::ZERO), f.run("a", "touch ran"));
        match (drain.unwrap().drained, run) {
            (true, Err(SandboxError::NotStarted(NotStarted::Draining))) => assert!(!f.path("ran").exists()),
            // Either the call was there first, or it was over before the drain.
            (_, Ok(_)) => assert!(f.path("ran").exists()),
            other => panic!("round {round}: {other:?}"),
        }
        f.stop.cancel();
    }
}

#[tokio::test]
async fn ending_lets_running_calls_finish_and_takes_no_new_ones() {
    let f = Fixture::new().await;
    let waiting = f.spawn("a", "touch begun; while [ ! -e go ] && [ -d $PWD ]; do sleep 0.02; done; echo done");
    exists(&f.path("begun")).await;
    f.stop.cancel();
    eventually("not ready", async || f.raw("GET /readyz", None, b"").await.0 == 503).await;
    assert_eq!(f.raw("GET /livez", None, b"").await.0, 200);
    assert!(matches!(f.run("b", "true").await, Err(SandboxError::NotStarted(NotStarted::Terminating))));
    std::fs::write(f.path("go"), "").unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().content, "done\n");
    tokio::time::timeout(LONG, f.server).await.unwrap().unwrap();
    let gone = f.client.execute(&f.target, &bash("b", "true"), LONG).await;
    assert!(matches!(gone, Err(SandboxError::NotStarted(NotStarted::Unreachable { .. }))), "{gone:?}");
}

#[tokio::test]
async fn ending_interrupts_what_does_not_finish_in_time() {
    let f = Fixture::with_grace(Duration::from_millis(100)).await;
    let waiting = f.spawn("a", "echo begun; touch begun; sleep 60");
    exists(&f.path("begun")).await;
    f.stop.cancel();
    assert_eq!(waiting.await.unwrap().unwrap(), ToolOutput::error("begun\ninterrupted"));
    tokio::time::timeout(LONG, f.server).await.unwrap().unwrap();
}

#[tokio::test]
async fn without_the_right_token_nothing_but_the_probes_answers() {
    let f = Fixture::new().await;
    let (other, _) = Signer::generate().unwrap();
    for (token, message) in [
        (None, "send a token"),
        (Some("junk".to_owned()), "is not a JWT"),
        (Some(other.sign(POD).unwrap()), "signature does not match"),
        (Some(f.signer.sign("another pod").unwrap()), "subject (sub) is not this pod's UID"),
    ] {
        for head in [
            "GET /v1/activity",
            "POST /v1/execute",
            "POST /v1/drain",
            "DELETE /v1/drain",
            "GET /v1/workspace",
            "PUT /v1/workspace",
            "GET /nothing",
        ] {
            let (status, body) = f.raw(head, token.as_deref(), b"").await;
            let body: ErrorBody = serde_json::from_str(&body).unwrap();
            assert_eq!((status, body.error.code), (401, ErrorCode::Unauthorized), "{head}");
            assert!(body.error.message.contains(message), "{}", body.error.message);
            assert!(token.as_ref().is_none_or(|token| !body.error.message.contains(token)));
        }
    }
    assert_eq!(f.raw("GET /livez", None, b"").await, (200, "ok".to_owned()));
    assert_eq!(f.raw("GET /readyz", None, b"").await, (200, "ok".to_owned()));
    let stranger = SandboxClient::new(other);
    let refused = stranger.execute(&f.target, &bash("a", "touch never"), LONG).await;
    assert!(matches!(refused, Err(SandboxError::Unauthorized { message }) if message.contains("signature")));
    assert!(!f.path("never").exists());
}

#[tokio::test]
async fn a_token_is_needed_on_the_addresses_of_both_families() {
    let mut f = Fixture::listening("[::]:0").await;
    let port = f.target.address.rsplit(':').next().unwrap().to_owned();
    let mut addresses = vec![format!("127.0.0.1:{port}")];
    // A machine without IPv6 has no such address.
    if TcpListener::bind("[::1]:0").await.is_ok() {
        addresses.push(format!("[::1]:{port}"));
    }
    for address in addresses {
        f.target.address = address.clone();
        assert_eq!(f.raw("GET /livez", None, b"").await.0, 200, "{address}");
        assert_eq!(f.raw("GET /v1/activity", None, b"").await.0, 401, "{address}");
        assert_eq!(f.raw("GET /v1/activity", Some(&f.token()), b"").await.0, 200, "{address}");
        assert_eq!(f.run(&port, "echo in").await.unwrap(), ToolOutput::ok("in\n"), "{address}");
    }
}

#[rstest]
#[case("POST /v1/execute", b"{", 400, ErrorCode::InvalidRequest)]
#[case("POST /v1/execute", br#"{"name": "bash", "input": {}}"#, 400, ErrorCode::InvalidRequest)]
#[case("POST /v1/execute", br#"{"call_id": "", "name": "bash"}"#, 400, ErrorCode::InvalidRequest)]
#[case("POST /v1/drain", br#"{"idle_seconds": -1}"#, 400, ErrorCode::InvalidRequest)]
#[case("POST /v1/execute", &[b'x'; 8 * 1024 * 1024 + 1], 413, ErrorCode::TooLarge)]
#[case("GET /v1/execute", b"", 405, ErrorCode::MethodNotAllowed)]
#[case("GET /v2", b"", 404, ErrorCode::NotFound)]
#[tokio::test]
async fn a_bad_request_is_told_what_is_wrong(
    #[case] head: &str,
    #[case] body: &[u8],
    #[case] status: u16,
    #[case] code: ErrorCode,
) {
    let f = Fixture::new().await;
    let (got, body) = f.raw(head, Some(&f.token()), body).await;
    let body: ErrorBody = serde_json::from_str(&body).unwrap();
    assert_eq!((got, body.error.code), (status, code), "{}", body.error.message);
}

#[tokio::test]
async fn nobody_there_means_not_started() {
    let f = Fixture::new().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = f.client.execute(&target(&free), &bash("a", "true"), LONG).await.unwrap_err();
    let SandboxError::NotStarted(NotStarted::Unreachable { address, .. }) = error else { panic!("{error}") };
    assert_eq!(address, free.to_string());
}

/// A sandbox that takes `requests` connections, reads something, says `answer` and hangs up.
async fn impostor(requests: usize, answer: impl Into<Vec<u8>>) -> (Target, JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = target(&listener.local_addr().unwrap());
    let answer = answer.into();
    let served = tokio::spawn(async move {
        let mut attached = 0;
        for _ in 0..requests {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 4096];
            let length = stream.read(&mut buffer).await.unwrap();
            attached += usize::from(String::from_utf8_lossy(&buffer[..length]).contains("\"attach_only\":true"));
            stream.write_all(&answer).await.ok();
        }
        attached
    });
    (target, served)
}

#[rstest]
#[case::hangs_up(b"")]
#[case::half_an_answer(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"content\":")]
#[tokio::test]
async fn a_connection_that_breaks_after_the_request_means_lost(#[case] answer: &'static [u8]) {
    let f = Fixture::new().await;
    // The first request, and three attempts to join the call; then it is gone.
    let (target, served) = impostor(4, answer).await;
    let lost = f.client.execute(&target, &bash("a", "true"), LONG).await;
    assert!(matches!(lost, Err(SandboxError::Lost { .. })), "{lost:?}");
    assert_eq!(served.await.unwrap(), 3, "only the first request may start the call");
}

#[tokio::test]
async fn a_sandbox_that_goes_after_the_request_means_lost_not_unreachable() {
    let f = Fixture::new().await;
    let (target, _served) = impostor(1, b"").await;
    let lost = f.client.execute(&target, &bash("a", "true"), LONG).await;
    assert!(matches!(lost, Err(SandboxError::Lost { .. })), "{lost:?}");
}

#[rstest]
#[case(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")]
#[case(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n")]
#[case(b"HTTP/1.1 302 Found\r\nlocation: http://elsewhere/\r\ncontent-length: 0\r\n\r\n")]
#[tokio::test]
async fn an_answer_that_no_sandboxd_gives_is_not_believed(#[case] answer: &'static [u8]) {
    let f = Fixture::new().await;
    let (target, _served) = impostor(1, answer).await;
    let error = f.client.execute(&target, &bash("a", "true"), LONG).await;
    assert!(matches!(error, Err(SandboxError::Protocol { .. })), "{error:?}");
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    let f = Fixture::new().await;
    let answer = [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &vec![b'x'; 8 * 1024 * 1024]].concat();
    let (target, _served) = impostor(1, answer).await;
    let error = f.client.execute(&target, &bash("a", "true"), LONG).await;
    assert!(matches!(error, Err(SandboxError::Protocol { .. })), "{error:?}");
}
