//! Whole logs: out as they are stored, and in.

use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use longhand_protocol::{EventId, SessionId};

use super::EtcdStore;
use super::forks::Whole;
use super::payloads::given_content;
use super::plan::{Import, Importing, Part, state, state_looks};
use super::write::Guard;
use crate::cut::Cause;
use crate::import::Incoming;
use crate::query::PAGE;
use crate::record::encode;
use crate::store::{End, Export, Exported, Result, SessionMeta, StoreError};

/// Records that are put at once, by number: each takes up to three of etcd's operations.
const PUT_AT_ONCE: usize = 40;
/// Records that are put at once, by bytes.
const PUT_BYTES: usize = 1_000_000;

impl EtcdStore {
    /// See [`crate::SessionStore::export`].
    pub(super) async fn export_log(&self, id: &SessionId) -> Result<Export> {
        let mut looks = state_looks(&self.place(id));
        looks.extend(self.whole_looks(id));
        let view = self.inner.etcd.look(&looks).await?;
        let session = state(&self.place(id), &view)?;
        let Whole { head, lineage } = self.whole_of(id, &view)?;
        let end = End { epoch: session.epoch, head: head.seq, hash: head.hash, archived_at: head.archived_at };
        let start = (self.clone(), id.clone(), lineage, 1..=head.seq);
        let pages = stream::try_unfold(start, |(store, id, lineage, rest)| async move {
            if rest.is_empty() {
                return Ok::<_, StoreError>(None);
            }
            let (first, last) = (*rest.start(), *rest.end());
            let end = last.min(first.saturating_add(PAGE - 1));
            let page = store.stored(&id, &lineage, first..=end).await?;
            Ok(Some((stream::iter(page).map(Ok), (store, id, lineage, end.saturating_add(1)..=last))))
        });
        // Contents are read one at a time, when they are taken: each may be as large as a page.
        let (store, namespace) = (self.clone(), session.meta.namespace.clone());
        let records = pages.try_flatten().and_then(move |(record, bytes)| {
            let (store, namespace) = (store.clone(), namespace.clone());
            async move { Ok(Exported { seq: record.seq, payloads: store.content(&namespace, &record).await?, bytes }) }
        });
        Ok(Export { meta: session.meta, end, records: records.boxed() })
    }

    /// See [`crate::SessionStore::import`].
    pub(super) async fn import_log(
        &self,
        meta: SessionMeta,
        end: &End,
        mut records: BoxStream<'_, Result<Exported>>,
    ) -> Result<()> {
        let id = meta.id.clone();
        // The identifier is as good a mark as any other random text.
        let importing = Importing { meta: SessionMeta { parent: None, ..meta }, import: EventId::generate().into() };
        self.import_part(&id, &importing, Part::Begin).await?;
        let mark = Guard::Holds(self.inner.keys.importing(&id), encode(&importing)?);
        if !self.clear(&id, &mark).await? {
            return Err(StoreError::Exists(id));
        }
        let (mut incoming, mut waiting, mut bytes) = (Incoming::default(), Vec::new(), 0);
        while let Some(exported) = records.next().await {
            let exported = exported?;
            let record = incoming.take(&exported)?;
            self.inner.options.caps.check_import(&id, incoming.size())?;
            if let Some(content) = given_content(&record, &exported.payloads)? {
                // Held before it is written, so that nobody can be about to remove one that is there already.
                let held = self.held(&importing.meta, &content)?;
                self.import_part(&id, &importing, Part::Hold(&held)).await?;
                self.put_content(&importing.meta, content).await?;
            }
            if waiting.len() >= PUT_AT_ONCE || bytes + exported.bytes.len() > PUT_BYTES {
                self.import_part(&id, &importing, Part::Records(&waiting)).await?;
                waiting.clear();
                bytes = 0;
            }
            bytes += exported.bytes.len();
            waiting.push((record, exported.bytes));
        }
        let complete = incoming.finish(end, importing.meta.created_at)?;
        if !waiting.is_empty() {
            self.import_part(&id, &importing, Part::Records(&waiting)).await?;
        }
        let closing = complete.cut.closing(&id, Cause::Import)?;
        let finish = Part::Finish { epoch: complete.epoch, head: &complete.head, closing: &closing };
        self.import_part(&id, &importing, finish).await
    }

    async fn import_part(&self, id: &SessionId, importing: &Importing, part: Part<'_>) -> Result<()> {
        let import = Import { place: self.place(id), importing, part };
        self.inner.etcd.carry_out(&import.looks(), None, |view| import.plan(view, Timestamp::now())).await?;
        Ok(())
    }
}
