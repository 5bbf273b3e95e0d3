//! Which sessions a change elsewhere concerns.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use futures::channel::mpsc::{UnboundedReceiver, unbounded};
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Resource as _, ResourceExt as _};
use longhand_crds::default_model::DefaultModel;
use longhand_crds::{Agent, AgentSession, SandboxTemplate, Vault};

use crate::agent::references;
use crate::context::{Guarded, GuardedStore};

type Root = Guarded<AgentSession>;

/// Sessions of an agent that appeared, changed or went.
pub(super) fn by_agent(
    sessions: GuardedStore<AgentSession>,
    store: GuardedStore<Agent>,
    agents: impl Stream<Item = watcher::Result<Guarded<Agent>>> + Send + 'static,
) -> impl Stream<Item = ObjectRef<Root>> + Send + 'static {
    concerned(sessions, news(store, agents), |session, agent| session.spec.agent_ref.name == agent)
}

/// The UID, the generation, and a hash of the annotations.
type Version = (Option<String>, Option<i64>, u64);

/// What sessions need to know: of an agent and of a vault they read all but the status. That of an agent with pods that are ready
/// changes often, and that of a vault by what sessions tell.
fn news<K>(
    store: GuardedStore<K>,
    objects: impl Stream<Item = watcher::Result<Guarded<K>>> + Send + 'static,
) -> impl Stream<Item = watcher::Result<Guarded<K>>> + Send + 'static
where
    Guarded<K>: kube::Resource<DynamicType = ()> + Clone,
    K: Send + Sync + 'static,
{
    let mut known = HashMap::new();
    objects.filter(move |object| {
        std::future::ready(object.as_ref().map_or(true, |object| is_news(&mut known, &store, object)))
    })
}

fn is_news<K>(
    known: &mut HashMap<ObjectRef<Guarded<K>>, Version>,
    objects: &GuardedStore<K>,
    object: &Guarded<K>,
) -> bool
where
    Guarded<K>: kube::Resource<DynamicType = ()> + Clone,
{
    let (name, meta) = (ObjectRef::from_obj(object), object.meta());
    if objects.get(&name).is_none() {
        known.remove(&name);
        return true;
    }
    let mut annotations = DefaultHasher::new();
    meta.annotations.hash(&mut annotations);
    let now = (meta.uid.clone(), meta.generation, annotations.finish());
    known.insert(name, now.clone()) != Some(now)
}

/// Sessions whose pod appeared, changed or went: the one that a pod was made for, or those that one serves that was made for
/// none.
pub(super) fn by_pod(
    sessions: GuardedStore<AgentSession>,
    pods: impl Stream<Item = watcher::Result<Pod>> + Send + 'static,
) -> impl Stream<Item = ObjectRef<Root>> + Send + 'static {
    pods.filter_map(async |pod| pod.ok()).flat_map(move |pod| {
        let namespace = pod.namespace();
        let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
        let concerned: Vec<ObjectRef<Root>> = match owner {
            Some(owner) if owner.kind == AgentSession::kind(&()) => {
                vec![ObjectRef::new(&owner.name).within(namespace.as_deref().unwrap_or_default())]
            }
            _ => {
                let serves = |session: &Guarded<AgentSession>| {
                    let harness = session.0.as_ref().ok().and_then(|session| session.status.as_ref()?.harness.as_ref());
                    session.namespace() == namespace
                        && harness.is_some_and(|harness| harness.warm && harness.pod_uid == pod.metadata.uid)
                };
                sessions.state_filter(serves).iter().map(|session| ObjectRef::from_obj(&**session)).collect()
            }
        };
        stream::iter(concerned)
    })
}

/// The agents of which a pod that was not made for a session was taken or given back, once the store of sessions has it.
pub(super) fn taken(
    sessions: impl Stream<Item = watcher::Result<Root>> + Send + 'static,
) -> (UnboundedReceiver<ObjectRef<Guarded<Agent>>>, impl Stream<Item = watcher::Result<Root>> + Send + 'static) {
    let (tell, taken) = unbounded();
    let mut served = Served::new();
    let sessions = sessions.inspect_ok(move |session: &Root| {
        if let Some(agent) = changed(&mut served, session) {
            // An error says that the controller of agents has ended.
            let _ = tell.unbounded_send(ObjectRef::new(&agent).within(&session.namespace().unwrap_or_default()));
        }
    });
    (taken, sessions)
}

/// By the UID of a session: the pod that serves it and was not made for it, and the pod's agent.
type Served = HashMap<String, (String, String)>;

/// The agent that a session has a pod of, or has it no more, if that is news.
fn changed(served: &mut Served, session: &Root) -> Option<String> {
    let uid = session.uid().unwrap_or_default();
    let Ok(session) = &session.0 else {
        // Of one that went while a watch had lost its place no more is known than what it was called.
        return served.remove(&uid).map(|(_, agent)| agent);
    };
    let harness = session.status.as_ref().and_then(|status| status.harness.as_ref());
    let serving = harness.filter(|harness| harness.warm).and_then(|harness| harness.pod_uid.clone());
    let deleted = session.metadata.deletion_timestamp.is_some();
    let agent = &session.spec.agent_ref.name;
    let was = match serving.clone().filter(|_| !deleted) {
        Some(pod) => served.insert(uid, (pod, agent.clone())),
        None => served.remove(&uid),
    };
    (was.map(|(pod, _)| pod) != serving || deleted).then(|| agent.clone())
}

/// Sessions that name a vault that appeared, changed or went, or whose agent does.
pub(super) fn by_vault(
    sessions: GuardedStore<AgentSession>,
    agents: GuardedStore<Agent>,
    (store, vaults): (GuardedStore<Vault>, impl Stream<Item = watcher::Result<Guarded<Vault>>> + Send + 'static),
    default: Option<DefaultModel>,
) -> impl Stream<Item = ObjectRef<Root>> + Send + 'static {
    concerned(sessions, news(store, vaults), move |session, vault| {
        let namespace = session.namespace().unwrap_or_default();
        crate::context::lookup(&agents, &namespace, &session.spec.agent_ref.name)
            .is_some_and(|agent| references::uses(&agent, default.as_ref(), vault))
            || session.spec.vault_refs.iter().any(|named| named.name == vault)
    })
}

/// Sessions with a sandbox of a template that appeared, changed or went.
pub(super) fn by_template(
    sessions: GuardedStore<AgentSession>,
    templates: impl Stream<Item = watcher::Result<Guarded<SandboxTemplate>>> + Send + 'static,
) -> impl Stream<Item = ObjectRef<Root>> + Send + 'static {
    concerned(sessions, templates, |session, template| {
        session.spec.sandboxes.iter().any(|sandbox| sandbox.template_ref.name == template)
    })
}

/// Sessions of the same namespace that `uses` says so of, for each object; failed watches are counted where they fail.
fn concerned<K>(
    sessions: GuardedStore<AgentSession>,
    objects: impl Stream<Item = watcher::Result<K>> + Send + 'static,
    uses: impl Fn(&AgentSession, &str) -> bool + Send + Sync + 'static,
) -> impl Stream<Item = ObjectRef<Root>> + Send + 'static
where
    K: kube::Resource<DynamicType = ()> + Send + 'static,
{
    objects.filter_map(async |object| object.ok()).flat_map(move |object| {
        let (namespace, name) = (object.namespace(), object.name_any());
        let users = sessions.state_filter(|session| {
            session.namespace() == namespace && session.0.as_ref().is_ok_and(|session| uses(session, &name))
        });
        stream::iter(users.into_iter().map(|session| ObjectRef::from_obj(&*session)).collect::<Vec<_>>())
    })
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, stream};
    use k8s_openapi::api::core::v1::Pod;
    use kube::core::DeserializeGuard;
    use longhand_crds::agent_session::HarnessStatus;
    use longhand_crds::watch_scope::Remembered as _;
    use longhand_crds::{Agent, AgentSession, AgentStatus, Vault};
    use serde_json::json;

    use super::{Root, by_agent, by_pod, by_vault, taken};
    use crate::context::Guarded;
    use crate::fixtures;
    use crate::testing::store;

    fn session(warm: Option<&str>) -> Root {
        let mut session = fixtures::session();
        session.status.get_or_insert_default().harness =
            warm.map(|uid| HarnessStatus { pod_uid: Some(uid.to_owned()), warm: true, ..HarnessStatus::default() });
        DeserializeGuard(Ok(session))
    }

    fn pod(kind: &str, owner: &str, uid: &str) -> Pod {
        let owner = json!({ "apiVersion": "longhand.dev/v1alpha1", "kind": kind, "name": owner, "uid": "u", "controller": true });
        serde_json::from_value(
            json!({ "metadata": { "name": "p", "namespace": "team", "uid": uid, "ownerReferences": [owner] } }),
        )
        .unwrap()
    }

    #[tokio::test]
    async fn an_agent_is_told_when_a_session_gets_a_ready_pod_and_gives_it_back() {
        let seen = [None, Some("w"), Some("w"), Some("v"), None, None];
        let (told, sessions) = taken(stream::iter(seen.map(|pod| Ok(session(pod)))));
        // To each change belongs one that is told.
        assert_eq!(sessions.count().await, seen.len());
        let told: Vec<String> = told.map(|agent| agent.name).collect().await;
        assert_eq!(told, ["coder", "coder", "coder"]);
    }

    #[tokio::test]
    async fn an_agent_is_told_of_a_session_that_went_while_nobody_watched() {
        let serving = session(Some("w"));
        let (told, sessions) = taken(stream::iter([Ok(serving.clone()), Ok(serving.reduced()), Ok(serving.reduced())]));
        assert_eq!(sessions.count().await, 3);
        let told: Vec<_> = told.map(|agent| (agent.namespace, agent.name)).collect().await;
        let coder = (Some("team".to_owned()), "coder".to_owned());
        assert_eq!(told, [coder.clone(), coder]);
    }

    #[tokio::test]
    async fn a_pod_concerns_the_session_that_it_was_made_for_or_those_that_it_serves() {
        let sessions = store([session(Some("w"))]);
        let pods = [
            pod("AgentSession", "another", "own"),
            pod("Agent", "coder", "w"),
            pod("Agent", "coder", "v"),
            pod("Agent", "coder", "w"),
        ];
        let concerned: Vec<String> =
            by_pod(sessions, stream::iter(pods.map(Ok))).map(|session| session.name).collect().await;
        assert_eq!(concerned, ["another", "quickstart", "quickstart"]);
    }

    #[tokio::test]
    async fn what_an_agent_s_pods_do_is_no_news_to_its_sessions() {
        let agent = |generation: i64, ready: i32| -> Guarded<Agent> {
            let mut agent = fixtures::agent();
            agent.metadata.generation = Some(generation);
            agent.status = Some(AgentStatus { warm_ready: ready, ..AgentStatus::default() });
            DeserializeGuard(Ok(agent))
        };
        let sessions = store([DeserializeGuard(Ok::<AgentSession, _>(fixtures::session()))]);
        let seen = [agent(1, 0), agent(1, 1), agent(2, 1), agent(2, 0)];
        let told = by_agent(sessions.clone(), store([agent(1, 0)]), stream::iter(seen.clone().map(Ok)));
        assert_eq!(told.count().await, 2);
        let gone = by_agent(sessions, store([]), stream::iter(seen.map(Ok)));
        assert_eq!(gone.count().await, 4, "one that is gone is always told");
    }

    #[tokio::test]
    async fn what_is_seen_of_a_vault_s_credentials_is_no_news_to_those_who_saw_it() {
        let vault = |generation: i64, note: &str, observed: i64| -> Guarded<Vault> {
            let mut vault = fixtures::vault();
            vault.metadata.generation = Some(generation);
            vault.metadata.annotations = Some([("longhand.dev/refresh".to_owned(), note.to_owned())].into());
            vault.status.get_or_insert_default().observed_generation = Some(observed);
            DeserializeGuard(Ok(vault))
        };
        let sessions = store([DeserializeGuard(Ok::<AgentSession, _>(fixtures::session()))]);
        let agents = store([DeserializeGuard(Ok(fixtures::agent()))]);
        let seen = [vault(1, "a", 0), vault(1, "a", 1), vault(1, "b", 1), vault(2, "b", 1)];
        let told = |there| {
            let vaults = (there, stream::iter(seen.clone().map(Ok)));
            by_vault(sessions.clone(), agents.clone(), vaults, None).count()
        };
        assert_eq!(told(store([vault(1, "a", 0)])).await, 3);
        assert_eq!(told(store([])).await, 4, "one that is gone is always told");
    }
}
