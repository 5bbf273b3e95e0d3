//! What clients send: into the inbox, and out of it in order.

use longhand_protocol::event::{Event, NewEvent};
use longhand_protocol::harness::{Inbox, InboxItem};
use longhand_protocol::internal::Wake;
use serde::{Deserialize, Serialize};

use super::{Place, Plan};
use crate::etcd::recent::Seen;
use crate::etcd::view::{Kv, Look, View};
use crate::etcd::write::{Guard, Write};
use crate::limits;
use crate::record::{encode, same_body};
use crate::store::{Result, SessionMeta, StoreError};

/// The value of an inbox key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Queued {
    /// The place among those that were queued in the same transaction.
    pub(crate) index: usize,
    /// The event.
    pub(crate) event: NewEvent,
}

fn queued_item(event: NewEvent) -> InboxItem {
    InboxItem { event: Event { id: event.id, body: event.body, processed_at: None } }
}

/// The value of the session's wake key: what never changes of its metadata, and what the work belongs to.
pub(super) fn wake_value(place: &Place<'_>, view: &View) -> Result<Vec<u8>> {
    encode(&Wake { traceparent: place.trace, ..meta(place, view)?.decode()? })
}

fn meta<'a>(place: &Place<'_>, view: &'a View) -> Result<&'a Kv> {
    view.get(&place.keys.meta(place.id)).ok_or_else(|| place.not_found())
}

/// The inbox in order: by the revision of the transaction that queued an event, then by its place in it.
pub(crate) fn inbox(place: &Place<'_>, view: &View) -> Result<Inbox> {
    let Place { keys, id, .. } = *place;
    meta(place, view)?;
    let mut items = Vec::new();
    for kv in view.prefix(&keys.inboxes(id)) {
        let queued: Queued = kv.decode()?;
        items.push((kv.create_revision, queued.index, queued.event));
    }
    items.sort_by_key(|(revision, index, _)| (*revision, *index));
    let wake = view.get(&keys.wake(id));
    Ok(Inbox {
        wake_revision: wake.map(|wake| wake.mod_revision),
        // Nothing is kept from a brain for it.
        traceparent: wake.and_then(|wake| wake.decode::<Wake>().ok()?.traceparent),
        items: items.into_iter().map(|(_, _, event)| queued_item(event)).collect(),
    })
}

/// A wish to queue a client's events.
pub(crate) struct Enqueue<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) events: &'a [NewEvent],
    pub(crate) limit: usize,
}

impl Enqueue<'_> {
    pub(crate) fn looks(&self) -> Vec<Look> {
        let Place { keys, id, .. } = self.place;
        let mut looks = inbox_looks(&self.place);
        looks.extend(self.events.iter().map(|event| Look::Key(keys.inbox(id, &event.id))));
        looks.extend(self.place.look_idem(self.events.iter().map(|event| &event.id)));
        looks
    }

    /// What is found of a session that was seen to rest: nothing is queued in it.
    pub(crate) fn assume(&self, seen: Seen) -> Option<View> {
        let Place { keys, id, .. } = self.place;
        let mut view = View::assumed();
        view.insert(Kv { key: keys.meta(id), value: seen.meta?, ..Kv::default() });
        self.place.assume_head(seen.head, &mut view);
        Some(view)
    }

    pub(crate) fn plan(&self, view: &View) -> Result<Plan<Vec<InboxItem>>> {
        let Place { keys, id, .. } = self.place;
        meta(&self.place, view)?;
        if self.events.is_empty() {
            return Ok(Plan::Done(Vec::new()));
        }
        let mut known = Vec::with_capacity(self.events.len());
        for event in self.events {
            known.push(match view.get(&keys.inbox(id, &event.id)) {
                Some(queued) => Some(queued_item(queued.decode::<Queued>()?.event)),
                None => match self.place.seq(view, &event.id)? {
                    None => None,
                    Some(seq) => match self.place.records(view, &[seq])? {
                        Ok(records) => records.into_iter().next().map(|record| InboxItem { event: record.event }),
                        Err(looks) => return Ok(Plan::Read(looks)),
                    },
                },
            });
        }
        if let Some(position) = known.iter().position(Option::is_some) {
            let same =
                self.events.iter().zip(&known).all(|(given, known)| {
                    known.as_ref().is_some_and(|known| same_body(&known.event.body, &given.body))
                });
            if same {
                return Ok(Plan::Done(known.into_iter().flatten().collect()));
            }
            return Err(StoreError::Duplicate(self.events[position].id.clone()));
        }
        let mut write = Write::default();
        write.guard(Guard::Present(keys.meta(id)));
        put_queued(&self.place, view, self.events, self.limit, &mut write)?;
        Ok(Plan::Write(write, self.events.iter().cloned().map(queued_item).collect()))
    }
}

/// What [`put_queued`] needs to know.
fn inbox_looks(place: &Place<'_>) -> Vec<Look> {
    let Place { keys, id, .. } = *place;
    vec![Look::Key(keys.meta(id)), Look::Key(keys.ended(id)), Look::Count(keys.inboxes(id))]
}

/// Puts events into the inbox, which has room, and rewrites the wake key.
fn put_queued(place: &Place<'_>, view: &View, events: &[NewEvent], limit: usize, write: &mut Write) -> Result<()> {
    let Place { keys, id, .. } = *place;
    if view.get(&keys.ended(id)).is_some() {
        return Err(StoreError::Ended(id.clone()));
    }
    write.guard(Guard::Absent(keys.ended(id)));
    if view.is_assumed() {
        write.guard(Guard::NoneUnder(keys.inboxes(id)));
    }
    if view.count(&keys.inboxes(id)) >= limit {
        return Err(StoreError::InboxFull { limit });
    }
    let mut bytes = 0;
    for (index, event) in events.iter().enumerate() {
        let value = encode(&Queued { index, event: event.clone() })?;
        bytes += value.len();
        write.guard(Guard::Absent(keys.inbox(id, &event.id)));
        write.guard(Guard::Absent(keys.idem(id, &event.id)));
        write.put(keys.inbox(id, &event.id), value);
    }
    limits::check_bytes(bytes)?;
    write.put(keys.wake(id), wake_value(place, view)?);
    Ok(())
}

/// A wish to queue items of `spec.input`, the first of which has the number `from`.
pub(crate) struct Deliver<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) from: u64,
    pub(crate) events: &'a [NewEvent],
    pub(crate) limit: usize,
}

impl<'a> Deliver<'a> {
    /// How many of `events`, beginning with the first, fit into one transaction.
    pub(crate) fn fitting(events: &'a [NewEvent]) -> Result<usize> {
        let (mut weight, mut bytes) = (0, 0);
        for (count, event) in events.iter().enumerate() {
            weight += limits::ENQUEUE_WEIGHT;
            bytes += encode(&Queued { index: count, event: event.clone() })?.len();
            if count > 0 && (weight > limits::MAX_WEIGHT || bytes > limits::MAX_BYTES) {
                return Ok(count);
            }
        }
        Ok(events.len())
    }

    pub(crate) fn looks(&self) -> Vec<Look> {
        inbox_looks(&self.place)
    }

    /// The count of delivered inputs after it, and whether it was this delivery that raised it.
    pub(crate) fn plan(&self, view: &View) -> Result<Plan<u64>> {
        let stored = meta(&self.place, view)?;
        let mut meta: SessionMeta = stored.decode()?;
        if meta.delivered_inputs != self.from || self.events.is_empty() {
            return Ok(Plan::Done(meta.delivered_inputs));
        }
        let mut write = Write::default();
        write.guard(Guard::Unchanged(stored.key.clone(), stored.mod_revision));
        put_queued(&self.place, view, self.events, self.limit, &mut write)?;
        let count = u64::try_from(self.events.len()).unwrap_or(u64::MAX);
        meta.delivered_inputs = meta.delivered_inputs.saturating_add(count);
        write.put(stored.key.clone(), encode(&meta)?);
        Ok(Plan::Write(write, meta.delivered_inputs))
    }
}
