//! How large the images are, and how much memory each part holds when it has nothing to do.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use longhand_protocol::event::EventBody;
use serde_json::Value;

use super::{Figure, Goal, Report};
use crate::cluster::{Fixture, SYSTEM_NAMESPACE, SessionOptions, TestNamespace, TestResult, eventually};

const MIB: f64 = 1_048_576.0;
/// Where `make images` leaves each image as an archive.
const ARCHIVES: &str = "target/images";
const IMAGES: [&str; 5] = ["operator", "session", "harness", "proxy", "scripted-model"];
const IMAGE_GOAL: f64 = 20.0;

const SCRIPT: &str = r#"
rules:
  - when: {turn: 0}
    then: {tool_uses: [{name: bash, input: {command: "echo seen"}}]}
  - then: {text: "Done."}
"#;

const METHOD: &str = "Images: the size of the archive that is loaded into the cluster. Memory: resident set of the container as the \
    kubelet reports it (`/stats/summary`, `rssBytes`; on cgroup v1 without the pages of the program's own file), after one session with a tool call has gone idle, with its \
    harness still in its grace and its sandbox still there.";

/// Which container, in MiB at rest. The proxy is a container of the harness's pod.
const CONTAINERS: [(&str, f64); 5] =
    [("operator", 40.0), ("session", 50.0), ("harness", 20.0), ("credential-proxy", 15.0), ("sandbox", 10.0)];

/// Runs it in `namespace`.
///
/// # Errors
/// When the kubelet reports nothing of a container.
pub async fn run(namespace: &TestNamespace) -> TestResult<Report> {
    let mut results = Vec::new();
    for image in IMAGES {
        let archive = Path::new(ARCHIVES).join(format!("{image}.tar"));
        let size = std::fs::metadata(&archive).map_err(|error| format!("{}: {error}", archive.display()))?.len();
        results.push(Figure::single(&format!("image {image}"), "MiB", size as f64 / MIB, Goal::Below(IMAGE_GOAL)));
    }
    let fixture = Fixture::install(namespace, SCRIPT, 3_600).await?;
    let options = SessionOptions { harness_idle_seconds: 600, ..SessionOptions::saying(&["go"]) };
    let session = fixture.session("rest", &options).await?;
    let idle = |event: &longhand_protocol::Event| matches!(event.body, EventBody::SessionStatusIdle { .. });
    fixture.service.follow(&session, 0, Duration::from_secs(120), idle).await?;
    for (container, goal) in CONTAINERS {
        let rss =
            eventually(&format!("the kubelet reports the memory of {container}"), Duration::from_secs(90), || async {
                rss_bytes(namespace, container).await
            })
            .await?;
        results.push(Figure::single(&format!("memory of {container} at rest"), "MiB", rss / MIB, Goal::Below(goal)));
    }
    Ok(Report { date: jiff::Timestamp::now().to_string(), method: METHOD.to_owned(), results })
}

/// The resident set of a container of the test's namespace or of Longhand's own, in bytes.
async fn rss_bytes(namespace: &TestNamespace, container: &str) -> TestResult<Option<f64>> {
    let pods: Api<Pod> = Api::namespaced(namespace.client.clone(), SYSTEM_NAMESPACE);
    let nodes: std::collections::BTreeSet<_> =
        pods.list(&ListParams::default()).await?.items.into_iter().filter_map(|pod| pod.spec?.node_name).collect();
    for node in nodes {
        let request = http::Request::get(format!("/api/v1/nodes/{node}/proxy/stats/summary")).body(Vec::new())?;
        let summary: Value = namespace.client.request(request).await?;
        let found = summary["pods"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|pod| {
                let place = pod["podRef"]["namespace"].as_str();
                place == Some(&namespace.name) || place == Some(SYSTEM_NAMESPACE)
            })
            .flat_map(|pod| pod["containers"].as_array().into_iter().flatten())
            .find(|entry| entry["name"] == container)
            .and_then(|entry| entry["memory"]["rssBytes"].as_f64())
            .filter(|bytes| *bytes > 0.0);
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}
