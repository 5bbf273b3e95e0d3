//! The certificate of a server, from files that somebody else renews.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::TlsAcceptor;

/// A renewed Secret reaches the files within a minute or so; this adds little to it.
const REREAD: Duration = Duration::from_secs(10);

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{} holds no {what} in PEM: {reason}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificate and key do not belong together, or the key is of an unknown kind.
    #[error("the certificate {} cannot be used with the key {}: {source}", certificate.display(), key.display())]
    Pair {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// TLS cannot be set up at all.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[source] rustls::Error),
}

/// A certificate that new connections are served with. Clones share it.
#[derive(Clone)]
pub struct Certificate {
    files: Arc<Files>,
    shown: Arc<Shown>,
    config: Arc<ServerConfig>,
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// What the files hold.
#[derive(PartialEq, Eq)]
struct Pem {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// What the files held last that could be used.
struct Shown(RwLock<(Pem, Arc<CertifiedKey>)>);

impl fmt::Debug for Shown {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Shown")
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).1))
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Certificate").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Certificate {
    /// Reads a chain and its key, both in PEM. [`Self::follow`] keeps them current.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub async fn load(certificate: PathBuf, key: PathBuf) -> Result<Self, CertificateError> {
        let files = Files { certificate, key };
        let pem = files.read().await?;
        let pair = files.pair(&pem)?;
        let shown = Arc::new(Shown(RwLock::new((pem, Arc::new(pair)))));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(CertificateError::Setup)?;
        let mut config = config.with_no_client_auth().with_cert_resolver(Arc::clone(&shown) as Arc<_>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { files: Arc::new(files), shown, config: Arc::new(config) })
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }

    /// Reads the files again from time to time, for ever. What cannot be used is passed over: the last good pair stays.
    pub async fn follow(self) {
        let mut ticks = interval(REREAD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.refresh().await {
                Ok(true) => tracing::info!(file = %self.files.certificate.display(), "the certificate was renewed"),
                Ok(false) => {}
                // Between the writes of two files they do not fit; the next look finds both.
                Err(error) => tracing::warn!(%error, "the last certificate stays in use"),
            }
        }
    }

    /// Takes what the files hold now; whether it is something new.
    ///
    /// # Errors
    /// See [`CertificateError`]; the last good pair then stays in use.
    pub async fn refresh(&self) -> Result<bool, CertificateError> {
        let pem = self.files.read().await?;
        if self.shown.0.read().unwrap_or_else(PoisonError::into_inner).0 == pem {
            return Ok(false);
        }
        let pair = self.files.pair(&pem)?;
        *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = (pem, Arc::new(pair));
        Ok(true)
    }
}

impl Files {
    async fn read(&self) -> Result<Pem, CertificateError> {
        Ok(Pem { certificate: read(&self.certificate).await?, key: read(&self.key).await? })
    }

    fn pair(&self, pem: &Pem) -> Result<CertifiedKey, CertificateError> {
        let malformed =
            |path: &Path, what, reason: String| CertificateError::Pem { path: path.to_owned(), what, reason };
        let wrong = |reason| malformed(&self.certificate, "certificate", reason);
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem.certificate).collect();
        let chain = chain.map_err(|error| wrong(error.to_string()))?;
        if chain.is_empty() {
            return Err(wrong("there is none".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(&pem.key);
        let key = key.map_err(|error| malformed(&self.key, "private key", error.to_string()))?;
        CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|source| CertificateError::Pair {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        })
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    tokio::fs::read(path).await.map_err(|source| CertificateError::Read { path: path.to_owned(), source })
}
