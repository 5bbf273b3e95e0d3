//! As much of etcd as the plans rely on: keys, revisions, and transactions whose guards may be switched off one by one.

use std::sync::Arc;

use super::wish::{FORK, Kind};
use crate::etcd::view::{Kv, Look, View};
use crate::etcd::write::{Change, Guard};

/// The keys in order, and the revision of the last change.
#[derive(Clone, Default)]
pub(super) struct Etcd {
    revision: i64,
    kvs: Vec<Arc<Kv>>,
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Meta,
    Deleting,
    Epoch,
    Owner,
    Head,
    Summary,
    Log,
    Inbox,
    Call,
    Done,
    Idem,
    Wake,
    /// The session was archived.
    Ended,
    Importing,
    Forks,
    /// The session that is forked off, which nothing else happens to.
    Fork,
    Other,
}

pub(super) fn part(key: &str) -> Part {
    let path: Vec<&str> = key.split('/').skip(2).collect();
    match path.as_slice() {
        ["s", _, "forks", _] => Part::Forks,
        [_, FORK, ..] => Part::Fork,
        ["importing", _] => Part::Importing,
        ["meta", _] => Part::Meta,
        ["deleting", _] => Part::Deleting,
        ["wake", _] => Part::Wake,
        ["s", _, "epoch"] => Part::Epoch,
        ["s", _, "owner"] => Part::Owner,
        ["s", _, "head"] => Part::Head,
        ["s", _, "summary"] => Part::Summary,
        ["s", _, "ended"] => Part::Ended,
        ["log", _, _] => Part::Log,
        ["s", _, "inbox", _] => Part::Inbox,
        ["s", _, "call", _] => Part::Call,
        ["s", _, "done", _] => Part::Done,
        ["s", _, "idem", _] => Part::Idem,
        _ => Part::Other,
    }
}

/// A guard of a change: the mutants ignore it.
pub(super) type Guarded = (Kind, Part);

pub(super) fn guarded(guard: &Guard) -> Part {
    match guard {
        Guard::Absent(key)
        | Guard::Present(key)
        | Guard::Holds(key, _)
        | Guard::NoneUnder(key)
        | Guard::Unchanged(key, _) => part(key),
    }
}

impl Etcd {
    pub(super) fn kvs(&self) -> &[Arc<Kv>] {
        &self.kvs
    }

    fn position(&self, key: &str) -> Result<usize, usize> {
        self.kvs.binary_search_by(|kv| kv.key.as_str().cmp(key))
    }

    pub(super) fn get(&self, key: &str) -> Option<&Kv> {
        self.position(key).ok().map(|at| &*self.kvs[at])
    }

    pub(super) fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Kv> {
        let first = self.position(prefix).unwrap_or_else(|at| at);
        self.kvs[first..].iter().map(|kv| &**kv).take_while(move |kv| kv.key.starts_with(prefix))
    }

    fn between<'a>(&'a self, from: &'a str, to: &'a str) -> impl Iterator<Item = &'a Kv> {
        let first = self.position(from).unwrap_or_else(|at| at);
        self.kvs[first..].iter().map(|kv| &**kv).take_while(move |kv| kv.key.as_str() < to)
    }

    pub(super) fn look(&self, looks: &[Look]) -> View {
        let mut view = View::default();
        for look in looks {
            let found: Vec<Kv> = match look {
                Look::Key(key) => self.get(key).cloned().into_iter().collect(),
                Look::Prefix(prefix) | Look::Count(prefix) => self.under(prefix).cloned().collect(),
                Look::Range(from, to, most) => {
                    self.between(from, to).take(usize::try_from(*most).unwrap()).cloned().collect()
                }
                Look::Last(..) => unreachable!("no plan looks at the last ones"),
            };
            let count = found.len();
            view.answer(look, if matches!(look, Look::Count(_)) { vec![] } else { found }, count);
        }
        view
    }

    pub(super) fn holds(&self, guard: &Guard) -> bool {
        match guard {
            Guard::Absent(key) => self.get(key).is_none(),
            Guard::Present(key) => self.get(key).is_some(),
            Guard::Holds(key, value) => self.get(key).is_some_and(|kv| kv.value == *value),
            Guard::NoneUnder(prefix) => self.under(prefix).next().is_none(),
            Guard::Unchanged(key, revision) => self.get(key).map_or(0, |kv| kv.mod_revision) == *revision,
        }
    }

    pub(super) fn apply(&mut self, changes: &[Change]) {
        self.revision += 1;
        for change in changes {
            match change {
                Change::Delete(key) => self.remove(key),
                Change::DeleteRange(from, to) => self.kvs.retain(|kv| kv.key < *from || kv.key >= *to),
                Change::Put(key, value) => self.put(key, value, 0),
                Change::PutLeased(key, value, lease) => self.put(key, value, *lease),
            }
        }
    }

    fn put(&mut self, key: &str, value: &[u8], lease: i64) {
        let at = self.position(key);
        let create_revision = at.map_or(self.revision, |at| self.kvs[at].create_revision);
        let kv = Kv { key: key.into(), value: value.into(), create_revision, mod_revision: self.revision, lease };
        match at {
            Ok(at) => self.kvs[at] = Arc::new(kv),
            Err(at) => self.kvs.insert(at, Arc::new(kv)),
        }
    }

    /// As a deletion or the end of a lease does.
    pub(super) fn remove(&mut self, key: &str) {
        if let Ok(at) = self.position(key) {
            self.kvs.remove(at);
        }
    }

    pub(super) fn remove_under(&mut self, prefix: &str) {
        self.revision += 1;
        self.kvs.retain(|kv| !kv.key.starts_with(prefix));
    }
}

#[test]
fn it_counts_revisions_as_etcd_does() {
    let mut etcd = Etcd::default();
    let put = |key: &str| Change::Put(key.into(), b"x".to_vec());
    etcd.apply(&[put("/p/s/a/inbox/1"), put("/p/s/a/inbox/2")]);
    etcd.apply(&[put("/p/s/a/inbox/1")]);
    let kv = etcd.get("/p/s/a/inbox/1").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision), (1, 2));
    etcd.apply(&[Change::Delete("/p/s/a/inbox/1".into())]);
    etcd.apply(&[put("/p/s/a/inbox/1")]);
    assert_eq!(etcd.get("/p/s/a/inbox/1").unwrap().create_revision, 4);
    for (guard, holds) in [
        (Guard::Absent("/p/s/a/inbox/3".into()), true),
        (Guard::Present("/p/s/a/inbox/2".into()), true),
        (Guard::Holds("/p/s/a/inbox/2".into(), b"y".to_vec()), false),
        (Guard::NoneUnder("/p/s/a/inbox/".into()), false),
        (Guard::NoneUnder("/p/s/a/call/".into()), true),
        (Guard::Unchanged("/p/s/a/inbox/2".into(), 1), true),
        (Guard::Unchanged("/p/s/a/inbox/3".into(), 0), true),
    ] {
        assert_eq!(etcd.holds(&guard), holds, "{guard:?}");
    }
    assert_eq!((part("/p/s/a/inbox/2"), part("/p/wake/a")), (Part::Inbox, Part::Wake));
}
