//! What the service knows of sandboxes: one watch a replica, seen by any number of tool calls.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use longhand_crds::Sandbox;
use longhand_crds::annotations::RESOURCES_FAILED;
use longhand_crds::sandbox::{DesiredState, Loss, WORKSPACE_LOST};
use tokio::sync::watch;

/// The operator says why within this time after it has given a sandbox up.
const OPERATOR_SPEAKS: Duration = Duration::from_secs(10);

/// Which sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SandboxKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A sandbox that was given up: who has waited for it is told, and who comes later begins anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GivenUp {
    /// UID of the resource.
    uid: String,
    /// The incarnation that is made when it is asked for, if it has not ended for ever.
    incarnation: Option<i64>,
}

/// What a tool call needs to know of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxView {
    /// UID of the resource.
    pub uid: String,
    /// UID of the pod that there is.
    pub pod_uid: Option<String>,
    /// Where `sandboxd` listens.
    pub address: Option<String>,
    /// Whether it takes calls.
    pub ready: bool,
    /// Whether it is being deleted, or handed to another session.
    pub deleting: bool,
    /// Whether it shall have no pod.
    pub suspended: bool,
    /// Why it has ended for ever, if it has.
    pub finished: Option<String>,
    /// Why it has no pod until it is asked for again, if it was not ready in time and its workspace is kept.
    pub resting: Option<String>,
    /// Whether it has ended since the workspace that was kept could not be used again.
    pub workspace_lost: bool,
    /// When it is given up unless it is ready by then, if it is on its way.
    pub deadline: Option<Timestamp>,
    /// How many pods it has had.
    pub incarnation: i64,
    /// Why the pod before this one is gone.
    pub last_loss: Option<Loss>,
    /// What its workspace lacks, as was said last.
    pub lacks: Option<String>,
    /// Reason and message of the condition `Ready`.
    pub explanation: String,
}

impl SandboxView {
    /// The view of a resource.
    #[must_use]
    pub fn of(sandbox: &Sandbox) -> Self {
        let status = sandbox.status.clone().unwrap_or_default();
        let condition = |kind: &str| status.conditions.iter().find(|condition| condition.type_ == kind);
        let (ready, finished) =
            (condition("Ready"), condition("Finished").filter(|finished| finished.status == "True"));
        let suspended = sandbox.spec.desired_state == DesiredState::Suspended;
        // With a deadline it is tried again.
        let rests = !suspended && status.provisioning_deadline.is_none() && finished.is_none();
        Self {
            resting: status.last_miss.filter(|_| rests).map(|miss| miss.message),
            uid: sandbox.metadata.uid.clone().unwrap_or_default(),
            pod_uid: status.pod_uid.filter(|uid| !uid.is_empty()),
            address: status.address.filter(|address| !address.is_empty()),
            ready: ready.is_some_and(|condition| condition.status == "True"),
            deleting: sandbox.metadata.deletion_timestamp.is_some() || sandbox.spec.handoff_to.is_some(),
            suspended,
            workspace_lost: finished.is_some_and(|finished| finished.reason == WORKSPACE_LOST),
            finished: finished.map(|finished| explain(&finished.reason, &finished.message)),
            deadline: status.provisioning_deadline.map(|deadline| deadline.0),
            incarnation: status.incarnation,
            explanation: ready.map(|ready| explain(&ready.reason, &ready.message)).unwrap_or_default(),
            lacks: sandbox.metadata.annotations.as_ref().and_then(|all| all.get(RESOURCES_FAILED).cloned()),
            last_loss: status.last_loss,
        }
    }

    /// Pod and address, if it takes calls.
    #[must_use]
    pub fn serving(&self) -> Option<(&str, &str)> {
        let serving = self.ready && !self.deleting && !self.suspended && self.finished.is_none();
        serving.then_some(()).and(Some((self.pod_uid.as_deref()?, self.address.as_deref()?)))
    }

    /// How it was given up, if nothing becomes of it by itself.
    #[must_use]
    pub(super) fn given_up(&self) -> Option<GivenUp> {
        let incarnation = match (&self.finished, &self.resting) {
            (Some(_), _) => None,
            (None, Some(_)) => Some(self.incarnation),
            (None, None) => return None,
        };
        Some(GivenUp { uid: self.uid.clone(), incarnation })
    }

    /// Why the pod with this UID is gone, as far as it is known.
    #[must_use]
    pub fn cause_of_loss(&self, pod_uid: &str) -> String {
        match &self.last_loss {
            Some(loss) if loss.pod_uid == pod_uid => explain(&loss.reason, &loss.message),
            _ if self.pod_uid.is_none() && !self.explanation.is_empty() => self.explanation.clone(),
            _ => "its pod was replaced".to_owned(),
        }
    }

    /// How long a call waits for it that has waited for `waited`: at least `least`, and until the operator has given it up and
    /// said why.
    #[must_use]
    pub fn patience(&self, least: Duration, waited: Duration, now: Timestamp) -> Duration {
        let left = self.deadline.and_then(|deadline| {
            let until = deadline.checked_add(OPERATOR_SPEAKS).ok()?;
            Duration::try_from(until.duration_since(now)).ok()
        });
        left.map_or(least, |left| least.max(waited.saturating_add(left)))
    }

    /// Why it does not take calls yet, for a person.
    #[must_use]
    pub fn explanation(&self) -> &str {
        if self.explanation.is_empty() { "the operator has not begun to make it" } else { &self.explanation }
    }
}

fn explain(reason: &str, message: &str) -> String {
    if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") }
}

/// What the watch has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A full list begins.
    ListBegins,
    /// It is in the list.
    Listed(SandboxKey, SandboxView),
    /// The list is complete: what was not in it is gone.
    ListEnds,
    /// It is new, or has changed.
    Changed(SandboxKey, SandboxView),
    /// It is gone.
    Gone(SandboxKey),
}

type Slot = watch::Sender<Option<SandboxView>>;

/// Every sandbox as the watch last saw it.
#[derive(Debug)]
pub struct SandboxIndex {
    slots: Mutex<HashMap<SandboxKey, Slot>>,
    synced: watch::Sender<bool>,
}

impl Default for SandboxIndex {
    fn default() -> Self {
        Self { slots: Mutex::default(), synced: watch::Sender::new(false) }
    }
}

impl SandboxIndex {
    /// The sandbox now, and whenever it changes.
    pub fn subscribe(&self, key: &SandboxKey) -> watch::Receiver<Option<SandboxView>> {
        self.slots().entry(key.clone()).or_insert_with(|| watch::Sender::new(None)).subscribe()
    }

    /// How many sandboxes of a namespace have not ended.
    #[must_use]
    pub fn unfinished_in(&self, namespace: &str) -> usize {
        let unfinished = |slot: &Slot| slot.borrow().as_ref().is_some_and(|view| view.finished.is_none());
        self.slots().iter().filter(|(key, slot)| key.namespace == namespace && unfinished(slot)).count()
    }

    /// Whether a full list has been seen.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Returns when a full list has been seen.
    pub async fn synced(&self) {
        // The sender lives as long as `self`, so that waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Takes in what the watch sees, until it ends.
    pub async fn follow(&self, seen: impl Stream<Item = Seen>) {
        let mut seen = std::pin::pin!(seen);
        let mut listed = HashSet::new();
        while let Some(seen) = seen.next().await {
            match seen {
                Seen::ListBegins => listed.clear(),
                Seen::Listed(key, view) => {
                    listed.insert(key.clone());
                    self.set(key, view);
                }
                Seen::ListEnds => {
                    self.keep(&std::mem::take(&mut listed));
                    self.synced.send_replace(true);
                }
                Seen::Changed(key, view) => self.set(key, view),
                Seen::Gone(key) => self.unset(&key),
            }
        }
    }

    fn set(&self, key: SandboxKey, view: SandboxView) {
        let mut slots = self.slots();
        let slot = slots.entry(key).or_insert_with(|| watch::Sender::new(None));
        slot.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&view);
            *current = Some(view);
            changed
        });
    }

    fn unset(&self, key: &SandboxKey) {
        let mut slots = self.slots();
        if let Some(slot) = slots.get(key) {
            slot.send_replace(None);
        }
        forget_unused(&mut slots);
    }

    fn keep(&self, listed: &HashSet<SandboxKey>) {
        let mut slots = self.slots();
        for (key, slot) in slots.iter() {
            if !listed.contains(key) {
                slot.send_if_modified(|current| current.take().is_some());
            }
        }
        forget_unused(&mut slots);
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<SandboxKey, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot stays while there is a sandbox or somebody waits for one.
fn forget_unused(slots: &mut HashMap<SandboxKey, Slot>) {
    slots.retain(|_, slot| slot.receiver_count() > 0 || slot.borrow().is_some());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::stream;
    use jiff::Timestamp;
    use rstest::rstest;

    use super::{SandboxIndex, SandboxKey, SandboxView, Seen};

    fn key(name: &str) -> SandboxKey {
        SandboxKey { namespace: "team-a".to_owned(), name: name.to_owned() }
    }

    fn view(pod: &str) -> SandboxView {
        SandboxView { pod_uid: Some(pod.to_owned()), ..SandboxView::default() }
    }

    #[tokio::test]
    async fn what_is_not_in_a_new_list_is_gone_and_forgotten_when_nobody_waits() {
        let index = SandboxIndex::default();
        let mut waiting = index.subscribe(&key("a"));
        assert!(!index.is_synced());
        let first = [
            Seen::ListBegins,
            Seen::Listed(key("a"), view("p1")),
            Seen::Listed(key("b"), view("p2")),
            Seen::ListEnds,
            Seen::Changed(key("a"), view("p3")),
        ];
        index.follow(stream::iter(first)).await;
        index.synced().await;
        assert_eq!(*waiting.borrow_and_update(), Some(view("p3")));
        index.follow(stream::iter([Seen::ListBegins, Seen::ListEnds])).await;
        assert!(waiting.has_changed().unwrap());
        assert_eq!(*waiting.borrow_and_update(), None);
        assert_eq!(index.slots().len(), 1, "b was nobody's");
        drop(waiting);
        index.follow(stream::iter([Seen::Gone(key("a"))])).await;
        assert!(index.slots().is_empty());
    }

    #[rstest]
    #[case::not_begun(None, 120)]
    #[case::given_up_sooner(Some(1_010), 120)]
    #[case::given_up_later(Some(1_600), 640)]
    #[case::the_operator_is_silent(Some(900), 120)]
    fn a_call_waits_until_the_operator_gives_up(#[case] deadline: Option<i64>, #[case] expected: u64) {
        let at = |second| Timestamp::from_second(second).unwrap();
        let view = SandboxView { deadline: deadline.map(at), ..SandboxView::default() };
        let patience = view.patience(Duration::from_secs(120), Duration::from_secs(30), at(1_000));
        assert_eq!(patience, Duration::from_secs(expected));
    }

    #[tokio::test]
    async fn an_unchanged_view_wakes_nobody() {
        let index = SandboxIndex::default();
        let mut waiting = index.subscribe(&key("a"));
        index.follow(stream::iter([Seen::Changed(key("a"), view("p1"))])).await;
        waiting.borrow_and_update();
        index.follow(stream::iter([Seen::Changed(key("a"), view("p1"))])).await;
        assert!(!waiting.has_changed().unwrap());
    }
}
