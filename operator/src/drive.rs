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
use crate::lists::{Listing, Lists};
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

/// What a watch gives: a store, and the objects that changed, after the store has them; those of a list come before it is whole.
pub type Watched<K, S> = (Store<K>, S);

/// Watches every object of a kind that matches, where this operator is to look; its lists are among `lists`.
pub fn watch<K>(
    context: &Context,
    config: &watcher::Config,
    lists: &mut Lists,
) -> Watched<K, impl Stream<Item = watcher::Result<K>> + Send + 'static + use<K>>
where
    K: Remembered + Sync,
{
    let (store, writer) = reflector::store();
    let events =
        context.scope.events(&context.client, config).modify(|object: &mut K| object.managed_fields_mut().clear());
    (store, touched(events, writer, lists.begin()))
}

/// The objects that changed, after `writer` has put them into its store, or, those of a list, before; `listing` is told when one is
/// whole.
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

/// Reconciles once `lists` are whole, and everything when one of them is made again, until `token` is cancelled and what is under
/// way has ended.
pub async fn run<K, C, F, R>(
    controller: Controller<Guarded<K>>,
    lists: Lists,
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
    let lists = Arc::new(lists);
    let known = lists.clone();
    let timed = move |object: Arc<Guarded<K>>, context: Arc<C>| {
        let (reconcile, known) = (reconcile.clone(), known.clone());
        async move {
            let object = match &object.0 {
                Ok(object) => Arc::new(object.clone()),
                Err(error) => {
                    tracing::warn!(kind, name = error.metadata.name, %error, "an object cannot be read");
                    return Ok(Action::await_change());
                }
            };
            let started = Instant::now();
            let result = match known.whole().await {
                Ok(()) => reconcile(object, context).await,
                Err(error) => Err(error),
            };
            metrics::reconciled(kind, result.is_ok(), started.elapsed());
            result
        }
    };
    let running = controller
        .reconcile_all_on(lists.again())
        .trigger_backoff(NoPause)
        .with_config(controller::Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(token.clone().cancelled_owned())
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
        });
    // A controller that was told to end asks its watches no more, and would wait for their first lists for ever.
    let not_begun = async {
        token.cancelled().await;
        if lists.are_whole() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = running => {}
        () = not_begun => {}
    }
}

/// An action that comes back after `delay`, or only when something changes.
#[must_use]
pub fn action(delay: Option<Duration>) -> Action {
    delay.map_or_else(Action::await_change, Action::requeue)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;
    use std::time::Duration;

    use futures::{StreamExt as _, stream};
    use kube::ResourceExt as _;
    use kube::core::DeserializeGuard;
    use kube::runtime::controller::{Action, Controller};
    use kube::runtime::reflector::{self, ObjectRef};
    use kube::runtime::watcher;
    use longhand_crds::Vault;
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    use super::touched;
    use crate::context::Guarded;
    use crate::fixtures;
    use crate::lists::Lists;
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
        super::run(controller, Lists::default(), Arc::new(token.clone()), token, reconcile).await;
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    fn vault(name: &str) -> Guarded<Vault> {
        let mut vault = fixtures::vault();
        vault.metadata.name = Some(name.to_owned());
        DeserializeGuard(Ok(vault))
    }

    fn list(vaults: &[&str]) -> Vec<watcher::Event<Guarded<Vault>>> {
        let objects = vaults.iter().map(|name| watcher::Event::InitApply(vault(name)));
        std::iter::once(watcher::Event::Init).chain(objects).chain([watcher::Event::InitDone]).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_controller_that_is_told_to_end_before_it_has_begun_ends() {
        let mut lists = Lists::default();
        let (root, writer) = reflector::store();
        let begun = list(&["models"]).into_iter().take(2).map(Ok);
        let events = touched(stream::iter(begun).chain(stream::pending()), writer, lists.begin());
        let token = CancellationToken::new();
        let reconcile = |_: Arc<Vault>, _: Arc<()>| async { Ok(Action::await_change()) };
        let run = super::run(Controller::for_stream(events, root), lists, Arc::new(()), token.clone(), reconcile);
        let run = tokio::spawn(run);
        tokio::task::yield_now().await;
        token.cancel();
        tokio::time::timeout(Duration::from_secs(1), run).await.expect("it waits for its list").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_decided_before_all_lists_are_whole_and_all_is_again_when_one_is_made_again() {
        let mut lists = Lists::default();
        let (root, writer) = reflector::store();
        let events = stream::iter(list(&["one", "two"]).into_iter().map(Ok)).chain(stream::pending());
        let events = touched(events, writer, lists.begin());
        let other = lists.begin();
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let reconcile = |vault: Arc<Vault>, tell: Arc<tokio::sync::mpsc::UnboundedSender<String>>| async move {
            tell.send(vault.name_any()).unwrap();
            Ok(Action::await_change())
        };
        let token = CancellationToken::new();
        let run = super::run(Controller::for_stream(events, root), lists, Arc::new(tell), token.clone(), reconcile);
        let run = tokio::spawn(run);
        let second = Duration::from_secs(1);
        assert!(tokio::time::timeout(second, told.recv()).await.is_err(), "one list is not whole");
        for _ in ["the first list", "another one, from which something is gone"] {
            other.saw(&watcher::Event::<Guarded<Vault>>::InitDone);
            let mut both = HashSet::new();
            for _ in 0..2 {
                both.insert(tokio::time::timeout(second, told.recv()).await.expect("nobody is told").unwrap());
            }
            assert_eq!(both, HashSet::from(["one".to_owned(), "two".to_owned()]));
        }
        token.cancel();
        tokio::time::timeout(second, run).await.unwrap().unwrap();
    }
}
