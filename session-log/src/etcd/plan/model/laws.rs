//! What must never happen, whoever does what and when.

use longhand_protocol::event::Record;

use super::etcd::{Etcd, Part, part};
use super::past::{Entry, Past};
use super::wish::{Kind, Wish};
use super::world::{Sent, World};
use crate::etcd::plan::StoredHead;
use crate::etcd::write::Change;
use crate::record;
use crate::store::{Owner, SessionMeta};

/// A law that is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Law {
    /// An acknowledged event is neither queued nor in the log.
    Lost,
    /// An event is twice in the log, or queued and in the log.
    Duplicated,
    /// Messages are not in the order in which they were acknowledged.
    Reordered,
    /// A record, a queued event or an identifier was written over.
    Rewritten,
    /// The numbers have a gap, or the hashes do not chain.
    Unchained,
    /// A brain wrote after another had claimed, or after its epoch was fenced off.
    Zombie,
    /// An epoch went back, was given twice, or a living owner was not respected.
    TwoOwners,
    /// Something is queued, open or unanswered, and no wake key says so.
    Asleep,
    /// A brain went idle over a queued event.
    IdleOverQueue,
    /// A brain went idle that had given the session up.
    IdleTwice,
    /// A second result of a call.
    LateResult,
    /// A call was begun by two sandboxes.
    TwiceDispatched,
    /// A result says that a call never ran, which it did.
    RanAfterAll,
    /// Something was written to a session that is being removed, or none.
    Resurrected,
    /// A removal removed a session that was made after it looked, or left something behind.
    WrongLife,
    /// Items of `spec.input` and their count differ.
    Miscounted,
    /// A session was removed although another shares its history.
    Orphaned,
    /// Something was queued in a session that has ended.
    AfterTheEnd,
    /// A plan could not read what a plan wrote.
    Corrupt(String),
}

/// Checks a transaction whose guards hold, and notes what it does.
pub(super) fn check_write(world: &World, past: &mut Past, sent: &Sent) -> Result<(), Law> {
    let Sent { wish, write, life } = sent;
    let (session, etcd) = (&world.session, &world.etcd);
    let epoch = world.epoch();
    if wish.epoch().is_some_and(|given| Some(given) != epoch) {
        return Err(Law::Zombie);
    }
    match wish.kind() {
        Kind::Create => {
            let keys = [session.keys.session(&session.id), session.keys.logs(&session.id)];
            if keys.iter().any(|prefix| etcd.under(prefix).next().is_some()) || world.is_live() {
                return Err(Law::WrongLife);
            }
            past.begin_life(past.life + 1);
        }
        Kind::ImportBegin if world.is_live() || etcd.get(&session.keys.deleting(&session.id)).is_some() => {
            return Err(Law::WrongLife);
        }
        Kind::ImportBegin => {}
        Kind::ImportFinish if world.is_live() || !world.is_importing() => return Err(Law::WrongLife),
        Kind::ImportFinish => past.begin_life(past.life + 1),
        Kind::Close if *life != past.life => return Err(Law::WrongLife),
        Kind::Close if etcd.under(&session.keys.forks(&session.id)).next().is_some() => return Err(Law::Orphaned),
        Kind::Close => past.begin_life(past.life),
        _ if !world.is_live() => return Err(Law::Resurrected),
        Kind::Archive => past.ended = true,
        Kind::Enqueue | Kind::Deliver if past.ended => return Err(Law::AfterTheEnd),
        Kind::Idle if !world.inbox().is_empty() => return Err(Law::IdleOverQueue),
        Kind::Idle if !world.is_awake() => return Err(Law::IdleTwice),
        Kind::Finish if past.log.iter().any(|entry| entry.1 == Entry::Result) => return Err(Law::LateResult),
        _ => {}
    }
    match wish {
        Wish::Finish { from: None, .. } if !past.began.is_empty() => return Err(Law::RanAfterAll),
        Wish::Claim { always: false, brain, .. } => {
            let owner = etcd.get(&session.keys.owner(&session.id)).map(|owner| owner.decode::<Owner>().unwrap());
            if owner.is_some_and(|owner| owner.claimant.pod_uid != format!("pod{brain}")) {
                return Err(Law::TwoOwners);
            }
        }
        _ => {}
    }
    for change in &write.changes {
        let Change::Put(key, value) = change else { continue };
        match part(key) {
            Part::Epoch => {
                let next: u64 = serde_json::from_slice(value).unwrap();
                let begins = matches!(wish.kind(), Kind::Create | Kind::ImportFinish);
                if !begins && epoch.is_none_or(|epoch| next <= epoch) {
                    return Err(Law::TwoOwners);
                }
            }
            Part::Log => {
                if etcd.get(key).is_some() {
                    return Err(Law::Rewritten);
                }
                let record: Record = serde_json::from_slice(value).unwrap();
                if record.seq != past.head() + 1 || record.prev_hash != past.hash {
                    return Err(Law::Unchained);
                }
                past.push(&record, record::hash(value));
            }
            Part::Inbox | Part::Idem | Part::Done if etcd.get(key).is_some() => return Err(Law::Rewritten),
            // Who compares the head compares the summary.
            Part::Summary if !write.changes.iter().any(|change| moves_head(etcd, change)) => {
                return Err(Law::Rewritten);
            }
            Part::Head => {
                let key = world.session.keys.summary(&world.session.id);
                let put = |change: &Change| matches!(change, Change::Put(put, _) if *put == key);
                let summary = match write.changes.iter().find(|change| put(change)) {
                    Some(Change::Put(_, summary)) => summary.clone(),
                    _ => etcd.get(&key).unwrap().value.clone(),
                };
                past.heads.insert(past.head(), StoredHead { head: value.clone(), summary }.into());
            }
            _ => {}
        }
    }
    Ok(())
}

fn moves_head(etcd: &Etcd, change: &Change) -> bool {
    let Change::Put(key, value) = change else { return false };
    part(key) == Part::Head && etcd.get(key).is_none_or(|stored| stored.value != *value)
}

/// Checks a state.
pub(super) fn check(world: &World) -> Result<(), Law> {
    let (session, past) = (&world.session, &world.past);
    if !world.is_live() {
        return Ok(());
    }
    let mut names: Vec<&str> = past.log.iter().map(|entry| entry.0.as_str()).collect();
    let queued = world.inbox();
    names.extend(queued.iter().map(String::as_str));
    if !past.acknowledged.iter().all(|event| names.contains(&event.as_str())) {
        return Err(Law::Lost);
    }
    let mut distinct = names.clone();
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() < names.len() {
        return Err(Law::Duplicated);
    }
    let messages: Vec<&&str> = names.iter().filter(|name| name.starts_with('m')).collect();
    if !messages.is_sorted() {
        return Err(Law::Reordered);
    }
    let inputs: Vec<&str> = names.iter().filter(|name| name.starts_with("in")).map(|name| &name[..3]).collect();
    let meta: SessionMeta = world.etcd.get(&session.keys.meta(&session.id)).unwrap().decode().unwrap();
    let due: Vec<String> = (1..=meta.delivered_inputs).map(|number| format!("in{number}")).collect();
    if inputs != due {
        return Err(Law::Miscounted);
    }
    let open = world.etcd.under(&session.keys.calls(&session.id)).next().is_some();
    let reading = past.reading(past.head());
    let work = !queued.is_empty() || open || reading.unanswered.is_some();
    if work && !world.is_awake() && !past.ended {
        return Err(Law::Asleep);
    }
    if past.began.len() > 1 {
        return Err(Law::TwiceDispatched);
    }
    Ok(())
}
