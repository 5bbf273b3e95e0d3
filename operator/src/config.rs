//! What the operator is told when it starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// Reconciles the five kinds of `longhand.dev`.
#[derive(Clone, Debug, Parser)]
#[command(name = "operator", version)]
pub struct Config {
    /// The namespace that Longhand is installed in.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// The name under which this replica holds the lease.
    #[arg(long, env = "POD_NAME")]
    pub identity: String,
    /// The session service, as the operator and every harness reach it.
    #[arg(long, env = "SESSION_URL")]
    pub session_url: String,
    /// The session log's etcd, for its wake keys.
    #[arg(long, env = "ETCD_ENDPOINTS", value_delimiter = ',', required = true)]
    pub etcd_endpoints: Vec<String>,
    /// The token of audience `longhand` that the session service knows the operator by.
    #[arg(long, env = "SESSION_TOKEN_FILE", default_value = "/var/run/longhand/token/token")]
    pub token_file: PathBuf,
    /// What the pods are made of.
    #[command(flatten)]
    pub images: Images,
    /// Where `/livez`, `/readyz` and `/metrics` are served.
    #[arg(long, env = "LISTEN_ADDRESS", default_value = "0.0.0.0:8081")]
    pub listen: SocketAddr,
    /// The Lease that the replicas share.
    #[arg(long, env = "LEASE_NAME", default_value = "longhand-operator")]
    pub lease_name: String,
    /// How often logs are looked for whose resource is gone.
    #[arg(long, env = "SWEEP_INTERVAL_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub sweep_interval_seconds: u64,
}

/// The images of the pods that the operator makes.
#[derive(Clone, Debug, clap::Args)]
pub struct Images {
    /// The harness of agents that name no other.
    #[arg(long = "harness-image", env = "HARNESS_IMAGE")]
    pub harness: String,
    /// The credential proxy beside each harness.
    #[arg(long = "proxy-image", env = "PROXY_IMAGE")]
    pub proxy: String,
    /// The sandbox of templates that name no other.
    #[arg(long = "sandbox-image", env = "SANDBOX_IMAGE")]
    pub sandbox: String,
    /// When the kubelet pulls them: `Always`, `IfNotPresent` or `Never`.
    #[arg(
        long = "image-pull-policy",
        env = "IMAGE_PULL_POLICY",
        default_value = "IfNotPresent",
        value_parser = ["Always", "IfNotPresent", "Never"]
    )]
    pub pull_policy: String,
}

impl Config {
    /// How often logs are looked for whose resource is gone.
    #[must_use]
    pub const fn sweep_interval(&self) -> Duration {
        Duration::from_secs(self.sweep_interval_seconds)
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};
    use rstest::rstest;

    use super::Config;

    const REQUIRED: [&str; 15] = [
        "operator",
        "--namespace",
        "system",
        "--identity",
        "operator-0",
        "--session-url",
        "http://session:8080",
        "--etcd-endpoints",
        "http://a:2379,http://b:2379",
        "--harness-image",
        "h",
        "--proxy-image",
        "p",
        "--sandbox-image",
        "s",
    ];

    #[test]
    fn the_definition_is_sound() {
        Config::command().debug_assert();
    }

    #[test]
    fn endpoints_are_separated_by_commas() {
        let config = Config::try_parse_from(REQUIRED).unwrap();
        assert_eq!(config.etcd_endpoints, ["http://a:2379", "http://b:2379"]);
        assert_eq!(config.sweep_interval().as_secs(), 60);
    }

    #[rstest]
    #[case(&["--sweep-interval-seconds", "0"])]
    #[case(&["--image-pull-policy", "Sometimes"])]
    #[case(&["--listen", "8081"])]
    fn nonsense_is_refused(#[case] extra: &[&str]) {
        let args = REQUIRED.iter().chain(extra);
        assert!(Config::try_parse_from(args).is_err());
    }
}
