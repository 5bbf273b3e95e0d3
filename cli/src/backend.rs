//! A ready pod behind a Service, as kubectl finds one for a port-forward.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use longhand_protocol::client::Server;

use crate::cluster;
use crate::error::{Error, Result};

/// Where the session service publishes what its clients need.
const KEYS_CONFIG_MAP: &str = "longhand-session-keys";
/// The authority that its certificate is from.
const AUTHORITY: &str = "ca.crt";
/// What the Service says of a port that speaks TLS.
const HTTPS: &str = "https";

/// A Service whose pods are forwarded to.
#[derive(Clone)]
pub struct Backend {
    /// The API server.
    pub client: Client,
    /// The Service's namespace.
    pub namespace: String,
    /// The Service.
    pub service: String,
}

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The pod.
    pub pod: String,
    /// Its port.
    pub port: u16,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Backend({}/{})", self.namespace, self.service)
    }
}

impl Backend {
    /// The session service behind `forwarded`, a port that leads to the Service: how it is spoken to, and by which
    /// authority it is known.
    ///
    /// # Errors
    /// When there is no such Service, or no authority for its certificate.
    pub async fn server(&self, forwarded: SocketAddr) -> Result<Server> {
        let Self { client, namespace, service } = self;
        if !speaks_tls(&self.service().await?) {
            return Ok(Server::new(format!("http://{forwarded}")));
        }
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let doing = format!("read ConfigMap {namespace}/{KEYS_CONFIG_MAP}");
        let map = cluster::request(doing, maps.get_opt(KEYS_CONFIG_MAP)).await?;
        let authority = map.and_then(|map| map.data).and_then(|mut data| data.remove(AUTHORITY));
        let authority = authority.ok_or_else(|| Error::NoAuthority { namespace: namespace.clone() })?;
        let url = format!("https://{service}.{namespace}.svc:{}", forwarded.port());
        Ok(Server::new(url).trusting(authority).at(forwarded))
    }

    async fn service(&self) -> Result<Service> {
        let Self { client, namespace, service: name } = self;
        let services: Api<Service> = Api::namespaced(client.clone(), namespace);
        cluster::request(format!("read Service {namespace}/{name}"), services.get_opt(name))
            .await?
            .ok_or_else(|| Error::NoService { namespace: namespace.clone(), name: name.clone() })
    }

    /// A ready pod behind the Service.
    ///
    /// # Errors
    /// When there is no such Service, or no ready pod behind it.
    pub async fn find(&self) -> Result<Destination> {
        let Self { client, namespace, service: name } = self;
        let service = self.service().await?;
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let selected = ListParams::default().labels(&selector(&service));
        let pods =
            cluster::request(format!("list the pods behind Service {namespace}/{name}"), pods.list(&selected)).await?;
        choose(namespace, name, &service, &pods.items)
    }
}

fn speaks_tls(service: &Service) -> bool {
    let port = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()?.first());
    port.and_then(|port| port.app_protocol.as_deref()) == Some(HTTPS)
}

fn selector(service: &Service) -> String {
    let labels = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let pairs: Vec<String> = labels.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

fn choose(namespace: &str, name: &str, service: &Service, pods: &[Pod]) -> Result<Destination> {
    let pod = pods
        .iter()
        .find(|pod| is_ready(pod))
        .ok_or_else(|| Error::NoReadyPod { namespace: namespace.to_owned(), name: name.to_owned() })?;
    let port = target_port(service, pod).ok_or_else(|| Error::NoPort {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        pod: pod.name_any(),
    })?;
    Ok(Destination { pod: pod.name_any(), port })
}

/// Whether a pod is ready and stays.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The pod's port that the Service's first port leads to.
fn target_port(service: &Service, pod: &Pod) -> Option<u16> {
    let port = service.spec.as_ref()?.ports.as_ref()?.first()?;
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let containers = pod.spec.as_ref()?.containers.iter();
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            ports.find(|port| port.name.as_ref() == Some(name))?.container_port
        }
    };
    u16::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Pod, Service};
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{Destination, choose, selector, speaks_tls};

    fn service(target_port: &Value) -> Service {
        let spec = json!({"selector": {"b": "2", "a": "1"}, "ports": [{"port": 8080, "targetPort": target_port}]});
        serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap()
    }

    fn pod(name: &str, ready: &str, deleted: bool) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "ports": [
                {"name": "health", "containerPort": 8081}, {"name": "http", "containerPort": 9000},
            ]}]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        });
        if deleted {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z");
        }
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn labels_become_a_selector() {
        assert_eq!(selector(&service(&json!("http"))), "a=1,b=2");
    }

    #[rstest]
    #[case(json!("https"), true)]
    #[case(json!("http"), false)]
    #[case(Value::Null, false)]
    fn the_service_says_whether_it_speaks_tls(#[case] protocol: Value, #[case] expected: bool) {
        let port = json!({"port": 8080, "appProtocol": protocol});
        let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [port]}});
        assert_eq!(speaks_tls(&serde_json::from_value(service).unwrap()), expected);
    }

    #[rstest]
    #[case(json!("http"), 9000)]
    #[case(json!(7000), 7000)]
    #[case(Value::Null, 8080)]
    fn a_ready_pod_and_its_port_are_found(#[case] target_port: Value, #[case] port: u16) {
        let pods = [pod("starting", "False", false), pod("going", "True", true), pod("ready", "True", false)];
        let found = choose("n", "s", &service(&target_port), &pods).unwrap();
        assert_eq!(found, Destination { pod: "ready".to_owned(), port });
    }

    #[rstest]
    #[case(json!("http"), &[pod("starting", "False", false)], "no pod behind Service n/s is ready")]
    #[case(json!("other"), &[pod("ready", "True", false)], "no port that pod ready offers")]
    #[case(json!(99_999), &[pod("ready", "True", false)], "no port that pod ready offers")]
    fn what_is_missing_is_said(#[case] target_port: Value, #[case] pods: &[Pod], #[case] message: &str) {
        let error = choose("n", "s", &service(&target_port), pods).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
