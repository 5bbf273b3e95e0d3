//! What is in the databases: Longhand's own, file by file and with what was overwritten, and that of the API server, but for Secrets.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use longhand_e2e::cluster::{Needle, SYSTEM_NAMESPACE, TestNamespace, TestResult, exec, run_beside, skipped};

/// Whether each pattern is in the files of the process that it is run beside.
const SEARCH: &str = r#"
while [ $# -gt 0 ]; do
  if grep -qaE -r "$1" /proc/1/root/var/lib/etcd/; then echo "$2 FOUND"; else echo "$2 absent"; fi
  shift 2
done
"#;
const DUMP: Duration = Duration::from_secs(120);
/// Where kubeadm keeps what a client of its etcd needs.
const PKI: &str = "/etc/kubernetes/pki/etcd";
/// Everything of the API server but Secrets.
const BUT_SECRETS: [[&str; 2]; 2] = [["/registry/", "/registry/secrets/"], ["/registry/secrets0", "/registry0"]];

/// Fails if `key` is in a database; `present` is a text that Longhand's own has to hold, so that the search is known to see.
pub(crate) async fn assert_not_in_etcd(
    namespace: &TestNamespace,
    image: &str,
    key: &Needle,
    present: &str,
) -> TestResult {
    let pods = |of: &str| Api::<Pod>::namespaced(Client::clone(&namespace.client), of);
    let own = pods(SYSTEM_NAMESPACE);
    let labels = ListParams::default().labels("app.kubernetes.io/component=etcd");
    match own.list(&labels).await?.items.pop() {
        Some(pod) => {
            let name = format!("search-{:08x}", rand::random::<u32>());
            let (absent, present) = (key.pattern(), Needle::new(present).pattern());
            let command = ["bash", "-c", SEARCH, "search", &absent, "key", &present, "present"];
            let found = run_beside(&own, &pod, "etcd", image, &name, &command).await?;
            assert_eq!(found.trim(), "key absent\npresent FOUND", "Longhand's etcd");
        }
        None => skipped("the search of Longhand's etcd", "it is not in the cluster"),
    }
    let servers = pods("kube-system");
    match servers.list(&ListParams::default().labels("component=etcd")).await?.items.pop() {
        Some(pod) => {
            let mut seen = false;
            for range in BUT_SECRETS {
                let dump = dump(&servers, &pod.name_any(), range).await?;
                assert!(!key.is_in(&dump), "the API server's etcd holds the key between {range:?}");
                seen |= Needle::new(&namespace.name).is_in(&dump);
            }
            assert!(seen, "the search of the API server's etcd sees nothing");
        }
        None => skipped("the search of the API server's etcd", "it does not run in a pod"),
    }
    Ok(())
}

async fn dump(pods: &Api<Pod>, pod: &str, [from, to]: [&str; 2]) -> TestResult<Vec<u8>> {
    let files = ["ca.crt", "server.crt", "server.key"].map(|file| format!("{PKI}/{file}"));
    let [ca, certificate, key] = &files;
    let command = [
        "etcdctl",
        "--endpoints=https://127.0.0.1:2379",
        "--cacert",
        ca,
        "--cert",
        certificate,
        "--key",
        key,
        "get",
        from,
        to,
    ];
    let (output, errors) = exec(pods, pod, None, &command, DUMP).await?;
    if output.is_empty() {
        return Err(format!("etcdctl in {pod}: {}", String::from_utf8_lossy(&errors)).into());
    }
    Ok(output)
}
