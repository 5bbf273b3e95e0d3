//! Bodies that are passed on as they come: nothing is collected, and silence ends them.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The sender's connection failed.
    #[error("the body could not be read: {0}")]
    Read(#[source] hyper::Error),
    /// The sender sent nothing for too long.
    #[error("nothing came for {} s", .0.as_secs())]
    Idle(Duration),
}

/// A body on its way. Each piece is passed on at once; trailers are left out, since no policy judges them, unless they are
/// asked for.
#[derive(Debug)]
pub struct Relayed<B> {
    inner: B,
    idle: Duration,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
    trailers: bool,
}

impl<B> Relayed<B> {
    /// Relays a body that may be silent for so long at a time.
    pub fn new(inner: B, idle: Duration) -> Self {
        Self { inner, idle, timer: Box::pin(sleep(idle)), waiting: false, trailers: false }
    }

    /// Passes trailers on too, for whoever judges them.
    #[must_use]
    pub fn with_trailers(self) -> Self {
        Self { trailers: true, ..self }
    }
}

impl<B: Body<Data = Bytes, Error = hyper::Error> + Unpin> Body for Relayed<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.waiting = false;
                    if frame.is_data() || self.trailers {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(BodyError::Read(error)))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => break,
            }
        }
        // Time counts from when the reader began to wait, so that a slow reader is not taken for a silent sender.
        if !self.waiting {
            self.waiting = true;
            let deadline = Instant::now() + self.idle;
            self.timer.as_mut().reset(deadline);
        }
        match self.timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Some(Err(BodyError::Idle(self.idle)))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::{FutureExt, StreamExt, channel::mpsc};
    use http::HeaderMap;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    const IDLE: Duration = Duration::from_secs(10);

    /// A sender whose pieces are relayed. Its errors cannot happen, since `hyper::Error` cannot be made.
    fn relayed() -> (mpsc::UnboundedSender<Frame<Bytes>>, Relayed<impl Body<Data = Bytes, Error = hyper::Error> + Unpin>)
    {
        let (sender, receiver) = mpsc::unbounded();
        let body = StreamBody::new(receiver.map(Ok::<_, Infallible>)).map_err(|never| match never {});
        (sender, Relayed::new(body, IDLE))
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_pass_at_once_and_trailers_do_not() {
        let (sender, mut body) = relayed();
        sender.unbounded_send(Frame::data(Bytes::from_static(b"one"))).unwrap();
        let frame = body.frame().now_or_never().flatten().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "one");
        sender.unbounded_send(Frame::trailers(HeaderMap::new())).unwrap();
        drop(sender);
        assert!(body.frame().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_but_a_slow_reader_does_not() {
        let (sender, mut body) = relayed();
        for _ in 0..3 {
            tokio::time::advance(IDLE * 2).await;
            sender.unbounded_send(Frame::data(Bytes::from_static(b"x"))).unwrap();
            assert!(body.frame().await.unwrap().is_ok());
        }
        tokio::time::advance(IDLE * 2).await;
        let before = Instant::now();
        assert!(matches!(body.frame().await, Some(Err(BodyError::Idle(IDLE)))));
        assert!(before.elapsed() >= IDLE);
    }
}
