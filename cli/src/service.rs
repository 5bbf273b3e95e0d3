//! The session service, as a command reaches it.

use jiff::Timestamp;
use longhand_protocol::client::{self, Server, TokenSource, WireClient};

use crate::args::Target;
use crate::backend::Backend;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::port_forward::PortForward;
use crate::token::{self, Token};

/// A way to the session service and a token that it takes.
pub struct Service {
    cluster: Cluster,
    account: String,
    _forward: PortForward,
    server: Server,
    token: Token,
}

impl Service {
    /// Requests a token and opens the port-forward.
    ///
    /// # Errors
    /// Says which step failed and what it needs.
    pub async fn connect(cluster: &Cluster, target: &Target) -> Result<Self> {
        let token = token::request(cluster, &target.service_account).await?;
        let backend = Backend {
            client: cluster.client.clone(),
            namespace: target.service_namespace.clone(),
            service: target.service.clone(),
        };
        let forward = PortForward::to_service(backend.clone()).await?;
        let server = backend.server(forward.address()).await?;
        let account = target.service_account.clone();
        Ok(Self { cluster: cluster.clone(), account, _forward: forward, server, token })
    }

    /// A client that is good for now: long work asks again when [`Self::renew`] says so.
    ///
    /// # Errors
    /// When a new token is due and is not to be had.
    pub async fn client(&mut self) -> Result<WireClient> {
        if self.token.is_stale(Timestamp::now()) {
            self.token = token::request(&self.cluster, &self.account).await?;
        }
        let source = TokenSource::fixed(self.token.value.clone());
        Ok(WireClient::new(self.server.clone(), source, Some(self.cluster.namespace.clone()))?)
    }

    /// Takes a new token if `error` may come from the age of the old one; otherwise gives the error back, with advice.
    ///
    /// # Errors
    /// The error itself, or why there is no new token.
    pub async fn renew(&mut self, error: client::Error) -> Result<()> {
        if status(&error) != Some(401) || self.token.is_fresh(Timestamp::now()) {
            return Err(self.explain(error));
        }
        self.token = token::request(&self.cluster, &self.account).await?;
        Ok(())
    }

    /// The error with advice, where there is some.
    #[must_use]
    pub fn explain(&self, error: client::Error) -> Error {
        if status(&error) == Some(403) {
            let (namespace, name) = (self.cluster.namespace.clone(), self.account.clone());
            return Error::Forbidden { namespace, name, source: Box::new(error) };
        }
        error.into()
    }
}

fn status(error: &client::Error) -> Option<u16> {
    error.status().map(|status| status.as_u16())
}
