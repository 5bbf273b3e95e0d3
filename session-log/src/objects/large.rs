//! Objects that are too large for memory: written and read in parts, of which one is held at a time.

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, Stream, StreamExt as _};
use object_store::{MultipartUpload, ObjectStoreExt as _};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::{Objects, ObjectsError, Result};

/// The bytes of a part. Buckets take no smaller ones but the last, and 10,000 of them at the most.
const PART: usize = 5 * 1024 * 1024;
/// What is read at once.
const PIECE: u64 = 1024 * 1024;

/// An object that was written whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its size.
    pub bytes: u64,
    /// The hex SHA-256 of it.
    pub sha256: String,
}

/// Why an object was not written. Then there is none of its name.
#[derive(Debug, thiserror::Error)]
pub enum PutStreamError<E> {
    /// The place refused or did not answer; in the last step it may have been written all the same.
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    /// There is more of it than there may be.
    #[error("it holds more than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// What should have been written broke off.
    #[error("what should have been written broke off: {0}")]
    Source(E),
}

/// Parts that are no object yet. If they do not become one, they are taken away.
struct Unfinished {
    upload: Option<Box<dyn MultipartUpload>>,
    objects: Objects,
    name: String,
}

impl Unfinished {
    async fn begin(objects: &Objects, name: &str) -> Result<Self> {
        let path = objects.path(name);
        let upload = objects.call(name, objects.store.put_multipart(&path)).await?;
        let upload = upload.map_err(|error| objects.failure(name, error))?;
        Ok(Self { upload: Some(upload), objects: objects.clone(), name: name.to_owned() })
    }

    async fn part(&mut self, part: Bytes) -> Result<()> {
        let Some(upload) = &mut self.upload else { return Ok(()) };
        let written = self.objects.call(&self.name, upload.put_part(part.into())).await?;
        written.map_err(|error| self.objects.failure(&self.name, error))
    }

    async fn finish(mut self) -> Result<()> {
        let Some(upload) = &mut self.upload else { return Ok(()) };
        let finished = self.objects.call(&self.name, upload.complete()).await?;
        finished.map_err(|error| self.objects.failure(&self.name, error))?;
        self.upload = None;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let (Some(mut upload), Ok(runtime)) = (self.upload.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let (name, deadline) = (std::mem::take(&mut self.name), self.objects.deadline);
        runtime.spawn(async move {
            match timeout(deadline, upload.abort()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(name, %error, "parts of an object are left over"),
                Err(_) => tracing::warn!(name, "parts of an object are left over: no answer in time"),
            }
        });
    }
}

impl Objects {
    /// Writes an object of at most `limit` bytes as it comes. Its name must never have been used. It is there when all of it
    /// is; what was written of it goes if `content` breaks off, if it is too large, or if this future is dropped. The
    /// deadline is for each part.
    ///
    /// # Errors
    /// See [`PutStreamError`].
    pub async fn put_stream<E>(
        &self,
        name: &str,
        limit: u64,
        mut content: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<Written, PutStreamError<E>> {
        let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
        let (mut part, mut upload) = (BytesMut::new(), None);
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(PutStreamError::Source)?;
            bytes = bytes.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
            if bytes > limit {
                return Err(PutStreamError::TooLarge { limit });
            }
            hash.update(&piece);
            part.extend_from_slice(&piece);
            while part.len() >= PART {
                let upload = match &mut upload {
                    Some(upload) => upload,
                    none => none.insert(Unfinished::begin(self, name).await?),
                };
                upload.part(part.split_to(PART).freeze()).await?;
            }
        }
        match upload {
            None => _ = self.put(name, part.freeze()).await?,
            Some(mut upload) => {
                if !part.is_empty() {
                    upload.part(part.freeze()).await?;
                }
                upload.finish().await?;
            }
        }
        Ok(Written { bytes, sha256: hex(hash) })
    }

    /// Reads an object as it was written, piece by piece; the deadline is for each. The last piece comes only if the whole
    /// is what was written, so that nothing else is taken for it.
    #[must_use]
    pub fn stream(&self, name: &str, written: &Written) -> BoxStream<'static, Result<Bytes>> {
        let reading = Reading {
            objects: self.clone(),
            name: name.to_owned(),
            written: written.clone(),
            offset: 0,
            hash: Sha256::new(),
        };
        stream::try_unfold(
            reading,
            |mut reading| async move { Ok(reading.next().await?.map(|piece| (piece, reading))) },
        )
        .boxed()
    }
}

struct Reading {
    objects: Objects,
    name: String,
    written: Written,
    offset: u64,
    hash: Sha256,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let Self { objects, name, written, offset, hash } = self;
        if *offset >= written.bytes {
            return Ok(None);
        }
        let end = written.bytes.min(offset.saturating_add(PIECE));
        let path = objects.path(name);
        let piece = objects.call(name, objects.store.get_range(&path, *offset..end)).await?;
        let piece = piece.map_err(|error| objects.failure(name, error))?;
        if u64::try_from(piece.len()).ok() != Some(end - *offset) {
            return Err(objects.damaged(name, format!("it ends before its {} bytes", written.bytes)));
        }
        hash.update(&piece);
        *offset = end;
        if end == written.bytes {
            let found = hex(std::mem::take(hash));
            if found != written.sha256 {
                return Err(objects.damaged(name, format!("its SHA-256 is {found}, not {}", written.sha256)));
            }
        }
        Ok(Some(piece))
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use futures::stream::{self, TryStreamExt as _};
    use object_store::memory::InMemory;
    use rstest::rstest;

    use super::{Objects, ObjectsError, PART, PutStreamError, Written};

    fn memory() -> Objects {
        Objects::over(Arc::new(InMemory::new()), Duration::from_secs(5))
    }

    fn pieces(content: &[u8]) -> Vec<Result<Bytes, String>> {
        content.chunks(700_001).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect()
    }

    async fn read(objects: &Objects, written: &Written) -> Result<Vec<u8>, ObjectsError> {
        let pieces: Vec<Bytes> = objects.stream("a/b", written).try_collect().await?;
        Ok(pieces.concat())
    }

    #[rstest]
    #[case(0)]
    #[case(1)]
    #[case(PART - 1)]
    #[case(PART)]
    #[case(2 * PART)]
    #[case(2 * PART + 3)]
    #[tokio::test]
    async fn any_size_comes_back_as_it_was(#[case] size: usize) {
        let content: Vec<u8> = (0..size).map(|index| u8::try_from(index % 251).unwrap()).collect();
        let objects = memory();
        let written = objects.put_stream("a/b", u64::MAX, stream::iter(pieces(&content))).await.unwrap();
        assert_eq!(written, Written { bytes: size as u64, sha256: crate::record::hash(&content) });
        assert!(read(&objects, &written).await.unwrap() == content);
    }

    #[tokio::test]
    async fn what_is_too_large_or_breaks_off_is_no_object() {
        let (objects, content) = (memory(), vec![7; 2 * PART]);
        let error = objects.put_stream("a/b", 2 * PART as u64 - 1, stream::iter(pieces(&content))).await;
        assert!(matches!(error, Err(PutStreamError::TooLarge { .. })), "{error:?}");
        let mut broken = pieces(&content);
        broken.push(Err("gone".to_owned()));
        let error = objects.put_stream("a/b", u64::MAX, stream::iter(broken)).await;
        assert!(matches!(error, Err(PutStreamError::Source(reason)) if reason == "gone"));
        assert_eq!(objects.list("a").try_collect::<Vec<_>>().await.unwrap(), []);
    }

    #[tokio::test]
    async fn what_is_not_what_was_written_never_ends() {
        let objects = memory();
        let content = vec![7; 5_000_000];
        let written = objects.put_stream("a/b", u64::MAX, stream::iter(pieces(&content))).await.unwrap();
        let longer = Written { bytes: written.bytes + 1, ..written.clone() };
        let other = Written { sha256: crate::record::hash(b"other"), ..written };
        for wrong in [longer, other] {
            let error = read(&objects, &wrong).await.unwrap_err();
            assert!(matches!(error, ObjectsError::Damaged { .. }), "{error}");
        }
        objects.delete("a/b").await.unwrap();
    }
}
