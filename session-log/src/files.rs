//! Files that clients upload: their contents in the object store, what is known of them in etcd.
//!
//! A file is there when its entry is. Its content is written before its entry and removed after it, under a name that is
//! never used again. So what a crash leaves between the two is an object that nothing refers to: the collection takes it
//! ([`crate::etcd::EtcdStore::collect`]), as it takes the leftovers of logs. Files belong to a namespace.

mod memory;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, Stream, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use longhand_protocol::FileId;
use object_store::memory::InMemory;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

pub use self::memory::MemoryFiles;
use crate::objects::{DEADLINE, Objects, ObjectsError, PutStreamError, Written};
use crate::store::{Result, StoreError};

/// The largest file, in bytes: as large as the reference takes.
pub const MAX_BYTES: u64 = 500 * 1024 * 1024;
/// Uploads of this process at once: each holds a part in memory.
const AT_ONCE: usize = 16;

/// Files that are looked at together.
const PAGE: usize = 256;

/// A file, without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredFile {
    /// Its identifier.
    pub id: FileId,
    /// What its uploader calls it.
    pub filename: String,
    /// What its uploader says that it is.
    pub mime_type: String,
    /// Its size.
    pub bytes: u64,
    /// The hex SHA-256 of its content.
    pub sha256: String,
    /// When it was uploaded.
    pub created_at: Timestamp,
    /// The UID of the namespace that it was uploaded to: another namespace of that name has not got it.
    pub namespace_uid: String,
    /// When it is no longer there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

impl StoredFile {
    fn is_over(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    fn written(&self) -> Written {
        Written { bytes: self.bytes, sha256: self.sha256.clone() }
    }
}

/// What is known of a file before its content comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// See [`StoredFile::filename`].
    pub filename: String,
    /// See [`StoredFile::mime_type`].
    pub mime_type: String,
    /// See [`StoredFile::namespace_uid`].
    pub namespace_uid: String,
    /// For how long it is kept; for ever if absent.
    pub expires_in: Option<SignedDuration>,
}

/// Which files of a namespace, whose order is by identifier, the newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Only those that come after this one.
    pub after: Option<FileId>,
    /// Only those that come before this one; without `after`, the nearest to it are the first to be shown.
    pub before: Option<FileId>,
}

impl Span {
    /// Whether the last ones of the span are wanted, which are nearest to `before`.
    pub(crate) const fn is_backwards(&self) -> bool {
        self.before.is_some() && self.after.is_none()
    }
}

/// Why a file is not kept or given.
#[derive(Debug, thiserror::Error)]
pub enum FilesError<E = std::convert::Infallible> {
    /// The store is away or refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no place for contents.
    #[error("this installation keeps no files: it has no object store")]
    NoPlace,
    /// As many files are being uploaded as may.
    #[error("{AT_ONCE} files are being uploaded to this replica, as many as may")]
    Busy,
    /// It is larger than a file may be.
    #[error("the file holds more than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The upload broke off.
    #[error("the upload broke off: {0}")]
    Upload(E),
}

impl<E> From<ObjectsError> for FilesError<E> {
    fn from(error: ObjectsError) -> Self {
        Self::Store(error.into())
    }
}

/// Where files are known.
#[async_trait]
pub trait FileIndex: Send + Sync + 'static {
    /// What the names of contents begin with.
    async fn prefix(&self) -> Result<Arc<str>>;

    /// Takes a file down, whose content is there.
    async fn add(&self, namespace: &str, file: &StoredFile) -> Result<()>;

    /// The file, if it is there.
    async fn get(&self, namespace: &str, id: &FileId) -> Result<Option<StoredFile>>;

    /// At most `limit` files of a namespace, the newest first.
    async fn page(&self, namespace: &str, span: &Span, limit: usize) -> Result<Vec<StoredFile>>;

    /// Forgets a file; whether it was there.
    async fn remove(&self, namespace: &str, id: &FileId) -> Result<bool>;

    /// Some of all files with their namespaces, in the order of both, after this one; none at the end.
    async fn all(&self, after: Option<(&str, &FileId)>) -> Result<Vec<(String, StoredFile)>>;
}

/// Files that clients upload. Clones share them.
#[derive(Clone)]
pub struct Files {
    index: Arc<dyn FileIndex>,
    objects: Option<Objects>,
    uploads: Arc<Semaphore>,
}

/// The name of a file's content in a store of this identifier.
pub(crate) fn object_name(store: &str, namespace: &str, id: &str) -> String {
    format!("{store}/file/{namespace}/{id}")
}

impl Files {
    /// Files that `index` knows, with their contents in `objects`.
    #[must_use]
    pub fn new(index: Arc<dyn FileIndex>, objects: Option<Objects>) -> Self {
        Self { index, objects, uploads: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Files in memory, for tests.
    #[must_use]
    pub fn in_memory() -> Self {
        let objects = Objects::over(Arc::new(InMemory::new()), DEADLINE);
        Self::new(Arc::new(MemoryFiles::default()), Some(objects))
    }

    /// Keeps a file. When this returns it is there, and survives whatever the log survives. If it fails, or is dropped, there
    /// is none; after [`StoreError::Unavailable`] there may be one all the same.
    ///
    /// # Errors
    /// See [`FilesError`].
    pub async fn put<E>(
        &self,
        namespace: &str,
        new: NewFile,
        content: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<StoredFile, FilesError<E>> {
        let objects = self.objects.as_ref().ok_or(FilesError::NoPlace)?;
        let _slot = self.uploads.try_acquire().map_err(|_| FilesError::Busy)?;
        let store = self.index.prefix().await?;
        let created_at = Timestamp::now();
        let id = FileId::generate_at(created_at);
        let name = object_name(&store, namespace, id.as_str());
        let written = objects.put_stream(&name, MAX_BYTES, content).await.map_err(|error| match error {
            PutStreamError::Objects(error) => error.into(),
            PutStreamError::TooLarge { limit } => FilesError::TooLarge { limit },
            PutStreamError::Source(error) => FilesError::Upload(error),
        })?;
        let Written { bytes, sha256 } = written;
        let NewFile { filename, mime_type, namespace_uid, expires_in } = new;
        let expires_at = expires_in.and_then(|span| created_at.checked_add(span).ok());
        let file = StoredFile { id, filename, mime_type, bytes, sha256, created_at, namespace_uid, expires_at };
        if let Err(error) = self.index.add(namespace, &file).await {
            // What is known not to be there needs no content. Else the collection finds out.
            if !matches!(error, StoreError::Unavailable(_)) {
                self.remove_content(objects, &name).await;
            }
            return Err(error.into());
        }
        Ok(file)
    }

    /// The file, if the namespace has it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if etcd is away.
    pub async fn get(&self, namespace: &str, id: &FileId) -> Result<Option<StoredFile>> {
        let file = self.index.get(namespace, id).await?;
        Ok(file.filter(|file| !file.is_over(Timestamp::now())))
    }

    /// Files of a namespace, the newest first, and whether the span has more than these. One that is over may still be
    /// among them until it is removed.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if etcd is away.
    pub async fn page(&self, namespace: &str, span: &Span, limit: usize) -> Result<(Vec<StoredFile>, bool)> {
        let mut page = self.index.page(namespace, span, limit.saturating_add(1)).await?;
        let more = page.len() > limit;
        if more && span.is_backwards() {
            page.remove(0);
        }
        page.truncate(limit);
        Ok((page, more))
    }

    /// What is in a file. The first piece is there already; a stream that ends without an error was the whole.
    ///
    /// # Errors
    /// [`FilesError::NoPlace`], or [`FilesError::Store`] if the content cannot be read.
    pub async fn read(
        &self,
        namespace: &str,
        file: &StoredFile,
    ) -> Result<BoxStream<'static, Result<Bytes, ObjectsError>>, FilesError> {
        let objects = self.objects.as_ref().ok_or(FilesError::NoPlace)?;
        let name = object_name(&self.index.prefix().await?, namespace, file.id.as_str());
        let mut pieces = objects.stream(&name, &file.written());
        let first = pieces.next().await.transpose()?;
        Ok(stream::iter(first.map(Ok)).chain(pieces).boxed())
    }

    /// Removes a file; whether it was there. Its content may stay until it is collected.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if etcd is away.
    pub async fn delete(&self, namespace: &str, id: &FileId) -> Result<bool> {
        let was_there = self.index.remove(namespace, id).await?;
        if let (true, Some(objects)) = (was_there, &self.objects) {
            let name = object_name(&self.index.prefix().await?, namespace, id.as_str());
            self.remove_content(objects, &name).await;
        }
        Ok(was_there)
    }

    /// How many bytes the files of each namespace hold, by the namespace's name and UID.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if etcd is away.
    pub async fn held(&self) -> Result<BTreeMap<(String, String), u64>> {
        let mut held = BTreeMap::new();
        let mut after: Option<(String, FileId)> = None;
        loop {
            let some = self.index.all(after.as_ref().map(|(namespace, id)| (namespace.as_str(), id))).await?;
            let Some((namespace, last)) = some.last() else { return Ok(held) };
            after = Some((namespace.clone(), last.id.clone()));
            for (namespace, file) in some {
                let bytes: &mut u64 = held.entry((namespace, file.namespace_uid)).or_default();
                *bytes = bytes.saturating_add(file.bytes);
            }
        }
    }

    /// Removes files that are over at `now`; returns how many.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if etcd is away; what was removed until then is gone.
    pub async fn delete_over(&self, now: Timestamp) -> Result<u64> {
        let (mut after, mut removed): (Option<(String, FileId)>, u64) = (None, 0);
        loop {
            let some = self.index.all(after.as_ref().map(|(namespace, id)| (namespace.as_str(), id))).await?;
            let Some((namespace, last)) = some.last() else { return Ok(removed) };
            after = Some((namespace.clone(), last.id.clone()));
            for (namespace, file) in some.iter().filter(|(_, file)| file.is_over(now)) {
                removed += u64::from(self.delete(namespace, &file.id).await?);
            }
        }
    }

    /// Removes files that were uploaded to a namespace of this name and UID, which is gone; returns how many.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if etcd is away; what was removed until then is gone.
    pub async fn delete_of(&self, namespace: &str, uid: &str) -> Result<u64> {
        let (mut span, mut removed) = (Span::default(), 0);
        loop {
            let page = self.index.page(namespace, &span, PAGE).await?;
            let Some(last) = page.last() else { return Ok(removed) };
            span.after = Some(last.id.clone());
            for file in page.iter().filter(|file| file.namespace_uid == uid) {
                removed += u64::from(self.delete(namespace, &file.id).await?);
            }
        }
    }

    async fn remove_content(&self, objects: &Objects, name: &str) {
        if let Err(error) = objects.delete(name).await {
            tracing::warn!(name, %error, "the content of a file stays until it is collected");
        }
    }
}
