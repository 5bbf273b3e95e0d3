//! An object store that stops working at a chosen call.

use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Whether the call at which it stops is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    /// It is not.
    Lost,
    /// It is, and its answer is lost.
    Done,
}

/// Objects in memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faulty {
    inner: Arc<InMemory>,
    plan: Arc<Mutex<Option<Plan>>>,
}

#[derive(Debug)]
struct Plan {
    /// Calls that still work.
    left: usize,
    /// What becomes of the one after them; none works after that.
    last: Last,
    stopped: bool,
}

impl Faulty {
    /// From now on so many calls work.
    pub(crate) fn stop_after(&self, calls: usize, last: Last) {
        *self.plan.lock().unwrap() = Some(Plan { left: calls, last, stopped: false });
    }

    /// Whether it has stopped; it works again from now on.
    pub(crate) fn heal(&self) -> bool {
        self.plan.lock().unwrap().take().is_some_and(|plan| plan.stopped)
    }

    fn enter(&self) -> Result<(), Last> {
        match self.plan.lock().unwrap().as_mut() {
            None => Ok(()),
            Some(plan) if plan.left == 0 => {
                plan.stopped = true;
                Err(std::mem::replace(&mut plan.last, Last::Lost))
            }
            Some(plan) => {
                plan.left -= 1;
                Ok(())
            }
        }
    }
}

fn stopped() -> Error {
    Error::Generic { store: "faulty", source: "it was told to stop".into() }
}

impl fmt::Display for Faulty {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let entered = self.enter();
        if entered != Err(Last::Lost) {
            let put = self.inner.put_opts(location, payload, options).await;
            return entered.map_err(|_| stopped()).and(put);
        }
        Err(stopped())
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "multipart".into(), implementer: "faulty".into() })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.enter().map_err(|_| stopped())?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.enter() {
            Ok(()) => self.inner.delete_stream(locations),
            Err(Last::Lost) => futures::stream::iter([Err(stopped())]).boxed(),
            Err(Last::Done) => self.inner.delete_stream(locations).map(|_| Err(stopped())).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.enter() {
            Ok(()) => self.inner.list(prefix),
            Err(_) => futures::stream::iter([Err(stopped())]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
