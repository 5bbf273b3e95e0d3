//! Where a service is, and by which certificates it is known.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Url};

use super::{Error, Result};

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Shorter than servers keep a connection without a request, so that none is used again in the moment that it closes.
const KEPT_IDLE: Duration = Duration::from_secs(10);

/// Where a service is, and by which certificates it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    base: String,
    authority: Option<Vec<u8>>,
    address: Option<SocketAddr>,
}

impl Server {
    /// The service at an `http` or `https` URL. Over `https` it is known by the certificates that the system trusts.
    #[must_use]
    pub fn new(base: impl Into<String>) -> Self {
        Self { base: base.into(), authority: None, address: None }
    }

    /// Trusts these authorities, certificates in PEM, and no others.
    #[must_use]
    pub fn trusting(mut self, authorities: impl Into<Vec<u8>>) -> Self {
        self.authority = Some(authorities.into());
        self
    }

    /// Connects to this address, whatever the name in the URL stands for; the certificate must still be for that name.
    #[must_use]
    pub fn at(mut self, address: SocketAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// The authorities that are trusted, in PEM, unless it is the system that says so.
    #[must_use]
    pub fn authorities(&self) -> Option<&[u8]> {
        self.authority.as_deref()
    }

    /// A client for the service, and its URL.
    ///
    /// # Errors
    /// When the URL or the authorities cannot be used.
    pub fn connect(&self) -> Result<(Client, Url)> {
        let invalid = || Error::BaseUrl { url: self.base.clone() };
        let url = Url::parse(&self.base).map_err(|_| invalid())?;
        let mut builder = match (url.scheme(), &self.authority) {
            // Spoken inside a cluster only: no proxy, and no root certificates, which an image from scratch lacks.
            ("http", _) => Client::builder().no_proxy().tls_certs_only([]),
            ("https", Some(pem)) => {
                let authorities = Certificate::from_pem_bundle(pem).map_err(Error::Setup)?;
                if authorities.is_empty() {
                    return Err(Error::NoAuthority);
                }
                Client::builder().no_proxy().tls_certs_only(authorities)
            }
            ("https", None) => Client::builder(),
            _ => return Err(invalid()),
        };
        if let Some(address) = self.address {
            builder = builder.resolve(url.host_str().ok_or_else(invalid)?, address);
        }
        // A redirect could carry the token to another host: no server of ours redirects.
        let builder = builder.redirect(Policy::none()).connect_timeout(CONNECT_DEADLINE).pool_idle_timeout(KEPT_IDLE);
        Ok((builder.build().map_err(Error::Setup)?, url))
    }
}

impl From<&str> for Server {
    fn from(base: &str) -> Self {
        Self::new(base)
    }
}

impl From<&String> for Server {
    fn from(base: &String) -> Self {
        Self::new(base.as_str())
    }
}

impl From<String> for Server {
    fn from(base: String) -> Self {
        Self::new(base)
    }
}
