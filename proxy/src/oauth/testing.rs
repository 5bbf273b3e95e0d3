//! A provider that rotates refresh tokens and revokes them all when an old one is used, and a vault that both proxies of a
//! test have.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{Router, extract::State as Shared, response::IntoResponse, routing::post};
use futures::future::BoxFuture;
use http::StatusCode;
use longhand_protocol::{
    client,
    refresh::{RefreshAnswer, RefreshFailure, RefreshStep, SentRefresh},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};

use super::service::Service;

/// What the provider does instead of its work.
pub(crate) enum Instead {
    /// It answers this.
    Answer(u16, String),
    /// It does its work, and answers after so long.
    Slow(Duration),
    /// It does its work, and answers when it is told to.
    Held(Arc<Notify>),
}

pub(crate) struct Given {
    /// The number of the tokens that are good; the first ones are 0.
    pub(crate) number: usize,
    pub(crate) revoked: bool,
    pub(crate) rotates: bool,
    pub(crate) lifetime: Value,
    pub(crate) instead: VecDeque<Instead>,
    /// The forms.
    pub(crate) asked: Vec<String>,
}

/// A provider that runs until it is dropped.
pub(crate) struct Provider {
    pub(crate) address: SocketAddr,
    given: Arc<Mutex<Given>>,
    task: JoinHandle<()>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Provider {
    pub(crate) async fn start() -> Self {
        let given = Given {
            number: 0,
            revoked: false,
            rotates: true,
            lifetime: json!(3_600),
            instead: VecDeque::new(),
            asked: Vec::new(),
        };
        let given = Arc::new(Mutex::new(given));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/token", post(token)).with_state(given.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, given, task }
    }

    pub(crate) fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap()
    }

    /// The section `oauth` of a credential whose files are in this folder.
    pub(crate) fn section(&self, files: &Path, expires_at: &str) -> Value {
        json!({
            "vault": "keys", "secret": "first", "clientID": "me", "auth": "client_secret_post", "expiresAt": expires_at,
            "tokenEndpoint": format!("http://{}/token", self.address), "refreshTokenFile": files.join("refresh"),
            "clientSecretFile": files.join("client"),
        })
    }
}

/// The files as a first Secret has them.
pub(crate) fn write_files(files: &Path) {
    for (name, value) in [("access", "access-0"), ("refresh", "rt-0"), ("client", "client-secret")] {
        std::fs::write(files.join(name), value).unwrap();
    }
}

async fn token(Shared(given): Shared<Arc<Mutex<Given>>>, form: String) -> impl IntoResponse {
    let (answer, wait) = answer(&mut given.lock().unwrap(), form);
    match wait {
        Some(Instead::Slow(slow)) => tokio::time::sleep(slow).await,
        Some(Instead::Held(told)) => told.notified().await,
        Some(Instead::Answer(..)) | None => {}
    }
    answer
}

/// The answer, and what it waits for.
fn answer(given: &mut Given, form: String) -> ((StatusCode, String), Option<Instead>) {
    let good = format!("refresh_token=rt-{}&", given.number);
    let good = form.contains(&good) && form.contains("client_secret=client-secret") && !given.revoked;
    given.asked.push(form);
    let wait = match given.instead.pop_front() {
        Some(Instead::Answer(status, body)) => return ((StatusCode::from_u16(status).unwrap(), body), None),
        wait => wait,
    };
    if !good {
        // Somebody used an old one: it may be stolen.
        given.revoked = true;
        return ((StatusCode::BAD_REQUEST, json!({"error": "invalid_grant"}).to_string()), wait);
    }
    let serial = given.asked.len();
    let mut body =
        json!({"access_token": format!("access-{serial}"), "token_type": "Bearer", "expires_in": given.lifetime});
    if given.rotates {
        given.number = serial;
        body["refresh_token"] = json!(format!("rt-{serial}"));
    }
    ((StatusCode::OK, body.to_string()), wait)
}

#[derive(Default)]
pub(crate) struct Kept {
    /// The Secret with the refresh token, if it is not the first.
    pub(crate) secret: Option<String>,
    pub(crate) claimed_by: Option<&'static str>,
    /// What was handed over, each attempt once.
    pub(crate) stored: Vec<Value>,
    pub(crate) failures: Vec<RefreshFailure>,
    /// So many hand-overs are not answered.
    pub(crate) away: usize,
    /// It takes no hand-over.
    pub(crate) stopped: bool,
}

/// A vault, as the session service keeps it.
#[derive(Default)]
pub(crate) struct FakeVault(Mutex<Kept>);

impl FakeVault {
    pub(crate) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap()
    }
}

/// The session service, as one pod has it.
pub(crate) struct Seat {
    pub(crate) vault: Arc<FakeVault>,
    pub(crate) pod: &'static str,
}

impl Service for Seat {
    fn refresh<'a>(&'a self, request: &'a SentRefresh<'a>) -> BoxFuture<'a, Result<RefreshAnswer, client::Error>> {
        Box::pin(async move { answered(&mut self.vault.kept(), self.pod, request) })
    }
}

fn answered(kept: &mut Kept, pod: &'static str, request: &SentRefresh<'_>) -> Result<RefreshAnswer, client::Error> {
    assert_eq!((request.vault.as_str(), request.credential.as_str()), ("keys", "tickets"));
    let secret = kept.secret.clone().unwrap_or_else(|| "first".to_owned());
    let known = |stored: &Value| stored["attempt"] == json!(request.attempt);
    if request.step == RefreshStep::Refreshed {
        if kept.away > 0 || kept.stopped {
            kept.away = kept.away.saturating_sub(1);
            return Err(client::Error::Timeout { call: "refresh".to_owned(), after: Duration::ZERO });
        }
        if kept.stored.iter().any(known) {
            return Ok(RefreshAnswer::Stored { secret });
        }
    }
    if request.secret != secret {
        return Ok(RefreshAnswer::Superseded {});
    }
    match request.step {
        RefreshStep::Begin if kept.claimed_by.is_some_and(|by| by != pod) => Ok(RefreshAnswer::Busy {}),
        RefreshStep::Begin => {
            kept.claimed_by = Some(pod);
            Ok(RefreshAnswer::Go {})
        }
        RefreshStep::Refreshed => {
            kept.claimed_by = None;
            kept.stored.push(serde_json::to_value(request).unwrap());
            if request.refresh_token.is_some() {
                kept.secret = Some(format!("made-{}", kept.stored.len()));
            }
            Ok(RefreshAnswer::Stored { secret: kept.secret.clone().unwrap_or(secret) })
        }
        RefreshStep::Failed => {
            kept.claimed_by = None;
            kept.failures.push(request.failure.unwrap());
            Ok(RefreshAnswer::Noted {})
        }
    }
}
