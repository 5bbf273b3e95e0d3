//! A model API that answers from a list.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Once};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::post;
use futures::StreamExt as _;
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::Notify;

/// What the model does when it is asked.
#[derive(Clone, Debug)]
pub(crate) enum Turn {
    /// Says this.
    Say(Vec<Value>, &'static str),
    /// Says this much and then nothing.
    Hang(&'static str),
    /// Says this once it is told to go on.
    Wait(Vec<Value>, &'static str),
    /// Says this much and breaks the connection.
    Break(&'static str),
    /// Answers with this status.
    Refuse(u16),
}

#[derive(Default)]
pub(crate) struct Model {
    pub(crate) turns: Mutex<VecDeque<Turn>>,
    /// What was asked, with `x-api-key` and `anthropic-version`.
    pub(crate) asked: Mutex<Vec<(String, String, Value)>>,
    /// Told when a [`Turn::Hang`] has said what it says, or a [`Turn::Wait`] waits.
    pub(crate) hanging: Notify,
    /// Tells a [`Turn::Wait`] to go on.
    pub(crate) go_on: Notify,
}

impl Model {
    pub(crate) fn bodies(&self) -> Vec<Value> {
        self.asked.lock().unwrap().iter().map(|(_, _, body)| body.clone()).collect()
    }
}

pub(crate) async fn listen(router: Router) -> String {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    base
}

pub(crate) async fn serve(turns: impl IntoIterator<Item = Turn>) -> (Arc<Model>, String) {
    let model = Arc::new(Model { turns: Mutex::new(turns.into_iter().collect()), ..Model::default() });
    let router = Router::new().route("/model/v1/messages", post(answer)).with_state(Arc::clone(&model));
    let base = listen(router).await;
    (model, format!("{base}/model"))
}

async fn answer(State(model): State<Arc<Model>>, headers: HeaderMap, body: axum::Json<Value>) -> Response {
    let header = |name: &str| headers.get(name).map_or(String::new(), |value| value.to_str().unwrap().to_owned());
    model.asked.lock().unwrap().push((header("x-api-key"), header("anthropic-version"), body.0));
    let turn = model.turns.lock().unwrap().pop_front();
    let (text, hang) = match turn {
        Some(Turn::Say(content, stop_reason)) => (answer_frames(&content, stop_reason), false),
        Some(Turn::Hang(text)) => (open_frames(text), true),
        Some(Turn::Wait(content, stop_reason)) => {
            model.hanging.notify_one();
            model.go_on.notified().await;
            (answer_frames(&content, stop_reason), false)
        }
        Some(Turn::Break(text)) => (open_frames(text), false),
        Some(Turn::Refuse(status)) => {
            let body = json!({"type": "error", "error": {"type": "x", "message": "refused by the script"}});
            return Response::builder().status(status).body(Body::from(body.to_string())).unwrap();
        }
        None => return Response::builder().status(400).body(Body::from("the script has ended")).unwrap(),
    };
    // Cut where it hurts: in the middle of frames and of characters.
    let chunks: Vec<Result<Vec<u8>, std::io::Error>> =
        text.into_bytes().chunks(7).map(|chunk| Ok(chunk.to_vec())).collect();
    let tail = stream::once(async move {
        if hang {
            model.hanging.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(Vec::new())
    });
    Response::builder().body(Body::from_stream(stream::iter(chunks).chain(tail))).unwrap()
}

fn frame(data: &Value) -> String {
    format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap())
}

fn message_start() -> String {
    frame(&json!({"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}}))
}

fn open_frames(text: &str) -> String {
    [
        message_start(),
        frame(&json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})),
        frame(&json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}})),
    ]
    .concat()
}

fn answer_frames(content: &[Value], stop_reason: &str) -> String {
    let mut frames = vec![message_start(), frame(&json!({"type": "ping"}))];
    for (index, block) in content.iter().enumerate() {
        let (empty, deltas) = match block["type"].as_str() {
            Some("text") => {
                let characters: Vec<char> = block["text"].as_str().unwrap().chars().collect();
                let deltas = characters
                    .chunks(3)
                    .map(|chunk| json!({"type": "text_delta", "text": chunk.iter().collect::<String>()}))
                    .collect();
                (json!({"type": "text", "text": ""}), deltas)
            }
            Some("tool_use") => {
                let mut empty = block.clone();
                let input = std::mem::replace(&mut empty["input"], json!({}));
                (empty, vec![json!({"type": "input_json_delta", "partial_json": input.to_string()})])
            }
            _ => (block.clone(), Vec::new()),
        };
        frames.push(frame(&json!({"type": "content_block_start", "index": index, "content_block": empty})));
        let deltas: Vec<Value> = deltas;
        for delta in deltas {
            frames.push(frame(&json!({"type": "content_block_delta", "index": index, "delta": delta})));
        }
        frames.push(frame(&json!({"type": "content_block_stop", "index": index})));
    }
    frames.push(frame(
        &json!({"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": {"output_tokens": 5}}),
    ));
    frames.push(frame(&json!({"type": "message_stop"})));
    frames.concat()
}
