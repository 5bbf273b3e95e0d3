//! A way into a sandbox for somebody other than its agent: where it is, once it is awake.

use std::time::Duration;

use jiff::Timestamp;
use longhand_sandbox::client::{SandboxClient, Target};
use tokio::time::{Instant, timeout};

use super::Executor;
use super::sandboxes::{GivenUp, SandboxKey, SandboxView};
use crate::resources::ResourceError;

/// A watch may be late; then looking again helps.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Why there is no way into a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// There is none of this name now.
    #[error("there is no Sandbox {namespace}/{name} now; that of a session is made when a tool call needs it")]
    NoSandbox {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// It will never run again.
    #[error("the Sandbox {name} has ended ({why}) and cannot be reached any more")]
    Ended {
        /// Its name.
        name: String,
        /// Why it has.
        why: String,
    },
    /// It did not become ready in time.
    #[error("the Sandbox {name} was not ready within {} s ({why})", waited.as_secs())]
    NotReady {
        /// Its name.
        name: String,
        /// How long was waited.
        waited: Duration,
        /// Reason and message of its condition.
        why: String,
    },
    /// The Kubernetes API failed.
    #[error(transparent)]
    Resources(#[from] ResourceError),
}

/// What is to be done about a sandbox as it is now. Pure.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Go(Target),
    Wake,
    /// It rests, and whoever asks for it begins anew.
    Retry,
    Wait,
    /// It rests since this was asked.
    Rests(String),
    Ended(String),
}

fn next(view: &SandboxView, before: Option<&GivenUp>) -> Step {
    if let Some(why) = &view.finished {
        return Step::Ended(why.clone());
    }
    if view.deleting {
        return Step::Ended("it is being removed".to_owned());
    }
    match view.serving() {
        Some((pod_uid, address)) => Step::Go(Target { address: address.to_owned(), pod_uid: pod_uid.to_owned() }),
        None if view.suspended => Step::Wake,
        None => match &view.resting {
            Some(_) if before.is_some() && view.given_up().as_ref() == before => Step::Retry,
            Some(why) => Step::Rests(why.clone()),
            None => Step::Wait,
        },
    }
}

impl Executor {
    /// What speaks to sandboxes.
    #[must_use]
    pub fn client(&self) -> &SandboxClient {
        &self.client
    }

    /// Where a sandbox takes requests, which is woken if it is suspended and waited for if it is on its way. One without a session
    /// has been given the files of its template by then, or says that it has not.
    ///
    /// # Errors
    /// See [`ReachError`]. It never takes longer than a tool call would wait for it.
    pub async fn reach(&self, key: &SandboxKey) -> Result<Target, ReachError> {
        let began = Instant::now();
        let mut seen = self.sandboxes.subscribe(key);
        let mut before = None;
        loop {
            seen.mark_unchanged();
            // Never from the watch, which may be late.
            let found = self.resources.sandbox(&key.namespace, &key.name).await?;
            let view = found
                .as_ref()
                .map(SandboxView::of)
                .ok_or_else(|| ReachError::NoSandbox { namespace: key.namespace.clone(), name: key.name.clone() })?;
            let before = before.get_or_insert_with(|| view.given_up());
            let not_ready = |waited, why| ReachError::NotReady { name: key.name.clone(), waited, why };
            match next(&view, before.as_ref()) {
                Step::Go(target) => {
                    if let Some(alone) = found.as_ref().filter(|sandbox| sandbox.spec.session_ref.is_none()) {
                        self.fill_alone(key, alone, &view, &target).await;
                    }
                    return Ok(target);
                }
                Step::Ended(why) => return Err(ReachError::Ended { name: key.name.clone(), why }),
                Step::Wake => self.resources.wake_sandbox(&key.namespace, &key.name, &view.uid).await?,
                Step::Retry => {
                    self.resources.retry_sandbox(&key.namespace, &key.name, &view.uid, view.incarnation).await?;
                }
                Step::Rests(why) => return Err(not_ready(began.elapsed(), why)),
                Step::Wait => {}
            }
            let waited = began.elapsed();
            let limit = view.patience(self.limits.provisioning, waited, Timestamp::now());
            let left = limit.saturating_sub(waited);
            if left.is_zero() {
                return Err(not_ready(waited, view.explanation().to_owned()));
            }
            // The index keeps a slot for as long as somebody waits, so that its end is no case.
            let _ = timeout(LOOK_AGAIN.min(left), seen.changed()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use longhand_sandbox::client::Target;
    use rstest::rstest;

    use super::{SandboxView, Step, next};

    fn serving() -> SandboxView {
        SandboxView {
            pod_uid: Some("p".to_owned()),
            address: Some("10.0.0.1:8090".to_owned()),
            ready: true,
            ..SandboxView::default()
        }
    }

    #[rstest]
    #[case::ready(serving(), Step::Go(Target { address: "10.0.0.1:8090".to_owned(), pod_uid: "p".to_owned() }))]
    #[case::on_its_way(SandboxView { ready: false, ..serving() }, Step::Wait)]
    #[case::suspended(SandboxView { suspended: true, ..serving() }, Step::Wake)]
    #[case::resting(SandboxView { ready: false, resting: Some("no node".to_owned()), ..serving() }, Step::Retry)]
    #[case::removed(SandboxView { deleting: true, ..serving() }, Step::Ended("it is being removed".to_owned()))]
    #[case::finished(SandboxView { finished: Some("OOMKilled".to_owned()), suspended: true, ..serving() }, Step::Ended("OOMKilled".to_owned()))]
    fn what_is_done_follows_from_what_is_seen(#[case] view: SandboxView, #[case] expected: Step) {
        assert_eq!(next(&view, view.given_up().as_ref()), expected);
    }

    #[test]
    fn who_has_waited_for_one_that_rests_is_told() {
        let resting = SandboxView { ready: false, resting: Some("no node".to_owned()), incarnation: 2, ..serving() };
        let before = SandboxView { incarnation: 1, ..resting.clone() }.given_up();
        for before in [None, before] {
            assert_eq!(next(&resting, before.as_ref()), Step::Rests("no node".to_owned()));
        }
    }
}
