//! Requests on etcd, under the store's prefix:
//!
//! | key | value |
//! |---|---|
//! | `request/{name}` | a request that was taken up: its digest, its seed, and when |
//! | `answer/{name}` | its seed, and how it was answered |
//!
//! Answers stand apart, so that the sweep reads no more than it needs.

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Answer, Begun, Requests, Taken};
use crate::etcd::{Connection, Guard, Kv, Layout, Look, Plan, View, Write};
use crate::record::encode;
use crate::store::Result;

/// Requests that are looked at together by the sweep.
const PAGE: i64 = 256;
/// Requests that are removed in one transaction: two operations each.
const REMOVED_AT_ONCE: usize = 50;

/// Requests on etcd. Clones share the connection.
#[derive(Clone)]
pub struct EtcdRequests {
    etcd: Connection,
    keys: Layout,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    seed: String,
    answer: Answer,
}

/// The keys of one request.
struct Place {
    request: String,
    answer: String,
}

impl Place {
    fn looks(&self) -> [Look; 2] {
        [Look::Key(self.request.clone()), Look::Key(self.answer.clone())]
    }

    fn taken(&self, view: &View) -> Result<Option<Taken>> {
        view.get(&self.request).map(Kv::decode).transpose()
    }

    /// The answer to the request that was taken up with this seed.
    fn kept(&self, view: &View, seed: &str) -> Result<Option<Answer>> {
        let kept: Option<Kept> = view.get(&self.answer).map(Kv::decode).transpose()?;
        Ok(kept.filter(|kept| kept.seed == seed).map(|kept| kept.answer))
    }

    /// A write that needs both keys to be as they were seen.
    fn guarded(&self, view: &View) -> Write {
        let mut write = Write::default();
        for key in [&self.request, &self.answer] {
            write.guard(match view.get(key) {
                Some(kv) => Guard::Unchanged(key.clone(), kv.mod_revision),
                None => Guard::Absent(key.clone()),
            });
        }
        write
    }

    /// Removes what was seen.
    fn remove(&self, view: &View, write: &mut Write) {
        for key in [&self.request, &self.answer] {
            if let Some(kv) = view.get(key) {
                write.guard(Guard::Unchanged(key.clone(), kv.mod_revision)).delete(key.clone());
            }
        }
    }
}

impl EtcdRequests {
    pub(crate) fn new(etcd: Connection, keys: Layout) -> Self {
        Self { etcd, keys }
    }

    fn place(&self, name: &str) -> Place {
        Place { request: self.keys.request(name), answer: self.keys.answer(name) }
    }

    /// Removes those of these requests that are over; returns how many.
    async fn remove_over(&self, requests: &[String], now: Timestamp) -> Result<u64> {
        let prefix = self.keys.requests();
        let places: Vec<Place> =
            requests.iter().filter_map(|key| key.strip_prefix(&prefix)).map(|name| self.place(name)).collect();
        let looks: Vec<Look> = places.iter().flat_map(Place::looks).collect();
        let plan = |view: &View| {
            let mut write = Write { makes_room: true, ..Write::default() };
            let mut count = 0;
            for place in &places {
                if place.taken(view)?.is_some_and(|taken| taken.is_over(now)) {
                    place.remove(view, &mut write);
                    count += 1;
                }
            }
            Ok(if count == 0 { Plan::Done(0) } else { Plan::Write(write, count) })
        };
        Ok(self.etcd.carry_out(&looks, None, plan).await?.0)
    }
}

#[async_trait]
impl Requests for EtcdRequests {
    async fn begin(&self, name: &str, digest: &str, now: Timestamp) -> Result<Begun> {
        let (place, new) = (self.place(name), Taken::new(digest, now));
        let go = Begun::Go { seed: new.seed.clone(), first: true };
        let value = encode(&new)?;
        let plan = |view: &View| {
            if let Some(taken) = place.taken(view)?.filter(|taken| !taken.is_over(now)) {
                // An attempt whose answer was lost has taken it up.
                let ours = taken.seed == new.seed;
                let answer = place.kept(view, &taken.seed)?;
                return Ok(Plan::Done(if ours { go.clone() } else { taken.meet(digest, answer) }));
            }
            let mut write = place.guarded(view);
            write.put(place.request.clone(), value.clone());
            if view.get(&place.answer).is_some() {
                write.delete(place.answer.clone());
            }
            Ok(Plan::Write(write, go.clone()))
        };
        Ok(self.etcd.carry_out(&place.looks(), None, plan).await?.0)
    }

    async fn answer(&self, name: &str, seed: &str, answer: Answer) -> Result<Answer> {
        let place = self.place(name);
        let value = encode(&Kept { seed: seed.to_owned(), answer: answer.clone() })?;
        let plan = |view: &View| {
            if place.taken(view)?.is_none_or(|taken| taken.seed != seed) {
                return Ok(Plan::Done(answer.clone()));
            }
            if let Some(kept) = place.kept(view, seed)? {
                return Ok(Plan::Done(kept));
            }
            let mut write = place.guarded(view);
            write.put(place.answer.clone(), value.clone());
            Ok(Plan::Write(write, answer.clone()))
        };
        Ok(self.etcd.carry_out(&place.looks(), None, plan).await?.0)
    }

    async fn forget(&self, name: &str, seed: &str) -> Result<()> {
        let place = self.place(name);
        let plan = |view: &View| {
            if place.taken(view)?.is_none_or(|taken| taken.seed != seed) {
                return Ok(Plan::Done(()));
            }
            let mut write = Write { makes_room: true, ..Write::default() };
            place.remove(view, &mut write);
            Ok(Plan::Write(write, ()))
        };
        self.etcd.carry_out(&place.looks(), None, plan).await?;
        Ok(())
    }

    async fn sweep(&self, now: Timestamp) -> Result<u64> {
        let prefix = self.keys.requests();
        let end = format!("{}0", prefix.trim_end_matches('/'));
        let (mut from, mut removed) = (prefix.clone(), 0);
        loop {
            let view = self.etcd.look(&[Look::Range(from, end.clone(), PAGE)]).await?;
            let mut over = Vec::new();
            let mut last = None;
            for kv in view.prefix(&prefix) {
                if kv.decode::<Taken>()?.is_over(now) {
                    over.push(kv.key.clone());
                }
                last = Some(kv.key.clone());
            }
            for some in over.chunks(REMOVED_AT_ONCE) {
                removed += self.remove_over(some, now).await?;
            }
            let Some(last) = last else { return Ok(removed) };
            from = format!("{last}\0");
        }
    }
}
