//! What is in a file, as it is read: piece by piece, within a time for all of it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt as _};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::FilesError;
use super::slots::Slot;
use crate::objects::ObjectsError;

/// Pieces that are still to come, and the right to hold one.
type Rest = (BoxStream<'static, Result<Bytes, ObjectsError>>, Slot);

/// What is in a file. A stream that ends without an error was the whole.
///
/// When its time is over it holds nothing any more, also if nobody asks it for a piece: a reader may stop in the middle.
pub struct Content {
    /// `None` when all was given, or the time is over.
    rest: Arc<Mutex<Option<Rest>>>,
    limit: Duration,
    end: Pin<Box<Sleep>>,
    is_over: bool,
    _watch: AbortOnDropHandle<()>,
}

impl Content {
    pub(super) fn new(pieces: BoxStream<'static, Result<Bytes, ObjectsError>>, slot: Slot, limit: Duration) -> Self {
        let until = Instant::now() + limit;
        let rest = Arc::new(Mutex::new(Some((pieces, slot))));
        let watched = Arc::clone(&rest);
        let watch = tokio::spawn(async move {
            sleep_until(until).await;
            drop(held(&watched).take());
        });
        let end = Box::pin(sleep_until(until));
        Self { rest, limit, end, is_over: false, _watch: AbortOnDropHandle::new(watch) }
    }
}

fn held(rest: &Mutex<Option<Rest>>) -> MutexGuard<'_, Option<Rest>> {
    rest.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream for Content {
    type Item = Result<Bytes, FilesError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(None);
        }
        let late = this.end.as_mut().poll(context).is_ready();
        let mut rest = held(&this.rest);
        let next = match &mut *rest {
            Some((pieces, _)) if !late => match pieces.poll_next_unpin(context) {
                Poll::Ready(next) => next.map(|piece| piece.map_err(FilesError::from)),
                Poll::Pending => return Poll::Pending,
            },
            _ => Some(Err(FilesError::Late { limit: this.limit })),
        };
        if !matches!(next, Some(Ok(_))) {
            this.is_over = true;
            drop(rest.take());
        }
        Poll::Ready(next)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use futures::stream::{self, StreamExt as _};
    use tokio::time::advance;

    use super::super::slots::{Slots, Taken};
    use super::{Content, FilesError};

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn who_stops_reading_holds_nothing_when_the_time_is_over() {
        let slots = Slots::new(1, 1);
        let pieces = || stream::iter([Ok(Bytes::from_static(b"a")), Ok(Bytes::from_static(b"b"))]).boxed();
        let mut content = Content::new(pieces(), slots.try_take("a").unwrap(), LIMIT);
        assert_eq!(content.next().await.unwrap().unwrap(), "a");
        assert_eq!(slots.try_take("b").unwrap_err(), Taken::All);
        // Nobody asks for the next piece.
        let free = slots.take("b", LIMIT * 2).await.unwrap();
        assert!(matches!(content.next().await, Some(Err(FilesError::Late { .. }))));
        assert!(content.next().await.is_none());
        drop(free);
        // Whoever takes all of it in time gives the right back at its end.
        let mut whole = Content::new(pieces(), slots.try_take("a").unwrap(), LIMIT);
        advance(LIMIT / 2).await;
        while let Some(piece) = whole.next().await {
            piece.unwrap();
        }
        assert!(slots.try_take("a").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_piece_that_does_not_come_ends_with_the_time() {
        let slots = Slots::new(1, 1);
        let mut content = Content::new(stream::pending().boxed(), slots.try_take("a").unwrap(), LIMIT);
        assert!(matches!(content.next().await, Some(Err(FilesError::Late { .. }))));
        assert!(slots.try_take("a").is_ok());
    }
}
