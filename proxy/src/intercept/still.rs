//! A connection on which nothing moves any more is given up.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// Reads and writes fail once nothing was read or written for `patience`.
#[derive(Debug)]
pub struct Still<T> {
    io: T,
    patience: Duration,
    moved: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<T> Still<T> {
    /// Watches a connection.
    pub fn new(io: T, patience: Duration) -> Self {
        Self { io, patience, moved: Instant::now(), timer: Box::pin(sleep(patience)) }
    }

    fn watch<R>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if polled.is_ready() {
            self.moved = Instant::now();
            return polled;
        }
        // The timer is set anew only when it fires, and not for every piece that moves.
        loop {
            ready!(self.timer.as_mut().poll(context));
            let deadline = self.moved + self.patience;
            if deadline <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.timer.as_mut().reset(deadline);
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Still<T> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(context, to);
        self.watch(context, polled)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Still<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(context, bytes);
        self.watch(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(context, pieces);
        self.watch(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(context);
        self.watch(context, polled)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_nothing_moves_in_either_direction() {
        let patience = Duration::from_secs(10);
        let (ours, theirs) = duplex(64);
        let (mut reader, mut writer) = tokio::io::split(Still::new(ours, patience));
        let writing = tokio::spawn(async move {
            for _ in 0..5 {
                tokio::time::advance(patience * 9 / 10).await;
                writer.write_all(b"x").await.unwrap();
            }
            writer
        });
        let started = Instant::now();
        let error = reader.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= patience * 5);
        drop((writing.await.unwrap(), theirs));
    }
}
