//! Tool calls of self-hosted environments: a worker of somebody else reads them from the log and writes their results to
//! it; the service only sees to it that there is work for a worker, and says so when the worker is lost.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use jiff::Timestamp;
use longhand_protocol::Record;
use longhand_protocol::event::without_result::{self, STOPPED_BEFORE};
use longhand_protocol::event::{EventBody, NewEvent};
use longhand_session_log::StoreError;
use longhand_session_log::store::{CallState, FinishFrom, Incarnation, SessionMeta};
use longhand_session_log::work::{Queue, Work, WorkItem};
use tokio::time::{Instant, sleep, timeout};

use super::ExecuteError;
use super::plan;
use super::run::{Call, Labelled};
use crate::cache::TtlCache;
use crate::resources::Resources;
use crate::resources::templates::Templates;

/// Work that is lost is noticed this late at the most.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
const KNOWN: usize = 4_096;
/// Whether an environment is self-hosted does not change; that there is none yet may.
const KNOWN_FOR: Duration = Duration::from_secs(60);

/// Which environments are self-hosted, and their queues.
pub struct Hosted {
    /// The queues.
    pub work: Work,
    resources: Arc<dyn Resources>,
    pub(super) templates: Arc<dyn Templates>,
    known: TtlCache<(String, String), Option<Queue>>,
}

impl Hosted {
    /// Looks environments up in `templates`, and what a session's sandboxes are made of in `resources`.
    #[must_use]
    pub fn new(work: Work, resources: Arc<dyn Resources>, templates: Arc<dyn Templates>) -> Self {
        Self { work, resources, templates, known: TtlCache::new(KNOWN) }
    }

    /// The queue for the calls of a session's sandbox, if its environment is self-hosted.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn queue(&self, meta: &SessionMeta, sandbox: &str) -> Result<Option<Queue>, ExecuteError> {
        let key = (meta.uid.clone(), sandbox.to_owned());
        if let Some(known) = self.known.get(&key) {
            return Ok(known);
        }
        let Some(session) = self.resources.session(&meta.namespace, &meta.name).await? else { return Ok(None) };
        let Some(found) = session.spec.sandboxes.iter().find(|found| found.name == sandbox) else { return Ok(None) };
        let template = self.templates.template(&meta.namespace, &found.template_ref.name).await?;
        let Some(template) = template else { return Ok(None) };
        let queue =
            template.self_hosted.then(|| Queue { namespace: meta.namespace.clone(), environment: template.name });
        self.known.put(key, queue.clone(), KNOWN_FOR);
        Ok(queue)
    }

    /// The queue of the call with this intent, if its environment is self-hosted.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn queue_of(&self, meta: &SessionMeta, intent: &EventBody) -> Result<Option<Queue>, ExecuteError> {
        match plan::intent(intent, meta) {
            Some(Ok(intent)) => self.queue(meta, &intent.sandbox).await,
            Some(Err(_)) | None => Ok(None),
        }
    }
}

/// How the log names a worker.
fn incarnation(item: &WorkItem, attempt: u64) -> Incarnation {
    Incarnation { sandbox: item.id.clone(), pod_uid: attempt.to_string(), attempt: "worker".to_owned() }
}

impl Call<'_> {
    /// Sees to it that the session has a piece of work until the call has a result.
    pub(super) async fn hosted(&self, queue: &Queue) -> Result<Labelled, ExecuteError> {
        let hosted = &self.executor.hosted;
        let until = Instant::now() + self.executor.limits.tool;
        let mut news = self.news().await?;
        loop {
            let over = Instant::now() >= until;
            match self.executor.store.call(&self.session, &self.call).await? {
                CallState::Finished { seq } => return self.finished(seq).await,
                CallState::Open if self.interrupted.is_cancelled() => {
                    let result = vec![plan::hosted_result(&self.call, STOPPED_BEFORE)];
                    return self.finish("interrupted", FinishFrom::Open, result).await;
                }
                CallState::Open if over => {
                    let text = format!(
                        "The call was not run: no worker of the self-hosted environment {} took it within {} s.",
                        queue.environment,
                        self.executor.limits.tool.as_secs()
                    );
                    let result = vec![plan::hosted_result(&self.call, &text)];
                    return self.finish("no_worker", FinishFrom::Open, result).await;
                }
                CallState::Open => {
                    let item = hosted.work.ensure(queue, &self.session).await?;
                    // From here on it may have begun to run it, and only it may say how that ended.
                    if let Some(attempt) = item.served_by(Timestamp::now()) {
                        match self.give(&incarnation(&item, attempt)).await {
                            Ok(()) | Err(StoreError::CallState { .. }) => continue,
                            Err(error) => return Err(error.into()),
                        }
                    }
                }
                CallState::Dispatched { incarnation: given } => {
                    let item = hosted.work.latest(queue, &self.session).await?;
                    let serves = item.and_then(|item| Some(incarnation(&item, item.served_by(Timestamp::now())?)));
                    let lost = serves.as_ref() != Some(&given);
                    if lost || over {
                        let cause =
                            if lost { "its worker was lost or has stopped".to_owned() } else { self.too_long() };
                        return self.unanswered(given, &cause).await;
                    }
                }
            }
            self.wait(&mut news).await?;
        }
    }

    async fn unanswered(&self, given: Incarnation, cause: &str) -> Result<Labelled, ExecuteError> {
        let text = without_result::outcome_unknown(cause);
        let body = EventBody::ToolOutcomeUnknown { tool_use_id: self.call.clone(), cause: cause.to_owned() };
        let events = vec![NewEvent::new(body), plan::hosted_result(&self.call, &text)];
        self.finish("unknown", FinishFrom::Dispatched(given), events).await
    }

    async fn news(&self) -> Result<BoxStream<'static, Result<Record, StoreError>>, ExecuteError> {
        let head = self.executor.store.state(&self.session).await?.head;
        Ok(self.executor.store.tail(&self.session, head).await?)
    }

    /// Returns when the log has grown, or it is time to look at the worker.
    async fn wait(&self, news: &mut BoxStream<'static, Result<Record, StoreError>>) -> Result<(), ExecuteError> {
        if let Ok(None | Some(Err(_))) = timeout(LOOK_AGAIN, news.next()).await {
            sleep(LOOK_AGAIN).await;
            *news = self.news().await?;
        }
        Ok(())
    }
}
