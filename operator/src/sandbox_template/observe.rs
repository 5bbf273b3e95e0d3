//! What there is of a template's pool.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::ResourceExt as _;
use kube::runtime::reflector::ObjectRef;
use longhand_crds::{SandboxTemplate, labels};

use super::Pools;
use crate::conditions::Observation;
use crate::pods::{PodView, is_controlled_by};
use crate::sandbox::{network_policy, pod};

/// What there is.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// The template, with what it leaves to its nodes decided.
    pub(super) template: SandboxTemplate,
    /// What is to be said of that, if it leaves something to them.
    pub(super) user_namespaces: Option<Observation>,
    /// What the pods of the pool are made of now.
    pub(super) hash: String,
    /// The pods that wait.
    pub(super) pods: Vec<PoolPod>,
    /// Names of pods that were started for the pool, those that were taken too.
    pub(super) names: BTreeSet<String>,
    /// Whether the namespace's fence is as it should be.
    pub(super) fenced: bool,
    /// When to look again, while pods are being taken one after the other.
    pub(super) burst: Option<Duration>,
}

/// A pod that waits.
#[derive(Clone, Debug)]
pub(super) struct PoolPod {
    pub(super) pod: PodView,
    /// What it was made of.
    pub(super) hash: String,
    /// The key that it knows the session service by.
    pub(super) verify_key: String,
}

/// Looks at the stores.
pub(super) fn observe((template, user_namespaces): (SandboxTemplate, Option<Observation>), pools: &Pools) -> Observed {
    let namespace = template.namespace().unwrap_or_default();
    let uid = template.uid().unwrap_or_default();
    let mut found = pools.pods.of_pool(&uid);
    found.retain(|pod| pod.metadata.namespace.as_deref() == Some(namespace.as_str()));
    let pods = found.iter().filter(|found| is_controlled_by(found, &uid)).map(|found| PoolPod {
        pod: PodView::of(found, pod::SANDBOX),
        hash: found.labels().get(labels::POOL_HASH).cloned().unwrap_or_default(),
        verify_key: pod::verify_key(found).unwrap_or_default().to_owned(),
    });
    let fence = pools.policies.get(&ObjectRef::new(network_policy::NAME).within(&namespace));
    let fence_wanted = network_policy::build(&namespace, &pools.context.namespace);
    Observed {
        hash: pod::pool_hash(pools.context.parts(), &template),
        pods: pods.collect(),
        names: found.iter().map(|found| found.name_any()).collect(),
        fenced: network_policy::holds(fence.as_deref(), &fence_wanted),
        burst: None,
        user_namespaces,
        template,
    }
}
