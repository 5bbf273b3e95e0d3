//! What was read, apart from how it was read.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;

use crate::store::{Result, StoreError};

/// A key and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kv {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    pub(crate) create_revision: i64,
    pub(crate) mod_revision: i64,
    pub(crate) lease: i64,
}

impl Kv {
    /// The value as what it should be.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.value)
            .map_err(|error| StoreError::Corrupt { key: self.key.clone(), reason: error.to_string() })
    }
}

/// Something to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// One key.
    Key(String),
    /// Every key with this prefix.
    Prefix(String),
    /// From a key up to, but without, another; at most so many.
    Range(String, String, i64),
    /// The same, of which it is the last ones.
    Last(String, String, i64),
    /// How many keys there are with this prefix.
    Count(String),
}

/// What was read at one revision, or is assumed in the first attempt of a transaction that will find out.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    kvs: BTreeMap<String, Kv>,
    counts: BTreeMap<String, usize>,
    looked: BTreeSet<String>,
    /// It was not read.
    is_assumed: bool,
    /// An earlier attempt at the same change may have been carried out.
    pub(crate) in_doubt: bool,
}

impl View {
    /// What is found if nothing has changed since it was seen.
    pub(crate) fn assumed() -> Self {
        Self { is_assumed: true, ..Self::default() }
    }

    /// Whether it was not read, so that a transaction has to compare whatever its plan relies on.
    pub(crate) const fn is_assumed(&self) -> bool {
        self.is_assumed
    }

    /// The key, if it exists.
    pub(crate) fn get(&self, key: &str) -> Option<&Kv> {
        self.kvs.get(key)
    }

    /// Every key with the prefix that was read, in order.
    pub(crate) fn prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Kv> {
        self.kvs.range(prefix.to_owned()..).map(|(_, kv)| kv).take_while(move |kv| kv.key.starts_with(prefix))
    }

    /// How many keys there were, if they were counted.
    pub(crate) fn count(&self, prefix: &str) -> usize {
        self.counts.get(prefix).copied().unwrap_or(0)
    }

    /// Whether it is known if the key exists.
    pub(crate) fn has_looked(&self, key: &str) -> bool {
        self.looked.contains(key) || self.kvs.contains_key(key)
    }

    pub(crate) fn insert(&mut self, kv: Kv) {
        self.kvs.insert(kv.key.clone(), kv);
    }

    /// Takes in the answer to one look.
    pub(crate) fn answer(&mut self, look: &Look, kvs: Vec<Kv>, count: usize) {
        match look {
            Look::Key(key) => {
                self.looked.insert(key.clone());
            }
            Look::Count(prefix) => {
                self.counts.insert(prefix.clone(), count);
            }
            Look::Prefix(_) | Look::Range(..) | Look::Last(..) => {}
        }
        for kv in kvs {
            self.insert(kv);
        }
    }

    /// Takes in what was read later; only right for keys that never change.
    pub(crate) fn absorb(&mut self, later: Self) {
        self.kvs.extend(later.kvs);
        self.looked.extend(later.looked);
    }
}

#[cfg(test)]
mod tests {
    use super::{Kv, Look, View};

    #[test]
    fn a_view_knows_what_it_has_seen() {
        let mut view = View::default();
        let kv = |key: &str| Kv { key: key.into(), ..Kv::default() };
        view.answer(&Look::Key("a/0".into()), vec![], 0);
        view.answer(&Look::Prefix("b/".into()), vec![kv("b/2"), kv("b/1")], 2);
        view.answer(&Look::Count("c/".into()), vec![], 7);
        assert!(view.get("a/0").is_none() && view.has_looked("a/0") && !view.has_looked("a/1"));
        assert_eq!(view.prefix("b/").map(|kv| kv.key.as_str()).collect::<Vec<_>>(), ["b/1", "b/2"]);
        assert_eq!((view.count("c/"), view.count("d/")), (7, 0));
    }
}
