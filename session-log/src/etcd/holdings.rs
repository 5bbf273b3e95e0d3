//! What the sessions of each namespace hold: counted by one replica from time to time, read by all.

use std::collections::BTreeMap;

use super::EtcdStore;
use super::plan::Plan;
use super::view::{Kv, Look};
use super::write::{Freshness, Write};
use crate::record::encode;
use crate::store::{Holdings, Result};

/// Namespaces that are written at once.
const TOGETHER: usize = 64;
/// Namespaces that are looked at for whether they still have sessions.
const MOST_FORGOTTEN: i64 = 10_000;

impl EtcdStore {
    /// See [`crate::SessionStore::holdings`]. It is old in any case, so that any member may answer.
    pub(super) async fn counted(&self, namespace: &str) -> Result<Holdings> {
        let key = self.inner.keys.holding(namespace);
        let view = self.inner.etcd.look_at(&[Look::Key(key.clone())], Freshness::Serializable).await?;
        Ok(view.get(&key).map(Kv::decode).transpose()?.unwrap_or_default())
    }

    /// What every namespace held when it was last counted.
    ///
    /// # Errors
    /// [`crate::StoreError::Unavailable`] if etcd is away.
    pub async fn all_holdings(&self) -> Result<BTreeMap<String, Holdings>> {
        let prefix = self.inner.keys.holdings();
        let (kvs, _) = self.inner.etcd.snapshot(&prefix).await?;
        kvs.iter().map(|kv| Ok((kv.key[prefix.len()..].to_owned(), kv.decode()?))).collect()
    }

    /// Puts what was counted now in the place of what was counted before. A namespace that is not among them holds nothing.
    ///
    /// # Errors
    /// [`crate::StoreError::Unavailable`] if etcd is away; some namespaces may be written then.
    pub async fn put_holdings(&self, counted: &BTreeMap<String, Holdings>) -> Result<()> {
        let keys = &self.inner.keys;
        let all: Vec<(&String, &Holdings)> = counted.iter().collect();
        for some in all.chunks(TOGETHER) {
            let mut write = Write::default();
            for (namespace, holdings) in some {
                write.put(keys.holding(namespace), encode(holdings)?);
            }
            self.inner.etcd.carry_out(&[], None, |_| Ok(Plan::Write(write.clone(), ()))).await?;
        }
        let prefix = keys.holdings();
        for key in self.inner.etcd.keys(&prefix, MOST_FORGOTTEN).await? {
            if !counted.contains_key(&key[prefix.len()..]) {
                self.inner.etcd.remove_range(&key, &format!("{key}\0")).await?;
            }
        }
        Ok(())
    }
}
