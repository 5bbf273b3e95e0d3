//! Which sessions a change elsewhere concerns.

use futures::{Stream, StreamExt as _, stream};
use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use longhand_crds::default_model::DefaultModel;
use longhand_crds::{Agent, AgentSession, SandboxTemplate, Vault};

use crate::agent::references;
use crate::context::{Guarded, GuardedStore};

type Root = Guarded<AgentSession>;

/// Sessions of an agent that appeared, changed or went.
pub(super) fn by_agent(
    sessions: GuardedStore<AgentSession>,
    agents: impl Stream<Item = watcher::Result<Guarded<Agent>>> + Send + 'static,
) -> impl Stream<Item = ObjectRef<Root>> + Send + 'static {
    concerned(sessions, agents, |session, agent| session.spec.agent_ref.name == agent)
}

/// Sessions that name a vault that appeared, changed or went, or whose agent does.
pub(super) fn by_vault(
    sessions: GuardedStore<AgentSession>,
    agents: GuardedStore<Agent>,
    vaults: impl Stream<Item = watcher::Result<Guarded<Vault>>> + Send + 'static,
    default: Option<DefaultModel>,
) -> impl Stream<Item = ObjectRef<Root>> + Send + 'static {
    concerned(sessions, vaults, move |session, vault| {
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
