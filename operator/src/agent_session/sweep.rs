//! Logs whose resource is gone are deleted. There is no finalizer, so that an uninstall never strands a namespace; the
//! sweep makes up for it.

use std::sync::Arc;
use std::time::Duration;

use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt as _};
use longhand_crds::AgentSession;
use longhand_protocol::SessionId;
use longhand_protocol::internal::SessionRef;
use tokio_util::sync::CancellationToken;

use crate::calls::call;
use crate::context::{Context, GuardedStore};
use crate::error::Error;
use crate::lists::Lists;
use crate::metrics;

const PAGE: usize = 500;

/// Sweeps every `interval` until `token` is cancelled.
pub async fn run(
    context: Arc<Context>,
    (sessions, lists): (GuardedStore<AgentSession>, Lists),
    interval: Duration,
    token: CancellationToken,
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while token.run_until_cancelled(ticks.tick()).await.is_some() {
        let sweeping = async {
            lists.whole().await?;
            sweep(&context, &sessions).await
        };
        if let Some(Err(error)) = token.run_until_cancelled(sweeping).await {
            tracing::warn!(%error, "cannot look for logs whose resource is gone");
        }
    }
}

async fn sweep(context: &Context, sessions: &GuardedStore<AgentSession>) -> Result<(), Error> {
    let mut after: Option<SessionId> = None;
    loop {
        let page = context.log.list(after.as_ref(), PAGE).await?.sessions;
        // Nothing is known of what is elsewhere.
        let seen = page.iter().filter(|log| context.scope.includes(&log.namespace));
        for log in seen.filter(|log| !is_known(sessions, log)) {
            match delete_if_orphaned(context, log).await {
                // An answer about this log alone: those after it must not stay with it. 503 is about the service.
                Err(Error::Log(error)) if error.status().is_some_and(|status| status.as_u16() != 503) => {
                    let SessionRef { session_id, namespace, name, .. } = log;
                    tracing::warn!(%session_id, namespace, name, %error, "a log whose resource is gone cannot be deleted");
                }
                other => other?,
            }
        }
        match page.last() {
            Some(last) if page.len() >= PAGE => after = Some(last.session_id.clone()),
            _ => return Ok(()),
        }
    }
}

fn is_known(sessions: &GuardedStore<AgentSession>, log: &SessionRef) -> bool {
    let key = ObjectRef::new(&log.name).within(&log.namespace);
    sessions.get(&key).is_some_and(|session| session.uid().as_deref() == Some(log.uid.as_str()))
}

/// A store may lag behind, and a deletion cannot be taken back: the API server is asked once more, and the service asks
/// again by itself.
async fn delete_if_orphaned(context: &Context, log: &SessionRef) -> Result<(), Error> {
    let SessionRef { session_id, namespace, name, uid } = log;
    let api: Api<AgentSession> = Api::namespaced(context.client.clone(), namespace);
    let found = call(|| format!("get AgentSession {namespace}/{name}"), api.get_metadata_opt(name)).await?;
    if found.is_some_and(|found| found.uid().as_deref() == Some(uid.as_str())) {
        return Ok(());
    }
    context.log.delete(session_id).await?;
    metrics::swept();
    tracing::info!(%session_id, namespace, name, "the log of a session whose resource is gone was deleted");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::runtime::{reflector, watcher};
    use longhand_crds::watch_scope::WatchScope;
    use longhand_crds::{AgentSession, derived_session_id};
    use longhand_protocol::internal::SessionRef;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::sweep;
    use crate::context::{Context, Guarded};
    use crate::fixtures;
    use crate::testing::{FakeLog, context_with, store};

    fn log(uid: &str) -> SessionRef {
        SessionRef {
            session_id: derived_session_id(uid),
            namespace: "team".into(),
            name: "quickstart".into(),
            uid: uid.into(),
        }
    }

    const PATH: &str = "/apis/longhand.dev/v1alpha1/namespaces/team/agentsessions/quickstart";

    fn not_found() -> Value {
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404, "message": "" })
    }

    fn found(uid: &str) -> Value {
        json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": { "name": "quickstart", "namespace": "team", "uid": uid } })
    }

    #[rstest]
    #[case::in_the_store("3e8f1a2b-quickstart", None, false)]
    #[case::newer_than_the_store("new", Some((200, found("new"))), false)]
    #[case::made_anew("old", Some((200, found("3e8f1a2b-quickstart"))), true)]
    #[case::gone("old", Some((404, not_found())), true)]
    #[tokio::test]
    async fn only_a_log_without_its_resource_is_deleted(
        #[case] uid: &str,
        #[case] asked: Option<(u16, Value)>,
        #[case] deleted: bool,
    ) {
        let log_service = Arc::new(FakeLog { logs: vec![log(uid)], ..FakeLog::default() });
        let (context, server) = context_with(log_service.clone());
        let (store, mut writer) = reflector::store::<Guarded<AgentSession>>();
        writer.apply_watcher_event(&watcher::Event::Init);
        writer.apply_watcher_event(&watcher::Event::InitApply(kube::core::DeserializeGuard(Ok(fixtures::session()))));
        writer.apply_watcher_event(&watcher::Event::InitDone);
        let server = server.expect(asked.map(|(status, body)| ("GET", PATH, status, body)));
        sweep(&context, &store).await.unwrap();
        assert_eq!(log_service.calls(), if deleted { vec!["list", "delete"] } else { vec!["list"] });
        server.nothing_else(context).await;
    }

    #[tokio::test]
    async fn a_log_of_a_namespace_that_is_not_watched_is_not_deleted() {
        let log_service = Arc::new(FakeLog { logs: vec![log("a")], ..FakeLog::default() });
        let (context, server) = context_with(log_service.clone());
        let context = Arc::into_inner(context).unwrap();
        let context = Context { scope: WatchScope::of(["another".to_owned()]), ..context };
        let server = server.expect([]);
        sweep(&context, &store::<Guarded<AgentSession>>([])).await.unwrap();
        assert_eq!(log_service.calls(), ["list"]);
        server.nothing_else(context).await;
    }

    #[rstest]
    #[case::a_log_of_its_own(409, &["list", "delete", "delete"], true)]
    #[case::the_service_is_away(503, &["list", "delete"], false)]
    #[tokio::test]
    async fn a_log_that_cannot_be_deleted_keeps_no_other(
        #[case] status: u16,
        #[case] calls: &[&str],
        #[case] goes_on: bool,
    ) {
        let refused = Some((derived_session_id("a"), status));
        let log_service = Arc::new(FakeLog { logs: vec![log("a"), log("b")], refused, ..FakeLog::default() });
        let (context, server) = context_with(log_service.clone());
        let server = server.expect(calls.iter().skip(1).map(|_| ("GET", PATH, 404, not_found())));
        let swept = sweep(&context, &store::<Guarded<AgentSession>>([])).await;
        assert_eq!((log_service.calls().as_slice(), swept.is_ok()), (calls, goes_on));
        server.nothing_else(context).await;
    }
}
