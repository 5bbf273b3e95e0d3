//! Every sandbox of a namespace as one watch shows it, and since when it has been ready.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt as _};
use longhand_crds::{Sandbox, SandboxStatus};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cluster::TestResult;

/// A sandbox.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Its status.
    pub status: SandboxStatus,
    /// When the watch first showed that it takes calls.
    pub ready: Option<Instant>,
}

impl Seen {
    /// The UID of its pod, if it takes calls.
    #[must_use]
    pub fn ready_pod(&self) -> Option<&str> {
        self.status.address.as_ref().and(self.status.pod_uid.as_deref())
    }

    /// Whether it is suspended, and its pod gone.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.status.conditions.iter().any(|condition| condition.type_ == "Suspended" && condition.status == "True")
    }
}

#[derive(Default)]
struct State {
    all: BTreeMap<String, Seen>,
    /// How many of them take calls.
    ready: usize,
    /// Whose each pod was that ever took calls.
    owners: BTreeMap<String, String>,
    twice: Vec<String>,
}

impl State {
    fn put(&mut self, sandbox: &Sandbox, now: Instant) {
        let (name, status) = (sandbox.name_any(), sandbox.status.clone().unwrap_or_default());
        let uid = sandbox.uid().unwrap_or_default();
        if let Some(pod) = &status.pod_uid {
            let owner = self.owners.entry(pod.clone()).or_insert_with(|| uid.clone());
            if *owner != uid {
                self.twice.push(format!("pod {pod} was of {owner} and is of {name}"));
            }
        }
        let before = self.remove(&name);
        let mut seen = Seen { status, ready: before.and_then(|before| before.ready) };
        if seen.ready_pod().is_some() {
            seen.ready.get_or_insert(now);
            self.ready += 1;
        }
        self.all.insert(name, seen);
    }

    fn remove(&mut self, name: &str) -> Option<Seen> {
        let seen = self.all.remove(name)?;
        self.ready -= usize::from(seen.ready_pod().is_some());
        Some(seen)
    }
}

/// A watch over the sandboxes of a namespace. It ends when dropped.
pub struct Roll {
    state: Arc<Mutex<State>>,
    changes: watch::Receiver<u64>,
    _watch: DropGuard,
}

impl Roll {
    /// Opens the watch, and waits until it shows what there is.
    ///
    /// # Errors
    /// When it cannot be opened within half a minute.
    pub async fn open(client: Client, namespace: &str) -> TestResult<Self> {
        let api: Api<Sandbox> = Api::namespaced(client, namespace);
        let state = Arc::new(Mutex::new(State::default()));
        let ((changed, mut changes), stop) = (watch::channel(0), CancellationToken::new());
        let (kept, stopped) = (state.clone(), stop.clone().cancelled_owned());
        tokio::spawn(async move {
            let mut events = kube::runtime::watcher(api, watcher::Config::default()).take_until(stopped).boxed();
            while let Some(event) = events.next().await {
                let mut state = locked(&kept);
                match event {
                    Ok(Event::Apply(sandbox) | Event::InitApply(sandbox)) => state.put(&sandbox, Instant::now()),
                    Ok(Event::Delete(sandbox)) => drop(state.remove(&sandbox.name_any())),
                    Ok(Event::Init) => continue,
                    Ok(Event::InitDone) => {}
                    Err(error) => {
                        tracing::warn!(%error, "the watch of the benchmark broke");
                        continue;
                    }
                }
                drop(state);
                changed.send_modify(|number| *number += 1);
            }
        });
        tokio::time::timeout(Duration::from_secs(30), changes.changed()).await??;
        Ok(Self { state, changes, _watch: stop.drop_guard() })
    }

    /// Waits until `condition` gives something of the sandbox of this name, which may not be there.
    ///
    /// # Errors
    /// When `deadline` passes, with the sandbox as it was last seen.
    pub async fn until<T>(
        &self,
        name: &str,
        what: &str,
        deadline: Duration,
        condition: impl Fn(Option<&Seen>) -> Option<T>,
    ) -> TestResult<T> {
        let mut changes = self.changes.clone();
        let found = tokio::time::timeout(deadline, async {
            loop {
                changes.borrow_and_update();
                if let Some(found) = condition(locked(&self.state).all.get(name)) {
                    return TestResult::Ok(found);
                }
                changes.changed().await?;
            }
        });
        let last = || locked(&self.state).all.get(name).cloned();
        found.await.map_err(|_| format!("{name}: not within {deadline:?}: {what}; last seen: {:?}", last()))?
    }

    /// Waits until so many sandboxes take calls.
    ///
    /// # Errors
    /// When `deadline` passes.
    pub async fn until_ready(&self, count: usize, deadline: Duration) -> TestResult {
        let ready = || locked(&self.state).ready;
        let mut changes = self.changes.clone();
        let reached = tokio::time::timeout(deadline, async {
            loop {
                changes.borrow_and_update();
                if ready() >= count {
                    return TestResult::Ok(());
                }
                changes.changed().await?;
            }
        });
        reached.await.map_err(|_| format!("{} of {count} sandboxes take calls after {deadline:?}", ready()))?
    }

    /// How many sandboxes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        locked(&self.state).all.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pods that two sandboxes have had.
    #[must_use]
    pub fn shared_pods(&self) -> Vec<String> {
        locked(&self.state).twice.clone()
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use longhand_crds::Sandbox;
    use serde_json::json;
    use tokio::time::Instant;

    use super::State;

    fn sandbox(name: &str, pod: &str) -> Sandbox {
        serde_json::from_value(json!({
            "apiVersion": "longhand.dev/v1alpha1", "kind": "Sandbox", "metadata": { "name": name, "uid": name },
            "spec": { "templateRef": { "name": "t" } }, "status": { "podUID": pod, "address": "10.0.0.1:8090" },
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_of_two_sandboxes_is_noticed() {
        let mut state = State::default();
        for (name, pod) in [("a", "1"), ("a", "1"), ("b", "2")] {
            state.put(&sandbox(name, pod), Instant::now());
        }
        assert_eq!((state.all.len(), state.ready, state.twice.len()), (2, 2, 0));
        state.remove("a");
        assert_eq!((state.all.len(), state.ready), (1, 1));
        state.put(&sandbox("b", "1"), Instant::now());
        assert_eq!(state.twice, ["pod 1 was of a and is of b"]);
    }
}
