//! Terminals of the real binary, through the client and a WebSocket.

use std::time::Duration;

use crate::sandboxd::Sandboxd;
use crate::support::{LONG, POD, alive, eventually, exists};
use futures::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use longhand_sandbox::client::{NotStarted, SandboxError};
use longhand_sandbox::wire::TerminalOptions;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

struct Session {
    socket: WebSocketStream<TokioIo<Upgraded>>,
    shown: String,
    errors: String,
    status: Option<Value>,
}

impl Session {
    async fn open(sandboxd: &Sandboxd, command: Option<&str>) -> Self {
        let options = TerminalOptions { command: command.map(str::to_owned), ..TerminalOptions::default() };
        let tunnel = sandboxd.client.open_terminal(&sandboxd.target, &options, KEY).await.unwrap();
        assert_eq!(tunnel.accept, derive_accept_key(KEY.as_bytes()));
        let socket = WebSocketStream::from_raw_socket(tunnel.stream, Role::Client, None).await;
        Self { socket, shown: String::new(), errors: String::new(), status: None }
    }

    async fn say(&mut self, channel: u8, text: &str) {
        let message = [&[channel], text.as_bytes()].concat();
        self.socket.send(Message::Binary(message.into())).await.unwrap();
    }

    /// Takes one message; whether there was one.
    async fn take(&mut self) -> bool {
        match timeout(LONG, self.socket.next()).await.unwrap() {
            Some(Ok(Message::Binary(message))) => match message[0] {
                1 => self.shown.push_str(&String::from_utf8_lossy(&message[1..])),
                2 => self.errors.push_str(&String::from_utf8_lossy(&message[1..])),
                3 => self.status = Some(serde_json::from_slice(&message[1..]).unwrap()),
                other => panic!("channel {other}"),
            },
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return false,
        }
        true
    }

    async fn until(&mut self, text: &str) {
        while !self.shown.contains(text) {
            assert!(self.take().await, "{:?} {:?}", self.shown, self.status);
        }
    }

    async fn end(mut self) -> (String, Value) {
        while self.take().await {}
        (self.shown, self.status.unwrap())
    }
}

#[tokio::test]
async fn a_shell_is_interactive_and_its_end_is_told() {
    let sandboxd = Sandboxd::start("0");
    let mut session = Session::open(&sandboxd, None).await;
    session.say(0, "echo $((6*7))-$TERM; test -t 0 && test -t 1 && echo is a terminal; stty size\n").await;
    session.until("42-xterm-256color\r\n").await;
    session.until("is a terminal\r\n24 80\r\n").await;
    session.say(4, r#"{"Width":132,"Height":50}"#).await;
    session.say(0, "stty size; pwd\n").await;
    session.until("50 132\r\n").await;
    session.until("/made/by/sandboxd\r\n").await;
    // Job control: the interrupt goes to what runs in front, not to the shell.
    // It has to be in front already: before that, the interrupt would be the shell's, and the sleep would go on.
    session.say(0, "sh -c 'echo in fro\"\"nt; sleep 60'\n").await;
    session.until("in front\r\n").await;
    session.say(0, "\u{3}").await;
    session.say(0, "echo still he\"\"re\n").await;
    session.until("still here\r\n").await;
    let activity = sandboxd.client.activity(&sandboxd.target).await.unwrap();
    assert_eq!((activity.terminals, activity.idle_seconds), (1, 0));
    session.say(0, "exit 3\n").await;
    let (_, status) = session.end().await;
    assert_eq!((&status["status"], &status["reason"]), (&json!("Failure"), &json!("NonZeroExitCode")));
    assert_eq!(status["details"]["causes"][0]["message"], "3");
    eventually("it is closed", async || sandboxd.client.activity(&sandboxd.target).await.unwrap().terminals == 0).await;
}

#[tokio::test]
async fn a_command_gets_all_that_is_typed_and_all_that_it_says_arrives() {
    let sandboxd = Sandboxd::start("0");
    let mut session =
        Session::open(&sandboxd, Some("stty -echo; echo ready; read line; echo \"got $line\"; seq 1 20000")).await;
    session.until("ready\r\n").await;
    session.say(0, "über\n").await;
    let (shown, status) = session.end().await;
    assert!(shown.contains("got über\r\n") && shown.ends_with("19999\r\n20000\r\n"), "{}", shown.len());
    assert_eq!(status["status"], "Success");
}

#[tokio::test]
async fn a_client_that_goes_takes_all_processes_with_it() {
    let sandboxd = Sandboxd::start("0");
    let command = "trap '' HUP; setsid sleep 60 & echo $! > left; echo $$ > shell; sleep 60";
    let session = Session::open(&sandboxd, Some(command)).await;
    exists(&sandboxd.path("shell")).await;
    drop(session);
    for name in ["left", "shell"] {
        let pid = std::fs::read_to_string(sandboxd.path(name)).unwrap();
        eventually(name, async || !alive(&pid)).await;
    }
}

#[tokio::test]
async fn a_terminal_that_nobody_uses_is_closed() {
    let sandboxd = Sandboxd::with(&[("SANDBOXD_TERMINAL_IDLE_SECONDS", "1")]);
    let (_, status) = Session::open(&sandboxd, Some("sleep 60")).await.end().await;
    assert_eq!(status["message"], "nothing was typed or shown for 1 s");
}

#[tokio::test]
async fn an_ending_sandbox_says_goodbye() {
    let mut sandboxd = Sandboxd::start("20");
    let session = Session::open(&sandboxd, Some("sleep 60")).await;
    sandboxd.terminate();
    let (_, status) = session.end().await;
    assert_eq!(status["message"], "the sandbox is ending");
    assert_eq!(sandboxd.ended().await, Some(0));
}

#[tokio::test]
async fn too_many_terminals_are_refused() {
    let sandboxd = Sandboxd::start("0");
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(Session::open(&sandboxd, Some("sleep 60")).await);
    }
    let refused = sandboxd.client.open_terminal(&sandboxd.target, &TerminalOptions::default(), KEY).await;
    assert!(matches!(refused, Err(SandboxError::NotStarted(NotStarted::Busy { .. }))), "{refused:?}");
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_the_command_and_not_memory() {
    let sandboxd = Sandboxd::start("0");
    let session = Session::open(&sandboxd, Some("touch begun; yes")).await;
    exists(&sandboxd.path("begun")).await;
    sandboxd.run("a", "sleep 1").await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", sandboxd.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB");
    assert!(peak.parse::<u64>().unwrap() < 40 * 1024, "{peak}");
    drop(session);
}

#[tokio::test]
async fn a_terminal_needs_a_token_of_its_own() {
    let sandboxd = Sandboxd::start("0");
    let tools = sandboxd.signer.sign(POD).unwrap();
    let terminal = sandboxd.signer.sign_for(POD, longhand_sandbox::token::Scope::Terminal).unwrap();
    for (path, token) in [("/v1/terminal?columns=80&rows=24&term=x", &tools), ("/v1/activity", &terminal)] {
        let answer = sandboxd.raw(&format!("GET {path}"), token).await;
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("scope does not open this path"), "{answer}");
    }
    let answer = sandboxd.raw("GET /v1/terminal?columns=80&rows=24&term=x", &terminal).await;
    assert!(answer.starts_with("HTTP/1.1 426"), "{answer}");
    tokio::time::timeout(Duration::from_secs(5), sandboxd.client.activity(&sandboxd.target)).await.unwrap().unwrap();
}

/// One without a terminal.
async fn pipes(sandboxd: &Sandboxd, command: &str) -> Session {
    let options = TerminalOptions { command: Some(command.to_owned()), tty: false, ..TerminalOptions::default() };
    let tunnel = sandboxd.client.open_terminal(&sandboxd.target, &options, KEY).await.unwrap();
    let socket = WebSocketStream::from_raw_socket(tunnel.stream, Role::Client, None).await;
    Session { socket, shown: String::new(), errors: String::new(), status: None }
}

#[tokio::test]
async fn without_a_terminal_everything_goes_through_as_it_is() {
    let sandboxd = Sandboxd::start("0");
    let command = "cat; test -t 0 || echo no terminal >&2; cat /dev/stdin | wc -c; seq 1 50000; exit 4";
    let mut session = pipes(&sandboxd, command).await;
    session.say(0, "one\ntwo\u{3}\u{4}").await;
    session.socket.send(Message::Binary(vec![255, 0].into())).await.unwrap();
    while session.take().await {}
    assert!(
        session.shown.starts_with("one\ntwo\u{3}\u{4}0\n1\n2\n"),
        "{:?}",
        &session.shown[..40.min(session.shown.len())]
    );
    assert!(session.shown.ends_with("\n50000\n"), "{}", session.shown.len());
    assert_eq!(session.errors, "no terminal\n");
    let status = session.status.unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "4");
    assert_eq!(sandboxd.client.activity(&sandboxd.target).await.unwrap().running_calls, 0);
}

#[tokio::test]
async fn a_command_that_reads_nothing_ends_all_the_same() {
    let sandboxd = Sandboxd::start("0");
    let mut session = pipes(&sandboxd, "exec true").await;
    while session.take().await {}
    assert_eq!(session.status.unwrap()["status"], "Success");
}
