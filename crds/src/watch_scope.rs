//! Which namespaces are watched: all of the cluster, or some by name, each by a watch of its own, since who may watch only these
//! may not watch the cluster.
//!
//! The events of several watches are made into those of one, so that stores and controllers need not know.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Debug;

use futures::stream::{BoxStream, StreamExt as _, iter, select_all};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use crate::{Agent, Sandbox};

/// The namespaces that are watched and served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchScope(BTreeSet<String>);

impl WatchScope {
    /// These namespaces; all of the cluster if there are none.
    pub fn of(namespaces: impl IntoIterator<Item = String>) -> Self {
        Self(namespaces.into_iter().filter(|namespace| !namespace.is_empty()).collect())
    }

    /// Whether objects of this namespace are seen.
    #[must_use]
    pub fn includes(&self, namespace: &str) -> bool {
        self.0.is_empty() || self.0.contains(namespace)
    }

    /// Everything that happens to objects of a kind that match, for ever. A watch that breaks is begun again after a pause,
    /// which holds no other back; the first list is whole when that of every namespace is.
    pub fn events<K>(&self, client: &Client, config: &watcher::Config) -> BoxStream<'static, watcher::Result<Event<K>>>
    where
        K: Remembered,
    {
        if self.0.is_empty() {
            return watch(Api::<K>::all(client.clone()), config.clone()).default_backoff().boxed();
        }
        let of = |namespace: &String| {
            watch(Api::<K>::namespaced(client.clone(), namespace), config.clone()).default_backoff().boxed()
        };
        merged(self.0.iter().map(of).collect())
    }
}

/// What of an object is kept to say that it is gone, when a new list does not have it: no watch has said what it was last.
pub trait Remembered:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + 'static
{
    /// At least its name, its namespace, its labels and its owners.
    #[must_use]
    fn reduced(&self) -> Self;
}

impl<K> Remembered for DeserializeGuard<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    fn reduced(&self) -> Self {
        let mut metadata = self.meta().clone();
        (metadata.managed_fields, metadata.annotations) = (None, None);
        Self(Err(InvalidObject { error: "only what it was called is known".to_owned(), metadata }))
    }
}

impl Remembered for Pod {
    fn reduced(&self) -> Self {
        Self { metadata: self.metadata.clone(), ..Self::default() }
    }
}

impl Remembered for PersistentVolumeClaim {
    fn reduced(&self) -> Self {
        Self { metadata: self.metadata.clone(), ..Self::default() }
    }
}

impl Remembered for NetworkPolicy {
    fn reduced(&self) -> Self {
        Self { metadata: self.metadata.clone(), ..Self::default() }
    }
}

impl Remembered for Agent {
    fn reduced(&self) -> Self {
        Self { status: None, ..self.clone() }
    }
}

impl Remembered for Sandbox {
    fn reduced(&self) -> Self {
        Self { status: None, ..self.clone() }
    }
}

/// The events of these watches, each of objects that no other has, as those of one.
fn merged<K: Remembered>(
    watches: Vec<BoxStream<'static, watcher::Result<Event<K>>>>,
) -> BoxStream<'static, watcher::Result<Event<K>>> {
    let mut merge = Merge::new(watches.len());
    let numbered = watches.into_iter().enumerate().map(|(number, watch)| watch.map(move |event| (number, event)));
    select_all(numbered)
        .flat_map(move |(number, event)| {
            iter(match event {
                Ok(event) => merge.apply(number, event).into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            })
        })
        .boxed()
}

/// What one watch has shown.
#[derive(Debug)]
struct Part<K> {
    /// What there is, by name.
    known: HashMap<String, K>,
    /// What a list that is under way has brought.
    listed: HashSet<String>,
    /// Whether its first list is whole.
    whole: bool,
}

/// The first lists are given as one, when the last is whole. A list that follows is given as the changes that it shows.
#[derive(Debug)]
struct Merge<K> {
    parts: Vec<Part<K>>,
    /// Until the first lists are whole.
    first: Option<BTreeMap<(usize, String), K>>,
}

impl<K: Remembered> Merge<K> {
    fn new(watches: usize) -> Self {
        let part = |_| Part { known: HashMap::new(), listed: HashSet::new(), whole: false };
        Self { parts: (0..watches).map(part).collect(), first: Some(BTreeMap::new()) }
    }

    /// What happens to the whole when this happens to the watch of this number.
    fn apply(&mut self, number: usize, event: Event<K>) -> Vec<Event<K>> {
        let Some(part) = self.parts.get_mut(number) else { return Vec::new() };
        match event {
            Event::Init => {
                part.listed.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                part.listed.insert(object.name_any());
                self.put(number, object)
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut part.listed);
                part.whole = true;
                let gone: Vec<K> =
                    part.known.extract_if(|name, _| !listed.contains(name)).map(|(_, gone)| gone).collect();
                let deleted: Vec<Event<K>> = gone.into_iter().flat_map(|gone| self.remove(number, gone)).collect();
                if deleted.is_empty() { self.complete() } else { deleted }
            }
            Event::Apply(object) => self.put(number, object),
            Event::Delete(object) => {
                part.known.remove(&object.name_any());
                self.remove(number, object)
            }
        }
    }

    fn put(&mut self, number: usize, object: K) -> Vec<Event<K>> {
        if let Some(part) = self.parts.get_mut(number) {
            part.known.insert(object.name_any(), object.reduced());
        }
        let Some(first) = &mut self.first else { return vec![Event::Apply(object)] };
        first.insert((number, object.name_any()), object);
        Vec::new()
    }

    fn remove(&mut self, number: usize, object: K) -> Vec<Event<K>> {
        let Some(first) = &mut self.first else { return vec![Event::Delete(object)] };
        first.remove(&(number, object.name_any()));
        Vec::new()
    }

    /// The first list of all, if the last part of it has come.
    fn complete(&mut self) -> Vec<Event<K>> {
        if !self.parts.iter().all(|part| part.whole) {
            return Vec::new();
        }
        let Some(first) = self.first.take() else { return Vec::new() };
        let objects = first.into_values().map(Event::InitApply);
        std::iter::once(Event::Init).chain(objects).chain([Event::InitDone]).collect()
    }
}

#[cfg(test)]
#[path = "watch_scope_tests.rs"]
mod tests;
