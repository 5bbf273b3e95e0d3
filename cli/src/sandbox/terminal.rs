//! What is said over a terminal: bytes with a channel before them, in the protocol `v5.channel.k8s.io`.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

const INPUT: u8 = 0;
const OUTPUT: u8 = 1;
const ERRORS: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSED: u8 = 255;
const CHUNK: usize = 16 * 1024;
const MAX_MESSAGE: usize = 1024 * 1024;
/// How long the other end may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// Why there is no exit code.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// The connection broke.
    #[error("the connection to the sandbox broke: {0}")]
    Broken(#[from] SocketError),
    /// It ended without a word.
    #[error("the connection to the sandbox ended before the command did")]
    Ended,
    /// The command was not run to its end, and why.
    #[error("{0}")]
    Closed(String),
    /// The output could not be written.
    #[error("cannot write: {0}")]
    Output(io::Error),
}

/// How a command ended.
#[derive(Deserialize)]
struct Status {
    status: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    details: Details,
}

#[derive(Default, Deserialize)]
struct Details {
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Deserialize)]
struct Cause {
    reason: String,
    message: String,
}

/// The exit code that a status stands for.
///
/// # Errors
/// [`TerminalError::Closed`] if the command has none.
pub fn exit_code(status: &[u8]) -> Result<u8, TerminalError> {
    let Ok(Status { status, message, details }) = serde_json::from_slice(status) else {
        return Err(TerminalError::Closed("the sandbox says in an unknown way how the command ended".to_owned()));
    };
    if status == "Success" {
        return Ok(0);
    }
    let code = details.causes.iter().find(|cause| cause.reason == "ExitCode");
    let code = code.and_then(|cause| cause.message.parse::<i64>().ok());
    // As a shell sees it.
    code.map(|code| u8::try_from(code & 0xff).unwrap_or(u8::MAX)).ok_or(TerminalError::Closed(message))
}

/// Speaks on `stream` until the command has ended; its exit code. Sizes that come are told to the terminal; without an input
/// the command gets its end at once.
///
/// # Errors
/// See [`TerminalError`].
pub async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    input: Option<impl AsyncRead + Unpin>,
    sizes: mpsc::Receiver<(u16, u16)>,
    output: &mut (impl AsyncWrite + Unpin),
    errors: &mut (impl AsyncWrite + Unpin),
) -> Result<u8, TerminalError> {
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    let socket = WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await;
    let (mut sink, stream) = socket.split();
    let speaking = async {
        // That nobody listens any more says less than what is still to be heard.
        let _ = speak(&mut sink, input, sizes).await;
        std::future::pending::<Infallible>().await
    };
    // One that waits to be heard must not keep the other from hearing.
    let heard = tokio::select! {
        heard = hear(stream, output, errors) => heard,
        never = speaking => match never {},
    };
    let code = exit_code(&heard?)?;
    let _ = timeout(GOODBYE, sink.close()).await;
    Ok(code)
}

async fn hear<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: SplitStream<WebSocketStream<S>>,
    output: &mut (impl AsyncWrite + Unpin),
    errors: &mut (impl AsyncWrite + Unpin),
) -> Result<Vec<u8>, TerminalError> {
    while let Some(message) = stream.next().await {
        let Message::Binary(message) = message? else { continue };
        match message.split_first() {
            Some((&OUTPUT, bytes)) => show(output, bytes).await?,
            Some((&ERRORS, bytes)) => show(errors, bytes).await?,
            Some((&STATUS, status)) => return Ok(status.to_vec()),
            _ => {}
        }
    }
    Err(TerminalError::Ended)
}

async fn show(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), TerminalError> {
    to.write_all(bytes).await.map_err(TerminalError::Output)?;
    to.flush().await.map_err(TerminalError::Output)
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    mut input: Option<impl AsyncRead + Unpin>,
    mut sizes: mpsc::Receiver<(u16, u16)>,
) -> Result<Infallible, TerminalError> {
    let mut buffer = vec![0; CHUNK];
    if input.is_none() {
        say(sink, CLOSED, &[INPUT]).await?;
    }
    loop {
        let read = async {
            match &mut input {
                Some(input) => input.read(&mut buffer).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            read = read => {
                let bytes = buffer.get(..read.unwrap_or_default()).unwrap_or_default();
                if bytes.is_empty() {
                    input = None;
                    say(sink, CLOSED, &[INPUT]).await?;
                } else {
                    say(sink, INPUT, bytes).await?;
                }
            }
            Some((columns, rows)) = sizes.recv() => {
                let size = json!({"Width": columns, "Height": rows}).to_string();
                say(sink, RESIZE, size.as_bytes()).await?;
            }
        }
    }
}

async fn say<S: AsyncRead + AsyncWrite + Unpin>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    channel: u8,
    bytes: &[u8],
) -> Result<(), TerminalError> {
    Ok(sink.send(Message::Binary([&[channel], bytes].concat().into())).await?)
}

/// One command of the shell, from words that are taken as they are.
#[must_use]
pub fn quoted(words: &[String]) -> String {
    let plain = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:@%+,".contains(&byte))
    };
    let words =
        words.iter().map(|word| if plain(word) { word.clone() } else { format!("'{}'", word.replace('\'', r"'\''")) });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use futures::{SinkExt as _, StreamExt as _};
    use rstest::rstest;
    use tokio::io::{AsyncReadExt as _, duplex, empty};
    use tokio::sync::mpsc;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::{TerminalError, converse, exit_code, quoted};

    #[rstest]
    #[case(r#"{"status":"Success"}"#, Some(0))]
    #[case(r#"{"status":"Failure","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#, Some(3))]
    #[case(r#"{"status":"Failure","details":{"causes":[{"reason":"ExitCode","message":"-1"}]}}"#, Some(255))]
    #[case(r#"{"status":"Failure","message":"the sandbox is ending"}"#, None)]
    #[case("junk", None)]
    fn the_exit_code_is_that_of_the_command(#[case] status: &str, #[case] code: Option<u8>) {
        assert_eq!(exit_code(status.as_bytes()).ok(), code);
    }

    #[test]
    fn words_stay_words() {
        let words = ["echo", "a b", "it's", "$HOME", "", "x=1;y"].map(ToOwned::to_owned);
        assert_eq!(quoted(&words), r"echo 'a b' 'it'\''s' '$HOME' '' 'x=1;y'");
    }

    #[tokio::test]
    async fn input_output_errors_and_the_end_go_their_ways() {
        let (ours, theirs) = duplex(64);
        let serving = tokio::spawn(async move {
            let mut socket = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
            let (mut typed, mut size) = (Vec::new(), String::new());
            while let Some(Ok(Message::Binary(message))) = socket.next().await {
                match message[0] {
                    0 => typed.extend_from_slice(&message[1..]),
                    4 => size = String::from_utf8_lossy(&message[1..]).into_owned(),
                    _ => break,
                }
            }
            for part in [
                &b"\x01out"[..],
                b"\x02err",
                br#"{"status":"Failure","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#,
            ] {
                let part = if part[0] == b'{' { [b"\x03", part].concat() } else { part.to_vec() };
                socket.send(Message::Binary(part.into())).await.unwrap();
            }
            (typed, size)
        });
        let (sizes, told) = mpsc::channel(1);
        sizes.send((132, 50)).await.unwrap();
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let typed = vec![b'x'; 50_000];
        let code = converse(ours, Some(&typed[..]), told, &mut output, &mut errors).await.unwrap();
        assert_eq!((code, &output[..], &errors[..]), (7, &b"out"[..], &b"err"[..]));
        let (heard, size) = serving.await.unwrap();
        assert_eq!(heard, typed);
        assert!(size.is_empty() || size == r#"{"Width":132,"Height":50}"#, "{size}");
    }

    #[tokio::test]
    async fn a_connection_that_just_ends_is_an_error() {
        let (ours, mut theirs) = duplex(1024);
        let ending = async move {
            theirs.read_u8().await.unwrap();
        };
        let (_sizes, told) = mpsc::channel(1);
        let (mut output, mut errors) = (tokio::io::sink(), tokio::io::sink());
        let (ended, ()) = tokio::join!(converse(ours, Some(empty()), told, &mut output, &mut errors), ending);
        assert!(matches!(ended, Err(TerminalError::Ended | TerminalError::Broken(_))), "{ended:?}");
    }
}
