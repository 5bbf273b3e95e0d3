//! The other replicas of the service: found by the name that stands for all of them, and told what is previewed here.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longhand_protocol::client::{PeerClient, Server, TokenSource};
use longhand_protocol::internal::{PeerPost, PeerPreviews};
use tokio::net::lookup_host;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::outbox::Outbox;
use crate::metrics;

/// A new replica is known to the others within about this time.
const LOOK: Duration = Duration::from_secs(5);
const LOOKUP_DEADLINE: Duration = Duration::from_secs(4);
/// More replicas than this are not told: each costs a task and its queue.
const MOST: usize = 64;

/// How the other replicas are found and spoken to.
#[derive(Clone, Debug)]
pub struct Addressing {
    /// `http` or `https`, the name that stands for all replicas, and the port.
    pub url: String,
    /// Our own address, which the name stands for too.
    pub own: IpAddr,
    /// Our token of the service's audience.
    pub token: TokenSource,
    /// The authority that the replicas are known by.
    pub authority_file: Option<PathBuf>,
}

/// The other replicas, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Peers {
    peers: Mutex<HashMap<SocketAddr, Peer>>,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Peer {
    outbox: Arc<Waiting>,
    _stop: DropGuard,
}

#[derive(Debug, Default)]
struct Waiting {
    outbox: Mutex<Outbox>,
    news: Notify,
}

impl Waiting {
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peers {
    /// Queues a post for every other replica.
    pub(super) fn tell(&self, post: &PeerPost) {
        for peer in self.peers().values() {
            if !peer.outbox.outbox().put(post.clone()) {
                metrics::peer_post("dropped", 1);
            }
            peer.outbox.news.notify_one();
        }
    }

    /// Looks for the other replicas from time to time, for ever.
    pub(super) async fn follow(&self, addressing: Addressing) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut authority = None;
        loop {
            ticks.tick().await;
            let read = match &addressing.authority_file {
                Some(path) => tokio::fs::read(path).await.map(Some),
                None => Ok(None),
            };
            match read {
                Ok(read) if read != authority => {
                    self.peers().clear();
                    authority = read;
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "the authority that replicas are known by cannot be read"),
            }
            match look(&addressing).await {
                Ok(found) => self.meet(&found, &addressing, authority.as_deref()),
                Err(reason) => tracing::debug!(reason, "the other replicas cannot be looked up"),
            }
        }
    }

    /// Forgets who is gone, and begins to tell who is new.
    pub(super) fn meet(&self, found: &HashSet<SocketAddr>, addressing: &Addressing, authority: Option<&[u8]>) {
        let mut peers = self.peers();
        peers.retain(|address, _| found.contains(address));
        for address in found {
            if peers.len() >= MOST || peers.contains_key(address) {
                continue;
            }
            let server = Server::new(addressing.url.as_str()).at(*address);
            let server = match authority {
                Some(authority) => server.trusting(authority),
                None => server,
            };
            match PeerClient::new(server, addressing.token.clone()) {
                Ok(client) => {
                    tracing::info!(%address, "another replica is told of previews");
                    let (outbox, stop) = (Arc::<Waiting>::default(), CancellationToken::new());
                    let sending = send(Arc::clone(&outbox), client, *address);
                    self.tasks.spawn(stop.clone().run_until_cancelled_owned(sending));
                    peers.insert(*address, Peer { outbox, _stop: stop.drop_guard() });
                }
                Err(error) => tracing::warn!(%address, %error, "another replica cannot be told of previews"),
            }
        }
        metrics::peers(peers.len());
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<SocketAddr, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn look(addressing: &Addressing) -> Result<HashSet<SocketAddr>, String> {
    let authority = addressing.url.split_once("://").map_or(addressing.url.as_str(), |(_, rest)| rest);
    let found = timeout(LOOKUP_DEADLINE, lookup_host(authority.trim_end_matches('/'))).await;
    let found = found.map_err(|_| "no answer in time".to_owned())?.map_err(|error| error.to_string())?;
    Ok(found.filter(|address| address.ip() != addressing.own).collect())
}

/// Sends what waits, for ever. What does not arrive is not sent again: the message itself comes by the log.
async fn send(waiting: Arc<Waiting>, client: PeerClient, address: SocketAddr) {
    loop {
        let posts = waiting.outbox().take();
        if posts.is_empty() {
            waiting.news.notified().await;
            continue;
        }
        let count = posts.len();
        let request = PeerPreviews { posts };
        match client.previews(&request).await {
            Ok(()) => metrics::peer_post("sent", count),
            Err(error) => {
                tracing::debug!(%address, %error, "another replica was not told of previews");
                metrics::peer_post("failed", count);
                waiting.outbox().lost(&request.posts);
            }
        }
    }
}
