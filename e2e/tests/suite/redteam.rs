//! Attempts to get out of a sandbox and to take something out of it: `e2e/redteam`, all refused; and, from a pod without the
//! fence, a proof that those of the network would notice.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, LogParams};
use longhand_crds::labels;
use longhand_e2e::cluster::log::{assert_sound, results_of, text};
use longhand_e2e::cluster::{
    Fixture, Needle, SYSTEM_NAMESPACE, TestNamespace, TestResult, in_namespace, script, wait_for,
};
use longhand_protocol::event::EventBody;
use longhand_protocol::wire::NumberedEvent;
use serde_json::{Value, json};

use crate::online::{LONG, UNBOUND, allow, pod_of, said};
use crate::secrets::assert_in_no_log;

const FILES: [(&str, &str); 7] = [
    ("run.py", include_str!("../../redteam/run.py")),
    ("table.py", include_str!("../../redteam/table.py")),
    ("network.py", include_str!("../../redteam/network.py")),
    ("files.py", include_str!("../../redteam/files.py")),
    ("kernel.py", include_str!("../../redteam/kernel.py")),
    ("sandboxd.py", include_str!("../../redteam/sandboxd.py")),
    ("egress.py", include_str!("../../redteam/egress.py")),
];
/// Fewer than there are: a table that was not read as a whole must not pass.
const AT_LEAST: usize = 200;
/// All of them, and what the model's tools are asked for afterwards.
const ATTACK: Duration = Duration::from_secs(240);
/// What a read or a write by a link out of the workspace is answered with.
const LED_OUT: &str = "leads out of the workspace by a link";

/// A pod with the image of sandboxes and none of their labels, which no policy selects.
const UNFENCED: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: unfenced}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  securityContext: {runAsNonRoot: true, runAsUser: 1000, runAsGroup: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: attempts
      imagePullPolicy: IfNotPresent
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {cpu: "1", memory: 512Mi}}
"#;

/// A command that writes the attempts to a folder and runs some groups of them, or all.
fn command(facts: &Value, groups: &str) -> String {
    let facts = facts.to_string();
    let files = FILES.into_iter().chain([("facts.json", facts.as_str())]);
    let mut command = "mkdir -p /tmp/redteam && cd /tmp/redteam\n".to_owned();
    for (name, content) in files {
        let _ = writeln!(command, "cat > {name} <<'END-OF-FILE'\n{}\nEND-OF-FILE", content.trim_end());
    }
    command + "python3 run.py " + groups
}

/// The address of the first pod of a component.
fn address_of(pods: &[Pod], component: &str) -> Option<String> {
    let label = "app.kubernetes.io/component";
    pods.iter().find(|pod| pod.labels().get(label).is_some_and(|found| found == component)).and_then(ip)
}

fn ip(pod: &Pod) -> Option<String> {
    pod.status.as_ref()?.pod_ip.clone()
}

fn cluster_ip(service: Service) -> Option<String> {
    service.spec?.cluster_ip
}

/// Where everything is that a sandbox must not reach; `mine` is the session of the attacker.
async fn facts(namespace: &TestNamespace, mine: &str, other: &str) -> TestResult<Value> {
    let client = || namespace.client.clone();
    let services = |of: &str| Api::<Service>::namespaced(client(), of);
    let slices: Api<EndpointSlice> = Api::namespaced(client(), "default");
    let of_api = ListParams::default().labels("kubernetes.io/service-name=kubernetes");
    let slice = slices.list(&of_api).await?.items.pop().ok_or("the API server has no endpoints")?;
    let endpoint = slice.endpoints.first().and_then(|one| one.addresses.first()).ok_or("an empty EndpointSlice")?;
    let port = slice.ports.iter().flatten().find_map(|port| port.port).ok_or("an EndpointSlice without a port")?;
    let dns = services("kube-system").list(&ListParams::default().labels("k8s-app=kube-dns")).await?;
    let system = Api::<Pod>::namespaced(client(), SYSTEM_NAMESPACE).list(&ListParams::default()).await?.items;
    let model = ListParams::default().labels("app=scripted-model");
    let model_pod = namespace.api::<Pod>().list(&model).await?.items.pop().ok_or("there is no model")?;
    let sandbox = pod_of(namespace, mine, labels::SANDBOX).await?;
    let facts = json!({
        "api": cluster_ip(services("default").get("kubernetes").await?),
        "api_endpoint": endpoint,
        "api_endpoint_port": port,
        "resolver": dns.items.into_iter().find_map(cluster_ip),
        "runtime_class": sandbox.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref()).unwrap_or_default(),
        "node": sandbox.status.as_ref().and_then(|status| status.host_ip.clone()),
        "model_pod": ip(&model_pod),
        "model_service": cluster_ip(namespace.api::<Service>().get("scripted-model").await?),
        "session_service": cluster_ip(services(SYSTEM_NAMESPACE).get("longhand-session").await?),
        "session_pod": address_of(&system, "session"),
        "operator_pod": address_of(&system, "operator"),
        "harness": ip(&pod_of(namespace, mine, labels::HARNESS).await?),
        "other_harness": ip(&pod_of(namespace, other, labels::HARNESS).await?),
        "other_sandbox": ip(&pod_of(namespace, other, labels::SANDBOX).await?),
        "model_host": format!("scripted-model.{}.svc", namespace.name),
        "tls_host": format!("tls.{}.svc", namespace.name),
        "unbound_host": UNBOUND,
    });
    if let Some((name, _)) = facts.as_object().into_iter().flatten().find(|(_, value)| value.is_null()) {
        return Err(format!("nothing is known of {name}").into());
    }
    // An etcd of somebody else's is not in the namespace.
    let etcd = json!({ "etcd_pod": address_of(&system, "etcd") });
    Ok(facts.as_object().into_iter().chain(etcd.as_object()).flatten().map(|(k, v)| (k.clone(), v.clone())).collect())
}

/// What each attempt came to, by its name: nothing, or what it saw. Every row that was there has to have run.
fn verdicts(output: &str) -> TestResult<BTreeMap<&str, Option<&str>>> {
    let mut verdicts = BTreeMap::new();
    for line in output.lines() {
        if let Some(name) = line.strip_prefix("ok ") {
            verdicts.insert(name, None);
        } else if let Some((name, seen)) = line.strip_prefix("BREACH ").and_then(|rest| rest.split_once(": ")) {
            verdicts.insert(name, Some(seen));
        }
    }
    let ran = format!("ran {}", verdicts.len());
    if verdicts.is_empty() || !output.lines().any(|line| line == ran) {
        return Err(format!("not every attempt has a verdict ({} have): {output}", verdicts.len()).into());
    }
    Ok(verdicts)
}

/// What the attempts do, and then what the model's own tools are asked for by links that the first call has left.
fn attack(facts: &Value) -> String {
    let links = "cd /workspace && ln -sfn /etc/passwd leak && ln -sfn /tmp outside && ln -sfn /proc/1 process\n";
    let bash = |command: String| json!([{ "name": "bash", "input": { "command": command, "timeout_ms": 120_000 } }]);
    let rules = json!({ "rules": [
        { "when": { "user_contains": "reflect" }, "then": { "text": "{{last_user}}" } },
        { "when": { "turn": 0 }, "then": { "tool_uses": bash(links.to_owned() + &command(facts, "")) } },
        { "when": { "turn": 1 }, "then": { "tool_uses": [
            { "name": "read", "input": { "file_path": "leak" } },
            { "name": "read", "input": { "file_path": "/workspace/process/environ" } },
            { "name": "write", "input": { "file_path": "outside/planted", "content": "x" } },
            { "name": "edit", "input": { "file_path": "leak", "old_string": "root", "new_string": "toor" } },
        ]}},
        { "then": { "text": "Done." } },
    ]});
    rules.to_string()
}

/// The results of the calls after `seq`, in the order of the calls.
fn results(log: &[NumberedEvent], seq: u64) -> Vec<(String, String)> {
    let later = log.iter().filter(|event| event.seq.is_some_and(|own| own > seq)).map(|event| &event.event);
    later
        .filter_map(|event| match &event.body {
            EventBody::AgentToolUse { name, .. } => {
                Some((name.clone(), results_of(log, &event.id).into_iter().map(text).collect()))
            }
            _ => None,
        })
        .collect()
}

/// Runs the network's attempts where no policy holds them, and returns what they print.
async fn unfenced(namespace: &TestNamespace, facts: &Value, image: &str) -> TestResult<String> {
    let mut pod: kube::core::DynamicObject = serde_yaml::from_str(UNFENCED)?;
    let container = pod.data.pointer_mut("/spec/containers/0").ok_or("a pod without a container")?;
    container["image"] = json!(image);
    container["command"] = json!(["bash", "-c", command(facts, "network")]);
    namespace.apply_object(&pod).await?;
    let pods = namespace.api::<Pod>();
    wait_for(pods.clone(), "unfenced", "it has ended", LONG, |pod| {
        let phase = pod?.status.as_ref()?.phase.as_deref()?;
        ["Succeeded", "Failed"].contains(&phase).then_some(())
    })
    .await?;
    Ok(pods.logs("unfenced", &LogParams::default()).await?)
}

#[tokio::test]
async fn every_attempt_to_get_out_is_refused_and_would_be_noticed() {
    in_namespace("redteam", |namespace| async move {
        let fixture = Fixture::install(&namespace, &script("true"), 300).await?;
        allow(&namespace).await?;
        said(&fixture, "other").await?;
        let (session, _) = said(&fixture, "attacker").await?;
        let facts = facts(&namespace, "attacker", "other").await?;
        fixture.model.set_script(&attack(&facts)).await?;
        let before = fixture.service.log(&session).await?.len() as u64;
        fixture.service.send(&session, "attack").await?;
        fixture.service.until_idle(&session, before, ATTACK).await?;
        let log = fixture.service.log(&session).await?;
        assert_sound(&log);
        assert!(!serde_json::to_string(&log)?.contains(&fixture.api_key), "the log holds the key");

        let results = results(&log, before);
        let [(_, output), by_links @ ..] = results.as_slice() else { return Err("nothing was run".into()) };
        let verdicts = verdicts(output)?;
        let breaches: Vec<_> = verdicts.iter().filter_map(|(name, seen)| Some((*name, (*seen)?))).collect();
        assert!(breaches.is_empty(), "{} of {}: {breaches:#?}", breaches.len(), verdicts.len());
        assert!(verdicts.len() >= AT_LEAST, "only {} attempts: {output}", verdicts.len());
        assert_eq!(by_links.len(), 4, "{by_links:?}");
        assert!(by_links.iter().all(|(_, said)| said.contains(LED_OUT)), "{by_links:?}");
        assert_in_no_log(&namespace, &Needle::new(&fixture.api_key)).await?;

        let sandbox = pod_of(&namespace, "attacker", labels::SANDBOX).await?.spec.ok_or("a pod without a spec")?;
        let image = sandbox.containers.first().and_then(|container| container.image.clone()).ok_or("no image")?;
        let output = unfenced(&namespace, &facts, &image).await?;
        let verdicts = self::verdicts(&output)?;
        for name in ["api-server-service", "resolver-udp", "resolver-tcp", "model-pod", "session-pod"] {
            let seen = verdicts.get(format!("network/{name}").as_str());
            assert!(matches!(seen, Some(Some(_))), "{name} does not notice that there is no fence: {output}");
        }
        Ok(())
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::verdicts;

    #[test]
    fn a_row_without_a_verdict_is_seen() {
        assert_eq!(verdicts("ok a\nBREACH b: connected\nran 2").unwrap()["b"], Some("connected"));
        for output in ["", "ran 0", "ok a", "ok a\nran 2", "ok a\nok a\nran 2"] {
            assert!(verdicts(output).is_err(), "{output:?}");
        }
    }
}
