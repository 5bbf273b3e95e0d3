//! The pods of a watch, found by who controls them: with thousands of sandboxes no reconcile may look at all their pods.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kube::ResourceExt as _;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use longhand_crds::labels;

use crate::context::Context;
use crate::drive;
use crate::lists::Lists;
use crate::pods::is_controlled_by;

/// What pods are looked for by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// The UID of their controller.
    Controller(String),
    /// The UID of the template whose pool they were made for, whoever has them now.
    Pool(String),
}

/// Where to look for pods. The store says what they are: the index is updated before it, so that a pod is not found for a moment
/// rather than found with another owner than it has.
#[derive(Debug, Default)]
struct Index {
    pods: HashMap<Key, HashSet<ObjectRef<Pod>>>,
    keys: HashMap<ObjectRef<Pod>, Vec<Key>>,
    /// What a list that is under way has brought.
    listed: HashSet<ObjectRef<Pod>>,
}

impl Index {
    fn apply(&mut self, event: &Event<Pod>) {
        match event {
            Event::Apply(pod) => self.put(pod),
            Event::Delete(pod) => self.remove(&ObjectRef::from_obj(pod)),
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => {
                self.listed.insert(ObjectRef::from_obj(pod));
                self.put(pod);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let gone: Vec<_> = self.keys.keys().filter(|known| !listed.contains(known)).cloned().collect();
                gone.iter().for_each(|pod| self.remove(pod));
            }
        }
    }

    fn put(&mut self, pod: &Pod) {
        let (reference, keys) = (ObjectRef::from_obj(pod), keys(pod));
        if self.keys.get(&reference) == Some(&keys) {
            return;
        }
        self.remove(&reference);
        for key in &keys {
            self.pods.entry(key.clone()).or_default().insert(reference.clone());
        }
        self.keys.insert(reference, keys);
    }

    fn remove(&mut self, pod: &ObjectRef<Pod>) {
        for key in self.keys.remove(pod).into_iter().flatten() {
            if let Some(found) = self.pods.get_mut(&key) {
                found.remove(pod);
                if found.is_empty() {
                    self.pods.remove(&key);
                }
            }
        }
    }
}

fn keys(pod: &Pod) -> Vec<Key> {
    let controller = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
    let pool = pod.labels().get(labels::POOL_UID);
    let keys = [controller.map(|owner| Key::Controller(owner.uid.clone())), pool.map(|pool| Key::Pool(pool.clone()))];
    keys.into_iter().flatten().collect()
}

/// Pods that are watched.
#[derive(Clone)]
pub(crate) struct OwnedPods {
    store: Store<Pod>,
    index: Arc<RwLock<Index>>,
}

impl OwnedPods {
    /// The store.
    pub(crate) const fn store(&self) -> &Store<Pod> {
        &self.store
    }

    /// The pods that the object with this UID controls.
    pub(crate) fn controlled_by(&self, owner: &str) -> Vec<Arc<Pod>> {
        let mut found = self.find(&Key::Controller(owner.to_owned()));
        found.retain(|pod| is_controlled_by(pod, owner));
        found
    }

    /// The pods that were made for the pool of the template with this UID, those that were taken too.
    pub(crate) fn of_pool(&self, template: &str) -> Vec<Arc<Pod>> {
        self.find(&Key::Pool(template.to_owned()))
    }

    fn find(&self, key: &Key) -> Vec<Arc<Pod>> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.pods.get(key).into_iter().flatten().filter_map(|reference| self.store.get(reference)).collect()
    }
}

/// Watches the pods that match, whose lists are among `lists`; only what [`lean`] leaves of them is kept.
pub(crate) fn watch(
    context: &Context,
    config: &watcher::Config,
    lists: &mut Lists,
) -> (OwnedPods, impl Stream<Item = watcher::Result<Pod>> + Send + 'static + use<>) {
    let (store, writer) = reflector::store();
    let index = Arc::new(RwLock::new(Index::default()));
    let indexed = index.clone();
    let events = context.scope.events::<Pod>(&context.client, config).map(move |event| {
        let event = event.map(|event| event.modify(lean));
        if let Ok(event) = &event {
            indexed.write().unwrap_or_else(PoisonError::into_inner).apply(event);
        }
        event
    });
    (OwnedPods { store, index }, drive::touched(events, writer, lists.begin()))
}

/// Ten thousand pods are kept in memory, and nobody asks what they mount.
fn lean(pod: &mut Pod) {
    pod.managed_fields_mut().clear();
    let Some(spec) = pod.spec.take() else { return };
    let container = |full: Container| Container { name: full.name, env: full.env, ..Container::default() };
    let containers = spec.containers.into_iter().map(container).collect();
    pod.spec = Some(PodSpec { containers, node_name: spec.node_name, ..PodSpec::default() });
}

/// Pods as after a first list.
#[cfg(test)]
pub(crate) fn listed(pods: Vec<Pod>) -> OwnedPods {
    let mut index = Index::default();
    pods.iter().for_each(|pod| index.put(pod));
    OwnedPods { store: crate::testing::store(pods), index: Arc::new(RwLock::new(index)) }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::ResourceExt as _;
    use kube::runtime::watcher::Event;
    use serde_json::json;

    use super::{Index, Key, lean, listed};

    fn pod(name: &str, controller: &str, pool: Option<&str>) -> Pod {
        let owner = json!({ "apiVersion": "v1", "kind": "Any", "name": "a", "uid": controller, "controller": true });
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "team", "ownerReferences": [owner],
                "labels": pool.map_or_else(|| json!({}), |pool| json!({ "longhand.dev/pool-uid": pool })) },
            "spec": { "nodeName": "n", "volumes": [{ "name": "v" }],
                "containers": [{ "name": "sandbox", "image": "i", "env": [{ "name": "KEY", "value": "v" }] }] },
        }))
        .unwrap()
    }

    fn names(index: &Index, key: &Key) -> Vec<String> {
        let mut names: Vec<String> =
            index.pods.get(key).into_iter().flatten().map(|found| found.name.clone()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_pod_that_was_taken_is_found_with_its_new_controller_and_with_its_pool() {
        let (controller, pool) = (|uid: &str| Key::Controller(uid.into()), || Key::Pool("template".into()));
        let mut index = Index::default();
        index.apply(&Event::Apply(pod("a", "template", Some("template"))));
        index.apply(&Event::Apply(pod("b", "template", Some("template"))));
        assert_eq!(names(&index, &controller("template")), ["a", "b"]);
        index.apply(&Event::Apply(pod("a", "sandbox", Some("template"))));
        assert_eq!(names(&index, &controller("template")), ["b"]);
        assert_eq!(names(&index, &controller("sandbox")), ["a"]);
        assert_eq!(names(&index, &pool()), ["a", "b"]);
        for gone in ["a", "b"] {
            index.apply(&Event::Delete(pod(gone, "template", None)));
        }
        assert!(index.pods.is_empty() && index.keys.is_empty(), "{index:?}");
    }

    #[test]
    fn what_a_new_list_does_not_bring_is_gone() {
        let mut index = Index::default();
        index.apply(&Event::Apply(pod("a", "one", None)));
        index.apply(&Event::Apply(pod("b", "two", None)));
        index.apply(&Event::Init);
        index.apply(&Event::InitApply(pod("b", "two", None)));
        assert_eq!(names(&index, &Key::Controller("one".into())), ["a"], "until the list is whole");
        index.apply(&Event::InitDone);
        assert_eq!(names(&index, &Key::Controller("one".into())), Vec::<String>::new());
        assert_eq!(names(&index, &Key::Controller("two".into())), ["b"]);
    }

    #[test]
    fn pods_are_found_by_both() {
        let pods = listed(vec![pod("a", "sandbox", Some("template")), pod("b", "template", Some("template"))]);
        let names = |found: Vec<std::sync::Arc<Pod>>| found.iter().map(|pod| pod.name_any()).collect::<Vec<_>>();
        assert_eq!(names(pods.controlled_by("sandbox")), ["a"]);
        assert_eq!(names(pods.controlled_by("template")), ["b"]);
        assert_eq!(pods.of_pool("template").len(), 2);
    }

    #[test]
    fn what_is_kept_of_a_pod_says_who_it_is_and_which_key_it_trusts() {
        let mut pod = pod("a", "sandbox", None);
        lean(&mut pod);
        let spec = pod.spec.unwrap();
        assert_eq!((spec.node_name.as_deref(), spec.volumes), (Some("n"), None));
        assert_eq!((spec.containers[0].name.as_str(), &spec.containers[0].image), ("sandbox", &None));
        assert_eq!(spec.containers[0].env.as_ref().map(Vec::len), Some(1));
    }
}
