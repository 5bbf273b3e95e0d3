//! A connection to etcd that can be cut between a request and its answer, or before the request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Forwards to an address until it is told to lose an answer, or everything.
pub(crate) struct Cut {
    address: String,
    state: Arc<State>,
    task: JoinHandle<()>,
}

/// What is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// Etcd never sees it.
    Request,
    /// Etcd has done what it was asked for.
    Answer,
}

#[derive(Default)]
struct State {
    armed: AtomicBool,
    /// What is lost after so many of its kind, and everything from then on.
    last: Mutex<Option<(Lost, usize)>>,
    /// So many more requests get through before one waits, and whether it goes on.
    held: Mutex<Option<usize>>,
    holding: watch::Sender<bool>,
    blocked: watch::Sender<bool>,
}

impl State {
    /// Waits while it is this request's turn to be held.
    async fn hold(&self, bytes: usize) {
        let is_due = match self.held.lock().unwrap().as_mut() {
            Some(0) => true,
            Some(left) if bytes > NO_ANSWER => {
                *left -= 1;
                false
            }
            _ => false,
        };
        if is_due && bytes > NO_ANSWER {
            *self.held.lock().unwrap() = None;
            self.holding.send_replace(true);
            let _ = self.holding.subscribe().wait_for(|holding| !*holding).await;
        }
    }

    /// Whether these bytes get through.
    fn passes(&self, kind: Lost, bytes: usize) -> bool {
        let mut last = self.last.lock().unwrap();
        let Some((_, left)) = last.as_mut().filter(|(lost, _)| *lost == kind && bytes > NO_ANSWER) else { return true };
        if *left > 0 {
            *left -= 1;
            return true;
        }
        *last = None;
        self.blocked.send_replace(true);
        false
    }
}

impl Cut {
    pub(crate) async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, state) = (target.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let mut blocked = state.blocked.subscribe();
                    tokio::select! {
                        () = forward(client, target, &state) => {}
                        _ = blocked.wait_for(|blocked| *blocked) => {}
                    }
                });
            }
        });
        Self { address, state, task }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on the next bytes from etcd that are more than a ping are lost, and the connection with them.
    pub(crate) fn lose_next_answer(&self) {
        self.state.armed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_lost(&self) -> bool {
        !self.state.armed.load(Ordering::SeqCst)
    }

    /// After so many more requests or answers one is lost, and nothing gets through any more: as if the process at this
    /// end were killed there.
    pub(crate) fn end_after(&self, count: usize, lost: Lost) {
        *self.state.last.lock().unwrap() = Some((lost, count));
    }

    /// Returns when the end has come.
    pub(crate) async fn ended(&self) {
        let _ = self.state.blocked.subscribe().wait_for(|blocked| *blocked).await;
    }

    /// After so many more requests one is held back, and all that come after it on its connection.
    pub(crate) fn hold_after(&self, requests: usize) {
        *self.state.held.lock().unwrap() = Some(requests);
    }

    /// Returns when one is held back.
    pub(crate) async fn holds(&self) {
        let _ = self.state.holding.subscribe().wait_for(|holding| *holding).await;
    }

    /// Lets it go.
    pub(crate) fn release(&self) {
        *self.state.held.lock().unwrap() = None;
        self.state.holding.send_replace(false);
    }

    pub(crate) fn has_ended(&self) -> bool {
        *self.state.blocked.borrow()
    }

    /// Ends every connection and lets none through, or lets them through again.
    pub(crate) fn block(&self, blocked: bool) {
        self.state.blocked.send_replace(blocked);
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A window update or the acknowledgement of a ping; an answer is longer.
const NO_ANSWER: usize = 40;

async fn forward(client: TcpStream, target: String, state: &State) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async move {
        let mut buffer = vec![0; 65_536];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            state.hold(count).await;
            if !state.passes(Lost::Request, count) || to_server.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    };
    let down = async move {
        let mut buffer = vec![0; 65_536];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            let lost = count > NO_ANSWER && state.armed.swap(false, Ordering::SeqCst);
            let lost = lost || !state.passes(Lost::Answer, count);
            if lost || to_client.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
