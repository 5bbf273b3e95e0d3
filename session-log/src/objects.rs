//! Objects: what is too large or too old for etcd, in a folder or a bucket.
//!
//! Every call has a deadline and what is read has a bound. Names never repeat with another content: a payload is named
//! by its hash, a segment or a file by chance, so writing again what is there already does no harm.
//!
//! Below the place that the URL names:
//!
//! | object | content |
//! |---|---|
//! | `{store}/payload/{namespace}/{sha256}` | the large fields of an event's body, as JSON |
//! | `{store}/file/{namespace}/{file}` | a file that a client uploaded |
//! | `{store}/session/{session}/{first:016x}-{last:016x}-{nonce}.ndjson.zst` | stored records, one a line, compressed |
//!
//! `{store}` is an identifier that the log's etcd holds: two logs that share a bucket never collect each other's objects.

mod folder;
pub(crate) mod large;
pub(crate) mod payload;
mod place;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{BoxStream, StreamExt as _};
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions};
use tokio::time::timeout;

pub use self::large::{PutStreamError, Written};
use crate::record::hash;
use crate::store::StoreError;

/// Why an object could not be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    /// The URL names no place.
    #[error("objects cannot be kept at {url}: {reason}; use file:///folder, s3://bucket/prefix, gs:// or az://")]
    Place {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such object.
    #[error("object {name} does not exist in {place}")]
    NotFound {
        /// Its name.
        name: String,
        /// Where it was looked for.
        place: Arc<str>,
    },
    /// It is not what was written.
    #[error("object {name} in {place} is damaged: {reason}")]
    Damaged {
        /// Its name.
        name: String,
        /// Where it is.
        place: Arc<str>,
        /// What is wrong with it.
        reason: String,
    },
    /// The store refuses or does not answer.
    #[error("the object store {place} is not available for {name}: {reason}")]
    Unavailable {
        /// The object, or the prefix, that was asked for.
        name: String,
        /// The place.
        place: Arc<str>,
        /// What it said.
        reason: String,
    },
}

impl From<ObjectsError> for StoreError {
    fn from(error: ObjectsError) -> Self {
        match error {
            ObjectsError::NotFound { ref name, .. } | ObjectsError::Damaged { ref name, .. } => {
                Self::Corrupt { key: name.clone(), reason: error.to_string() }
            }
            ObjectsError::Place { .. } | ObjectsError::Unavailable { .. } => Self::Unavailable(error.to_string()),
        }
    }
}

/// What [`Objects`] returns.
pub type Result<T, E = ObjectsError> = std::result::Result<T, E>;

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there now.
    Created,
    /// It was there before, and was left as it was.
    Existed,
}

/// An object without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written, by the store's clock.
    pub modified: Timestamp,
}

/// How long one call may take, unless it is said otherwise.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A place for objects. Clones share it.
#[derive(Clone, Debug)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    root: Path,
    place: Arc<str>,
    /// Where the files are, if it is a folder.
    folder: Option<Arc<std::path::Path>>,
    deadline: Duration,
}

impl Objects {
    /// The place that `url` names: `file:///folder`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
    /// Credentials, region and endpoint come from the environment, under the names that each cloud's own tools use.
    ///
    /// # Errors
    /// [`ObjectsError::Place`] if there is no such kind of place, the folder cannot be made, or a setting is missing.
    pub fn open(url: &str, deadline: Duration) -> Result<Self> {
        Self::open_with(url, &std::env::vars().collect::<Vec<_>>(), deadline)
    }

    /// The same with these variables in place of the environment's.
    ///
    /// # Errors
    /// As [`Objects::open`].
    pub fn open_with(url: &str, env: &[(String, String)], deadline: Duration) -> Result<Self> {
        let place::Opened { store, root, folder } = place::open(url, env)?;
        Ok(Self { store, root, place: url.into(), folder, deadline })
    }

    /// Objects in a store that is there already, such as one in memory.
    #[must_use]
    pub fn over(store: Arc<dyn ObjectStore>, deadline: Duration) -> Self {
        let place = store.to_string().into();
        Self { store, root: Path::default(), place, folder: None, deadline }
    }

    /// Where they are.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Writes an object unless there is one of that name.
    ///
    /// # Errors
    /// [`ObjectsError::Unavailable`]; whether it was written is not known then.
    pub async fn put(&self, name: &str, content: Bytes) -> Result<Put> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = self.path(name);
        match self.call(name, self.store.put_opts(&path, content.into(), options)).await? {
            Ok(_) => Ok(Put::Created),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(Put::Existed),
            Err(error) => Err(self.failure(name, error)),
        }
    }

    /// Reads an object that is no larger than `limit` and whose hex SHA-256 is `sha256`.
    ///
    /// # Errors
    /// [`ObjectsError::Damaged`] if it is larger or another.
    pub async fn get(&self, name: &str, limit: u64, sha256: &str) -> Result<Bytes> {
        let path = self.path(name);
        let read = async {
            let found = match self.store.get(&path).await {
                Ok(found) => found,
                Err(error) => return Err(self.failure(name, error)),
            };
            let size = found.meta.size;
            if size > limit {
                return Err(self.damaged(name, format!("it holds {size} bytes, and {limit} are expected at most")));
            }
            let mut content = BytesMut::with_capacity(usize::try_from(size).unwrap_or(0));
            let mut parts = found.into_stream();
            while let Some(part) = parts.next().await {
                content.extend_from_slice(&part.map_err(|error| self.failure(name, error))?);
                if u64::try_from(content.len()).unwrap_or(u64::MAX) > limit {
                    return Err(self.damaged(name, format!("it holds more than {limit} bytes")));
                }
            }
            Ok(content.freeze())
        };
        let content = self.call(name, read).await??;
        let found = hash(&content);
        if found == sha256 {
            return Ok(content);
        }
        Err(self.damaged(name, format!("its SHA-256 is {found}, not {sha256}")))
    }

    /// Removes an object; does nothing if there is none.
    ///
    /// # Errors
    /// [`ObjectsError::Unavailable`]; whether it was removed is not known then.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        match self.call(name, self.store.delete(&path)).await? {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failure(name, error)),
        }
    }

    /// The objects whose names begin with `prefix` and a `/`, in no particular order; the deadline is for each step.
    #[must_use]
    pub fn list(&self, prefix: &str) -> BoxStream<'_, Result<Listed>> {
        let found = self.store.list(Some(&self.path(prefix)));
        let next = move |(mut found, prefix): (BoxStream<'static, object_store::Result<_>>, String)| async move {
            let item = match self.call(&prefix, found.next()).await {
                Ok(None) => return None,
                Ok(Some(Ok(meta))) => self.listed(&meta),
                Ok(Some(Err(error))) => Err(self.failure(&prefix, error)),
                Err(error) => Err(error),
            };
            Some((item, (found, prefix)))
        };
        futures::stream::unfold((found, prefix.to_owned()), next).boxed()
    }

    /// Removes what writes have left that were broken off before `limit`; a bucket does that by itself.
    ///
    /// # Errors
    /// [`ObjectsError::Unavailable`] if the folder cannot be looked through.
    pub async fn remove_unfinished(&self, limit: Timestamp) -> Result<u64> {
        let Some(folder) = self.folder.clone() else { return Ok(0) };
        let work = move || folder::remove_unfinished(&folder, limit.into());
        let outcome = match tokio::task::spawn_blocking(work).await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let place = Arc::clone(&self.place);
        outcome.map_err(|reason| ObjectsError::Unavailable { name: "unfinished writes".to_owned(), place, reason })
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.root.clone(), Path::join)
    }

    fn listed(&self, meta: &object_store::ObjectMeta) -> Result<Listed> {
        let location = meta.location.as_ref();
        let name = location.strip_prefix(self.root.as_ref()).unwrap_or(location).trim_start_matches('/');
        let millis = meta.last_modified.timestamp_millis();
        let modified = Timestamp::from_millisecond(millis)
            .map_err(|error| self.damaged(name, format!("it was written at no time: {error}")))?;
        Ok(Listed { name: name.to_owned(), bytes: meta.size, modified })
    }

    async fn call<T>(&self, name: &str, call: impl Future<Output = T>) -> Result<T> {
        timeout(self.deadline, call).await.map_err(|_| ObjectsError::Unavailable {
            name: name.to_owned(),
            place: Arc::clone(&self.place),
            reason: format!("it did not answer within {:?}", self.deadline),
        })
    }

    fn failure(&self, name: &str, error: Error) -> ObjectsError {
        let (name, place) = (name.to_owned(), Arc::clone(&self.place));
        match error {
            Error::NotFound { .. } => ObjectsError::NotFound { name, place },
            error => ObjectsError::Unavailable { name, place, reason: error.to_string() },
        }
    }

    fn damaged(&self, name: &str, reason: String) -> ObjectsError {
        ObjectsError::Damaged { name: name.to_owned(), place: Arc::clone(&self.place), reason }
    }
}
