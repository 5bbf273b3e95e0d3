//! What the tests of the running server share.

use std::path::Path;
use std::time::{Duration, Instant};

use longhand_sandbox::client::{SandboxClient, Target};
use longhand_sandbox::token::Signer;
use longhand_sandbox::wire::{CallId, ExecuteRequest};
use serde_json::{Value, json};

pub(crate) const POD: &str = "5f0c7a52-6a31-4a9c-8a6e-0a5be22a2f01";
pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) fn call(id: &str, name: &str, input: Value) -> ExecuteRequest {
    ExecuteRequest { call_id: CallId::new(id).unwrap(), name: name.to_owned(), input, attach_only: false }
}

pub(crate) fn bash(id: &str, command: &str) -> ExecuteRequest {
    call(id, "bash", json!({"command": command}))
}

pub(crate) fn target(address: &impl ToString) -> Target {
    Target { address: address.to_string(), pod_uid: POD.to_owned() }
}

pub(crate) fn client() -> (SandboxClient, String) {
    let (signer, _) = Signer::generate().unwrap();
    let key = signer.public_key();
    (SandboxClient::new(signer), key)
}

/// Waits until `condition` holds, at most for some seconds.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < until, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn exists(path: &Path) {
    eventually(&format!("{} exists", path.display()), async || path.exists()).await;
}

/// Whether the process is there and not only waiting to be reaped.
pub(crate) fn alive(pid: &str) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

/// The state letter of a process, if it has not been reaped.
pub(crate) fn state(pid: &str) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}
