//! A head as its two keys hold it: `head` has what every append changes, in few bytes, since each append compares and
//! writes it; `summary` has what seldom changes.
//!
//! Whatever changes the summary changes the epoch or the sequence number too, in the same transaction, and both only
//! rise. So who compares the head compares the summary.

use std::str::FromStr;

use jiff::Timestamp;
use longhand_protocol::event::Usage;
use longhand_protocol::wire::{Money, SessionStatus};
use serde::{Deserialize, Serialize};

use super::Place;
use crate::active::Active;
use crate::etcd::view::{Kv, Look, View};
use crate::etcd::write::{Guard, Write};
use crate::record::{Head, encode};
use crate::store::{Result, StoreError};

/// What the two keys hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredHead {
    /// Epoch, sequence number, bytes, time and hash, with a space between them.
    pub(crate) head: Vec<u8>,
    /// A [`Summary`] as JSON.
    pub(crate) summary: Vec<u8>,
}

/// The rest of a head. What is as it was in an empty log takes no bytes.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Summary {
    #[serde(skip_serializing_if = "is_default")]
    status: Option<SessionStatus>,
    #[serde(skip_serializing_if = "is_default")]
    usage: Usage,
    #[serde(skip_serializing_if = "is_default")]
    list_cost: Option<Money>,
    #[serde(skip_serializing_if = "is_default")]
    active: Active,
    #[serde(skip_serializing_if = "is_default")]
    archived_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "is_default")]
    inherited: u64,
    #[serde(skip_serializing_if = "is_default")]
    warned: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Summary {
    fn of(head: &Head) -> Self {
        Self {
            status: head.status,
            usage: head.usage,
            list_cost: head.list_cost.clone(),
            active: head.active,
            archived_at: head.archived_at,
            inherited: head.inherited,
            warned: head.warned,
        }
    }
}

impl StoredHead {
    fn of(head: &Head) -> Result<Self> {
        Ok(Self { head: text(head), summary: encode(&Summary::of(head))? })
    }
}

fn text(head: &Head) -> Vec<u8> {
    let Head { epoch, seq, bytes, updated_at, hash, .. } = head;
    format!("{epoch} {seq} {bytes} {updated_at} {hash}").into_bytes()
}

fn decode(head: &Kv, summary: &Kv) -> Result<Head> {
    let corrupt = |reason: &str| StoreError::Corrupt { key: head.key.clone(), reason: reason.to_owned() };
    let text = std::str::from_utf8(&head.value).map_err(|_| corrupt("it is not text"))?;
    let parts: Vec<&str> = text.split(' ').collect();
    let [epoch, seq, bytes, updated_at, hash] = parts[..] else { return Err(corrupt("it has not five parts")) };
    let Summary { status, usage, list_cost, active, archived_at, inherited, warned } = summary.decode()?;
    Ok(Head {
        epoch: part(head, epoch)?,
        seq: part(head, seq)?,
        hash: hash.to_owned(),
        status,
        usage,
        list_cost,
        active,
        updated_at: part(head, updated_at)?,
        archived_at,
        inherited,
        bytes: part(head, bytes)?,
        warned,
    })
}

fn part<T: FromStr<Err: std::fmt::Display>>(head: &Kv, text: &str) -> Result<T> {
    text.parse().map_err(|error| StoreError::Corrupt { key: head.key.clone(), reason: format!("{text:?}: {error}") })
}

impl Place<'_> {
    /// What the head is read from.
    pub(crate) fn head_looks(&self) -> [Look; 2] {
        [self.keys.head(self.id), self.keys.summary(self.id)].map(Look::Key)
    }

    /// The head, which every live session has.
    pub(crate) fn head(&self, view: &View) -> Result<Head> {
        let head = view.get(&self.keys.head(self.id)).ok_or_else(|| self.not_found())?;
        let summary = self.keys.summary(self.id);
        match view.get(&summary) {
            Some(summary) => decode(head, summary),
            None => Err(StoreError::Corrupt { key: summary, reason: "there is a head without it".to_owned() }),
        }
    }

    /// The head as it is stored, if it was found.
    pub(crate) fn stored_head(&self, view: &View) -> Option<StoredHead> {
        let value = |key: String| view.get(&key).map(|kv| kv.value.clone());
        Some(StoredHead { head: value(self.keys.head(self.id))?, summary: value(self.keys.summary(self.id))? })
    }

    /// Finds this head.
    pub(super) fn assume_head(&self, stored: StoredHead, view: &mut View) {
        let kv = |key, value| Kv { key, value, ..Kv::default() };
        view.insert(kv(self.keys.head(self.id), stored.head));
        view.insert(kv(self.keys.summary(self.id), stored.summary));
    }

    /// Relies on the head that was read.
    pub(in crate::etcd) fn guard_head(&self, view: &View, write: &mut Write) -> Result<()> {
        let stored = view.get(&self.keys.head(self.id)).ok_or_else(|| self.not_found())?;
        write.guard(Guard::Holds(stored.key.clone(), stored.value.clone()));
        Ok(())
    }

    /// Writes the head of a session that is made.
    pub(super) fn put_first_head(&self, head: &Head, write: &mut Write) -> Result<()> {
        let stored = StoredHead::of(head)?;
        write.put(self.keys.summary(self.id), stored.summary).put(self.keys.head(self.id), stored.head);
        Ok(())
    }

    /// Writes the head that comes after `before`, which was read, and of the summary no more than is new.
    pub(super) fn put_head(&self, view: &View, before: &Head, head: &Head, write: &mut Write) -> Result<StoredHead> {
        let (key, summary) = (self.keys.summary(self.id), Summary::of(head));
        let found = view.get(&key).filter(|_| summary == Summary::of(before));
        let summary = match found {
            Some(found) => found.value.clone(),
            None => {
                let summary = encode(&summary)?;
                write.put(key, summary.clone());
                summary
            }
        };
        let stored = StoredHead { head: text(head), summary };
        write.put(self.keys.head(self.id), stored.head.clone());
        Ok(stored)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use longhand_protocol::event::{EventBody, NewEvent, Usage};
    use longhand_protocol::wire::SessionStatus;
    use rstest::rstest;
    use serde_json::json;

    use super::{Place, StoredHead};
    use crate::etcd::keys::Keys;
    use crate::etcd::view::View;
    use crate::etcd::write::Write;
    use crate::record::Head;
    use crate::store::StoreError;

    fn full() -> Head {
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        Head {
            epoch: 3,
            seq: 17,
            hash: "ab".repeat(32),
            status: Some(SessionStatus::Idle),
            usage: Usage { input_tokens: 7, ..Usage::default() },
            list_cost: Some(serde_json::from_value(json!({"amount": "0.1", "currency": "USD"})).unwrap()),
            updated_at: time("2026-11-27T04:22:46.123456789Z"),
            archived_at: Some(time("2026-11-27T04:23:00Z")),
            inherited: 5,
            bytes: 5_120,
            warned: true,
            ..Head::empty(Timestamp::UNIX_EPOCH)
        }
    }

    #[rstest]
    #[case(Head::empty(Timestamp::UNIX_EPOCH))]
    #[case(full())]
    fn a_head_is_read_as_it_was_written(#[case] head: Head) {
        let (keys, id) = (Keys::new("/p"), "sesn_1".parse().unwrap());
        let place = Place { keys: &keys, id: &id, trace: None };
        let mut view = View::default();
        place.assume_head(StoredHead::of(&head).unwrap(), &mut view);
        assert_eq!(place.head(&view).unwrap(), head);
    }

    #[test]
    fn the_summary_is_written_when_it_changes_only() {
        let (keys, id) = (Keys::new("/p"), "sesn_1".parse().unwrap());
        let place = Place { keys: &keys, id: &id, trace: None };
        let before = full();
        let mut view = View::default();
        place.assume_head(StoredHead::of(&before).unwrap(), &mut view);
        let after = |body| {
            let mut head = before.clone();
            head.extend(3, vec![NewEvent::new(body)], Timestamp::UNIX_EPOCH).unwrap();
            let mut write = Write::default();
            let stored = place.put_head(&view, &before, &head, &mut write).unwrap();
            assert_eq!(stored, StoredHead::of(&head).unwrap());
            write.changes.len()
        };
        assert_eq!(after(EventBody::AgentMessage { content: vec![] }), 1);
        assert_eq!(after(EventBody::SessionStatusRunning {}), 2);
    }

    #[rstest]
    #[case::no_text(b"\xff", b"{}", "/p/s/sesn_1/head")]
    #[case::parts(b"1 2 3", b"{}", "/p/s/sesn_1/head")]
    #[case::number(b"1 x 3 1970-01-01T00:00:00Z ", b"{}", "/p/s/sesn_1/head")]
    #[case::time(b"1 2 3 never ", b"{}", "/p/s/sesn_1/head")]
    #[case::summary(b"1 2 3 1970-01-01T00:00:00Z ", b"?", "/p/s/sesn_1/summary")]
    fn what_is_no_head_is_corrupt(#[case] head: &[u8], #[case] summary: &[u8], #[case] at: &str) {
        let (keys, id) = (Keys::new("/p"), "sesn_1".parse().unwrap());
        let place = Place { keys: &keys, id: &id, trace: None };
        let mut view = View::default();
        place.assume_head(StoredHead { head: head.to_vec(), summary: summary.to_vec() }, &mut view);
        assert!(matches!(place.head(&view), Err(StoreError::Corrupt { key, .. }) if key == at));
    }
}
