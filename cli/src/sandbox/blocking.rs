//! Streams for code that blocks: it runs on a thread of its own, and what is in between is bounded.

use std::io::{self, Read, Write};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use tokio::sync::mpsc;

const PIECE: usize = 64 * 1024;
/// Pieces that wait.
const QUEUE: usize = 4;

/// Where a thread puts what is to be sent.
struct Out(mpsc::Sender<io::Result<Bytes>>);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes.get(..bytes.len().min(PIECE)).unwrap_or_default();
        self.0
            .blocking_send(Ok(Bytes::copy_from_slice(piece)))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `write` writes on a thread of its own. When it fails, so does the stream.
pub fn written(
    write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (sender, pieces) = mpsc::channel(QUEUE);
    tokio::task::spawn_blocking(move || {
        let mut out = io::BufWriter::with_capacity(PIECE, Out(sender.clone()));
        if let Err(error) = write(&mut out).and_then(|()| out.flush()) {
            // Nobody may listen any more.
            sender.blocking_send(Err(error)).ok();
        }
    });
    stream::unfold(pieces, |mut pieces| async move { pieces.recv().await.map(|piece| (piece, pieces)) })
}

/// What comes in, for a thread.
struct In {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for In {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.rest = piece?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.rest.len());
        if let Some(room) = buffer.get_mut(..length) {
            room.copy_from_slice(&self.rest.split_to(length));
        }
        Ok(length)
    }
}

/// Has `read` read the stream on a thread of its own. A stream that breaks off is an error there, never an end.
///
/// # Errors
/// That of the stream if it broke off, else that of `read`.
pub async fn consumed<T: Send + 'static>(
    mut stream: impl Stream<Item = io::Result<Bytes>> + Unpin,
    read: impl FnOnce(&mut dyn Read) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, pieces) = mpsc::channel(QUEUE);
    let work = tokio::task::spawn_blocking(move || read(&mut In { pieces, rest: Bytes::new() }));
    let feed = async move {
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(piece) => {
                    // The work has ended, and says why.
                    if sender.send(Ok(piece)).await.is_err() {
                        return Ok(());
                    }
                }
                Err(error) => {
                    sender.send(Err(error.kind().into())).await.ok();
                    return Err(error);
                }
            }
        }
        Ok(())
    };
    let (done, fed) = tokio::join!(work, feed);
    fed?;
    done.map_err(io::Error::other)?
}
