//! An object store that stops working at a chosen call.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
use tokio::sync::Notify;

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
    ended: Arc<Notify>,
    /// Objects that were read.
    read: Arc<AtomicUsize>,
    /// It says that it keeps what is put, and does not.
    forgets: Arc<AtomicBool>,
    gate: Arc<Mutex<Option<Gate>>>,
}

/// Where the next put waits when it is done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate {
    reached: Arc<Notify>,
    opened: Arc<Notify>,
}

impl Gate {
    /// Returns when somebody waits at it.
    pub(crate) async fn reached(&self) {
        self.reached.notified().await;
    }

    pub(crate) fn open(&self) {
        self.opened.notify_one();
    }
}

#[derive(Debug)]
struct Plan {
    /// Calls that still work.
    left: usize,
    /// What becomes of the one after them; none works after that.
    last: Last,
    /// Whoever makes that call never hears of it again.
    silent: bool,
    stopped: bool,
}

impl Faulty {
    /// The same objects, for somebody who meets no trouble.
    pub(crate) fn untroubled(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), ..Self::default() }
    }

    /// How many objects were read.
    pub(crate) fn read(&self) -> usize {
        self.read.load(Ordering::SeqCst)
    }

    /// From now on nothing that is put is kept.
    pub(crate) fn forget(&self, forgets: bool) {
        self.forgets.store(forgets, Ordering::SeqCst);
    }

    /// The next put waits here when it is done.
    pub(crate) fn gate(&self) -> Gate {
        self.gate.lock().unwrap().insert(Gate::default()).clone()
    }

    /// From now on so many calls work, and then they fail.
    pub(crate) fn stop_after(&self, calls: usize, last: Last) {
        *self.plan.lock().unwrap() = Some(Plan { left: calls, last, silent: false, stopped: false });
    }

    /// After so many more calls the process ends that makes the next one.
    pub(crate) fn end_after(&self, calls: usize, last: Last) {
        *self.plan.lock().unwrap() = Some(Plan { left: calls, last, silent: true, stopped: false });
    }

    /// Returns when a process has ended.
    pub(crate) async fn ended(&self) {
        self.ended.notified().await;
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

    /// The answer to a call at which it has stopped.
    async fn fail<T>(&self) -> Result<T> {
        if self.plan.lock().unwrap().as_ref().is_some_and(|plan| plan.silent) {
            self.ended.notify_waiters();
            std::future::pending::<()>().await;
        }
        Err(Error::Generic { store: "faulty", source: "it was told to stop".into() })
    }

    async fn into_failure<T>(self) -> Result<T> {
        self.fail().await
    }

    fn failing<T: Send + 'static>(&self) -> BoxStream<'static, Result<T>> {
        let faulty = self.clone();
        futures::stream::once(faulty.into_failure()).boxed()
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if self.forgets.load(Ordering::SeqCst) {
            return InMemory::new().put_opts(location, payload, options).await;
        }
        let gate = self.gate.lock().unwrap().take();
        if let Some(gate) = gate {
            let put = self.inner.put_opts(location, payload, options).await;
            gate.reached.notify_one();
            gate.opened.notified().await;
            return put;
        }
        match self.enter() {
            Ok(()) => return self.inner.put_opts(location, payload, options).await,
            Err(Last::Done) => drop(self.inner.put_opts(location, payload, options).await?),
            Err(Last::Lost) => {}
        }
        self.fail().await
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "multipart".into(), implementer: "faulty".into() })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if self.enter().is_err() {
            return self.fail().await;
        }
        self.read.fetch_add(1, Ordering::SeqCst);
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.enter() {
            Ok(()) => self.inner.delete_stream(locations),
            Err(Last::Lost) => self.failing(),
            Err(Last::Done) => {
                let faulty = self.clone();
                self.inner.delete_stream(locations).then(move |_| faulty.clone().into_failure()).boxed()
            }
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.enter() {
            Ok(()) => self.inner.list(prefix),
            Err(_) => self.failing(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
