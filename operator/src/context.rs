//! What every reconcile has at hand.

use std::sync::Arc;

use kube::runtime::reflector::Store;
use kube::{Client, Resource};
use longhand_crds::default_model::DefaultModel;
use longhand_crds::watch_scope::WatchScope;

use crate::config::{Fencing, Images, Tracing, WayOut};
use crate::events::Events;
use crate::log_service::LogService;
use crate::nodes::Nodes;

/// What every reconcile has at hand.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The session service.
    pub log: Arc<dyn LogService>,
    /// Tells what happened.
    pub events: Events,
    /// The namespaces whose objects are reconciled.
    pub scope: WatchScope,
    /// The namespace that Longhand is installed in.
    pub namespace: String,
    /// The session service, as harness pods reach it.
    pub session_url: String,
    /// The authority that it is known by, certificates in PEM.
    pub session_ca: Option<String>,
    /// What pods are made of.
    pub images: Images,
    /// What sandboxes are told of the fence around them.
    pub fencing: Fencing,
    /// How what goes through the credential proxies leaves the cluster.
    pub way_out: WayOut,
    /// Where spans of traces go.
    pub tracing: Tracing,
    /// What agents without a credential of their own are run with.
    pub default_model: Option<DefaultModel>,
    /// What nodes are able to.
    pub nodes: Nodes,
}

impl Context {
    /// What pods of sandboxes are made of, besides their template.
    #[must_use]
    pub const fn parts(&self) -> (&Images, &Fencing) {
        (&self.images, &self.fencing)
    }
}

/// A store of a kind that one undecodable object does not break.
pub type GuardedStore<K> = Store<Guarded<K>>;
/// An object, or what is wrong with it.
pub type Guarded<K> = kube::core::DeserializeGuard<K>;

/// The object of this name, if there is one that can be read.
#[must_use]
pub fn lookup<K>(store: &GuardedStore<K>, namespace: &str, name: &str) -> Option<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let key = kube::runtime::reflector::ObjectRef::new(name).within(namespace);
    store.get(&key).and_then(|object| object.0.clone().ok())
}
