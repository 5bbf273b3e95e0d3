//! The fence: whether a network policy keeps this pod in, as its canaries show.
//!
//! They are tried from the start. The first look is a short one, in which the kernel of the pod's own node answers many times
//! over, since a sandbox is not ready before its end; a long one confirms it at once, and takes the readiness back if the network
//! was only slow. A fence that is not there yet (policies are enforced a moment after a pod begins) or no more is found by trying again.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::canary::{Canary, WINDOW};
use crate::wire::{FenceReport, FenceState};

/// How long the canaries have to answer at a first look; `WINDOW` at each later one. One of them is the kubelet of the same node.
const AT_FIRST: Duration = Duration::from_millis(50);
/// Between two looks while there is no fence.
const AGAIN: Duration = Duration::from_millis(250);
/// A probe waits for a fence that is just being put up; the kubelet gives it two seconds.
const PROBE: Duration = Duration::from_millis(1_500);
/// Between two looks at a fence that stood.
const STILL: Duration = Duration::from_secs(15);

/// What the canaries have shown so far.
#[derive(Clone, Debug)]
pub(crate) struct Fence {
    seen: watch::Receiver<FenceReport>,
    required: bool,
}

impl Fence {
    /// The report, and what has to run for it to be true.
    pub(crate) fn of(canaries: Vec<Canary>, required: bool) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let tried: Vec<String> = canaries.iter().map(|canary| canary.name().to_owned()).collect();
        let (report, seen) = watch::channel(FenceReport { state: FenceState::Unknown, tried, reached: Vec::new() });
        (Self { seen, required }, look(canaries, report))
    }

    /// What is known now.
    pub(crate) fn report(&self) -> FenceReport {
        self.seen.borrow().clone()
    }

    /// Whether the sandbox may be called ready: at once if no fence is required, else when one is seen within a probe's time.
    pub(crate) async fn admits(&self) -> bool {
        if !self.required {
            return true;
        }
        let mut seen = self.seen.clone();
        let fenced = seen.wait_for(|report| report.state == FenceState::Fenced);
        matches!(timeout(PROBE, fenced).await, Ok(Ok(_)))
    }
}

async fn look(canaries: Vec<Canary>, report: watch::Sender<FenceReport>) {
    // Without a canary nothing is ever known.
    if canaries.is_empty() {
        return;
    }
    let mut window = AT_FIRST;
    loop {
        let answers = join_all(canaries.iter().map(|canary| canary.answers(window))).await;
        let reached: BTreeSet<&str> =
            canaries.iter().zip(answers).filter(|(_, answered)| *answered).map(|(canary, _)| canary.name()).collect();
        let state = if reached.is_empty() { FenceState::Fenced } else { FenceState::Open };
        let reached: Vec<String> = reached.into_iter().map(str::to_owned).collect();
        let changed = report.send_if_modified(|report| {
            let changed = report.state != state || report.reached != reached;
            (report.state, report.reached) = (state, reached.clone());
            changed
        });
        match state {
            FenceState::Open if changed => warn!(?reached, "this sandbox is not fenced in"),
            _ if changed => info!("this sandbox is fenced in"),
            _ => {}
        }
        let pause;
        (pause, window) = match state {
            FenceState::Fenced if window == AT_FIRST => (Duration::ZERO, WINDOW),
            FenceState::Fenced => (STILL, WINDOW),
            // The sandbox is waited for, so that each look is a first one.
            _ => (AGAIN, AT_FIRST),
        };
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::{TcpListener, UdpSocket};

    use super::{Canary, Fence, STILL};
    use crate::wire::FenceState;

    #[tokio::test]
    async fn one_target_that_answers_opens_the_fence() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let open = listener.local_addr().unwrap();
        // Nobody listens there, as if a fence refused.
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        let (fence, look) = Fence::of(Canary::list(&format!("a=tcp://{open},b=tcp://{closed}")).unwrap(), true);
        let look = tokio::spawn(look);
        assert!(!fence.admits().await);
        let report = fence.report();
        assert_eq!((report.state, report.reached), (FenceState::Open, vec!["a".to_owned()]));
        // It is found again when it closes.
        drop(listener);
        let mut seen = fence.seen.clone();
        let closed = seen.wait_for(|report| report.state == FenceState::Fenced);
        tokio::time::timeout(std::time::Duration::from_secs(20), closed).await.unwrap().unwrap();
        assert!(fence.admits().await);
        look.abort();
    }

    #[tokio::test]
    async fn a_network_that_was_slow_at_the_first_look_is_found_out_by_the_second() {
        let resolver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let canaries = Canary::list(&format!("dns=dns://{}", resolver.local_addr().unwrap())).unwrap();
        let (fence, look) = Fence::of(canaries, true);
        let look = tokio::spawn(look);
        let mut query = [0; 64];
        // The first one has no answer, each later one has.
        resolver.recv_from(&mut query).await.unwrap();
        assert!(fence.admits().await);
        // At once, not with the looks at a fence that stood.
        let again = tokio::time::timeout(STILL / 3, resolver.recv_from(&mut query));
        let (length, from) = again.await.unwrap().unwrap();
        resolver.send_to(&query[..length], from).await.unwrap();
        let mut seen = fence.seen.clone();
        let open = seen.wait_for(|report| report.state == FenceState::Open);
        tokio::time::timeout(std::time::Duration::from_secs(10), open).await.unwrap().unwrap();
        look.abort();
    }

    #[tokio::test]
    async fn without_a_canary_nothing_is_proven() {
        let (fence, look) = Fence::of(Vec::new(), false);
        look.await;
        assert!(fence.admits().await);
        assert_eq!(fence.report().state, FenceState::Unknown);
        assert!(!Fence { required: true, ..fence }.admits().await);
    }
}
