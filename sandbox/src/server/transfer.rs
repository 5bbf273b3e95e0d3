//! Files and folders over HTTP. A thread does the work on the disk; what is in between is bounded, so that the slower side
//! sets the pace.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, Query, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::calls::{Calls, Open};
use super::error::ApiError;
use super::journal::Use;
use crate::tools::transfer::{self, Folder, Outgoing, TransferError};
use crate::wire::{MODE_HEADER, Stored, Unpacked};

/// How long the other end may send nothing.
const STALL: Duration = Duration::from_secs(30);
/// Pieces of at most 64 KiB that wait on their way out.
const QUEUE: usize = 4;
const PIECE: usize = 64 * 1024;

#[derive(Deserialize)]
pub(super) struct Which {
    path: String,
    /// Octal digits.
    mode: Option<String>,
}

impl Which {
    fn mode(&self) -> Result<Option<u32>, ApiError> {
        let Some(mode) = &self.mode else { return Ok(None) };
        let parsed = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o777);
        parsed.map(Some).ok_or(ApiError::Mode)
    }
}

/// The query, with an error of our own form.
pub(super) struct Asked(Which);

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Ok(Self(Query::<Which>::from_request_parts(parts, state).await?.0))
    }
}

pub(super) type Answer = Result<Response, ApiError>;

/// `GET /v1/files?path=`
pub(super) async fn download(State(calls): State<Arc<Calls>>, Asked(which): Asked) -> Answer {
    let open = calls.open(Use::Transfer)?;
    let file = prepare(&calls, which.path, Outgoing::open).await?;
    let (size, mode) = (file.size, file.mode);
    let mut response = Body::new(Sending::start(Some(open), Some(size), move |to| file.send(to))).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
    if let Ok(mode) = HeaderValue::from_str(&format!("{mode:o}")) {
        headers.insert(MODE_HEADER, mode);
    }
    Ok(response)
}

/// `GET /v1/archive?path=`
pub(super) async fn download_folder(State(calls): State<Arc<Calls>>, Asked(which): Asked) -> Answer {
    let open = calls.open(Use::Transfer)?;
    let folder = prepare(&calls, which.path, Folder::open).await?;
    let send = move |to: &mut Pieces| in_pieces(to, |to| folder.send(to));
    let mut response = Body::new(Sending::start(Some(open), None, send)).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    Ok(response)
}

/// `PUT /v1/files?path=&mode=`
pub(super) async fn upload(State(calls): State<Arc<Calls>>, Asked(which): Asked, body: Body) -> Answer {
    let mode = which.mode()?;
    let open = calls.open(Use::Transfer)?;
    let workspace = calls.toolbox().workspace();
    let store = move |from: &mut Received| transfer::store(&workspace, &which.path, mode, from);
    let stored: Stored = receive(Some(open), body, store).await?;
    let status = if stored.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(stored)).into_response())
}

/// `PUT /v1/archive?path=`
pub(super) async fn upload_folder(State(calls): State<Arc<Calls>>, Asked(which): Asked, body: Body) -> Answer {
    let open = calls.open(Use::Transfer)?;
    let workspace = calls.toolbox().workspace();
    let unpack = move |from: &mut Received| {
        let unpacked = transfer::unpack(&workspace, &which.path, from)?;
        // What follows the end of an archive is padding.
        io::copy(from, &mut io::sink()).map_err(TransferError::Broken)?;
        Ok(unpacked)
    };
    let unpacked: Unpacked = receive(Some(open), body, unpack).await?;
    Ok(Json(unpacked).into_response())
}

/// Sends what consists of many small parts.
pub(super) fn in_pieces(
    to: &mut Pieces,
    send: impl FnOnce(&mut io::BufWriter<&mut Pieces>) -> io::Result<()>,
) -> io::Result<()> {
    let mut to = io::BufWriter::with_capacity(PIECE, to);
    send(&mut to)?;
    to.flush()
}

async fn prepare<T: Send + 'static>(
    calls: &Arc<Calls>,
    path: String,
    open: impl FnOnce(&std::path::Path, &str) -> Result<T, TransferError> + Send + 'static,
) -> Result<T, ApiError> {
    let workspace = calls.toolbox().workspace();
    let opened = tokio::task::spawn_blocking(move || open(&workspace, &path)).await;
    Ok(opened.map_err(|_| ApiError::Failed)??)
}

/// Hands a body on to a thread, and gives what that makes of it.
pub(super) async fn receive<T: Send + 'static>(
    open: Option<Open>,
    mut body: Body,
    store: impl FnOnce(&mut Received) -> Result<T, TransferError> + Send + 'static,
) -> Result<T, ApiError> {
    let (sender, pieces) = mpsc::channel(QUEUE);
    let work = tokio::task::spawn_blocking(move || {
        let _open = open;
        store(&mut Received { pieces, rest: Bytes::new(), ended: false })
    });
    let feed = async move {
        loop {
            let piece = match timeout(STALL, body.frame()).await {
                Err(_) => Piece::Failed(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("nothing came for {} s", STALL.as_secs()),
                )),
                Ok(None) => Piece::End,
                Ok(Some(Err(error))) => Piece::Failed(io::Error::other(error)),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Piece::Data(data),
                    Err(_) => continue,
                },
            };
            let last = !matches!(piece, Piece::Data(_));
            // Nobody takes it any more when the work has failed.
            if sender.send(piece).await.is_err() || last {
                return;
            }
        }
    };
    let (done, ()) = tokio::join!(work, feed);
    Ok(done.map_err(|_| ApiError::Failed)??)
}

enum Piece {
    Data(Bytes),
    End,
    Failed(io::Error),
}

/// What a body brings, for a thread. A body that is broken off is an error, never an end.
pub(super) struct Received {
    pieces: mpsc::Receiver<Piece>,
    rest: Bytes,
    ended: bool,
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.rest = data,
                Some(Piece::End) => self.ended = true,
                Some(Piece::Failed(error)) => return Err(error),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let length = buffer.len().min(self.rest.len());
        buffer[..length].copy_from_slice(&self.rest.split_to(length));
        Ok(length)
    }
}

/// Where a thread puts what is to be sent.
pub(super) struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(PIECE);
        let piece = Bytes::copy_from_slice(&bytes[..length]);
        self.0.blocking_send(Ok(piece)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A body that a thread fills. When the thread fails, so does the body: the other end sees that it is not whole.
pub(super) struct Sending {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    left: Option<u64>,
}

impl Sending {
    pub(super) fn start(
        open: Option<Open>,
        size: Option<u64>,
        send: impl FnOnce(&mut Pieces) -> io::Result<()> + Send + 'static,
    ) -> Self {
        let (sender, pieces) = mpsc::channel(QUEUE);
        tokio::task::spawn_blocking(move || {
            let _open = open;
            let mut to = Pieces(sender);
            if let Err(error) = send(&mut to) {
                tracing::warn!(%error, "a transfer was broken off");
                // The other end may be why.
                to.0.blocking_send(Err(error)).ok();
            }
        });
        Self { pieces, left: size }
    }
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.pieces.poll_recv(context).map(|piece| {
            let piece = piece?;
            if let (Ok(data), Some(left)) = (&piece, &mut self.left) {
                *left = left.saturating_sub(data.len() as u64);
            }
            Some(piece.map(Frame::data))
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
