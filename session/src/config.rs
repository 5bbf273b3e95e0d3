//! What the service is told by flags and environment.

use std::net::SocketAddr;
use std::str::FromStr;

/// The session service of Longhand.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "session", version)]
pub struct Config {
    /// Where etcd is, as http://host:port; several are separated by commas.
    #[arg(long, env = "ETCD_ENDPOINTS", value_delimiter = ',', required = true)]
    pub etcd_endpoints: Vec<String>,
    /// The namespace that this process runs in, where it publishes the key that sandboxes verify tokens with.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// The operator's ServiceAccount, as namespace:name: the only one that /internal is for.
    #[arg(long, env = "OPERATOR_SERVICE_ACCOUNT")]
    pub operator_service_account: ServiceAccount,
    /// Where the APIs are served.
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "HEALTH_LISTEN", default_value = "0.0.0.0:8081")]
    pub health_listen: SocketAddr,
    /// How long requests and tool calls may go on after SIGTERM, in seconds.
    #[arg(long, env = "GRACE_SECONDS", default_value_t = 20)]
    pub grace_seconds: u32,
}

/// A ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
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

    #[test]
    fn flags_are_read() {
        let config = Config::try_parse_from([
            "session",
            "--etcd-endpoints=http://a:2379,http://b:2379",
            "--namespace=longhand-system",
            "--operator-service-account=longhand-system:longhand-operator",
        ])
        .unwrap();
        assert_eq!(config.etcd_endpoints, ["http://a:2379", "http://b:2379"]);
        assert_eq!(config.operator_service_account.name, "longhand-operator");
        assert_eq!(config.listen.port(), 8080);
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
