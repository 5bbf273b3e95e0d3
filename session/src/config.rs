//! What the service is told by flags and environment.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use longhand_crds::agent::CredentialRef;
use longhand_crds::default_model::{BASE_URL, DefaultModel};
use longhand_crds::watch_scope::WatchScope;
use longhand_session_log::etcd::EtcdFlags;

use crate::jobs::config::JobsConfig;
use crate::limits::Rates;
use crate::ports::origin::Domain;
use crate::quota::SizeLimits;

/// The session service of Longhand.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "session", version)]
pub struct Config {
    /// The session log's etcd.
    #[command(flatten)]
    pub etcd: EtcdFlags,
    /// Users of etcd that may read wake keys only. Given, this program is etcd's root by its certificate, makes these users
    /// and has etcd ask everybody for a certificate.
    #[arg(long, env = "ETCD_WAKE_READERS", value_delimiter = ',', requires = "etcd_cert_file")]
    pub etcd_wake_readers: Vec<String>,
    /// Raise the epoch of every session and end. To be done after etcd was restored from a backup, before the service is
    /// started again.
    #[arg(long)]
    pub raise_epochs: bool,
    /// The namespace that this process runs in, where it publishes the key that sandboxes verify tokens with.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Who is who, and where.
    #[command(flatten)]
    pub accounts: Accounts,
    /// What agents without a credential of their own are run with.
    #[command(flatten)]
    pub default_model: DefaultModelFlags,
    /// Where the APIs are served.
    #[arg(long, env = "LISTEN", default_value = "[::]:8080")]
    pub listen: SocketAddr,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "HEALTH_LISTEN", default_value = "[::]:8081")]
    pub health_listen: SocketAddr,
    /// The certificate that the APIs are served with, a chain in PEM; without it, they are served in plain HTTP.
    #[arg(long, env = "TLS_CERT_FILE", requires = "tls_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Its key, in PEM. Both files are read again when they change.
    #[arg(long, env = "TLS_KEY_FILE", requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,
    /// The authority that the certificate is from, in PEM, which is published for clients.
    #[arg(long, env = "TLS_CA_FILE", requires = "tls_cert_file")]
    pub tls_ca_file: Option<PathBuf>,
    /// Where ports of sandboxes are served over HTTP: a URL below whose host each of them has one, such as
    /// https://ports.example.com. Without it, they are not.
    #[arg(long, env = "PORTS_URL")]
    pub ports_url: Option<Domain>,
    /// How the other replicas are reached.
    #[command(flatten)]
    pub peers: Peers,
    /// How much each caller may ask.
    #[command(flatten)]
    pub rates: Rates,
    /// How large sessions and namespaces may become.
    #[command(flatten)]
    pub sizes: SizeLimits,
    /// The most sandboxes of a namespace that have not ended, free-standing ones too: beyond it none is made for a session; 0 is no
    /// limit.
    #[arg(long, env = "NAMESPACE_MAX_SANDBOXES", default_value_t = 2_000)]
    pub namespace_max_sandboxes: usize,
    /// How long new requests are still taken after SIGTERM, in seconds: until everybody knows that this replica goes.
    #[arg(long, env = "DRAIN_SECONDS", default_value_t = 3)]
    pub drain_seconds: u32,
    /// How long requests and tool calls may go on after that, in seconds.
    #[arg(long, env = "GRACE_SECONDS", default_value_t = 20)]
    pub grace_seconds: u32,
    /// Old events, deleted sessions, and etcd's room.
    #[command(flatten)]
    pub jobs: JobsConfig,
}

/// The ServiceAccounts that the service knows.
#[derive(Clone, Debug, clap::Args)]
pub struct Accounts {
    /// The operator's ServiceAccount, as namespace:name: the only one that /internal is for.
    #[arg(long = "operator-service-account", env = "OPERATOR_SERVICE_ACCOUNT")]
    pub operator: ServiceAccount,
    /// The ServiceAccount that all replicas of this service run as, as namespace:name.
    #[arg(long = "service-account", env = "SERVICE_ACCOUNT")]
    pub replicas: ServiceAccount,
    /// The namespaces that are served, separated by commas; all of the cluster if none is named.
    #[arg(long, env = "WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
}

impl Accounts {
    /// The namespaces that are served.
    #[must_use]
    pub fn scope(&self) -> WatchScope {
        WatchScope::of(self.watch_namespaces.iter().cloned())
    }
}

/// How the other replicas are reached. Without a URL they are not told of previews.
#[derive(Clone, Debug, clap::Args)]
pub struct Peers {
    /// A URL whose name stands for all replicas, such as https://longhand-session-peers.longhand-system.svc:8082.
    #[arg(long, env = "PEERS_URL", requires = "pod_ip")]
    pub peers_url: Option<String>,
    /// Where other replicas are listened to.
    #[arg(long, env = "PEER_LISTEN", default_value = "[::]:8082")]
    pub peer_listen: SocketAddr,
    /// The address of this replica's pod.
    #[arg(long, env = "POD_IP")]
    pub pod_ip: Option<IpAddr>,
    /// The token of audience `longhand` that other replicas know this one by.
    #[arg(long, env = "SESSION_TOKEN_FILE", default_value = "/var/run/longhand/token/token")]
    pub token_file: PathBuf,
}

/// What agents without a credential of their own are run with.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DefaultModelFlags {
    /// Where the model API of agents is that name neither an address nor a credential.
    #[arg(long = "default-model-base-url", env = "DEFAULT_MODEL_BASE_URL", default_value = BASE_URL)]
    pub base_url: String,
    /// The Vault with the credential of agents that name none, in the namespace of each.
    #[arg(long = "default-model-vault", env = "DEFAULT_MODEL_VAULT", requires = "credential")]
    pub vault: Option<String>,
    /// The credential's name in it.
    #[arg(long = "default-model-credential", env = "DEFAULT_MODEL_CREDENTIAL", requires = "vault")]
    pub credential: Option<String>,
}

impl DefaultModelFlags {
    /// The default, if there is one.
    #[must_use]
    pub fn model(&self) -> Option<DefaultModel> {
        let (vault, name) = self.vault.clone().zip(self.credential.clone())?;
        Some(DefaultModel { base_url: self.base_url.clone(), credential: CredentialRef { vault, name } })
    }
}

/// A ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ServiceAccount {
    /// Its name as a user of the cluster.
    #[must_use]
    pub fn username(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

/// A text that names no ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a ServiceAccount is written <namespace>:<name>")]
pub struct NoServiceAccount;

impl FromStr for ServiceAccount {
    type Err = NoServiceAccount;

    fn from_str(text: &str) -> Result<Self, NoServiceAccount> {
        match text.split_once(':') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains(':') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(NoServiceAccount),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use rstest::rstest;

    use super::{Config, ServiceAccount};

    const REQUIRED: [&str; 5] = [
        "session",
        "--etcd-endpoints=http://a:2379,http://b:2379",
        "--namespace=longhand-system",
        "--operator-service-account=longhand-system:longhand-operator",
        "--service-account=longhand-system:longhand-session",
    ];

    #[test]
    fn flags_are_read() {
        let config = Config::try_parse_from(REQUIRED).unwrap();
        assert_eq!(config.etcd.etcd_endpoints[0].0, ["http://a:2379", "http://b:2379"]);
        assert_eq!(config.accounts.operator.username(), "system:serviceaccount:longhand-system:longhand-operator");
        assert_eq!(config.listen.port(), 8080);
        assert_eq!(config.sizes.caps().warning_percent, 80);
    }

    #[rstest]
    #[case(&["--tls-cert-file=a"], false)]
    #[case(&["--tls-cert-file=a", "--tls-key-file=b"], true)]
    #[case(&["--tls-ca-file=a"], false)]
    #[case(&["--peers-url=http://a:8082"], false)]
    #[case(&["--ports-url=https://ports.example.com"], true)]
    #[case(&["--ports-url=ports.example.com"], false)]
    #[case(&["--limit-warning-percent=101"], false)]
    #[case(&["--limit-warning-percent=0"], true)]
    #[case(&["--peers-url=http://a:8082", "--pod-ip=10.0.0.1"], true)]
    fn what_belongs_together_comes_together(#[case] more: &[&str], #[case] valid: bool) {
        assert_eq!(Config::try_parse_from(REQUIRED.iter().chain(more)).is_ok(), valid);
    }

    #[rstest]
    #[case("")]
    #[case("name")]
    #[case(":name")]
    #[case("namespace:")]
    #[case("a:b:c")]
    fn a_service_account_has_two_parts(#[case] text: &str) {
        assert!(text.parse::<ServiceAccount>().is_err());
    }
}
