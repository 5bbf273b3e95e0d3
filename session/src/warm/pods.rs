//! Which pods are harnesses that belong to no session: as the operator says in the status of each `Agent`, which nobody else
//! may write. Labels prove nothing.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::{Stream, StreamExt as _};
use kube::ResourceExt as _;
use kube::runtime::watcher::Event;
use longhand_crds::agent::WarmState;
use longhand_crds::wire_id::{prefix, wire_id};
use longhand_crds::{Agent, AgentSession};
use longhand_protocol::SessionId;
use tokio::sync::watch;

use crate::auth::Pod;

/// The agent whose sessions a pod may take.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pool {
    /// The agent's namespace.
    pub namespace: String,
    /// Its name.
    pub agent: String,
}

/// A harness pod that belongs to no session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmPod {
    /// Whose sessions it may take.
    pub pool: Pool,
    /// Whether it gets no more.
    pub retiring: bool,
}

/// What is known of an agent that has such pods.
#[derive(Debug)]
struct Known {
    /// As the logs of its sessions name it.
    id: String,
    pods: Vec<(String, bool)>,
}

#[derive(Debug, Default)]
struct State {
    agents: HashMap<Pool, Known>,
    pods: HashMap<String, WarmPod>,
}

/// Every harness pod that belongs to no session, as the watch last saw them.
#[derive(Debug)]
pub struct WarmPods {
    state: Mutex<State>,
    changes: watch::Sender<()>,
}

impl Default for WarmPods {
    fn default() -> Self {
        Self { state: Mutex::default(), changes: watch::Sender::new(()) }
    }
}

impl WarmPods {
    /// The pod, if it is one.
    pub(super) fn get(&self, pod: &Pod) -> Option<WarmPod> {
        self.state().pods.get(&pod.uid).filter(|known| known.pool.namespace == pod.namespace).cloned()
    }

    /// Tells of every change.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The pools of agents with this identifier.
    pub(super) fn pools(&self, namespace: &str, id: &str) -> Vec<Pool> {
        let state = self.state();
        let found = state.agents.iter().filter(|(pool, known)| pool.namespace == namespace && known.id == id);
        found.map(|(pool, _)| pool.clone()).collect()
    }

    /// Takes in what the watch of agents sees, until it ends.
    pub async fn follow(&self, seen: impl Stream<Item = Event<Agent>>) {
        let mut seen = std::pin::pin!(seen);
        let mut listed = HashSet::new();
        while let Some(event) = seen.next().await {
            match event {
                Event::Init => listed.clear(),
                Event::InitApply(agent) => {
                    listed.insert(pool_of(&agent));
                    self.set(&agent);
                }
                Event::InitDone => {
                    let gone: Vec<Pool> = {
                        let state = self.state();
                        state.agents.keys().filter(|pool| !listed.contains(*pool)).cloned().collect()
                    };
                    gone.iter().for_each(|pool| self.remove(pool));
                    listed.clear();
                }
                Event::Apply(agent) => self.set(&agent),
                Event::Delete(agent) => self.remove(&pool_of(&agent)),
            }
        }
    }

    fn set(&self, agent: &Agent) {
        let pool = pool_of(agent);
        let pods = agent.status.iter().flat_map(|status| &status.warm_pods);
        let pods: Vec<_> = pods.map(|pod| (pod.uid.clone(), pod.state == WarmState::Retiring)).collect();
        let mut state = self.state();
        if pods.is_empty() && !state.agents.contains_key(&pool) {
            return;
        }
        if state.agents.get(&pool).is_some_and(|known| known.pods == pods) {
            return;
        }
        forget(&mut state, &pool);
        for (uid, retiring) in &pods {
            state.pods.insert(uid.clone(), WarmPod { pool: pool.clone(), retiring: *retiring });
        }
        if !pods.is_empty() {
            state.agents.insert(pool, Known { id: wire_id(prefix::AGENT, &agent.metadata), pods });
        }
        drop(state);
        self.changes.send_replace(());
    }

    fn remove(&self, pool: &Pool) {
        forget(&mut self.state(), pool);
        self.changes.send_replace(());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pool_of(agent: &Agent) -> Pool {
    Pool { namespace: agent.namespace().unwrap_or_default(), agent: agent.name_any() }
}

fn forget(state: &mut State, pool: &Pool) {
    let pods = state.agents.remove(pool).map(|known| known.pods).unwrap_or_default();
    for (uid, _) in pods {
        if state.pods.get(&uid).is_some_and(|pod| &pod.pool == pool) {
            state.pods.remove(&uid);
        }
    }
}

impl Pool {
    /// Whether a pod of the pool may serve this session: one with vaults or an agent of its own needs a pod that is made for
    /// it, and one that has such a pod is that pod's.
    #[must_use]
    pub fn may_take(&self, session: &AgentSession, id: &SessionId) -> bool {
        let (metadata, spec) = (&session.metadata, &session.spec);
        let own_pod = session.status.as_ref().and_then(|status| status.harness.as_ref());
        let own_pod = own_pod.is_some_and(|harness| harness.pod_uid.is_some() && !harness.warm);
        metadata.namespace.as_ref() == Some(&self.namespace)
            && spec.agent_ref.name == self.agent
            && spec.takes_any_harness()
            && metadata.deletion_timestamp.is_none()
            && longhand_crds::session_id(metadata) == *id
            && !own_pod
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use kube::runtime::watcher::Event;
    use longhand_crds::{Agent, AgentSession, derived_session_id};
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{Pool, WarmPods};
    use crate::auth::Pod;

    fn agent(name: &str, pods: &Value) -> Agent {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "team-a", "uid": format!("uid-{name}")},
            "spec": {"model": {"id": "m"}},
            "status": {"warmPods": pods},
        }))
        .unwrap()
    }

    fn pods(uids: &[(&str, &str)]) -> Value {
        let pod = |(uid, state): &(&str, &str)| json!({"name": uid, "uid": uid, "state": state, "since": "2026-01-01T00:00:00Z"});
        uids.iter().map(pod).collect()
    }

    fn seen(warm: &WarmPods, namespace: &str, uid: &str) -> Option<(String, bool)> {
        let pod = Pod { namespace: namespace.to_owned(), name: uid.to_owned(), uid: uid.to_owned() };
        warm.get(&pod).map(|pod| (pod.pool.agent, pod.retiring))
    }

    #[tokio::test]
    async fn only_what_a_status_names_is_known_and_only_as_long_as_it_does() {
        let warm = WarmPods::default();
        let first = [
            Event::Init,
            Event::InitApply(agent("a", &pods(&[("p1", "Parked"), ("p2", "Retiring")]))),
            Event::InitApply(agent("b", &pods(&[("p3", "Starting")]))),
            Event::InitDone,
        ];
        warm.follow(stream::iter(first)).await;
        assert_eq!(seen(&warm, "team-a", "p1"), Some(("a".to_owned(), false)));
        assert_eq!(seen(&warm, "team-a", "p2"), Some(("a".to_owned(), true)));
        assert_eq!(seen(&warm, "team-b", "p1"), None, "a pod is known in its namespace only");
        let mut changes = warm.changes();
        changes.borrow_and_update();
        warm.follow(stream::iter([Event::Apply(agent("a", &pods(&[("p1", "Taken"), ("p2", "Retiring")])))])).await;
        assert!(!changes.has_changed().unwrap(), "what it does is no news");
        warm.follow(stream::iter([Event::Apply(agent("a", &pods(&[("p2", "Retiring")])))])).await;
        assert!(changes.has_changed().unwrap());
        assert_eq!(seen(&warm, "team-a", "p1"), None);
        warm.follow(stream::iter([Event::Init, Event::InitApply(agent("a", &json!([]))), Event::InitDone])).await;
        assert_eq!((seen(&warm, "team-a", "p2"), seen(&warm, "team-a", "p3")), (None, None));
        assert!(warm.state().agents.is_empty());
    }

    #[rstest]
    #[case::plain(json!({}), json!({}), true)]
    #[case::of_another_agent(json!({"agentRef": {"name": "other"}}), json!({}), false)]
    #[case::with_vaults(json!({"vaultRefs": [{"name": "v"}]}), json!({}), false)]
    #[case::with_an_agent_of_its_own(json!({"agentRef": {"name": "helper", "overrides": {"system": "x"}}}), json!({}), false)]
    #[case::with_a_pod_of_its_own(json!({}), json!({"podUID": "p9"}), false)]
    #[case::served_by_a_warm_one(json!({}), json!({"podUID": "p9", "warm": true}), true)]
    #[case::served_by_none(json!({}), json!({"generation": 3}), true)]
    fn what_needs_a_pod_of_its_own_is_not_taken(#[case] spec: Value, #[case] harness: Value, #[case] expected: bool) {
        let mut session = json!({
            "metadata": {"name": "one", "namespace": "team-a", "uid": "u1"},
            "spec": {"agentRef": {"name": "helper"}},
            "status": {"harness": harness},
        });
        for (key, value) in spec.as_object().unwrap() {
            session["spec"][key] = value.clone();
        }
        let session: AgentSession = serde_json::from_value(session).unwrap();
        let pool = Pool { namespace: "team-a".to_owned(), agent: "helper".to_owned() };
        assert_eq!(pool.may_take(&session, &derived_session_id("u1")), expected);
        assert!(!pool.may_take(&session, &derived_session_id("u2")), "another one of that name");
        let elsewhere = Pool { namespace: "team-b".to_owned(), ..pool };
        assert!(!elsewhere.may_take(&session, &derived_session_id("u1")));
    }
}
