//! The store on etcd.
//!
//! Each change is one transaction whose guards name everything that it relies on ([`plan`]); one watch over all logs and
//! one over all wake keys serve everybody who waits on this replica ([`hub`]).
//!
//! A deletion first replaces `meta` by `deleting` and removes `head`, `wake` and `owner` in one transaction, after which
//! nothing can be written: each write compares `meta` or `head`. Then everything under the session's prefix goes in
//! steps, and `deleting` last, so that [`SessionStore::list`] shows a session whose deletion was broken off.
//!
//! [`SessionStore::list`]: crate::SessionStore::list

mod archive;
mod batch;
mod capped;
mod client;
mod cold;
mod collect;
mod failure;
mod files;
mod flags;
mod forks;
mod heads;
mod holdings;
mod hub;
mod import;
mod keys;
mod link;
mod maintenance;
mod payloads;
mod plan;
mod position;
mod read;
mod recent;
mod sessions;
mod sharded;
mod store;
mod tail;
mod turns;
mod users;
mod view;
mod watch;
mod write;

use std::sync::Arc;
use std::time::Duration;

use longhand_protocol::{SessionId, trace};
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::client::Etcd;
use self::cold::Segments;
use self::heads::Heads;
use self::hub::Hub;
use self::keys::Keys;
use self::plan::Place;
use self::recent::Recent;
use self::turns::Turns;
use self::watch::PrefixWatch;
use crate::caps::Caps;
use crate::objects::Objects;
use crate::store::{Result, StoreError};

pub use self::archive::Archived;
pub(crate) use self::client::Etcd as Connection;
pub use self::collect::Collected;
pub use self::flags::{Endpoints, EtcdFlags, NoEndpoint};
pub(crate) use self::keys::Keys as Layout;
pub use self::link::{Identity, Login, TlsFiles};
pub use self::maintenance::{Activity, Lead, MemberSpace, Space};
pub(crate) use self::plan::Plan;
pub use self::sharded::ShardedStore;
pub(crate) use self::view::{Kv, Look, View};
pub(crate) use self::watch::{Away, Happened, PrefixWatch as Watch, Start};
pub(crate) use self::write::{Guard, Write};

/// How a store uses etcd.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// Every key begins with this.
    pub prefix: String,
    /// How long one call to etcd may take. A change that has to be looked up and repeated ends within five times that.
    pub timeout: Duration,
    /// How many events an inbox holds.
    pub inbox_limit: usize,
    /// How large each session's log may become.
    pub caps: Caps,
    /// For how long etcd may be away before a tail ends.
    pub away_limit: Duration,
    /// For endpoints that begin with `https://`.
    pub tls: Option<TlsFiles>,
    /// Who this is for etcd, unless its client certificate says so or etcd does not ask.
    pub login: Option<Login>,
    /// Where large payloads and old events go. Without, everything stays in etcd.
    pub objects: Option<Objects>,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            prefix: "/longhand/".to_owned(),
            timeout: Duration::from_secs(5),
            inbox_limit: crate::DEFAULT_INBOX_LIMIT,
            caps: Caps::default(),
            away_limit: Duration::from_secs(60),
            tls: None,
            login: None,
            objects: None,
        }
    }
}

/// A store on etcd. Clones share the connection and the watches, which end with the last of them.
#[derive(Clone)]
pub struct EtcdStore {
    inner: Arc<Inner>,
}

struct Inner {
    etcd: Etcd,
    keys: Keys,
    inbox_limit: usize,
    away_limit: Duration,
    objects: Option<Objects>,
    /// As it was connected to, so that each member can be asked for itself.
    endpoints: Vec<String>,
    options: EtcdOptions,
    /// See [`EtcdStore::object_prefix`].
    object_prefix: OnceCell<Arc<str>>,
    segments: Segments,
    heads: Heads,
    recent: Recent,
    turns: Turns,
    /// Who looks through logs for an event.
    looking: Semaphore,
    logs: Arc<Hub>,
    wakes: Arc<Hub>,
    _stop_watches: DropGuard,
}

impl EtcdStore {
    /// A store on the etcd at these endpoints (`http://host:port`), which may be away for now.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if an endpoint is not an address.
    pub async fn connect(endpoints: &[String], options: EtcdOptions) -> Result<Self> {
        let etcd = Etcd::connect(endpoints, &options).await?;
        let keys = Keys::new(&options.prefix);
        let stop = CancellationToken::new();
        let (logs, wakes) = (Arc::new(Hub::default()), Arc::new(Hub::default()));
        let watch = |prefix, away: &Away| PrefixWatch::new(etcd.clone(), prefix, Start::Now, away.clone());
        tokio::spawn(Arc::clone(&logs).follow_logs(watch(keys.records(), logs.away()), keys.clone(), stop.clone()));
        let (deletings, of_deletings) = (watch(keys.deletings(), &Away::default()), keys.clone());
        let deleted = move |key: &str| of_deletings.deleted(key);
        tokio::spawn(Arc::clone(&logs).follow_keys(deletings, deleted, stop.clone()));
        let (wake_watch, of_wakes) = (watch(keys.wakes(), wakes.away()), keys.clone());
        let woken = move |key: &str| of_wakes.woken(key);
        tokio::spawn(Arc::clone(&wakes).follow_keys(wake_watch, woken, stop.clone()));
        Ok(Self {
            inner: Arc::new(Inner {
                etcd,
                keys,
                inbox_limit: options.inbox_limit,
                away_limit: options.away_limit,
                objects: options.objects.clone(),
                endpoints: endpoints.to_vec(),
                options,
                object_prefix: OnceCell::new(),
                segments: Segments::default(),
                heads: Heads::default(),
                recent: Recent::default(),
                turns: Turns::default(),
                looking: Semaphore::new(position::LOOKING),
                logs,
                wakes,
                _stop_watches: stop.drop_guard(),
            }),
        })
    }

    /// Sets what the replicas of the service share under `name`, such as `signing-key`, unless it is set already; returns
    /// what is stored.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if etcd is away.
    pub async fn get_or_create(&self, name: &str, value: &[u8]) -> Result<Vec<u8>> {
        let key = self.inner.keys.service(name);
        let looks = [Look::Key(key.clone())];
        let plan = |view: &view::View| {
            if let Some(stored) = view.get(&key) {
                return Ok(Plan::Done(stored.value.clone()));
            }
            let mut write = Write::default();
            write.guard(Guard::Absent(key.clone())).put(key.clone(), value);
            Ok(Plan::Write(write, value.to_vec()))
        };
        Ok(self.inner.etcd.carry_out(&looks, None, plan).await?.0)
    }

    /// The queues of self-hosted environments, on the same etcd.
    #[must_use]
    pub fn work(&self) -> crate::work::EtcdWork {
        crate::work::EtcdWork::new(self.inner.etcd.clone(), self.inner.keys.clone())
    }

    /// Requests with an `Idempotency-Key`, on the same etcd.
    #[must_use]
    pub fn requests(&self) -> crate::requests::EtcdRequests {
        crate::requests::EtcdRequests::new(self.inner.etcd.clone(), self.inner.keys.clone())
    }

    /// Files that clients upload, on the same etcd and in the same object store.
    #[must_use]
    pub fn files(&self) -> crate::files::Files {
        crate::files::Files::new(Arc::new(self.clone()), self.inner.objects.clone())
    }

    /// Whether etcd answers.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.inner.etcd.revision(&self.inner.keys.wakes()).await.map(drop)
    }

    fn place<'a>(&'a self, id: &'a SessionId) -> Place<'a> {
        Place { keys: &self.inner.keys, id, trace: trace::current() }
    }
}
