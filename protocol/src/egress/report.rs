//! What a credential proxy reports: uses of credentials, and refusals.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Text;

/// The most events that one report may have.
pub const MAX_EVENTS: usize = 256;
/// The longest `<vault>/<credential>`, in bytes as all of these.
pub const MAX_CREDENTIAL: usize = 320;
/// The longest name of a sandbox.
pub const MAX_SANDBOX: usize = 64;
/// The longest host.
pub const MAX_HOST: usize = 253;
/// The longest method. A request with a longer one is refused.
pub const MAX_METHOD: usize = 64;
/// The longest reason.
pub const MAX_REASON: usize = 512;
/// A hash of a path.
pub const HASH: usize = 64;

/// `POST credential_events`: what became of requests of a session. The token is the proxy's, not the harness's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialEvents {
    /// 1 to [`MAX_EVENTS`], in the order in which they happened.
    pub events: Vec<CredentialEvent>,
}

/// A report that nobody takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedReport {
    /// Too many events, or none.
    #[error("`events` has {0} entries, and must have 1 to {MAX_EVENTS}")]
    Count(usize),
    /// A use of nothing, a refusal without a reason, or both in one.
    #[error("an event of outcome `used` has a credential and no reason, and one of `denied` a reason")]
    Outcome,
}

impl CredentialEvents {
    /// Whether the session service takes this report.
    ///
    /// # Errors
    /// [`MalformedReport`] says why not.
    pub fn check(&self) -> Result<(), MalformedReport> {
        let count = self.events.len();
        if !(1..=MAX_EVENTS).contains(&count) {
            return Err(MalformedReport::Count(count));
        }
        let whole = |event: &CredentialEvent| match event.outcome {
            CredentialOutcome::Used => event.credential.is_some() && event.reason.is_none(),
            CredentialOutcome::Denied => event.reason.is_some(),
        };
        if self.events.iter().all(whole) { Ok(()) } else { Err(MalformedReport::Outcome) }
    }
}

/// One use of a credential, one refusal, or several that are equal. No text in it is longer than the session service takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialEvent {
    /// Whether the request went out.
    pub outcome: CredentialOutcome,
    /// `<vault>/<credential>`; null where a request was refused that is for none.
    pub credential: Option<Text<MAX_CREDENTIAL>>,
    /// The sandbox's name in the session; empty for a request of the harness.
    pub sandbox: Text<MAX_SANDBOX>,
    /// The host that was asked for.
    pub host: Text<MAX_HOST>,
    /// The port that was asked for.
    pub port: u16,
    /// The method; `CONNECT` for a tunnel.
    pub method: Text<MAX_METHOD>,
    /// SHA-256 of the path without its query, in hexadecimal; null for a tunnel.
    pub path_sha256: Option<Text<HASH>>,
    /// The rule that refused it, in words; null for a use.
    pub reason: Option<Text<MAX_REASON>>,
    /// How many equal ones this stands for.
    pub count: u64,
    /// When the first of them happened.
    pub at: Timestamp,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialOutcome {
    /// The credential was placed into it.
    Used,
    /// It was refused.
    Denied,
}

/// [`CredentialEvent::path_sha256`] of a path without its query.
#[must_use]
pub fn path_sha256(path: &str) -> Text<HASH> {
    Text::new(Sha256::digest(path.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{CredentialEvents, MAX_EVENTS, MalformedReport, path_sha256};

    fn report(change: &Value, count: usize) -> CredentialEvents {
        let mut event = json!({
            "outcome": "denied", "credential": null, "sandbox": "default", "host": "h.test", "port": 1, "method": "GET",
            "path_sha256": null, "reason": "r", "count": 1, "at": "2026-01-02T03:04:05Z",
        });
        event.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        serde_json::from_value(json!({ "events": vec![event; count] })).unwrap()
    }

    #[rstest]
    #[case(json!({}), 1, Ok(()))]
    #[case(json!({"credential": "v/c"}), MAX_EVENTS, Ok(()))]
    #[case(json!({"outcome": "used", "credential": "v/c", "reason": null}), 1, Ok(()))]
    #[case(json!({}), 0, Err(MalformedReport::Count(0)))]
    #[case(json!({}), MAX_EVENTS + 1, Err(MalformedReport::Count(MAX_EVENTS + 1)))]
    #[case(json!({"reason": null}), 1, Err(MalformedReport::Outcome))]
    #[case(json!({"outcome": "used", "credential": "v/c"}), 1, Err(MalformedReport::Outcome))]
    #[case(json!({"outcome": "used", "reason": null}), 1, Err(MalformedReport::Outcome))]
    fn what_is_a_report(#[case] change: Value, #[case] count: usize, #[case] expected: Result<(), MalformedReport>) {
        assert_eq!(report(&change, count).check(), expected);
    }

    #[test]
    fn what_is_too_long_is_read_as_far_as_it_fits() {
        let long = "x".repeat(1_000);
        let changes = json!({"credential": long, "sandbox": long, "host": long, "method": long, "reason": long});
        let event = report(&changes, 1).events.remove(0);
        let lengths = [
            event.credential.unwrap().len(),
            event.sandbox.len(),
            event.host.len(),
            event.method.len(),
            event.reason.unwrap().len(),
        ];
        assert_eq!(lengths, [320, 64, 253, 64, 512]);
    }

    #[test]
    fn a_path_is_hashed() {
        let hash = path_sha256("");
        assert_eq!(hash.as_str(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
