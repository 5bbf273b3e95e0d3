//! How a kind's controller is run.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, Store};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt as _, controller, watcher};
use kube::{Resource, ResourceExt as _};
use longhand_crds::watch_scope::Remembered;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, Guarded};
use crate::error::Error;
use crate::first_list::{FirstLists, Listing};
use crate::metrics;

/// How many objects of a kind are reconciled at once.
const CONCURRENCY: u16 = 16;

/// Every watch already waits before it begins again. The controller's own pause would come on top, for all watches together:
/// while one fails, no pod's change and no wake would get through.
struct NoPause;

impl Iterator for NoPause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
}

impl Backoff for NoPause {
    fn reset(&mut self) {}
}

/// What a watch gives: a store, and the objects that changed, after the store has them.
pub type Watched<K, S> = (Store<K>, S);

/// Watches every object of a kind that matches, where this operator is to look; its first list is one of `lists`.
pub fn watch<K>(
    context: &Context,
    config: &watcher::Config,
    lists: &mut FirstLists,
) -> Watched<K, impl Stream<Item = watcher::Result<K>> + Send + 'static + use<K>>
where
    K: Remembered + Sync,
{
    let (store, writer) = reflector::store();
    let events =
        context.scope.events(&context.client, config).modify(|object: &mut K| object.managed_fields_mut().clear());
    (store, touched(events, writer, lists.begin()))
}

/// The objects that changed, after `writer` has put them into its store, and `listing` knows when the first list is whole.
pub(crate) fn touched<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    writer: Writer<K>,
    listing: Listing,
) -> impl Stream<Item = watcher::Result<K>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let kind = kind_label::<K>();
    events.reflect(writer).inspect_ok(move |event| listing.saw(event)).touched_objects().inspect_err(move |error| {
        metrics::watch_error(kind);
        tracing::warn!(kind, %error, "a watch broke and is begun again");
    })
}

/// The kinds that are watched, as labels of metrics.
fn kind_label<K: Resource<DynamicType = ()>>() -> &'static str {
    match &*K::kind(&()) {
        "Agent" => "Agent",
        "AgentSession" => "AgentSession",
        "Sandbox" => "Sandbox",
        "SandboxTemplate" => "SandboxTemplate",
        "Vault" => "Vault",
        "Pod" => "Pod",
        "PersistentVolumeClaim" => "PersistentVolumeClaim",
        "NetworkPolicy" => "NetworkPolicy",
        _ => "other",
    }
}

/// Reconciles until `token` is cancelled and what is under way has ended.
pub async fn run<K, C, F, R>(
    controller: Controller<Guarded<K>>,
    context: Arc<C>,
    token: CancellationToken,
    reconcile: F,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    C: Send + Sync + 'static,
    F: Fn(Arc<K>, Arc<C>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Action, Error>> + Send + 'static,
{
    let kind = kind_label::<K>();
    let timed = move |object: Arc<Guarded<K>>, context: Arc<C>| {
        let reconcile = reconcile.clone();
        async move {
            let object = match &object.0 {
                Ok(object) => Arc::new(object.clone()),
                Err(error) => {
                    tracing::warn!(kind, name = error.metadata.name, %error, "an object cannot be read");
                    return Ok(Action::await_change());
                }
            };
            let started = Instant::now();
            let result = reconcile(object, context).await;
            metrics::reconciled(kind, result.is_ok(), started.elapsed());
            result
        }
    };
    controller
        .trigger_backoff(NoPause)
        .with_config(controller::Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(token.cancelled_owned())
        .run(timed, |_, error: &Error, _| Action::requeue(error.retry_after()), context)
        .for_each(|result| {
            match result {
                Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
                Err(controller::Error::ReconcilerFailed(error, object)) => {
                    tracing::warn!(kind, namespace = object.namespace, name = object.name, %error, "a reconcile failed");
                }
                Err(error) => tracing::warn!(kind, %error, "the controller"),
            }
            std::future::ready(())
        })
        .await;
}

/// An action that comes back after `delay`, or only when something changes.
#[must_use]
pub fn action(delay: Option<Duration>) -> Action {
    delay.map_or_else(Action::await_change, Action::requeue)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures::{StreamExt as _, stream};
    use kube::core::DeserializeGuard;
    use kube::runtime::controller::{Action, Controller};
    use kube::runtime::reflector::ObjectRef;
    use kube::runtime::watcher;
    use longhand_crds::Vault;
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    use crate::context::Guarded;
    use crate::fixtures;
    use crate::testing::store;

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_fails_holds_no_other_back() {
        let failing = stream::repeat_with(|| Err::<Guarded<Vault>, _>(watcher::Error::NoResourceVersion)).take(8);
        let vault = DeserializeGuard(Ok(fixtures::vault()));
        let wakes = stream::once(async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            ObjectRef::new("models").within("team")
        });
        let controller = Controller::for_stream(failing.chain(stream::pending()), store([vault]))
            .reconcile_on(wakes.chain(stream::pending()));
        let (token, begun) = (CancellationToken::new(), Instant::now());
        let reconcile = |_: Arc<Vault>, token: Arc<CancellationToken>| async move {
            token.cancel();
            Ok(Action::await_change())
        };
        super::run(controller, Arc::new(token.clone()), token, reconcile).await;
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
}
