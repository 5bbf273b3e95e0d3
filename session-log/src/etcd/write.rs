//! A transaction as data, and as etcd takes it.

use etcd_client::{Compare, CompareOp, DeleteOptions, GetOptions, PutOptions, Txn, TxnOp};

use super::view::Look;

/// What must hold for a transaction to be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// The key does not exist.
    Absent(String),
    /// The key exists.
    Present(String),
    /// The key holds exactly this.
    Holds(String, Vec<u8>),
    /// No key has this prefix.
    NoneUnder(String),
    /// The key was last changed at this revision.
    Unchanged(String, i64),
}

/// What a transaction changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Writes a key.
    Put(String, Vec<u8>),
    /// Writes a key that goes with a lease.
    PutLeased(String, Vec<u8>, i64),
    /// Removes a key; what it held is in the answer.
    Delete(String),
}

/// A transaction: all changes if all guards hold, else none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) guards: Vec<Guard>,
    pub(crate) changes: Vec<Change>,
}

impl Write {
    pub(crate) fn guard(&mut self, guard: Guard) -> &mut Self {
        self.guards.push(guard);
        self
    }

    pub(crate) fn put(&mut self, key: String, value: impl Into<Vec<u8>>) -> &mut Self {
        self.changes.push(Change::Put(key, value.into()));
        self
    }

    pub(crate) fn delete(&mut self, key: String) -> &mut Self {
        self.changes.push(Change::Delete(key));
        self
    }

    /// The transaction, which reads `otherwise` when a guard does not hold.
    pub(crate) fn into_txn(self, otherwise: &[Look]) -> Txn {
        Txn::new()
            .when(self.guards.into_iter().map(compare).collect::<Vec<_>>())
            .and_then(self.changes.into_iter().map(operation).collect::<Vec<_>>())
            .or_else(otherwise.iter().map(get).collect::<Vec<_>>())
    }
}

/// A transaction that only reads.
pub(crate) fn read_txn(looks: &[Look]) -> Txn {
    Txn::new().and_then(looks.iter().map(get).collect::<Vec<_>>())
}

fn compare(guard: Guard) -> Compare {
    match guard {
        Guard::Absent(key) => Compare::create_revision(key, CompareOp::Equal, 0),
        // Of no key at all, etcd compares one that was never made.
        Guard::NoneUnder(prefix) => Compare::create_revision(prefix, CompareOp::Equal, 0).with_prefix(),
        Guard::Present(key) => Compare::create_revision(key, CompareOp::Greater, 0),
        Guard::Holds(key, value) => Compare::value(key, CompareOp::Equal, value),
        Guard::Unchanged(key, revision) => Compare::mod_revision(key, CompareOp::Equal, revision),
    }
}

fn operation(change: Change) -> TxnOp {
    match change {
        Change::Put(key, value) => TxnOp::put(key, value, None),
        Change::PutLeased(key, value, lease) => TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease))),
        Change::Delete(key) => TxnOp::delete(key, Some(DeleteOptions::new().with_prev_key())),
    }
}

fn get(look: &Look) -> TxnOp {
    match look {
        Look::Key(key) => TxnOp::get(key.as_str(), None),
        Look::Prefix(prefix) => TxnOp::get(prefix.as_str(), Some(GetOptions::new().with_prefix())),
        Look::Range(from, to, limit) => {
            TxnOp::get(from.as_str(), Some(GetOptions::new().with_range(to.as_str()).with_limit(*limit)))
        }
        Look::Count(prefix) => TxnOp::get(prefix.as_str(), Some(GetOptions::new().with_prefix().with_count_only())),
    }
}
