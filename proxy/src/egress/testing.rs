//! Tokens, rules and a network without wires for the tests of this mode.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::future::BoxFuture;
use longhand_protocol::egress::{CredentialEvent, CredentialEvents};
use longhand_sandbox::token::Signer;
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::Notify};

use super::{context::Bound, dial::Sockets, token::Verifier};
use crate::{
    audit::{Report, ReportError},
    config::{Config, Egress, Network},
    testing::within,
};

pub(crate) const SESSION: &str = "sesn_one";
pub(crate) const HARNESS: &str = "harness-pod-1";

/// A session service, as far as it signs egress tokens.
pub(crate) struct TokenMaker(Signer);

impl TokenMaker {
    pub(crate) fn new() -> Self {
        Self(Signer::generate().unwrap().0)
    }

    pub(crate) fn public_key(&self) -> String {
        self.0.public_key()
    }

    pub(crate) fn verifier(&self) -> Verifier {
        Verifier::new(&self.public_key(), SESSION.parse().unwrap(), HARNESS).unwrap()
    }

    pub(crate) fn claims(&self) -> Value {
        let now = jsonwebtoken::get_current_timestamp();
        json!({
            "aud": "longhand-egress", "sub": SESSION, "sandbox": "default", "pod": "pod-1", "harness": HARNESS,
            "seed": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=", "iat": now, "exp": now + 86_400,
        })
    }

    pub(crate) fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = self.claims();
        change(&mut claims);
        self.0.encode(&claims).unwrap()
    }
}

/// The egress section with these sandboxes and bindings, as the configuration reads it.
pub(crate) fn egress(key: &str, sandboxes: &Value, bindings: &Value) -> Value {
    let binding = |binding: &Value| {
        let part = |name: &str, default: Value| binding.get(name).cloned().unwrap_or(default);
        json!({
            "vault": "team", "name": binding["name"],
            "file": part("file", json!("/nonexistent/longhand/credential")),
            "placement": {"type": "environmentVariable", "locations": ["header"]},
            "allow": {
                "scheme": part("scheme", json!("https")), "hosts": binding["hosts"], "port": part("port", json!(443)),
                "allowPrivate": part("allowPrivate", json!(false)),
            },
        })
    };
    json!({
        "session": SESSION, "verifyKey": key, "sandboxes": sandboxes,
        "bindings": bindings.as_array().unwrap().iter().map(binding).collect::<Vec<_>>(),
        "audit": {"url": "http://session.example", "tokenFile": "/var/run/secrets/longhand-proxy/token"},
    })
}

/// What the configuration makes of an egress section.
pub(crate) fn parse(egress: &Value) -> Egress {
    let route = json!({"name": "model", "prefix": "/model", "upstream": "https://api.example"});
    Config::parse(&json!({"routes": [route], "egress": egress}).to_string()).unwrap().egress.unwrap()
}

pub(crate) fn network(rule: &Value) -> Network {
    parse(&egress("", &json!({"default": rule}), &json!([]))).sandboxes.remove("default").unwrap()
}

pub(crate) fn bindings(rules: &Value) -> Vec<Bound> {
    parse(&egress("", &json!({}), rules)).bindings.into_iter().map(Bound::new).collect()
}

/// Whether a service takes no report with this event.
type Refusal = fn(&CredentialEvent) -> bool;

/// A session service, as far as it takes reports.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    events: Mutex<Vec<CredentialEvent>>,
    /// How it fails: whether a retry may help.
    failing: Mutex<Option<bool>>,
    /// What it takes in no report.
    refused: Mutex<Option<Refusal>>,
    /// Reports so far.
    asked: AtomicUsize,
    arrived: Notify,
}

impl Recorder {
    pub(crate) fn fail(&self, retryable: Option<bool>) {
        *locked(&self.failing) = retryable;
    }

    /// Refuses every report with such an event.
    pub(crate) fn refuse(&self, refused: Option<fn(&CredentialEvent) -> bool>) {
        *locked(&self.refused) = refused;
    }

    /// How many reports were sent to it.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    pub(crate) fn events(&self) -> Vec<CredentialEvent> {
        locked(&self.events).clone()
    }

    /// The events, once there are so many.
    pub(crate) async fn at_least(&self, count: usize) -> Vec<CredentialEvent> {
        within(async {
            loop {
                let arrived = self.arrived.notified();
                let events = self.events();
                if events.len() >= count {
                    return events;
                }
                arrived.await;
            }
        })
        .await
    }
}

/// As the session service checks a report that it has read. What is too long is read as far as it fits.
pub(crate) fn checked(report: &CredentialEvents) -> Result<(), ReportError> {
    let read: CredentialEvents = serde_json::from_value(serde_json::to_value(report).unwrap()).unwrap();
    assert_eq!(read, *report, "an event was cut on its way");
    report.check().map_err(|problem| ReportError { message: problem.to_string(), retryable: false })
}

impl Report for Arc<Recorder> {
    fn report<'a>(&'a self, report: &'a CredentialEvents) -> BoxFuture<'a, Result<(), ReportError>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if let Some(retryable) = *locked(&self.failing) {
                return Err(ReportError { message: "no".to_owned(), retryable });
            }
            let refused = locked(&self.refused).is_some_and(|refused| report.events.iter().any(refused));
            checked(report)?;
            if refused {
                return Err(ReportError { message: "such an event".to_owned(), retryable: false });
            }
            locked(&self.events).extend(report.events.iter().cloned());
            self.arrived.notify_waiters();
            Ok(())
        })
    }
}

/// Names and addresses that lead to servers on loopback.
#[derive(Debug, Default)]
pub(crate) struct FakeSockets {
    /// What a name stands for, one answer after another; the last stays.
    names: Mutex<HashMap<String, VecDeque<Vec<IpAddr>>>>,
    servers: Mutex<HashMap<IpAddr, SocketAddr>>,
    dialled: Mutex<Vec<SocketAddr>>,
}

impl FakeSockets {
    /// A name, with what it stands for when it is first asked for, and later.
    pub(crate) fn name(self, name: &str, answers: &[&[&str]]) -> Self {
        let answers =
            answers.iter().map(|answer| answer.iter().map(|address| address.parse().unwrap()).collect()).collect();
        locked(&self.names).insert(name.to_owned(), answers);
        self
    }

    /// The server behind an address.
    pub(crate) fn server(self, address: &str, server: SocketAddr) -> Self {
        locked(&self.servers).insert(address.parse().unwrap(), server);
        self
    }

    /// Every address that a connection was made to, or tried.
    pub(crate) fn dialled(&self) -> Vec<String> {
        locked(&self.dialled).iter().map(ToString::to_string).collect()
    }
}

impl Sockets for FakeSockets {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let mut names = locked(&self.names);
            let answers = names.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
            let last = answers.len() == 1;
            let answer = if last { answers.front().cloned() } else { answers.pop_front() };
            Ok(answer.unwrap())
        })
    }

    fn connect<'a>(&'a self, addresses: &'a [SocketAddr]) -> BoxFuture<'a, io::Result<TcpStream>> {
        Box::pin(async move {
            let first = addresses.first().ok_or(io::ErrorKind::NotFound)?;
            locked(&self.dialled).push(*first);
            let server = locked(&self.servers).get(&first.ip()).copied().ok_or(io::ErrorKind::ConnectionRefused)?;
            TcpStream::connect(server).await
        })
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
