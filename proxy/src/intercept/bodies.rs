//! Bodies on their way: requests are watched for placeholders that have no business there, answers lose the values that must
//! not come back.

use std::{
    error::Error,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};

use super::{
    placeholder::Scan,
    scrub::{Scrubber, Values},
};

/// Any failure of a body.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Whether a body was ended because of what was in it.
#[derive(Debug, Clone, Default)]
pub struct Shown(Arc<AtomicBool>);

impl Shown {
    /// Whether it was.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A body ended because of a placeholder in it.
#[derive(Debug, thiserror::Error)]
#[error("the body has a placeholder, which is not replaced there")]
struct PlaceholderInBody;

/// The body of a request, which ends with an error at the first placeholder.
pub struct Watched<B> {
    inner: B,
    scan: Scan,
    shown: Shown,
}

impl<B> Watched<B> {
    /// Watches a body; `shown` says afterwards whether that ended it.
    pub fn new(inner: B, shown: Shown) -> Self {
        Self { inner, scan: Scan::default(), shown }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Watched<B>
where
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let Some(frame) = frame.transpose().map_err(Into::into)? else { return Poll::Ready(None) };
        if frame.data_ref().is_some_and(|data| self.scan.feed(data)) {
            self.shown.0.store(true, Ordering::Relaxed);
            return Poll::Ready(Some(Err(PlaceholderInBody.into())));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The body of an answer without values.
pub struct Scrubbed<B> {
    inner: B,
    values: Values,
    scrubber: Scrubber,
    trailers: Option<HeaderMap>,
    ended: bool,
}

impl<B> Scrubbed<B> {
    /// Takes these values out of a body and of its trailers.
    pub fn new(inner: B, values: Values) -> Self {
        Self { inner, scrubber: values.stream(), values, trailers: None, ended: false }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Scrubbed<B>
where
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        while !self.ended {
            let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx)).transpose().map_err(Into::into)?;
            match frame.map(Frame::into_data) {
                Some(Ok(data)) => {
                    let clean = self.scrubber.feed(data);
                    if !clean.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(clean))));
                    }
                }
                other => {
                    self.ended = true;
                    let trailers = other.and_then(Result::err).and_then(|frame| frame.into_trailers().ok());
                    self.trailers = trailers.map(|mut trailers| {
                        scrub_headers(&mut trailers, &self.values);
                        trailers
                    });
                    let rest = self.scrubber.finish();
                    if !rest.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(rest))));
                    }
                }
            }
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        let nothing_left = self.scrubber.held() == 0 && self.trailers.is_none();
        nothing_left && (self.ended || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.scrubber.held() as u64;
        let inner = self.inner.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + held);
        }
        hint.set_lower(inner.lower() + held);
        hint
    }
}

/// Takes values out of headers or trailers.
pub fn scrub_headers(headers: &mut HeaderMap, values: &Values) {
    for value in headers.values_mut() {
        if let Some(clean) = values.scrub(value.as_bytes()) {
            *value = HeaderValue::from_maybe_shared(clean).unwrap_or_else(|_| HeaderValue::from_static("[removed]"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn body(frames: Vec<Frame<Bytes>>) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        StreamBody::new(stream::iter(frames.into_iter().map(Ok)))
    }

    #[tokio::test]
    async fn what_is_held_back_comes_before_the_trailers_which_are_clean_too() {
        let trailers = HeaderMap::from_iter([("x-echo".parse().unwrap(), "a secret-value b".parse().unwrap())]);
        let frames = ["x secret-", "value secret-v"].map(|data| Frame::data(Bytes::from_static(data.as_bytes())));
        let frames = frames.into_iter().chain([Frame::trailers(trailers)]).collect();
        let values = Values::new([&b"secret-value"[..]]).unwrap();
        let collected = Scrubbed::new(body(frames), values).collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["x-echo"], "a ************ b");
        assert_eq!(collected.to_bytes(), "x ************ secret-v");
    }

    #[tokio::test]
    async fn a_placeholder_ends_a_request() {
        let placeholder = format!("lhp_{}", "x".repeat(43));
        let (first, second) = placeholder.split_at(10);
        let frames = [first, second].map(|data| Frame::data(Bytes::copy_from_slice(data.as_bytes())));
        let shown = Shown::default();
        assert!(Watched::new(body(frames.into()), shown.clone()).collect().await.is_err());
        assert!(shown.is_set());
        let shown = Shown::default();
        let harmless = vec![Frame::data(Bytes::from_static(b"lhp_x"))];
        assert!(Watched::new(body(harmless), shown.clone()).collect().await.is_ok() && !shown.is_set());
    }
}
