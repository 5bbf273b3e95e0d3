//! Kubernetes events: what the operator did, for `kubectl describe`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

/// An event is worth less than the reconcile that waits for it.
const DEADLINE: Duration = Duration::from_secs(2);
/// The API server takes no more than this.
const MAX_NOTE: usize = 1_000;
/// A recorder remembers what it has published, some kilobytes each, to count repetitions. After so many it begins anew.
const REMEMBERED: u32 = 256;

/// Tells what happened to an object.
#[derive(Clone)]
pub struct Events {
    client: Client,
    reporter: Reporter,
    /// The one of now, and how much it has published.
    current: Arc<Mutex<(Recorder, u32)>>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// A harness pod was made.
    HarnessStarted,
    /// A harness pod is gone or given up.
    HarnessLost,
    /// A sandbox pod was made.
    SandboxCreated,
    /// A sandbox pod is gone.
    SandboxLost,
    /// An idle sandbox was removed, or one that has expired.
    SandboxReclaimed,
    /// A sandbox's pod was told to end, and its workspace is kept.
    SandboxSuspended,
    /// A sandbox was not ready in time, and its workspace is kept.
    SandboxUnavailable,
    /// A sandbox's workspace has gone to another session.
    SandboxHandedOff,
    /// A sandbox stays where it is, although it was to be handed over.
    SandboxHandoffTakenBack,
    /// A sandbox has come to its end.
    SandboxFinished,
    /// No network policy keeps a sandbox in.
    SandboxNotFenced,
    /// A session, or its namespace, is nearly full, or is.
    LimitNear,
    /// A harness pod that belongs to no session ended although nobody told it to.
    WarmHarnessLost,
    /// Harness pods that shall be ready cannot be had.
    WarmBlocked,
}

impl Happened {
    const fn describe(self) -> (EventType, &'static str, &'static str) {
        match self {
            Self::HarnessStarted => (EventType::Normal, "HarnessStarted", "CreatePod"),
            Self::HarnessLost => (EventType::Warning, "HarnessLost", "ReplacePod"),
            Self::SandboxCreated => (EventType::Normal, "SandboxCreated", "CreatePod"),
            Self::SandboxLost => (EventType::Warning, "SandboxLost", "ReplacePod"),
            Self::SandboxReclaimed => (EventType::Normal, "SandboxReclaimed", "DeleteSandbox"),
            Self::SandboxSuspended => (EventType::Normal, "SandboxSuspended", "DeletePod"),
            Self::SandboxUnavailable => (EventType::Warning, "SandboxUnavailable", "DeletePod"),
            Self::SandboxHandedOff => (EventType::Normal, "SandboxHandedOff", "DeleteSandbox"),
            Self::SandboxHandoffTakenBack => (EventType::Warning, "SandboxHandoffTakenBack", "KeepSandbox"),
            Self::SandboxFinished => (EventType::Warning, "SandboxFinished", "DeletePod"),
            Self::SandboxNotFenced => (EventType::Warning, "SandboxNotFenced", "Watch"),
            Self::LimitNear => (EventType::Warning, "LimitNear", "Watch"),
            Self::WarmHarnessLost => (EventType::Warning, "WarmHarnessLost", "ReplacePod"),
            Self::WarmBlocked => (EventType::Warning, "WarmBlocked", "CreatePod"),
        }
    }
}

impl Events {
    /// Events of the operator replica `identity`.
    #[must_use]
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter { controller: "longhand-operator".to_owned(), instance: Some(identity.to_owned()) };
        let recorder = Recorder::new(client.clone(), reporter.clone());
        Self { client, reporter, current: Arc::new(Mutex::new((recorder, 0))) }
    }

    fn recorder(&self) -> Recorder {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.1 >= REMEMBERED {
            *current = (Recorder::new(self.client.clone(), self.reporter.clone()), 0);
        }
        current.1 += 1;
        current.0.clone()
    }

    /// Publishes an event. One that cannot be published is logged and forgotten: conditions say what is.
    pub async fn publish(&self, happened: Happened, regarding: &ObjectReference, note: &str) {
        let (type_, reason, action) = happened.describe();
        let note = note.chars().take(MAX_NOTE).collect();
        let event =
            Event { type_, reason: reason.to_owned(), note: Some(note), action: action.to_owned(), secondary: None };
        match tokio::time::timeout(DEADLINE, self.recorder().publish(&event, regarding)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(reason, %error, "cannot publish an event"),
            Err(_) => tracing::warn!(reason, "cannot publish an event in time"),
        }
    }
}
