//! Bodies that have to be read to their end before anything is done: into which a credential is placed, that are hashed for a
//! signature, and answers that hand out credentials. All of them together are bounded, and zeroised.

use std::{sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use zeroize::Zeroizing;

use super::bodies::BoxError;

/// What is held of all of them, in bytes.
const TOTAL: usize = 16 * 1024 * 1024;
/// What is counted, in bytes.
const UNIT: usize = 1024;
/// How long one waits until there is room.
const TURN_TIMEOUT: Duration = Duration::from_secs(60);
/// Until one has come: a slow one does not keep others out for longer.
const READ_TIMEOUT: Duration = Duration::from_secs(300);

/// Why a body is not there as a whole.
#[derive(Debug, thiserror::Error)]
pub enum NotWhole {
    /// There was no room for it in time.
    #[error("there was no room for it within {} s", TURN_TIMEOUT.as_secs())]
    Busy,
    /// It is larger than it may be.
    #[error("it is too large")]
    TooLarge,
    /// It ended early, or took too long.
    #[error("it ended early")]
    Broken(#[source] BoxError),
}

/// The room for bodies, which all connections of a session share.
#[derive(Debug, Clone)]
pub struct Room {
    units: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Self {
        Self { units: Arc::new(Semaphore::new(TOTAL / UNIT)) }
    }
}

/// A body, with its room.
#[derive(Debug)]
pub struct Whole {
    bytes: Zeroizing<Vec<u8>>,
    turn: OwnedSemaphorePermit,
}

impl Room {
    /// Reads a body of at most `limit` bytes, once there is room for `copies` of it.
    ///
    /// # Errors
    /// [`NotWhole`].
    pub async fn read<B>(&self, body: B, limit: usize, copies: usize) -> Result<Whole, NotWhole>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
    {
        let hint = body.size_hint();
        if hint.lower() > limit as u64 {
            return Err(NotWhole::TooLarge);
        }
        let upper = hint.upper().and_then(|upper| usize::try_from(upper).ok()).map_or(limit, |upper| upper.min(limit));
        let units = upper.saturating_mul(copies).div_ceil(UNIT).clamp(1, TOTAL / UNIT);
        let units = u32::try_from(units).map_err(|_| NotWhole::TooLarge)?;
        let turn = timeout(TURN_TIMEOUT, self.units.clone().acquire_many_owned(units)).await;
        let turn = turn.map_err(|_| NotWhole::Busy)?.map_err(|_| NotWhole::Busy)?;
        let reading = timeout(READ_TIMEOUT, collect(body, limit, upper));
        let bytes = reading.await.map_err(|late| NotWhole::Broken(late.into()))??;
        Ok(Whole { bytes, turn })
    }
}

async fn collect<B>(mut body: B, limit: usize, expected: usize) -> Result<Zeroizing<Vec<u8>>, NotWhole>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    // Space for all of it, so that no copy is left behind by growing.
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| NotWhole::Broken(error.into()))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.remaining() > limit {
            return Err(NotWhole::TooLarge);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

impl Whole {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Other bytes in place of these, in the same room.
    #[must_use]
    pub fn with(self, bytes: Zeroizing<Vec<u8>>) -> Self {
        Self { bytes, turn: self.turn }
    }

    /// To be sent; the room is free again once that is done.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::{FutureExt, stream};
    use http_body::Frame;
    use http_body_util::{Full, StreamBody};

    use super::*;

    fn full(length: usize) -> Full<Bytes> {
        Full::new(Bytes::from(vec![b'x'; length]))
    }

    /// Without a stated length.
    fn unknown(length: usize) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let pieces = [length / 2, length - length / 2].map(|length| Ok(Frame::data(Bytes::from(vec![b'x'; length]))));
        StreamBody::new(stream::iter(pieces))
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit() {
        let room = Room::default();
        for length in [0, 1, 5_000] {
            assert_eq!(room.read(full(length), 5_000, 1).await.unwrap().bytes().len(), length);
            assert_eq!(room.read(unknown(length), 5_000, 1).await.unwrap().into_bytes().len(), length);
        }
        assert!(matches!(room.read(full(5_001), 5_000, 1).await, Err(NotWhole::TooLarge)));
        assert!(matches!(room.read(unknown(5_001), 5_000, 1).await, Err(NotWhole::TooLarge)));
        assert_eq!(room.units.available_permits(), TOTAL / UNIT);
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_room_waits_and_is_refused_in_the_end() {
        let room = Room::default();
        let limit = TOTAL / 4;
        let mut held = Vec::new();
        for _ in 0..2 {
            // As much as may come counts, and each copy of it.
            held.push(room.read(unknown(10), limit, 2).await.unwrap());
        }
        assert!(matches!(room.read(full(1), limit, 1).await, Err(NotWhole::Busy)));
        let mut waiting = Box::pin(room.read(full(limit), limit, 2));
        assert!((&mut waiting).now_or_never().is_none());
        // It is in use until what was made of it is sent.
        let sending = held.pop().unwrap().with(Zeroizing::new(vec![b'y'; 3])).into_bytes();
        let clone = sending.clone();
        drop(sending);
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(clone, "yyy");
        drop(clone);
        assert_eq!(waiting.await.unwrap().bytes().len(), limit);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_come_gives_its_room_back() {
        let room = Room::default();
        let never = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
        assert!(matches!(room.read(never, TOTAL, 1).await, Err(NotWhole::Broken(_))));
        assert_eq!(room.units.available_permits(), TOTAL / UNIT);
    }
}
