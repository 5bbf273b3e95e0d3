//! A connection to etcd that can be cut between a request and its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

#[derive(Default)]
struct State {
    armed: AtomicBool,
    blocked: watch::Sender<bool>,
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
                        () = forward(client, target, &state.armed) => {}
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

async fn forward(client: TcpStream, target: String, armed: &AtomicBool) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async move { tokio::io::copy(&mut from_client, &mut to_server).await };
    let down = async move {
        let mut buffer = vec![0; 65_536];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            let lost = count > NO_ANSWER && armed.swap(false, Ordering::SeqCst);
            if lost || to_client.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        _ = up => {}
        () = down => {}
    }
}
