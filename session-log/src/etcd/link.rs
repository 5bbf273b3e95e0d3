//! The way to etcd: one connection, to one of several endpoints, with a login if etcd asks for one.
//!
//! A connection that breaks, or behind which nothing answers, is made again to the next endpoint. Certificates, keys and
//! passwords are read each time, so that they can be replaced while the process runs.

mod connector;
mod security;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions, Error, WatchOptions, WatchStream};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::transport::Endpoint;

use self::connector::Connector;
pub use self::security::{Identity, Login, TlsFiles};
use super::EtcdOptions;
use super::failure::{Failure, LOST_LOGIN, NO_LEADER};
use crate::store::{Result, StoreError};

/// Etcd refuses pings that come more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// A batch, or a page of large records, is in one window.
const WINDOW: u32 = 4 * 1024 * 1024;

/// A connection to etcd that gives every call a deadline.
#[derive(Clone)]
pub(super) struct Link {
    client: Client,
    connector: Connector,
    login: Option<Arc<Session>>,
    timeout: Duration,
}

/// Who one is for etcd, and whether etcd knows it.
struct Session {
    login: Login,
    is_open: Mutex<bool>,
}

impl Link {
    /// Nothing is connected to before the first call.
    pub(super) async fn open(endpoints: &[String], options: &EtcdOptions) -> Result<Self> {
        let connector = Connector::to(endpoints, options.tls.clone())?;
        let channel = Endpoint::from_static("http://etcd")
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .connect_with_connector_lazy(connector.clone().into_service());
        let connect = ConnectOptions::new().with_require_leader(true).with_auto_token_refresh(true);
        // Without a user in the options this calls nobody.
        let client = Client::from_channel(Channel::Tonic(channel), Some(connect))
            .await
            .map_err(|error| StoreError::Unavailable(format!("etcd at {}: {error}", endpoints.join(", "))))?;
        let login = options.login.clone().map(|login| Arc::new(Session { login, is_open: Mutex::new(false) }));
        Ok(Self { client, connector, login, timeout: options.timeout })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// One call to etcd, within the deadline.
    pub(super) async fn call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
        let answered = timeout(self.timeout, async {
            self.log_in().await?;
            call.await.map_err(Failure::from)
        });
        let outcome = answered.await.unwrap_or_else(|_| {
            self.connector.leave();
            Err(Failure::unknown(format!("etcd did not answer within {:?}", self.timeout)))
        });
        if let Err(failure) = &outcome {
            self.distrust(&failure.to_string()).await;
        }
        outcome
    }

    /// Opens a watch.
    pub(super) async fn watch(&self, prefix: &str, options: WatchOptions) -> Result<WatchStream, Failure> {
        let mut watches = self.client.watch_client();
        self.call(watches.watch(prefix, Some(options))).await
    }

    /// Draws the conclusions from what etcd says when it fails.
    pub(super) async fn distrust(&self, reason: &str) {
        if reason.contains(NO_LEADER) {
            self.connector.leave();
        }
        if let Some(session) = self.login.as_ref().filter(|_| LOST_LOGIN.iter().any(|text| reason.contains(text))) {
            *session.is_open.lock().await = false;
        }
    }

    async fn log_in(&self) -> Result<(), Failure> {
        let Some(session) = &self.login else { return Ok(()) };
        let mut is_open = session.is_open.lock().await;
        if *is_open {
            return Ok(());
        }
        let password = session.login.password().await.map_err(Failure::unknown)?;
        let user = Some((session.login.username.clone(), password));
        self.client.clone().update_user(user).await.map_err(|error| {
            Failure::unknown(format!("etcd does not let user {} in: {error}", session.login.username))
        })?;
        *is_open = true;
        Ok(())
    }
}
