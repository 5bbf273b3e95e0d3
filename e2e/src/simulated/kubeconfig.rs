//! How the programs of the simulated cluster find and know each other.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use rand::Rng as _;
use rcgen::KeyPair;
use serde_json::json;

use super::control_plane::User;
use crate::cluster::TestResult;

/// The audit log holds who wrote what, and nothing else.
const AUDIT_POLICY: &str = r"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
  - level: Metadata
    verbs: [create, update, patch, delete, deletecollection]
  - level: None
";

/// Files that the programs are told of.
pub(super) struct Files {
    pub(super) folder: PathBuf,
    tokens: Vec<(User, String)>,
}

impl Files {
    /// Writes what the API server is started with: tokens, the key of service accounts, the audit policy.
    pub(super) fn write(folder: &Path) -> TestResult<Self> {
        let mut random = rand::rng();
        let tokens: Vec<(User, String)> =
            User::ALL.into_iter().map(|user| (user, format!("{:032x}", random.random::<u128>()))).collect();
        let mut table = String::new();
        for (user, token) in &tokens {
            let _ = writeln!(table, "{token},{0},{0},system:masters", user.name());
        }
        std::fs::write(folder.join("tokens.csv"), table)?;
        let accounts = KeyPair::generate()?;
        std::fs::write(folder.join("accounts.key"), accounts.serialize_pem())?;
        std::fs::write(folder.join("accounts.pub"), accounts.public_key_pem())?;
        std::fs::write(folder.join("audit.yaml"), AUDIT_POLICY)?;
        Ok(Self { folder: folder.to_owned(), tokens })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The API server's certificates, which it makes itself when it is started.
    pub(super) fn authority(&self) -> PathBuf {
        self.path("certificates/apiserver.crt")
    }

    pub(super) fn token(&self, user: User) -> &str {
        self.tokens.iter().find(|(known, _)| *known == user).map_or("", |(_, token)| token)
    }

    /// Writes the kubeconfig of `user` for the server at `url`; returns where it is.
    pub(super) fn kubeconfig(&self, user: User, url: &str) -> TestResult<PathBuf> {
        let path = self.path(&format!("{}.kubeconfig", user.name()));
        // An http server, which injects faults, has no certificate.
        let cluster = match url.starts_with("https:") {
            true => json!({ "server": url, "certificate-authority": self.authority() }),
            false => json!({ "server": url }),
        };
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "simulated",
            "clusters": [{ "name": "simulated", "cluster": cluster }],
            "users": [{ "name": user.name(), "user": { "token": self.token(user) } }],
            "contexts": [{ "name": "simulated", "context": { "cluster": "simulated", "user": user.name() } }],
        });
        std::fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
        Ok(path)
    }
}
