//! Reads a connection in larger pieces than TLS asks for, which takes 4 KiB at a time, and so needs fewer calls of the system. Nothing
//! is held for a connection on which nothing is to be read.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// A record of TLS, with what is around it.
const PIECE: usize = 16 * 1024 + 256;

/// A connection of which more is read than was asked for.
#[derive(Debug)]
pub struct Ahead<T> {
    io: T,
    /// Without memory when it is empty.
    read: BytesMut,
}

impl<T> Ahead<T> {
    /// Reads ahead on a connection.
    pub fn new(io: T) -> Self {
        Self { io, read: BytesMut::new() }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Ahead<T> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { io, read } = &mut *self;
        if read.is_empty() {
            if to.remaining() >= PIECE {
                return Pin::new(io).poll_read(context, to);
            }
            read.reserve(PIECE);
            match poll_read_buf(Pin::new(io), context, read) {
                Poll::Ready(Ok(1..)) => {}
                other => {
                    *read = BytesMut::new();
                    return other.map_ok(drop);
                }
            }
        }
        let count = to.remaining().min(read.len());
        to.put_slice(&read[..count]);
        read.advance(count);
        if read.is_empty() {
            *read = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Ahead<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn everything_comes_in_its_order_and_little_is_asked_for_seldom() {
        let sent: Vec<u8> = (0..PIECE * 3 + 5).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let (ours, mut theirs) = duplex(PIECE * 4);
        theirs.write_all(&sent).await.unwrap();
        drop(theirs);
        let mut ahead = Ahead::new(ours);
        let mut got = vec![0; 10];
        assert_eq!(ahead.read(&mut got).await.unwrap(), 10);
        assert_eq!(ahead.read.len(), PIECE - 10, "a whole piece was read at once");
        let mut rest = vec![0; PIECE - 10];
        ahead.read_exact(&mut rest).await.unwrap();
        assert!(!ahead.read.try_reclaim(1), "nothing is held that is empty");
        got.extend_from_slice(&rest);
        ahead.read_to_end(&mut got).await.unwrap();
        assert!(got == sent);
        assert_eq!(ahead.read.capacity(), 0);
    }

    #[tokio::test]
    async fn a_connection_that_waits_holds_nothing() {
        let (ours, mut theirs) = duplex(64);
        let mut ahead = Ahead::new(ours);
        let mut byte = [0];
        assert!(futures::poll!(std::pin::pin!(ahead.read(&mut byte))).is_pending());
        assert_eq!(ahead.read.capacity(), 0);
        theirs.write_all(b"x").await.unwrap();
        assert_eq!(ahead.read_u8().await.unwrap(), b'x');
    }
}
