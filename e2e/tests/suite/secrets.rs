//! The model's key is in its Secret and in the credential proxy, and nowhere else.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, ListParams, LogParams};
use kube::core::{DynamicObject, Resource};
use kube::discovery::{ApiCapabilities, Discovery, Scope, verbs};
use kube::{Client, ResourceExt as _};
use longhand_crds::labels;
use longhand_e2e::cluster::log::{assert_sound, messages};
use longhand_e2e::cluster::{
    Fixture, Needle, SYSTEM_NAMESPACE, SessionOptions, TestNamespace, TestResult, in_namespace, run_beside,
};

use crate::etcd_dump::assert_not_in_etcd;

/// The sandbox looks for the key by itself, plain, in Base64 and in hex: in its environment, in every process it can see, in every mount
/// and file.
const SCRIPT: &str = r#"
rules:
  - when: {turn: 0}
    then:
      tool_uses:
        - name: bash
          input:
            command: >-
              KEY='sk-e2e-[0-9a-f]{8,}|c2stZTJlL[A-Za-z0-9+/_-]{8,}|zay1lMmUt[A-Za-z0-9+/_-]{8,}|NrLWUyZS[A-Za-z0-9+/_-]{8,}|736[bB]2[dD]6532652[dD][0-9a-fA-F]{8,}';
              { env; cat /proc/*/environ /proc/*/cmdline /proc/mounts; grep -rhoaE "$KEY" / --exclude-dir=sys --exclude-dir=proc; }
              2>/dev/null | tr '\0' '\n' | grep -oE "$KEY" | sort -u | sed 's/^/FOUND /'; echo swept
  - then: {text: "{{last_tool_result}}"}
"#;

/// What an ephemeral container beside another one, as the same user, can read of it: environment, mounts and files, those on volumes
/// too. It is given what `grep -E` finds, and the name of the other one's process.
const SWEEP: &str = r#"
for process in /proc/[0-9]*; do
  [ "$(cat "$process/comm" 2>/dev/null)" != "$1" ] || echo THERE
  tr '\0' '\n' < "$process/environ" 2>/dev/null
  cat "$process/mountinfo" 2>/dev/null
  # What several processes see is read once.
  files="$(stat -Lc %d:%i "$process/root" 2>/dev/null) $(readlink "$process/ns/mnt" 2>/dev/null)"
  case "$seen" in *"[$files]"*) continue ;; esac
  seen="$seen[$files]"
  grep -rhoaE "$0" "$process/root/" --exclude-dir=proc --exclude-dir=sys 2>/dev/null
done | grep -oE -e THERE -e "$0" | sort -u
echo swept
"#;

#[tokio::test]
async fn the_key_is_found_nowhere_but_in_its_secret_and_the_proxy() {
    in_namespace("secrets", |namespace| async move {
        let fixture = Fixture::install(&namespace, SCRIPT, 60).await?;
        let options = SessionOptions { harness_idle_seconds: 120, ..SessionOptions::saying(&["look around"]) };
        let session = fixture.session("secrets", &options).await?;
        fixture.service.until_idle(&session, 0, Duration::from_secs(120)).await?;
        let key = &Needle::new(&fixture.api_key);

        let recorded = fixture.model.recorded().await?;
        let matched = recorded
            .requests
            .iter()
            .all(|request| request.headers.get("x-api-key").is_some_and(|value| value == "matched"));
        assert!(matched && !recorded.requests.is_empty(), "the proxy did not place the key");
        for request in &recorded.requests {
            assert!(!key.is_in(request.body.to_string()), "a model request holds the key");
        }
        let log = fixture.service.log(&session).await?;
        assert_sound(&log);
        let swept = messages(&log).pop().unwrap_or_default();
        assert_eq!(swept.trim(), "swept", "what the sandbox found");
        assert!(!key.is_in(serde_json::to_string(&log)?), "the log holds the key");

        assert_only_the_proxy_mounts_it(&namespace).await?;
        let image = sandbox_image(&namespace).await?;
        assert_not_beside(&namespace.api::<Pod>(), &harness(&namespace).await?, "harness", &image, key).await?;
        let own: Api<Pod> = Api::namespaced(namespace.client.clone(), SYSTEM_NAMESPACE);
        for component in ["operator", "session"] {
            let labels = ListParams::default().labels(&format!("app.kubernetes.io/component={component}"));
            for pod in own.list(&labels).await? {
                assert_not_beside(&own, &pod, component, &image, key).await?;
            }
        }
        assert_in_no_object(&namespace, key).await?;
        assert_in_no_log(&namespace, key).await?;
        assert_not_in_etcd(&namespace, &image, key, session.as_str()).await
    })
    .await;
}

async fn harness(namespace: &TestNamespace) -> TestResult<Pod> {
    let selector = ListParams::default().labels(&format!("{}={}", labels::ROLE, labels::HARNESS));
    Ok(namespace.api::<Pod>().list(&selector).await?.items.pop().ok_or("there is no harness pod")?)
}

pub(crate) async fn assert_only_the_proxy_mounts_it(namespace: &TestNamespace) -> TestResult {
    for pod in namespace.api::<Pod>().list(&ListParams::default().labels(labels::ROLE)).await? {
        let spec = pod.spec.clone().ok_or("a pod without a spec")?;
        let secrets: Vec<_> = spec
            .volumes
            .iter()
            .flatten()
            .filter(|volume| {
                let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
                volume.secret.is_some() || projected.clone().any(|source| source.secret.is_some())
            })
            .map(|volume| volume.name.clone())
            .collect();
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let mounts = container.volume_mounts.iter().flatten().any(|mount| secrets.contains(&mount.name));
            assert_eq!(mounts, container.name == "credential-proxy", "{}/{}", pod.name_any(), container.name);
            let from_secret = container
                .env
                .iter()
                .flatten()
                .any(|variable| variable.value_from.as_ref().is_some_and(|source| source.secret_key_ref.is_some()));
            assert!(!from_secret && container.env_from.is_none(), "{} has a Secret in its environment", container.name);
        }
    }
    Ok(())
}

/// Reads a container's own environment, mounts and files from one that shares its processes and its user.
async fn assert_not_beside(pods: &Api<Pod>, pod: &Pod, container: &str, image: &str, key: &Needle) -> TestResult {
    let pattern = key.pattern();
    let command = ["bash", "-c", SWEEP, &pattern, container];
    // A container of Longhand's own is looked at by every run.
    let name = format!("sweep-{:08x}", rand::random::<u32>());
    let output = run_beside(pods, pod, container, image, &name, &command).await?;
    assert!(output.contains("swept"), "the sweep beside {container} did not end: {output}");
    assert!(output.contains("THERE"), "the sweep did not see the process of {container}: {output}");
    assert!(!key.is_in(&output), "the key is beside {container}");
    Ok(())
}

/// An image with a shell.
async fn sandbox_image(namespace: &TestNamespace) -> TestResult<String> {
    let sandbox =
        namespace.pods(labels::SANDBOX).await?.pop().and_then(|pod| pod.spec).ok_or("there is no sandbox pod")?;
    Ok(sandbox.containers.into_iter().next().and_then(|container| container.image).ok_or("no image")?)
}

/// Every object of the namespace and of Longhand's own, of every kind that can be listed, but Secrets.
pub(crate) async fn assert_in_no_object(namespace: &TestNamespace, key: &Needle) -> TestResult {
    let discovery = Discovery::new(namespace.client.clone()).run().await?;
    let mut kinds = 0;
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            if resource.kind == "Secret" || !listable(&capabilities) {
                continue;
            }
            for place in [&namespace.name, SYSTEM_NAMESPACE] {
                let api: Api<DynamicObject> = Api::namespaced_with(namespace.client.clone(), place, &resource);
                // An aggregated API without a server behind it cannot be listed by anybody.
                let Ok(objects) = api.list(&ListParams::default()).await else { continue };
                for object in objects {
                    let text = serde_json::to_string(&object)?;
                    assert!(!key.is_in(&text), "{} {} holds the key", resource.kind, object.name_any());
                }
            }
            kinds += 1;
        }
    }
    assert!(kinds > 20, "only {kinds} kinds were searched");
    assert!(discovery.groups().any(|group| group.name() == ConfigMap::group(&())));
    Ok(())
}

fn listable(capabilities: &ApiCapabilities) -> bool {
    capabilities.scope == Scope::Namespaced && capabilities.supports_operation(verbs::LIST)
}

pub(crate) async fn assert_in_no_log(namespace: &TestNamespace, key: &Needle) -> TestResult {
    let mut logs = 0;
    for place in [&namespace.name, SYSTEM_NAMESPACE] {
        let pods: Api<Pod> = Api::namespaced(Client::clone(&namespace.client), place);
        for pod in pods.list(&ListParams::default()).await? {
            let spec = pod.spec.clone().ok_or("a pod without a spec")?;
            for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
                let params = LogParams { container: Some(container.name.clone()), ..LogParams::default() };
                // A pod of another test may go at any moment; those of this test stay.
                let Ok(log) = pods.logs(&pod.name_any(), &params).await else { continue };
                assert!(!key.is_in(&log), "the log of {}/{} holds the key", pod.name_any(), container.name);
                logs += 1;
            }
        }
    }
    assert!(logs >= 5, "only {logs} logs were searched");
    Ok(())
}
