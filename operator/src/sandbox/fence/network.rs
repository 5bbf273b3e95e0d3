//! What a fence is judged by: what sandboxes say, and whether their targets answer somebody who is not fenced in.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use longhand_sandbox::canary::{Canary, WINDOW};
use longhand_sandbox::wire::FenceReport;

use crate::pod_reports::{self, PodReports};
use crate::sandbox::pod::SANDBOXD_PORT;

const DEADLINE: Duration = Duration::from_millis(500);
const MAX_REPORT: usize = 16 * 1024;
/// What a target answered us is tried again after this long, when nobody waits for it.
const CONTROL_FOR: Duration = Duration::from_secs(60);
/// Nodes, and a few.
const MAX_CONTROLS: usize = 8_192;

/// Asks sandboxes, and tries what they must not reach.
#[async_trait]
pub(in crate::sandbox) trait Fences: Send + Sync + 'static {
    /// What the `sandboxd` at this address says.
    async fn report(&self, pod_ip: &str) -> Option<FenceReport>;

    /// Whether the target answers somebody who is not fenced in, as far as that is known; one that was never tried is.
    async fn answers(&self, canary: &Canary) -> bool;

    /// Tries the target again if that was long ago.
    async fn refresh(&self, canary: &Canary);
}

/// Over the network of the cluster.
pub(in crate::sandbox) struct Network {
    reports: PodReports,
    controls: Mutex<HashMap<String, Control>>,
}

#[derive(Clone, Copy)]
struct Control {
    tried: Instant,
    answers: bool,
}

impl Network {
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub(in crate::sandbox) fn new() -> Result<Self, reqwest::Error> {
        Ok(Self { reports: PodReports::new(DEADLINE)?, controls: Mutex::default() })
    }

    async fn ask(&self, pod_ip: &str) -> Result<Option<FenceReport>, reqwest::Error> {
        let answer = self.reports.get(pod_ip, SANDBOXD_PORT, "/v1/fence").await?;
        // A sandboxd of another version knows no fence.
        pod_reports::read(answer.error_for_status()?, MAX_REPORT).await
    }

    /// What is known of a target; whoever finds it too old has it marked as tried, so that one alone tries it again.
    fn known(&self, key: &str, renew: bool) -> Option<bool> {
        let mut controls = self.controls.lock().unwrap_or_else(PoisonError::into_inner);
        let control = controls.get_mut(key)?;
        if renew && control.tried.elapsed() >= CONTROL_FOR {
            control.tried = Instant::now();
            return None;
        }
        Some(control.answers)
    }

    async fn attempt(&self, canary: &Canary, key: String) -> bool {
        let answers = canary.answers(WINDOW).await;
        let mut controls = self.controls.lock().unwrap_or_else(PoisonError::into_inner);
        if controls.len() >= MAX_CONTROLS {
            controls.retain(|_, control| control.tried.elapsed() < CONTROL_FOR);
        }
        controls.insert(key, Control { tried: Instant::now(), answers });
        answers
    }
}

#[async_trait]
impl Fences for Network {
    async fn report(&self, pod_ip: &str) -> Option<FenceReport> {
        self.ask(pod_ip).await.unwrap_or_else(|error| {
            tracing::debug!(pod_ip, %error, "a sandbox does not say whether it is fenced in");
            None
        })
    }

    async fn answers(&self, canary: &Canary) -> bool {
        let key = format!("{canary:?}");
        match self.known(&key, false) {
            Some(answers) => answers,
            None => self.attempt(canary, key).await,
        }
    }

    async fn refresh(&self, canary: &Canary) {
        let key = format!("{canary:?}");
        if self.known(&key, true).is_none() {
            self.attempt(canary, key).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::{Duration, Instant};

    use longhand_sandbox::canary::Canary;
    use tokio::net::TcpListener;

    use super::{CONTROL_FOR, Fences as _, Network};

    #[tokio::test]
    async fn what_a_target_answered_holds_until_somebody_has_the_time_to_try_it_again() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let canary = &Canary::list(&format!("a=tcp://{}", listener.local_addr().unwrap())).unwrap()[0];
        let network = Network::new().unwrap();
        assert!(network.answers(canary).await);
        drop(listener);
        network.refresh(canary).await;
        assert!(network.answers(canary).await, "it was tried a moment ago");
        let long_ago = Instant::now().checked_sub(CONTROL_FOR + Duration::from_secs(1)).unwrap();
        network.controls.lock().unwrap().values_mut().for_each(|control| control.tried = long_ago);
        assert!(network.answers(canary).await, "who is waited for does not try it");
        network.refresh(canary).await;
        assert!(!network.answers(canary).await);
    }
}
