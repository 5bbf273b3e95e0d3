//! Large events: their bodies go to the object store before the log refers to them, and come back when they are read.
//!
//! A session holds a payload by a key of its own before the payload is written, so that nothing that is referred to is
//! ever collected: a payload can be doomed only while nobody holds it, and held only while it is not doomed. A hold is
//! confirmed when the log refers to the payload; one that stays unconfirmed was left by a crash.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use longhand_protocol::event::{EventBody, NewEvent, Record};
use longhand_protocol::harness::InboxItem;
use longhand_protocol::{EventId, SessionId};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::EtcdStore;
use super::plan::{Held, Plan};
use super::view::{Look, View};
use super::write::{Guard, Write};
use crate::objects::payload::{self, Packed, Reference};
use crate::objects::{Objects, ObjectsError};
use crate::record::encode;
use crate::store::{Result, SessionMeta, StoreError};

/// Payloads that are on their way at once.
const AT_ONCE: usize = 4;
/// An inbox is given in parts that take about so many bytes.
const INBOX_BYTES: u64 = 32 * 1024 * 1024;
const PAUSE: Duration = Duration::from_millis(100);

/// The value of a key that holds a payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hold {
    /// The log, or the inbox, is known to refer to it.
    pub(super) confirmed: bool,
    /// Since when.
    pub(super) since: Timestamp,
}

/// Events as they are stored, and what their large ones were.
#[derive(Debug, Default)]
pub(super) struct Parcel<'a> {
    pub(super) events: Cow<'a, [NewEvent]>,
    namespace: String,
    large: Vec<Large>,
}

#[derive(Debug)]
struct Large {
    id: EventId,
    sha256: String,
    body: EventBody,
}

/// The name of a payload in a store of this identifier.
pub(super) fn object_name(store: &str, namespace: &str, sha256: &str) -> String {
    format!("{store}/payload/{namespace}/{sha256}")
}

impl EtcdStore {
    /// Puts the bodies of large events into the object store, held by the session. Without an object store every event
    /// stays as it is.
    pub(super) async fn pack<'a>(&self, id: &SessionId, events: &'a [NewEvent]) -> Result<Parcel<'a>> {
        let Some(objects) = &self.inner.objects else {
            return match events.iter().find(|event| payload::reference(&event.body).is_some()) {
                Some(event) => {
                    Err(StoreError::TooLarge(format!("event {} refers to a payload that is not its own", event.id)))
                }
                None => Ok(Parcel { events: Cow::Borrowed(events), ..Parcel::default() }),
            };
        };
        let mut parcel = Parcel { events: Cow::Borrowed(events), ..Parcel::default() };
        let mut payloads = Vec::new();
        for (number, event) in events.iter().enumerate() {
            let Some(Packed { event: stored, reference, payload }) = payload::pack(event)? else { continue };
            parcel.events.to_mut()[number] = stored;
            let (id, sha256, body) = (event.id.clone(), reference.sha256, event.body.clone());
            payloads.push((sha256.clone(), payload));
            parcel.large.push(Large { id, sha256, body });
        }
        if payloads.is_empty() {
            return Ok(parcel);
        }
        parcel.namespace = self.namespace(id).await?;
        let store = self.object_prefix().await?;
        self.hold(id, &parcel).await?;
        let write = |(sha256, payload): (String, _)| {
            let name = object_name(&store, &parcel.namespace, &sha256);
            async move { objects.put(&name, payload).await.map(drop) }
        };
        stream::iter(payloads.into_iter().map(write)).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        Ok(parcel)
    }

    /// Holds the payloads, as soon as none of them is doomed.
    async fn hold(&self, id: &SessionId, parcel: &Parcel<'_>) -> Result<()> {
        let keys = &self.inner.keys;
        let pair = |large: &Large| {
            let (namespace, sha256) = (&parcel.namespace, &large.sha256);
            (keys.holder(namespace, sha256, id), keys.doomed(namespace, sha256))
        };
        let pairs: BTreeSet<(String, String)> = parcel.large.iter().map(pair).collect();
        let mut looks = vec![Look::Key(keys.meta(id))];
        looks.extend(pairs.iter().flat_map(|(holder, doomed)| [holder, doomed]).cloned().map(Look::Key));
        let plan = |view: &View| {
            if view.get(&keys.meta(id)).is_none() {
                return Err(StoreError::NotFound(id.clone()));
            }
            if pairs.iter().any(|(_, doomed)| view.get(doomed).is_some()) {
                return Ok(Plan::Done(false));
            }
            let value = encode(&Hold { confirmed: false, since: Timestamp::now() })?;
            let mut write = Write::default();
            write.guard(Guard::Present(keys.meta(id)));
            for (holder, doomed) in &pairs {
                match view.get(holder) {
                    // It may be taken away if it is not confirmed, unless it is written again.
                    Some(held) => write.guard(Guard::Unchanged(holder.clone(), held.mod_revision)),
                    None => write.guard(Guard::Absent(doomed.clone())),
                };
                let confirmed = match view.get(holder) {
                    Some(held) => held.decode::<Hold>()?.confirmed,
                    None => false,
                };
                if !confirmed {
                    write.put(holder.clone(), value.clone());
                }
            }
            Ok(if write.changes.is_empty() { Plan::Done(true) } else { Plan::Write(write, true) })
        };
        let until = Instant::now() + self.inner.options.timeout.saturating_mul(2);
        while !self.inner.etcd.carry_out(&looks, None, plan).await?.0 {
            if Instant::now() >= until {
                let reason = "a payload of the same content is being removed; try again";
                return Err(StoreError::Unavailable(reason.to_owned()));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Says that the log refers to the payloads. If that fails, the collection finds it out from the log.
    pub(super) async fn confirm(&self, id: &SessionId, parcel: &Parcel<'_>) {
        if parcel.large.is_empty() {
            return;
        }
        let keys = &self.inner.keys;
        let holders: BTreeSet<String> =
            parcel.large.iter().map(|large| keys.holder(&parcel.namespace, &large.sha256, id)).collect();
        let looks: Vec<Look> = holders.iter().cloned().map(Look::Key).collect();
        let plan = |view: &View| {
            let value = encode(&Hold { confirmed: true, since: Timestamp::now() })?;
            let mut write = Write::default();
            for held in holders.iter().filter_map(|holder| view.get(holder)) {
                if !held.decode::<Hold>()?.confirmed {
                    write.guard(Guard::Unchanged(held.key.clone(), held.mod_revision));
                    write.put(held.key.clone(), value.clone());
                }
            }
            Ok(if write.changes.is_empty() { Plan::Done(()) } else { Plan::Write(write, ()) })
        };
        if let Err(error) = self.inner.etcd.carry_out(&looks, None, plan).await {
            tracing::debug!(session = %id, %error, "a payload's hold stays unconfirmed for now");
        }
    }

    /// Puts the bodies back that are stored by reference, those of `known` without reading them.
    pub(super) async fn unpack(&self, id: &SessionId, records: &mut [Record], known: &Parcel<'_>) -> Result<()> {
        let bodies: Vec<(&EventId, &mut EventBody)> =
            records.iter_mut().map(|record| (&record.event.id, &mut record.event.body)).collect();
        self.unpack_bodies(id, bodies, known).await
    }

    /// The same for queued events. As many of the first ones as one answer should hold.
    pub(super) async fn unpack_items(
        &self,
        id: &SessionId,
        items: &mut Vec<InboxItem>,
        known: &Parcel<'_>,
    ) -> Result<()> {
        let mut bytes = 0_u64;
        let fitting = items.iter().take_while(|item| {
            let fits = bytes < INBOX_BYTES;
            bytes = bytes.saturating_add(payload::reference(&item.event.body).map_or(0, |reference| reference.bytes));
            fits
        });
        items.truncate(fitting.count());
        let bodies = items.iter_mut().map(|item| (&item.event.id, &mut item.event.body)).collect();
        self.unpack_bodies(id, bodies, known).await
    }

    async fn unpack_bodies(
        &self,
        id: &SessionId,
        bodies: Vec<(&EventId, &mut EventBody)>,
        known: &Parcel<'_>,
    ) -> Result<()> {
        let originals: HashMap<&EventId, &EventBody> =
            known.large.iter().map(|large| (&large.id, &large.body)).collect();
        let (mut references, mut wanted) = (Vec::new(), Vec::new());
        for (event, body) in bodies {
            let Some(reference) = payload::reference(body) else { continue };
            match originals.get(event) {
                Some(original) => *body = EventBody::clone(original),
                None => {
                    references.push(reference);
                    wanted.push(body);
                }
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let namespace = self.namespace(id).await?;
        let reading = references.into_iter().map(|reference| self.payload(&namespace, reference));
        let read: Vec<EventBody> = stream::iter(reading).buffered(AT_ONCE).try_collect().await?;
        for (body, read) in wanted.into_iter().zip(read) {
            *body = read;
        }
        Ok(())
    }

    async fn payload(&self, namespace: &str, reference: Reference) -> Result<EventBody> {
        let name = object_name(&self.object_prefix().await?, namespace, &reference.sha256);
        let content = self.objects()?.get(&name, reference.bytes, &reference.sha256).await?;
        payload::unpack(&name, &content)
    }

    /// What a record refers to, if it does.
    pub(super) async fn content(&self, namespace: &str, record: &Record) -> Result<Vec<Vec<u8>>> {
        let Some(reference) = payload::reference(&record.event.body) else { return Ok(Vec::new()) };
        let name = object_name(&self.object_prefix().await?, namespace, &reference.sha256);
        let content = self.objects()?.get(&name, reference.bytes, &reference.sha256).await?;
        Ok(vec![content.to_vec()])
    }

    /// By which key an imported session holds a content, and which one forbids it. That the log refers to it is found out
    /// when the import has ended.
    pub(super) fn held(&self, meta: &SessionMeta, content: &Given) -> Result<Held> {
        let keys = &self.inner.keys;
        Ok(Held {
            holder: keys.holder(&meta.namespace, &content.sha256, &meta.id),
            doomed: keys.doomed(&meta.namespace, &content.sha256),
            value: encode(&Hold { confirmed: false, since: Timestamp::now() })?,
        })
    }

    /// Puts what an imported record refers to.
    pub(super) async fn put_content(&self, meta: &SessionMeta, content: Given) -> Result<()> {
        let name = object_name(&self.object_prefix().await?, &meta.namespace, &content.sha256);
        self.objects()?.put(&name, content.bytes).await?;
        Ok(())
    }

    /// The object store.
    pub(super) fn objects(&self) -> Result<&Objects> {
        self.inner.objects.as_ref().ok_or_else(|| {
            StoreError::Unavailable("a part of the log is in an object store, and none is configured".to_owned())
        })
    }

    /// What every object of this log begins with: an identifier that is in etcd, made by whoever needs it first.
    pub(super) async fn object_prefix(&self) -> Result<Arc<str>> {
        let made = self.inner.object_prefix.get_or_try_init(|| async {
            let candidate = SessionId::generate().to_string();
            let candidate = candidate.rsplit('_').next().unwrap_or_default().to_owned();
            let stored = self.get_or_create("objects", candidate.as_bytes()).await?;
            let text = String::from_utf8_lossy(&stored).into_owned();
            if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                let reason = format!("{text:?} is no name for a folder of objects");
                return Err(StoreError::Corrupt { key: self.inner.keys.service("objects"), reason });
            }
            Ok(Arc::<str>::from(text))
        });
        made.await.cloned()
    }

    async fn namespace(&self, id: &SessionId) -> Result<String> {
        let meta = self.inner.keys.meta(id);
        let view = self.inner.etcd.look(&[Look::Key(meta.clone())]).await?;
        let meta: SessionMeta = view.get(&meta).ok_or_else(|| StoreError::NotFound(id.clone()))?.decode()?;
        Ok(meta.namespace)
    }
}

/// What comes with an imported record.
pub(super) struct Given {
    sha256: String,
    bytes: Bytes,
}

/// The content that an imported record refers to, if it does.
pub(super) fn given_content(record: &Record, given: &[Vec<u8>]) -> Result<Option<Given>> {
    let Some(Reference { sha256, .. }) = payload::reference(&record.event.body) else { return Ok(None) };
    match given.iter().find(|content| crate::record::hash(content) == sha256) {
        Some(content) => Ok(Some(Given { sha256, bytes: content.clone().into() })),
        None => Err(StoreError::BadImport(format!(
            "event {} refers to the content {sha256}, which is not there",
            record.seq
        ))),
    }
}

/// Whether the object was not there.
pub(super) fn is_missing(error: &ObjectsError) -> bool {
    matches!(error, ObjectsError::NotFound { .. })
}
