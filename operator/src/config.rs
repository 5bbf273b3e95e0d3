//! What the operator is told when it starts.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use k8s_openapi::api::core::v1::EnvVar;
use longhand_crds::agent::CredentialRef;
use longhand_crds::default_model::{BASE_URL, DefaultModel};
use longhand_crds::watch_scope::WatchScope;
use longhand_session_log::etcd::EtcdFlags;

use crate::hardening::env;
use crate::injection::Injection;
use crate::no_proxy;

/// Reconciles the five kinds of `longhand.dev`.
#[derive(Clone, Debug, Parser)]
#[command(name = "operator", version)]
pub struct Config {
    /// The namespace that Longhand is installed in.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// The namespaces whose objects are reconciled, separated by commas; all of the cluster if none is named.
    #[arg(long, env = "WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// The name under which this replica holds the lease.
    #[arg(long, env = "POD_NAME")]
    pub identity: String,
    /// The session service, as the operator and every harness reach it.
    #[arg(long, env = "SESSION_URL")]
    pub session_url: String,
    /// The authority that the session service is known by, certificates in PEM. Harnesses are told too. When the file
    /// changes, the operator ends, to be started anew.
    #[arg(long, env = "SESSION_CA_FILE")]
    pub session_ca_file: Option<PathBuf>,
    /// The session log's etcd, for its wake keys.
    #[command(flatten)]
    pub etcd: EtcdFlags,
    /// The token of audience `longhand` that the session service knows the operator by.
    #[arg(long, env = "SESSION_TOKEN_FILE", default_value = "/var/run/longhand/token/token")]
    pub token_file: PathBuf,
    /// What the pods are made of.
    #[command(flatten)]
    pub images: Images,
    /// What keeps sandboxes in, and how it is seen.
    #[command(flatten)]
    pub fencing: Fencing,
    /// How what goes through the credential proxies leaves the cluster.
    #[command(flatten)]
    pub way_out: WayOut,
    /// Where spans of traces go. Harness pods are told the same.
    #[command(flatten)]
    pub tracing: Tracing,
    /// What agents without a credential of their own are run with.
    #[command(flatten)]
    pub default_model: DefaultModelFlags,
    /// Where `/livez`, `/readyz` and `/metrics` are served.
    #[arg(long, env = "LISTEN_ADDRESS", default_value = "[::]:8081")]
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
    /// What holds `/sandboxd` for images that have none.
    #[arg(long = "sandboxd-image", env = "SANDBOXD_IMAGE")]
    pub sandboxd: String,
    /// How it gets into them. If absent, the version of the API server decides when the operator starts.
    #[arg(long = "sandboxd-injection", env = "SANDBOXD_INJECTION", value_enum)]
    pub injection: Option<Injection>,
    /// When the kubelet pulls them: `Always`, `IfNotPresent` or `Never`.
    #[arg(
        long = "image-pull-policy",
        env = "IMAGE_PULL_POLICY",
        default_value = "IfNotPresent",
        value_parser = ["Always", "IfNotPresent", "Never"]
    )]
    pub pull_policy: String,
}

/// What sandboxes are told of the fence around them.
#[derive(Clone, Debug, clap::Args)]
pub struct Fencing {
    /// Whether a sandbox is ready only while none of its canaries answers.
    #[arg(long = "require-fence", env = "REQUIRE_FENCE", default_value_t = true, action = clap::ArgAction::Set)]
    pub require: bool,
    /// What sandboxes must not reach besides the API server, the resolver, the metadata service and the kubelet of their node:
    /// `name=tcp://address:port` or `name=dns://address:port`, separated by commas.
    #[arg(long = "canaries", env = "SANDBOX_CANARIES", default_value = "")]
    pub canaries: String,
}

/// Where spans of traces go, in the words of OpenTelemetry. Read by its SDK, and handed on to harness pods.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Tracing {
    /// The URL of a collector that takes OTLP over HTTP; nothing is traced without.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Which traces that no caller has begun are recorded, such as `parentbased_traceidratio`.
    #[arg(long, env = "OTEL_TRACES_SAMPLER")]
    pub traces_sampler: Option<String>,
    /// Of the sampler, such as the share of traces.
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG")]
    pub traces_sampler_arg: Option<String>,
}

impl Tracing {
    /// The same, as variables of a container; none if nothing is traced.
    pub fn variables(&self) -> Vec<EnvVar> {
        let Some(endpoint) = &self.otlp_endpoint else { return Vec::new() };
        let mut variables = vec![env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)];
        variables.extend(self.traces_sampler.as_ref().map(|sampler| env("OTEL_TRACES_SAMPLER", sampler)));
        variables.extend(self.traces_sampler_arg.as_ref().map(|arg| env("OTEL_TRACES_SAMPLER_ARG", arg)));
        variables
    }
}

/// How what goes through the credential proxies leaves the cluster.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct WayOut {
    /// A proxy that every connection is asked of, as `http://host:port`.
    #[arg(long, env = "UPSTREAM_PROXY")]
    pub upstream_proxy: Option<String>,
    /// Hosts that are reached directly all the same, separated by commas: `host`, `.domain` or `*.domain`, each also with
    /// `:port`, or `address/bits`.
    #[arg(long, env = "UPSTREAM_NO_PROXY", value_delimiter = ',', value_parser = no_proxy::entry)]
    pub upstream_no_proxy: Vec<String>,
    /// Authorities that upstreams may be known by besides those of the proxy's image, certificates in PEM.
    #[arg(long, env = "UPSTREAM_CA")]
    pub upstream_ca: Option<String>,
}

/// Stands for the address of a sandbox's node in a list of canaries.
pub const HOST_IP: &str = "$(SANDBOXD_HOST_IP)";

impl Fencing {
    /// With the targets that every cluster has; `host` and `port` are where pods find the API server, and `resolv` is this pod's
    /// `resolv.conf`.
    #[must_use]
    pub fn detected(&self, host: Option<&str>, port: Option<&str>, resolv: &str) -> Self {
        let bracketed = |ip: IpAddr| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        let api = host.and_then(|host| host.parse().ok()).zip(port.and_then(|port| port.parse::<u16>().ok()));
        let api = api.map(|(ip, port)| format!("apiserver=tcp://{}:{port}", bracketed(ip)));
        let resolver = resolv.lines().find_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
        let resolver = resolver.map(bracketed);
        let resolver = resolver.map(|ip| format!("dns-udp=dns://{ip}:53,dns-tcp=tcp://{ip}:53"));
        let fixed = ["metadata=tcp://169.254.169.254:80".to_owned(), format!("kubelet=tcp://{HOST_IP}:10250")];
        let more = Some(self.canaries.clone()).filter(|more| !more.is_empty());
        let all: Vec<String> = api.into_iter().chain(resolver).chain(fixed).chain(more).collect();
        Self { require: self.require, canaries: all.join(",") }
    }
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

impl Config {
    /// The namespaces whose objects are reconciled.
    #[must_use]
    pub fn scope(&self) -> WatchScope {
        WatchScope::of(self.watch_namespaces.iter().cloned())
    }

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
    use crate::injection::Injection;

    const REQUIRED: [&str; 17] = [
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
        "--sandboxd-image",
        "d",
    ];

    #[test]
    fn the_definition_is_sound() {
        Config::command().debug_assert();
    }

    #[test]
    fn endpoints_are_separated_by_commas() {
        let config = Config::try_parse_from(REQUIRED).unwrap();
        assert_eq!(config.etcd.etcd_endpoints[0].0, ["http://a:2379", "http://b:2379"]);
        assert_eq!(config.sweep_interval().as_secs(), 60);
    }

    #[test]
    fn all_namespaces_are_watched_or_those_that_are_named() {
        assert!(Config::try_parse_from(REQUIRED).unwrap().scope().includes("team"));
        let config = Config::try_parse_from(REQUIRED.iter().chain(&["--watch-namespaces=a,b"])).unwrap();
        assert_eq!(["a", "b", "a,b", "team"].map(|name| config.scope().includes(name)), [true, true, false, false]);
    }

    #[test]
    fn what_needs_no_proxy_is_separated_by_commas() {
        let flag = ["--upstream-no-proxy=.svc, 10.0.0.0/8,git.corp.test:8443"];
        let config = Config::try_parse_from(REQUIRED.iter().chain(&flag)).unwrap();
        assert_eq!(config.way_out.upstream_no_proxy, [".svc", "10.0.0.0/8", "git.corp.test:8443"]);
    }

    #[rstest]
    #[case(&[], None)]
    #[case(&["--sandboxd-injection=ImageVolume"], Some(Injection::ImageVolume))]
    #[case(&["--sandboxd-injection=InitContainer"], Some(Injection::InitContainer))]
    fn how_sandboxd_gets_into_images_can_be_said(#[case] flag: &[&str], #[case] expected: Option<Injection>) {
        assert_eq!(Config::try_parse_from(REQUIRED.iter().chain(flag)).unwrap().images.injection, expected);
    }

    #[test]
    fn a_default_model_is_whole_or_absent() {
        assert_eq!(Config::try_parse_from(REQUIRED).unwrap().default_model.model(), None);
        let flags = ["--default-model-vault", "models", "--default-model-credential", "api-key"];
        let config = Config::try_parse_from(REQUIRED.iter().chain(&flags)).unwrap();
        let model = config.default_model.model().unwrap();
        assert_eq!((model.base_url.as_str(), model.credential.vault.as_str()), ("https://api.anthropic.com", "models"));
        assert!(Config::try_parse_from(REQUIRED.iter().chain(&flags[..2])).is_err());
    }

    #[test]
    fn every_cluster_has_something_that_a_sandbox_must_not_reach() {
        let fencing =
            Config::try_parse_from(REQUIRED.iter().chain(&["--canaries", "db=tcp://10.9.9.9:5432"])).unwrap().fencing;
        assert!(fencing.require);
        let resolv = "search svc.cluster.local\nnameserver 10.96.0.10\n";
        let all = fencing.detected(Some("10.96.0.1"), Some("443"), resolv).canaries;
        assert_eq!(
            all,
            "apiserver=tcp://10.96.0.1:443,dns-udp=dns://10.96.0.10:53,dns-tcp=tcp://10.96.0.10:53,\
             metadata=tcp://169.254.169.254:80,kubelet=tcp://$(SANDBOXD_HOST_IP):10250,db=tcp://10.9.9.9:5432"
        );
        let six = fencing.detected(Some("fd00::1"), Some("443"), "").canaries.replace("$(SANDBOXD_HOST_IP)", "fd00::2");
        assert_eq!(longhand_sandbox::canary::Canary::list(&six).unwrap().len(), 4, "{six}");
    }

    #[rstest]
    #[case(&["--sweep-interval-seconds", "0"])]
    #[case(&["--image-pull-policy", "Sometimes"])]
    #[case(&["--listen", "8081"])]
    #[case(&["--upstream-no-proxy", ".svc,10.0.0.0/33"])]
    fn nonsense_is_refused(#[case] extra: &[&str]) {
        let args = REQUIRED.iter().chain(extra);
        assert!(Config::try_parse_from(args).is_err());
    }
}
