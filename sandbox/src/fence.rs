//! The canary: whether a network policy keeps this pod in. `sandboxd` tries targets that it must not reach.
//!
//! It begins with the process and takes one window at the most, in which a cluster's network answers many times over; a
//! sandbox is ready no later for it, but that the first probe may wait for the rest of the window. A fence that is not there
//! yet (policies are enforced a moment after a pod begins) or no more is found by trying again.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use futures::future::join_all;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::wire::{FenceReport, FenceState};

/// What is reachable in a cluster answers long before.
const WINDOW: Duration = Duration::from_millis(250);
/// Between two looks while there is no fence.
const AGAIN: Duration = Duration::from_millis(500);
/// Between two looks at a fence that stood.
const STILL: Duration = Duration::from_secs(15);
const MAX_TARGETS: usize = 16;
/// Of the root: every resolver answers it, if only by a refusal.
const DNS_QUERY: [u8; 17] = [0x1f, 0x07, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

/// Something that a sandbox must not reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    name: String,
    protocol: Protocol,
    address: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    /// A resolver, which answers a query.
    Dns,
}

/// A list of canaries that is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not name=tcp://address:port or name=dns://address:port, or more than {MAX_TARGETS} are given")]
pub struct InvalidCanary(String);

impl FromStr for Canary {
    type Err = InvalidCanary;

    fn from_str(text: &str) -> Result<Self, InvalidCanary> {
        let invalid = || InvalidCanary(text.to_owned());
        let (name, target) = text.split_once('=').ok_or_else(invalid)?;
        let (protocol, address) = target.split_once("://").ok_or_else(invalid)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "dns" => Protocol::Dns,
            _ => return Err(invalid()),
        };
        let fits =
            (1..=63).contains(&name.len()) && name.bytes().all(|byte| byte == b'-' || byte.is_ascii_alphanumeric());
        let address = address.parse().map_err(|_| invalid())?;
        if fits { Ok(Self { name: name.to_owned(), protocol, address }) } else { Err(invalid()) }
    }
}

impl Canary {
    /// Those of a list that is separated by commas.
    ///
    /// # Errors
    /// [`InvalidCanary`] names the first that is none.
    pub fn list(text: &str) -> Result<Vec<Self>, InvalidCanary> {
        let all: Vec<Self> =
            text.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
        if all.len() > MAX_TARGETS { Err(InvalidCanary(text.to_owned())) } else { Ok(all) }
    }

    /// Whether it answers within the window. A refusal is no answer: a fence may say no in that way.
    pub async fn answers(&self) -> bool {
        let answered = async {
            match self.protocol {
                Protocol::Tcp => TcpStream::connect(self.address).await.map(drop),
                Protocol::Dns => ask(self.address).await,
            }
        };
        matches!(timeout(WINDOW, answered).await, Ok(Ok(())))
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

async fn ask(resolver: SocketAddr) -> std::io::Result<()> {
    let any = if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(&DNS_QUERY).await?;
    socket.recv(&mut [0; 16]).await.map(drop)
}

/// What the canaries have shown so far.
#[derive(Clone, Debug)]
pub(crate) struct Fence {
    seen: watch::Receiver<FenceReport>,
    required: bool,
}

impl Fence {
    /// The report, and what has to run for it to be true.
    pub(crate) fn of(canaries: Vec<Canary>, required: bool) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let tried: Vec<String> = canaries.iter().map(|canary| canary.name.clone()).collect();
        let (report, seen) = watch::channel(FenceReport { state: FenceState::Unknown, tried, reached: Vec::new() });
        (Self { seen, required }, look(canaries, report))
    }

    /// What is known now.
    pub(crate) fn report(&self) -> FenceReport {
        self.seen.borrow().clone()
    }

    /// Whether the sandbox may be called ready: at once if no fence is required, else when the first look is over.
    pub(crate) async fn admits(&self) -> bool {
        if !self.required {
            return true;
        }
        let mut seen = self.seen.clone();
        let known = seen.wait_for(|report| report.state != FenceState::Unknown);
        let known = timeout(WINDOW * 4, known).await;
        matches!(known, Ok(Ok(report)) if report.state == FenceState::Fenced)
    }
}

async fn look(canaries: Vec<Canary>, report: watch::Sender<FenceReport>) {
    // Without a canary nothing is ever known.
    if canaries.is_empty() {
        return;
    }
    loop {
        let answers = join_all(canaries.iter().map(Canary::answers)).await;
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
        sleep(if state == FenceState::Fenced { STILL } else { AGAIN }).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rstest::rstest;
    use tokio::net::{TcpListener, UdpSocket};

    use super::{Canary, Fence};
    use crate::wire::FenceState;

    #[rstest]
    #[case("", 0)]
    #[case("api=tcp://10.0.0.1:443, dns=dns://10.0.0.10:53", 2)]
    #[case("six=tcp://[fd00::1]:443", 1)]
    fn lists_are_read(#[case] text: &str, #[case] count: usize) {
        assert_eq!(Canary::list(text).unwrap().len(), count);
    }

    #[rstest]
    #[case("10.0.0.1:443")]
    #[case("a=tcp://host:1")]
    #[case("a=udp://10.0.0.1:1")]
    #[case("=tcp://10.0.0.1:1")]
    #[case(&"a=tcp://10.0.0.1:1,".repeat(17))]
    fn what_is_no_list_is_named(#[case] text: &str) {
        assert!(Canary::list(text).is_err());
    }

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
    async fn a_resolver_that_answers_opens_the_fence() {
        let resolver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = resolver.local_addr().unwrap();
        let canary = &Canary::list(&format!("dns=dns://{address}")).unwrap()[0];
        let mut query = [0; 64];
        let answer = async {
            let (length, from) = resolver.recv_from(&mut query).await.unwrap();
            resolver.send_to(&query[..length], from).await.unwrap();
        };
        let ((), answered) = tokio::join!(answer, canary.answers());
        assert!(answered);
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
