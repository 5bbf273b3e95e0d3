//! Pieces of work on etcd, under the store's prefix:
//!
//! | key | value |
//! |---|---|
//! | `work/item/{namespace}/{environment}/{work}` | a piece of work |
//! | `work/of/{namespace}/{environment}/{session}` | the identifier of the latest one of a session |

use async_trait::async_trait;
use longhand_protocol::SessionId;

use super::{Queue, Versioned, WorkItem, WorkStore};
use crate::etcd::{Connection, Guard, Kv, Layout, Look, Plan, View, Write};
use crate::record::encode;
use crate::store::Result;

/// Pieces of work on etcd. Clones share the connection.
#[derive(Clone)]
pub struct EtcdWork {
    etcd: Connection,
    keys: Layout,
}

impl EtcdWork {
    pub(crate) fn new(etcd: Connection, keys: Layout) -> Self {
        Self { etcd, keys }
    }

    fn item_key(&self, queue: &Queue, id: &str) -> String {
        format!("{}{id}", self.items_prefix(queue))
    }

    fn items_prefix(&self, queue: &Queue) -> String {
        self.keys.work(&format!("item/{}/{}/", queue.namespace, queue.environment))
    }

    fn latest_key(&self, queue: &Queue, session: &SessionId) -> String {
        self.keys.work(&format!("of/{}/{}/{session}", queue.namespace, queue.environment))
    }
}

fn versioned(kv: &Kv) -> Result<Versioned> {
    Ok(Versioned { item: kv.decode()?, version: kv.mod_revision })
}

/// Whether an attempt whose answer was lost has written this.
fn was_written(view: &View, key: &str, value: &[u8]) -> bool {
    view.in_doubt && view.get(key).is_some_and(|kv| kv.value == value)
}

#[async_trait]
impl WorkStore for EtcdWork {
    async fn items(&self, queue: &Queue) -> Result<Vec<Versioned>> {
        let prefix = self.items_prefix(queue);
        let view = self.etcd.look(&[Look::Prefix(prefix.clone())]).await?;
        let mut items = view.prefix(&prefix).map(versioned).collect::<Result<Vec<_>>>()?;
        items.sort_by(|a, b| (a.item.created_at, &a.item.id).cmp(&(b.item.created_at, &b.item.id)));
        Ok(items)
    }

    async fn item(&self, queue: &Queue, id: &str) -> Result<Option<Versioned>> {
        let key = self.item_key(queue, id);
        self.etcd.look(&[Look::Key(key.clone())]).await?.get(&key).map(versioned).transpose()
    }

    async fn latest(&self, queue: &Queue, session: &SessionId) -> Result<Option<Versioned>> {
        let key = self.latest_key(queue, session);
        match self.etcd.look(&[Look::Key(key.clone())]).await?.get(&key) {
            Some(id) => self.item(queue, &id.decode::<String>()?).await,
            None => Ok(None),
        }
    }

    async fn insert(&self, queue: &Queue, item: &WorkItem, before: Option<&str>) -> Result<bool> {
        let (key, latest) = (self.item_key(queue, &item.id), self.latest_key(queue, &item.session));
        let (value, id) = (encode(item)?, encode(&item.id)?);
        let before = before.map(|before| encode(&before)).transpose()?;
        let looks = [Look::Key(key.clone()), Look::Key(latest.clone())];
        let plan = |view: &View| {
            if was_written(view, &key, &value) {
                return Ok(Plan::Done(true));
            }
            let mut write = Write::default();
            match (view.get(&latest), &before) {
                (None, None) => write.guard(Guard::Absent(latest.clone())),
                (Some(found), Some(before)) if found.value == *before => {
                    write.guard(Guard::Unchanged(latest.clone(), found.mod_revision))
                }
                _ => return Ok(Plan::Done(false)),
            };
            write.guard(Guard::Absent(key.clone())).put(key.clone(), value.clone()).put(latest.clone(), id.clone());
            Ok(Plan::Write(write, true))
        };
        Ok(self.etcd.carry_out(&looks, None, plan).await?.0)
    }

    async fn replace(&self, queue: &Queue, version: i64, item: &WorkItem) -> Result<bool> {
        let key = self.item_key(queue, &item.id);
        let value = encode(item)?;
        let plan = |view: &View| {
            if was_written(view, &key, &value) {
                return Ok(Plan::Done(true));
            }
            if view.get(&key).is_none_or(|kv| kv.mod_revision != version) {
                return Ok(Plan::Done(false));
            }
            let mut write = Write::default();
            write.guard(Guard::Unchanged(key.clone(), version)).put(key.clone(), value.clone());
            Ok(Plan::Write(write, true))
        };
        Ok(self.etcd.carry_out(&[Look::Key(key.clone())], None, plan).await?.0)
    }

    async fn remove(&self, queue: &Queue, old: &Versioned) -> Result<bool> {
        let (key, latest) = (self.item_key(queue, &old.item.id), self.latest_key(queue, &old.item.session));
        let id = encode(&old.item.id)?;
        let plan = |view: &View| {
            let Some(found) = view.get(&key) else { return Ok(Plan::Done(view.in_doubt)) };
            if found.mod_revision != old.version {
                return Ok(Plan::Done(false));
            }
            let mut write = Write { makes_room: true, ..Write::default() };
            write.guard(Guard::Unchanged(key.clone(), old.version)).delete(key.clone());
            if let Some(latest_kv) = view.get(&latest).filter(|kv| kv.value == id) {
                write.guard(Guard::Unchanged(latest.clone(), latest_kv.mod_revision)).delete(latest.clone());
            }
            Ok(Plan::Write(write, true))
        };
        let looks = [Look::Key(key.clone()), Look::Key(latest.clone())];
        Ok(self.etcd.carry_out(&looks, None, plan).await?.0)
    }

    async fn count(&self, queue: &Queue) -> Result<usize> {
        let prefix = self.items_prefix(queue);
        Ok(self.etcd.look(&[Look::Count(prefix.clone())]).await?.count(&prefix))
    }
}
