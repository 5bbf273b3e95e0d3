//! A transaction as data, and as etcd takes it.

use etcd_client::{Compare, CompareOp, DeleteOptions, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp};

use super::view::{Look, View};

/// What a key or value takes on its way besides itself, rounded up.
const FRAMING: usize = 32;

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
    /// Removes the keys from one up to, but without, another.
    DeleteRange(String, String),
}

impl Guard {
    /// The key, or the prefix, that it is about.
    pub(crate) fn key(&self) -> &str {
        match self {
            Self::Absent(key)
            | Self::Present(key)
            | Self::Holds(key, _)
            | Self::NoneUnder(key)
            | Self::Unchanged(key, _) => key,
        }
    }

    /// Whether it holds of what was read, which has to have its key.
    pub(crate) fn holds(&self, view: &View) -> bool {
        match self {
            Self::Absent(key) => view.get(key).is_none(),
            Self::Present(key) => view.get(key).is_some(),
            Self::Holds(key, value) => view.get(key).is_some_and(|kv| kv.value == *value),
            Self::NoneUnder(prefix) => view.count(prefix) == 0,
            Self::Unchanged(key, revision) => view.get(key).map_or(0, |kv| kv.mod_revision) == *revision,
        }
    }
}

impl Change {
    fn key(&self) -> &str {
        match self {
            Self::Put(key, _) | Self::PutLeased(key, ..) | Self::Delete(key) | Self::DeleteRange(key, _) => key,
        }
    }
}

/// A transaction: all changes if all guards hold, else none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) guards: Vec<Guard>,
    pub(crate) changes: Vec<Change>,
    /// It leaves less than it found, so it goes on when etcd has no space for anything else.
    pub(crate) makes_room: bool,
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

    /// The transaction. It reads nothing when a guard does not hold: most hold, and etcd would take in the reads of all.
    pub(crate) fn to_txn(&self) -> Txn {
        Txn::new()
            .when(self.guards.iter().map(compare).collect::<Vec<_>>())
            .and_then(self.changes.iter().map(operation).collect::<Vec<_>>())
    }

    /// Every key that it compares or changes.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.guards.iter().map(Guard::key).chain(self.changes.iter().map(Change::key))
    }

    /// About how many bytes it is on the way to etcd.
    pub(crate) fn size(&self) -> usize {
        let guards = self.guards.iter().map(|guard| match guard {
            Guard::Holds(key, value) => key.len() + value.len(),
            other => other.key().len(),
        });
        let changes = self.changes.iter().map(|change| match change {
            Change::Put(key, value) | Change::PutLeased(key, value, _) => key.len() + value.len(),
            Change::Delete(key) => key.len(),
            Change::DeleteRange(from, to) => from.len() + to.len(),
        });
        guards.chain(changes).map(|bytes| bytes + FRAMING).sum()
    }
}

/// How current what is read has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// As of now: every write that was acknowledged is seen.
    Linearizable,
    /// As of some moment: whichever member is asked answers what it has.
    Serializable,
}

/// A transaction that only reads.
pub(crate) fn read_txn(looks: &[Look], freshness: Freshness) -> Txn {
    Txn::new().and_then(looks.iter().map(|look| read(look, freshness)).collect::<Vec<_>>())
}

fn compare(guard: &Guard) -> Compare {
    match guard {
        Guard::Absent(key) => Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
        // Of no key at all, etcd compares one that was never made.
        Guard::NoneUnder(prefix) => Compare::create_revision(prefix.as_str(), CompareOp::Equal, 0).with_prefix(),
        Guard::Present(key) => Compare::create_revision(key.as_str(), CompareOp::Greater, 0),
        Guard::Holds(key, value) => Compare::value(key.as_str(), CompareOp::Equal, value.as_slice()),
        Guard::Unchanged(key, revision) => Compare::mod_revision(key.as_str(), CompareOp::Equal, *revision),
    }
}

fn operation(change: &Change) -> TxnOp {
    match change {
        Change::Put(key, value) => TxnOp::put(key.as_str(), value.as_slice(), None),
        Change::PutLeased(key, value, lease) => {
            TxnOp::put(key.as_str(), value.as_slice(), Some(PutOptions::new().with_lease(*lease)))
        }
        Change::Delete(key) => TxnOp::delete(key.as_str(), Some(DeleteOptions::new().with_prev_key())),
        Change::DeleteRange(from, to) => {
            TxnOp::delete(from.as_str(), Some(DeleteOptions::new().with_range(to.as_str())))
        }
    }
}

fn read(look: &Look, freshness: Freshness) -> TxnOp {
    let options = match freshness {
        Freshness::Linearizable => GetOptions::new(),
        Freshness::Serializable => GetOptions::new().with_serializable(),
    };
    match look {
        Look::Key(key) => TxnOp::get(key.as_str(), Some(options)),
        Look::Prefix(prefix) => TxnOp::get(prefix.as_str(), Some(options.with_prefix())),
        Look::Range(from, to, limit) => {
            TxnOp::get(from.as_str(), Some(options.with_range(to.as_str()).with_limit(*limit)))
        }
        Look::Last(from, to, limit) => {
            let options = options.with_range(to.as_str()).with_sort(SortTarget::Key, SortOrder::Descend);
            TxnOp::get(from.as_str(), Some(options.with_limit(*limit)))
        }
        Look::Count(prefix) => TxnOp::get(prefix.as_str(), Some(options.with_prefix().with_count_only())),
    }
}
