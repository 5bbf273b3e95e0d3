//! Certificates, keys and passwords, as files that may be replaced at any time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// What TLS to etcd is made of: PEM files, read for each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities that etcd's certificate may be signed by.
    pub ca: PathBuf,
    /// What this client shows, if etcd asks for it.
    pub identity: Option<Identity>,
}

/// A client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those between it and the authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A user of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Its name.
    pub username: String,
    /// The file that holds its password; a line break at the end is not part of it.
    pub password_file: PathBuf,
}

impl Login {
    pub(super) async fn password(&self) -> Result<String, String> {
        let bytes = read(&self.password_file).await?;
        let text = String::from_utf8(bytes).map_err(|_| unusable(&self.password_file, "it is not text"))?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

impl TlsFiles {
    /// A configuration from what the files hold now.
    pub(super) async fn load(&self) -> Result<ClientConfig, String> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca).await? {
            roots.add(certificate).map_err(|error| unusable(&self.ca, error))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(Identity { cert, key }) => {
                let parsed = PrivateKeyDer::from_pem_slice(&read(key).await?).map_err(|error| unusable(key, error))?;
                let chain = certificates(cert).await?;
                builder.with_client_auth_cert(chain, parsed).map_err(|error| unusable(cert, error))?
            }
        };
        // Etcd speaks nothing else, and insists that this is said.
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

async fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(path).await?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| unusable(path, error))?;
    if found.is_empty() { Err(unusable(path, "there is no certificate in it")) } else { Ok(found) }
}

async fn read(path: &Path) -> Result<Vec<u8>, String> {
    tokio::fs::read(path).await.map_err(|error| unusable(path, error))
}

fn unusable(path: &Path, error: impl std::fmt::Display) -> String {
    format!("{} cannot be used: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::{Login, TlsFiles};

    #[tokio::test]
    async fn what_is_wrong_with_a_file_is_said_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.crt");
        let files = TlsFiles { ca: ca.clone(), identity: None };
        assert!(files.load().await.unwrap_err().contains("ca.crt cannot be used"));
        std::fs::write(&ca, "not PEM").unwrap();
        assert!(files.load().await.unwrap_err().contains("there is no certificate in it"));
    }

    #[tokio::test]
    async fn a_password_ends_before_the_line_break() {
        let dir = tempfile::tempdir().unwrap();
        let login = Login { username: "one".into(), password_file: dir.path().join("password") };
        assert!(login.password().await.unwrap_err().contains("password cannot be used"));
        std::fs::write(&login.password_file, " se cret\r\n").unwrap();
        assert_eq!(login.password().await.unwrap(), " se cret");
    }
}
