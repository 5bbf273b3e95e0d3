//! Files that clients upload: their contents in the object store, what is known of them in etcd.
//!
//! A file is there when its entry is. Its content is written before its entry and removed after it, under a name that is
//! never used again. So what a crash leaves between the two is an object that nothing refers to: the collection takes it
//! ([`crate::etcd::EtcdStore::collect`]), as it takes the leftovers of logs. Files belong to a namespace.

mod content;
mod memory;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt as _, TryStreamExt as _};
use jiff::{SignedDuration, Timestamp};
use longhand_protocol::FileId;
use object_store::memory::InMemory;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use self::content::Content;
pub use self::memory::MemoryFiles;
use self::slots::{Slot, Slots, Taken};
use crate::objects::{DEADLINE, Objects, ObjectsError, PutStreamError, Written};
use crate::store::{Result, StoreError};

/// The largest file, in bytes: as large as the reference takes.
pub const MAX_BYTES: u64 = 500 * 1024 * 1024;
/// Uploads of this process at once: each holds a part in memory.
const UPLOADS: usize = 16;
/// Of them those of one namespace.
const UPLOADS_OF_ONE: usize = 4;
/// Contents that this process reads at once: each holds a piece in memory, or two.
const READS: usize = 32;
/// Of them those of one namespace.
const READS_OF_ONE: usize = 8;
/// The same for sandboxes, which clients that read slowly do not keep waiting.
const FILLS: usize = 16;
/// Of them those of one namespace.
const FILLS_OF_ONE: usize = 8;
/// For how long it is waited until a content may be read.
const READ_WAIT: Duration = Duration::from_secs(10);
/// How long it may take to read all of a content.
const READ_LIMIT: Duration = Duration::from_secs(3_600);
/// Pages of this process at once: for one with the newest files, etcd looks at all of a namespace's.
const LISTS: usize = 4;
/// For how long it is waited until a page may be read.
const LIST_WAIT: Duration = Duration::from_secs(5);
/// Files that are removed at once.
const REMOVED_AT_ONCE: usize = 16;

/// Files that are looked at together.
const PAGE: usize = 256;

/// A namespace. One that is made again under the same name is another, and has none of the files of the one before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Home {
    /// Its name.
    pub namespace: String,
    /// Its UID.
    pub uid: String,
}

impl Home {
    fn has(&self, file: &StoredFile) -> bool {
        file.namespace_uid == self.uid
    }
}

/// What the files of a namespace hold together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// How many there are.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

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
    /// As much is being done as may.
    #[error("{most} files are being {doing} at this replica, as many as may")]
    Busy {
        /// What is being done with them.
        doing: &'static str,
        /// How many may be.
        most: usize,
    },
    /// As much is being done as may be for one namespace.
    #[error("{most} files of namespace {namespace} are being {doing} at this replica, as many as may of one namespace")]
    BusyNamespace {
        /// The namespace.
        namespace: String,
        /// What is being done with them.
        doing: &'static str,
        /// How many may be.
        most: usize,
    },
    /// The content was not taken in time.
    #[error("the content was not read within {} s", .limit.as_secs())]
    Late {
        /// How long it may take.
        limit: Duration,
    },
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

    /// How many files there are under the name of a namespace.
    async fn count(&self, namespace: &str) -> Result<u64>;

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
    uploads: Arc<Slots>,
    reads: Arc<Slots>,
    fills: Arc<Slots>,
    lists: Arc<Semaphore>,
}

/// The right to upload a file to a namespace.
#[derive(Debug)]
pub struct UploadSlot {
    home: Home,
    _slot: Slot,
}

/// The name of a file's content in a store of this identifier.
pub(crate) fn object_name(store: &str, namespace: &str, id: &str) -> String {
    format!("{store}/file/{namespace}/{id}")
}

impl Files {
    /// Files that `index` knows, with their contents in `objects`.
    #[must_use]
    pub fn new(index: Arc<dyn FileIndex>, objects: Option<Objects>) -> Self {
        Self {
            index,
            objects,
            uploads: Arc::new(Slots::new(UPLOADS, UPLOADS_OF_ONE)),
            reads: Arc::new(Slots::new(READS, READS_OF_ONE)),
            fills: Arc::new(Slots::new(FILLS, FILLS_OF_ONE)),
            lists: Arc::new(Semaphore::new(LISTS)),
        }
    }

    /// Files in memory, for tests.
    #[must_use]
    pub fn in_memory() -> Self {
        let objects = Objects::over(Arc::new(InMemory::new()), DEADLINE);
        Self::new(Arc::new(MemoryFiles::default()), Some(objects))
    }

    /// The right to upload one file, to be had before anything of it is read.
    ///
    /// # Errors
    /// [`FilesError::Busy`], [`FilesError::BusyNamespace`], and [`FilesError::NoPlace`].
    pub fn begin_upload(&self, home: &Home) -> Result<UploadSlot, FilesError> {
        self.objects.as_ref().ok_or(FilesError::NoPlace)?;
        let slot = self.uploads.try_take(&home.namespace);
        let slot = slot.map_err(|taken| busy(taken, &home.namespace, "uploaded", [UPLOADS, UPLOADS_OF_ONE]))?;
        Ok(UploadSlot { home: home.clone(), _slot: slot })
    }

    /// Keeps a file. When this returns it is there, and survives whatever the log survives. If it fails there is none, but
    /// after [`StoreError::Unavailable`] there may be one all the same. If it is dropped there may be one too: its entry is the
    /// last step, which may have been carried out by then.
    ///
    /// # Errors
    /// See [`FilesError`].
    pub async fn put<E>(
        &self,
        slot: UploadSlot,
        new: NewFile,
        content: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<StoredFile, FilesError<E>> {
        let Home { namespace, uid: namespace_uid } = &slot.home;
        let objects = self.objects.as_ref().ok_or(FilesError::NoPlace)?;
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
        let NewFile { filename, mime_type, expires_in } = new;
        let namespace_uid = namespace_uid.clone();
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
    pub async fn get(&self, home: &Home, id: &FileId) -> Result<Option<StoredFile>> {
        let file = self.index.get(&home.namespace, id).await?;
        Ok(file.filter(|file| home.has(file) && !file.is_over(Timestamp::now())))
    }

    /// Files of a namespace, the newest first, and whether the span has more than these. One that is over may still be
    /// among them until it is removed. There may be fewer than `limit`, also if there are more.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`] if many are being read, [`StoreError::Unavailable`] if etcd is away.
    pub async fn page(&self, home: &Home, span: &Span, limit: usize) -> Result<(Vec<StoredFile>, bool)> {
        let turn = timeout(LIST_WAIT, self.lists.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(StoreError::Overloaded { retry_after: LIST_WAIT }) };
        let mut page = self.index.page(&home.namespace, span, limit.saturating_add(1)).await?;
        let more = page.len() > limit;
        if more && span.is_backwards() {
            page.remove(0);
        }
        page.truncate(limit);
        // Those of a namespace before are older than all others, until they are removed.
        page.retain(|file| home.has(file));
        let more = more && !page.is_empty();
        Ok((page, more))
    }

    /// How many files there are under the name of a namespace.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if etcd is away.
    pub async fn count(&self, namespace: &str) -> Result<u64> {
        self.index.count(namespace).await
    }

    /// What is in a file of a namespace of this name. The first piece is there already.
    ///
    /// # Errors
    /// [`FilesError::NoPlace`], [`FilesError::Busy`] or [`FilesError::BusyNamespace`] if it is not its turn in time, or
    /// [`FilesError::Store`] if the content cannot be read.
    pub async fn read(&self, namespace: &str, file: &StoredFile) -> Result<Content, FilesError> {
        self.content(&self.reads, [READS, READS_OF_ONE], namespace, file).await
    }

    /// The same for a sandbox of the namespace, whose turn does not wait for those of clients.
    ///
    /// # Errors
    /// Those of [`Files::read`].
    pub async fn read_for_sandbox(&self, namespace: &str, file: &StoredFile) -> Result<Content, FilesError> {
        self.content(&self.fills, [FILLS, FILLS_OF_ONE], namespace, file).await
    }

    async fn content(
        &self,
        slots: &Slots,
        most: [usize; 2],
        namespace: &str,
        file: &StoredFile,
    ) -> Result<Content, FilesError> {
        let objects = self.objects.as_ref().ok_or(FilesError::NoPlace)?;
        let slot = slots.take(namespace, READ_WAIT).await.map_err(|taken| busy(taken, namespace, "read", most))?;
        let name = object_name(&self.index.prefix().await?, namespace, file.id.as_str());
        let mut pieces = objects.stream(&name, &file.written());
        let first = pieces.next().await.transpose()?;
        Ok(Content::new(stream::iter(first.map(Ok)).chain(pieces).boxed(), slot, READ_LIMIT))
    }

    /// Removes a file; whether the namespace had it. Its content may stay until it is collected.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if etcd is away.
    pub async fn delete(&self, home: &Home, id: &FileId) -> Result<bool> {
        // An identifier is never given to another file.
        if !self.index.get(&home.namespace, id).await?.is_some_and(|file| home.has(&file)) {
            return Ok(false);
        }
        let was_there = self.index.remove(&home.namespace, id).await?;
        if let (true, Some(objects)) = (was_there, &self.objects) {
            let name = object_name(&self.index.prefix().await?, &home.namespace, id.as_str());
            self.remove_content(objects, &name).await;
        }
        Ok(was_there)
    }

    /// What the files of each namespace hold.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if etcd is away.
    pub async fn held(&self) -> Result<BTreeMap<Home, Held>> {
        let mut all: BTreeMap<Home, Held> = BTreeMap::new();
        let mut after: Option<(String, FileId)> = None;
        loop {
            let some = self.index.all(after.as_ref().map(|(namespace, id)| (namespace.as_str(), id))).await?;
            let Some((namespace, last)) = some.last() else { return Ok(all) };
            after = Some((namespace.clone(), last.id.clone()));
            for (namespace, file) in some {
                let held = all.entry(Home { namespace, uid: file.namespace_uid }).or_default();
                held.files = held.files.saturating_add(1);
                held.bytes = held.bytes.saturating_add(file.bytes);
            }
        }
    }

    /// Removes files that are over at `now`, and all of namespaces that are gone; returns how many. Their contents go as long
    /// as the object store takes that, and stay else until they are collected: one that is away holds up no more than one call.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if etcd is away; what was removed until then is gone.
    pub async fn sweep(&self, now: Timestamp, gone: &BTreeSet<Home>) -> Result<u64> {
        let (mut after, mut removed): (Option<(String, FileId)>, u64) = (None, 0);
        let contents = AtomicBool::new(true);
        loop {
            let some = self.index.all(after.as_ref().map(|(namespace, id)| (namespace.as_str(), id))).await?;
            let Some((namespace, last)) = some.last() else { return Ok(removed) };
            after = Some((namespace.clone(), last.id.clone()));
            let goes = |(namespace, file): &(String, StoredFile)| {
                let home = Home { namespace: namespace.clone(), uid: file.namespace_uid.clone() };
                file.is_over(now) || gone.contains(&home)
            };
            let contents = &contents;
            let removals = some.into_iter().filter(goes).map(|(namespace, file)| async move {
                let was_there = self.index.remove(&namespace, &file.id).await?;
                if let (true, true, Some(objects)) = (was_there, contents.load(Ordering::Relaxed), &self.objects) {
                    let name = object_name(&self.index.prefix().await?, &namespace, file.id.as_str());
                    if !self.remove_content(objects, &name).await {
                        contents.store(false, Ordering::Relaxed);
                    }
                }
                Ok::<_, StoreError>(u64::from(was_there))
            });
            let removals = stream::iter(removals).buffer_unordered(REMOVED_AT_ONCE);
            removed += removals.try_fold(0, |sum, one| async move { Ok(sum + one) }).await?;
        }
    }

    /// Whether the store has said that it is gone.
    async fn remove_content(&self, objects: &Objects, name: &str) -> bool {
        let removed = objects.delete(name).await;
        if let Err(error) = &removed {
            tracing::warn!(name, %error, "the content of a file stays until it is collected");
        }
        removed.is_ok()
    }
}

fn busy(taken: Taken, namespace: &str, doing: &'static str, [all, own]: [usize; 2]) -> FilesError {
    match taken {
        Taken::All => FilesError::Busy { doing, most: all },
        Taken::Own => FilesError::BusyNamespace { namespace: namespace.to_owned(), doing, most: own },
    }
}
