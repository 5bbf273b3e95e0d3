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

mod client;
mod heads;
mod hub;
mod keys;
mod plan;
mod sessions;
mod store;
mod tail;
mod view;
mod watch;
mod write;

use std::sync::Arc;
use std::time::Duration;

use longhand_protocol::SessionId;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::client::Etcd;
use self::heads::Heads;
use self::hub::Hub;
use self::keys::Keys;
use self::plan::{Place, Plan};
use self::view::Look;
use self::watch::PrefixWatch;
use self::write::{Guard, Write};
use crate::store::{Result, StoreError};

pub(crate) use self::client::Etcd as Connection;
pub(crate) use self::keys::Keys as Layout;
pub(crate) use self::view::Kv;
pub(crate) use self::watch::{Away, Happened, PrefixWatch as Watch, Start};

/// How a store uses etcd.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// Every key begins with this.
    pub prefix: String,
    /// How long one call to etcd may take. A change that has to be looked up and repeated ends within five times that.
    pub timeout: Duration,
    /// How many events an inbox holds.
    pub inbox_limit: usize,
    /// For how long etcd may be away before a tail ends.
    pub away_limit: Duration,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            prefix: "/longhand/".to_owned(),
            timeout: Duration::from_secs(5),
            inbox_limit: crate::DEFAULT_INBOX_LIMIT,
            away_limit: Duration::from_secs(60),
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
    heads: Heads,
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
        let etcd = Etcd::connect(endpoints, options.timeout).await?;
        let keys = Keys::new(&options.prefix);
        let stop = CancellationToken::new();
        let (logs, wakes) = (Arc::new(Hub::default()), Arc::new(Hub::default()));
        let watch = |prefix, hub: &Hub| PrefixWatch::new(etcd.clone(), prefix, Start::Now, hub.away().clone());
        let (log_watch, wake_watch) = (watch(keys.sessions(), &logs), watch(keys.wakes(), &wakes));
        tokio::spawn(Arc::clone(&logs).follow_logs(log_watch, keys.clone(), stop.clone()));
        tokio::spawn(Arc::clone(&wakes).follow_wakes(wake_watch, keys.clone(), stop.clone()));
        Ok(Self {
            inner: Arc::new(Inner {
                etcd,
                keys,
                inbox_limit: options.inbox_limit,
                away_limit: options.away_limit,
                heads: Heads::default(),
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

    /// Whether etcd answers.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.inner.etcd.revision(&self.inner.keys.wakes()).await.map(drop)
    }

    fn place<'a>(&'a self, id: &'a SessionId) -> Place<'a> {
        Place { keys: &self.inner.keys, id }
    }
}
