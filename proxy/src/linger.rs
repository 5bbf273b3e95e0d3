//! Requests that are answered before their body has come. A server that stops reading then has the connection, or the stream of
//! HTTP/2, reset under a client that still sends, and many clients lose the answer with it.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::{runtime::Handle, time::timeout};
use tokio_util::task::TaskTracker;

/// How much of a body is read for nobody, in bytes. What is larger is broken off.
const MAX_REST: usize = 1024 * 1024;
/// How long it is read for.
const REST_TIMEOUT: Duration = Duration::from_secs(2);

/// The body of a request. Once nobody wants it any more, a bounded rest of it is still read, and passed on to nobody.
pub struct Lingering<B: Body<Data = Bytes> + Send + Unpin + 'static> {
    /// There until it has ended.
    inner: Option<B>,
    /// A client that waits to be asked for the body does not send it after a final answer, and is not to be asked.
    asked: bool,
    rests: TaskTracker,
    runtime: Handle,
}

impl<B: Body<Data = Bytes> + Send + Unpin + 'static> Lingering<B> {
    /// Wraps the body of a request with these headers. What reads its rest is one of `rests`, and ends within 2 s.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new(body: B, headers: &HeaderMap, rests: &TaskTracker) -> Self {
        let asked = !headers.contains_key(header::EXPECT);
        Self { inner: Some(body), asked, rests: rests.clone(), runtime: Handle::current() }
    }
}

impl<B: Body<Data = Bytes> + Send + Unpin + 'static> Body for Lingering<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.asked = true;
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(inner).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.inner = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B: Body<Data = Bytes> + Send + Unpin + 'static> Drop for Lingering<B> {
    fn drop(&mut self) {
        if let Some(rest) = self.inner.take().filter(|rest| self.asked && !rest.is_end_stream()) {
            self.rests.spawn_on(read(rest), &self.runtime);
        }
    }
}

/// Reads a body to its end, or to the bounds of what is read for nobody.
async fn read<B: Body<Data = Bytes> + Unpin>(mut rest: B) {
    let mut left = MAX_REST;
    let reading = async {
        while let Some(Ok(frame)) = rest.frame().await {
            match left.checked_sub(frame.data_ref().map_or(0, Buf::remaining)) {
                Some(fewer) => left = fewer,
                None => return,
            }
        }
    };
    // The client may be slow.
    let _: Result<(), _> = timeout(REST_TIMEOUT, reading).await;
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::{StreamExt as _, channel::mpsc};
    use http_body_util::StreamBody;
    use tokio::time::Instant;

    use super::*;

    /// A sender, and the body that it sends.
    fn sent(
        headers: &HeaderMap,
        rests: &TaskTracker,
    ) -> (mpsc::UnboundedSender<Bytes>, impl Body<Data = Bytes> + Unpin + use<>) {
        let (sender, receiver) = mpsc::unbounded::<Bytes>();
        let body = StreamBody::new(receiver.map(|data| Ok::<_, Infallible>(Frame::data(data))));
        (sender, Lingering::new(body, headers, rests))
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_wants_is_read_to_its_end_or_to_the_bounds() {
        let (rests, started) = (TaskTracker::new(), Instant::now());
        rests.close();
        let (sender, body) = sent(&HeaderMap::new(), &rests);
        drop(body);
        for _ in 0..MAX_REST / 1024 {
            sender.unbounded_send(Bytes::from_static(&[0; 1024])).unwrap();
            tokio::task::yield_now().await;
        }
        assert!(!sender.is_closed());
        sender.unbounded_send(Bytes::from_static(b"more")).unwrap();
        rests.wait().await;
        assert!(sender.is_closed() && started.elapsed() < REST_TIMEOUT);

        let (silent, body) = sent(&HeaderMap::new(), &rests);
        drop(body);
        rests.wait().await;
        assert!(silent.is_closed() && started.elapsed() >= REST_TIMEOUT);
    }

    #[tokio::test]
    async fn what_was_read_and_what_a_client_waits_with_leave_no_rest() {
        let rests = TaskTracker::new();
        let (sender, mut body) = sent(&HeaderMap::new(), &rests);
        sender.unbounded_send(Bytes::from_static(b"all")).unwrap();
        drop(sender);
        while body.frame().await.is_some() {}
        drop(body);
        assert!(rests.is_empty());

        let waits = HeaderMap::from_iter([(header::EXPECT, "100-continue".parse().unwrap())]);
        let (sender, body) = sent(&waits, &rests);
        drop(body);
        assert!(rests.is_empty() && sender.is_closed());
    }
}
