//! By which authorities the session service is known, from a file that somebody else renews.

use std::path::{Path, PathBuf};
use std::time::Duration;

use longhand_protocol::client::Server;
use tokio::time::{MissedTickBehavior, interval};

use crate::Fatal;

const REREAD: Duration = Duration::from_secs(30);

/// The file and what it held when the operator started.
#[derive(Debug)]
pub(crate) struct Authorities(Option<(PathBuf, String)>);

impl Authorities {
    /// Reads the file, if there is one.
    pub(crate) async fn read(path: Option<&Path>) -> Result<Self, Fatal> {
        let Some(path) = path else { return Ok(Self(None)) };
        let pem = tokio::fs::read_to_string(path).await;
        let pem = pem.map_err(|source| Fatal::Authorities { path: path.to_owned(), source })?;
        Ok(Self(Some((path.to_owned(), pem))))
    }

    /// The certificates, in PEM.
    pub(crate) fn pem(&self) -> Option<&str> {
        self.0.as_ref().map(|(_, pem)| pem.as_str())
    }

    /// The service at `url`, known by them.
    pub(crate) fn server(&self, url: &str) -> Server {
        match self.pem() {
            Some(pem) => Server::new(url).trusting(pem),
            None => Server::new(url),
        }
    }

    /// Returns when the file holds others. One that cannot be read for now is waited for.
    pub(crate) async fn changed(&self) {
        let Some((path, known)) = &self.0 else { return std::future::pending().await };
        let mut ticks = interval(REREAD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match tokio::fs::read_to_string(path).await {
                Ok(pem) if pem != *known => return,
                Ok(_) => {}
                Err(error) => tracing::warn!(path = %path.display(), %error, "the authorities cannot be read"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Authorities;

    #[tokio::test]
    async fn a_renewed_file_is_noticed() {
        let path = std::env::temp_dir().join(format!("longhand-authorities-{}", std::process::id()));
        std::fs::write(&path, "one").unwrap();
        let authorities = Authorities::read(Some(&path)).await.unwrap();
        assert_eq!(authorities.pem(), Some("one"));
        std::fs::write(&path, "two").unwrap();
        authorities.changed().await;
        std::fs::remove_file(&path).unwrap();
        let error = Authorities::read(Some(&path)).await.unwrap_err();
        assert!(error.to_string().contains("longhand-authorities"), "{error}");
    }
}
