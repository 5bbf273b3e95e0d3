//! A batch as etcd takes it.

use etcd_client::{KvClient, Txn, TxnOp, TxnOpResponse, TxnResponse};

use super::queue::group_size;
use super::{Answer, Class, Commit, Member, cost};
use crate::etcd::client::{Attempt, Removed, to_kv};
use crate::etcd::failure::Failure;
use crate::etcd::link::Link;
use crate::etcd::write::{Change, Write};
use crate::store::StoreError;

/// Sends batches to etcd.
pub(super) struct Committer {
    link: Link,
    kv: KvClient,
    /// A key that is never written.
    charged: String,
}

impl Committer {
    pub(super) fn new(link: Link, kv: KvClient, charged: String) -> Self {
        Self { link, kv, charged }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, Failure> {
        let mut kv = self.kv.clone();
        self.link.call(kv.txn(txn)).await
    }

    /// Etcd's quota counts the puts of the outermost transaction only, on either branch. So a batch that needs space has
    /// one on the branch that is never taken, and one that makes room has none.
    fn outer(&self, class: Class, batch: &[Member]) -> Txn {
        let nested = |members: &[Member]| -> Vec<TxnOp> {
            members.iter().map(|member| TxnOp::txn(member.write.to_txn())).collect()
        };
        let outer = Txn::new().and_then(match size_of_groups(batch) {
            None => nested(batch),
            Some(size) => {
                batch.chunks(size).map(|group| TxnOp::txn(Txn::new().and_then(nested(group)))).collect::<Vec<_>>()
            }
        });
        match class {
            Class::Takes => outer.or_else([TxnOp::put(self.charged.as_str(), "", None)]),
            Class::Frees => outer,
        }
    }
}

impl Commit for Committer {
    async fn commit(&self, class: Class, batch: &[Member]) -> Result<Vec<Answer>, Failure> {
        if let ([only], Class::Takes) = (batch, class) {
            return Ok(vec![outcome(&only.write, &self.txn(only.write.to_txn()).await?)]);
        }
        let answer = self.txn(self.outer(class, batch)).await?;
        let mut nested = answer.op_responses();
        if size_of_groups(batch).is_some() {
            let members = nested.iter().flat_map(|group| match group {
                TxnOpResponse::Txn(group) => group.op_responses(),
                _ => Vec::new(),
            });
            nested = members.collect();
        }
        if nested.len() != batch.len() {
            return Err(Failure::unknown(format!("etcd gave {} answers to {}", nested.len(), batch.len())));
        }
        let each = batch.iter().zip(&nested).map(|(member, response)| match response {
            TxnOpResponse::Txn(answer) => outcome(&member.write, answer),
            _ => Err(Failure::unknown("etcd gave another answer than was asked for")),
        });
        Ok(each.collect())
    }
}

fn size_of_groups(batch: &[Member]) -> Option<usize> {
    let deepest = batch.iter().map(|member| cost(&member.write).operations).max();
    group_size(batch.len(), deepest.unwrap_or_default())
}

/// What one transaction did.
fn outcome(write: &Write, answer: &TxnResponse) -> Answer {
    if !answer.succeeded() {
        return Ok(Attempt::Refused);
    }
    let mut removed = Removed::new();
    if !write.changes.iter().any(|change| matches!(change, Change::Delete(_))) {
        return Ok(Attempt::Done(removed));
    }
    for response in answer.op_responses() {
        if let TxnOpResponse::Delete(deleted) = response {
            let kvs = deleted.prev_kvs().iter().map(to_kv).collect::<Result<Vec<_>, StoreError>>();
            removed.extend(kvs.map_err(Failure::Refused)?);
        }
    }
    Ok(Attempt::Done(removed))
}
