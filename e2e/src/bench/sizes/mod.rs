//! How large the images are, and how much memory each part holds when it has nothing to do.

mod streaming;

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use longhand_crds::labels;
use longhand_protocol::event::EventBody;

use super::{Figure, Goal, Report};
use crate::cluster::{Fixture, SYSTEM_NAMESPACE, SessionOptions, TestNamespace, TestResult, run_beside};
use crate::proc_status;

const MIB: f64 = 1_048_576.0;
/// Where `make images` leaves each image as an archive.
const ARCHIVES: &str = "target/images";
const IMAGES: [&str; 5] = ["operator", "session", "harness", "proxy", "scripted-model"];
const IMAGE_GOAL: f64 = 20.0;

const SCRIPT: &str = r#"
rules:
  - when: {turn: 0, user_contains: use a tool}
    then: {tool_uses: [{name: bash, input: {command: "echo seen"}}]}
  - when: {user_contains: on and on}
    then: {text: "One word after the other, and so on, and so forth, and there is no end of it.", hang_after_tokens: 12}
  - then: {text: "Done."}
"#;

const METHOD: &str = "Images: the size of the archive that is loaded into the cluster. Memory: resident set of the container's first \
    process, with the pages of its file (`VmRSS`), after one session with a tool call has gone idle, with its harness still in its \
    grace and its sandbox still there; then of a harness that was ready for any session of its agent, before it has one and while 64 \
    stream at once, each in the middle of an answer. A session that rests has no harness when its grace is over.";

/// Which container, in MiB at rest. The proxy is a container of the harness's pod.
const CONTAINERS: [(&str, f64); 5] =
    [("operator", 40.0), ("session", 50.0), ("harness", 20.0), ("credential-proxy", 15.0), ("sandbox", 10.0)];

/// Runs it in `namespace`.
///
/// # Errors
/// When a container is not there or cannot be looked at.
pub async fn run(namespace: &TestNamespace) -> TestResult<Report> {
    let mut results = Vec::new();
    for image in IMAGES {
        let archive = Path::new(ARCHIVES).join(format!("{image}.tar"));
        let size = std::fs::metadata(&archive).map_err(|error| format!("{}: {error}", archive.display()))?.len();
        results.push(Figure::single(&format!("image {image}"), "MiB", size as f64 / MIB, Goal::Below(IMAGE_GOAL)));
    }
    let fixture = Fixture::install(namespace, SCRIPT, 3_600).await?;
    let options = SessionOptions { harness_idle_seconds: 600, ..SessionOptions::saying(&["use a tool"]) };
    let session = fixture.session("rest", &options).await?;
    let idle = |event: &longhand_protocol::Event| matches!(event.body, EventBody::SessionStatusIdle { .. });
    fixture.service.follow(&session, 0, Duration::from_secs(120), idle).await?;
    let image = tools_image(namespace).await?;
    for (container, goal) in CONTAINERS {
        let resident = resident_bytes(namespace, container, &image).await?;
        let metric = format!("memory of {container} at rest");
        results.push(Figure::single(&metric, "MiB", resident / MIB, Goal::Below(goal)));
    }
    results.extend(streaming::measure(&fixture, &image).await?);
    Ok(Report { date: jiff::Timestamp::now().to_string(), method: METHOD.to_owned(), results })
}

/// The resident set of the first container of this name, of the namespace or of Longhand itself, in bytes.
async fn resident_bytes(namespace: &TestNamespace, container: &str, image: &str) -> TestResult<f64> {
    for place in [&namespace.name, SYSTEM_NAMESPACE] {
        let pods: Api<Pod> = Api::namespaced(namespace.client.clone(), place);
        for pod in pods.list(&ListParams::default()).await? {
            let spec = pod.spec.as_ref().ok_or("a pod without a spec")?;
            let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
            if containers.any(|found| found.name == container) {
                return resident_of(&pods, &pod, container, image, &format!("{}-{container}", namespace.name)).await;
            }
        }
    }
    Err(format!("no pod has a container {container}").into())
}

/// The resident set of a container's program, with the pages of its file, in bytes: read from beside it, in `/proc`, since what
/// the kubelet reports leaves out those pages where the node has cgroup v1. `name` is that of the container beside it.
async fn resident_of(pods: &Api<Pod>, pod: &Pod, container: &str, image: &str, name: &str) -> TestResult<f64> {
    let output = run_beside(pods, pod, container, image, name, &["cat", "/proc/1/status"]).await?;
    Ok(proc_status::kib(&output, "VmRSS").ok_or("no VmRSS")? * 1024.0)
}

/// What the sandbox runs, which is an image that has a shell.
async fn tools_image(namespace: &TestNamespace) -> TestResult<String> {
    let selector = ListParams::default().labels(&format!("{}={}", labels::ROLE, labels::SANDBOX));
    let sandbox = namespace.api::<Pod>().list(&selector).await?.items.pop().and_then(|pod| pod.spec);
    let image = sandbox.and_then(|spec| spec.containers.into_iter().next()?.image);
    Ok(image.ok_or("there is no sandbox pod")?)
}
