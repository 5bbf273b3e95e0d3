//! What the tests need of a cluster: a namespace each, the objects of a session, ways to the servers, bounded waits, and
//! a dump when something goes wrong.

mod beside;
mod cli;
mod collector;
mod dump;
mod exec;
mod fixture;
mod forge;
mod helm;
mod images;
pub mod log;
mod model;
mod namespace;
mod needle;
mod nodes;
mod service;
mod wait;

use std::future::Future;

use kube::Client;

pub use beside::run_beside;
pub use cli::longhand;
pub use collector::{Collector, SentSpan};
pub use exec::exec;
pub use fixture::{Fixture, SessionOptions, script, script_within, session_manifest};
pub use forge::Forge;
pub use helm::helm;
pub use images::{clients_image, coupled_image, harness_python_image, model_image};
pub use model::{ModelServer, Recorded, RecordedRequest};
pub use namespace::{TestNamespace, runtime_class};
pub use needle::Needle;
pub use nodes::{kubectl, nodes, takes_any_pod};
pub use service::{Service, token};
pub use wait::{eventually, wait_for};

/// The namespace that the chart is installed in.
pub const SYSTEM_NAMESPACE: &str = "longhand-system";

/// A service account `viewer` that may look at everything of its namespace and touch nothing.
pub const VIEWER: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: {name: viewer}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: viewer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: longhand-view}
subjects: [{kind: ServiceAccount, name: viewer}]
"#;

/// What a test returns: an error is a failure with its message, after the dump.
pub type TestResult<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Says that a test was not run, and why: the cluster has not what it needs.
pub fn skipped(test: &str, why: &str) {
    eprintln!("{test} skipped: {why}");
}

/// A client of the cluster that the environment names.
///
/// # Errors
/// When it names none, or its credentials cannot be used.
pub async fn client() -> TestResult<Client> {
    Ok(longhand_cli::cluster::client(kube::Config::infer().await?)?)
}

/// Runs `test` in a namespace of its own, which is removed afterwards; on failure it is dumped first.
///
/// # Panics
/// When the test fails, or the cluster cannot be reached: that is how a test says so.
#[expect(clippy::panic, reason = "a test says by a panic that it failed")]
pub async fn in_namespace<T, F>(name: &str, test: T)
where
    T: FnOnce(TestNamespace) -> F,
    F: Future<Output = TestResult>,
{
    // The outcome of an earlier install does not matter: all tests of a process share one provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = match client().await {
        Ok(client) => client,
        Err(error) => panic!("no cluster: {error}; run `make cluster` and set KUBECONFIG=target/cluster/kubeconfig"),
    };
    let namespace = match TestNamespace::create(client, name).await {
        Ok(namespace) => namespace,
        Err(error) => panic!("cannot make a namespace for {name}: {error}"),
    };
    let outcome = test(namespace.clone()).await;
    if let Err(error) = outcome {
        // Before a dump that may be cut.
        eprintln!("{name}: {error}");
        dump::dump(&namespace).await;
        namespace.delete().await;
        panic!("{name}: {error}");
    }
    namespace.delete().await;
}
