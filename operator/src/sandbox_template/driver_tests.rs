use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use longhand_crds::SandboxTemplate;
use serde_json::{Value, json};

use super::observe::observe;
use super::refill::{Refill, Refills};
use super::{Pools, proceed, reconcile};
use crate::fixtures;
use crate::owned_pods::listed;
use crate::sandbox::{network_policy, pod};
use crate::testing::{Call, Server, context, fencing, images, store};

const PODS: &str = "/api/v1/namespaces/team/pods";
const STATUS: &str = "/apis/longhand.dev/v1alpha1/namespaces/team/sandboxtemplates/shell/status";
const POLICY: &str = "/apis/networking.k8s.io/v1/namespaces/team/networkpolicies/longhand-sandbox";
const KEYS: &str = "/api/v1/namespaces/longhand-system/configmaps/longhand-session-keys";

fn pools(pods: Vec<Pod>, policies: Vec<NetworkPolicy>) -> (Arc<Pools>, Server) {
    let (context, server) = context();
    let (pods, policies) = (listed(pods), store(policies));
    (Arc::new(Pools { context, pods, policies, refills: Refills::default() }), server)
}

fn template(warm: i32) -> Arc<SandboxTemplate> {
    let mut template = fixtures::template();
    template.spec.warm = warm;
    Arc::new(template)
}

fn name(slot: usize) -> String {
    format!("shell-3e8f1-{}-{slot}", pod::pool_hash((&images(), &fencing()), &fixtures::template()))
}

fn waiting(slot: usize, key: &str) -> Pod {
    let mut pod = pod::build_warm((&images(), &fencing()), &fixtures::template(), key, &name(slot));
    pod.metadata.uid = Some(format!("pod-{slot}"));
    pod
}

fn keys() -> Call<'static> {
    let map = json!({ "metadata": { "name": "longhand-session-keys" }, "data": { "sandboxd-verify-key": "key=" } });
    ("GET", KEYS, 200, map)
}

fn answer(object: &impl serde::Serialize) -> Value {
    serde_json::to_value(object).unwrap()
}

fn fence() -> NetworkPolicy {
    network_policy::build("team", "longhand-system")
}

fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": message })
}

fn warm(status: &Value) -> &Value {
    let conditions = status["status"]["conditions"].as_array().unwrap();
    conditions.iter().find(|condition| condition["type"] == "WarmReady").unwrap()
}

#[tokio::test]
async fn the_fence_is_up_before_the_first_pod_of_a_pool() {
    let (pools, server) = pools(vec![], vec![]);
    let server = server.expect([
        ("PATCH", POLICY, 200, answer(&fence())),
        keys(),
        ("POST", PODS, 201, answer(&waiting(0, "key="))),
        ("PATCH", STATUS, 200, answer(&fixtures::template())),
    ]);
    reconcile(template(1), pools.clone()).await.unwrap();
    let sent = server.nothing_else(pools).await;
    assert_eq!(sent[2]["metadata"]["name"], name(0));
    assert_eq!(sent[2]["metadata"]["ownerReferences"][0]["kind"], "SandboxTemplate");
    assert_eq!(warm(&sent[3])["reason"], "Starting");
}

#[tokio::test]
async fn a_pod_that_the_watch_has_not_shown_yet_is_not_made_again_even_if_it_was_taken() {
    let (pools, server) = pools(vec![], vec![fence()]);
    let mut taken = waiting(0, "key=");
    taken.metadata.owner_references = None;
    let pod = format!("{PODS}/{}", name(0));
    let server = server.expect([
        keys(),
        ("POST", PODS, 409, failure(409, "AlreadyExists", "exists")),
        ("GET", pod.as_str(), 200, answer(&taken)),
        ("PATCH", STATUS, 200, answer(&fixtures::template())),
    ]);
    reconcile(template(1), pools.clone()).await.unwrap();
    server.nothing_else(pools).await;
}

#[tokio::test]
async fn a_pod_of_somebody_else_is_left_alone_and_reported() {
    let (pools, server) = pools(vec![], vec![fence()]);
    let pod = format!("{PODS}/{}", name(0));
    let server = server.expect([
        keys(),
        ("POST", PODS, 409, failure(409, "AlreadyExists", "exists")),
        ("GET", pod.as_str(), 200, json!({ "metadata": { "name": name(0) } })),
        ("PATCH", STATUS, 200, answer(&fixtures::template())),
    ]);
    reconcile(template(1), pools.clone()).await.unwrap_err();
    let sent = server.nothing_else(pools).await;
    assert_eq!(warm(&sent[3])["reason"], "PodNameTaken");
}

#[tokio::test]
async fn while_pods_are_being_taken_the_status_is_written_only_if_something_is_wrong() {
    for (made, written) in [(201, false), (403, true)] {
        let (pools, server) = pools(vec![], vec![fence()]);
        let answered = match made {
            201 => answer(&waiting(0, "key=")),
            _ => failure(403, "Forbidden", "pods \"x\" is forbidden: exceeded quota: q, requested: pods=1"),
        };
        let status = written.then(|| ("PATCH", STATUS, 200, answer(&fixtures::template())));
        let server = server.expect([keys(), ("POST", PODS, made, answered)].into_iter().chain(status));
        let mut observed = observe((SandboxTemplate::clone(&template(1)), None), &pools);
        observed.burst = Some(Duration::from_millis(500));
        assert_eq!(proceed(&observed, &pools, Timestamp::now()).await.is_err(), written);
        server.nothing_else(pools).await;
    }
}

#[tokio::test]
async fn a_pool_that_may_have_no_more_says_so() {
    let (pools, server) = pools(vec![], vec![fence()]);
    let refused = failure(403, "Forbidden", "pods \"x\" is forbidden: exceeded quota: q, requested: pods=1");
    let server =
        server.expect([keys(), ("POST", PODS, 403, refused), ("PATCH", STATUS, 200, answer(&fixtures::template()))]);
    reconcile(template(1), pools.clone()).await.unwrap_err();
    let sent = server.nothing_else(pools).await;
    assert_eq!(warm(&sent[2])["reason"], "QuotaExceeded");
    assert!(warm(&sent[2])["message"].as_str().unwrap().contains("exceeded quota: q"));
}

#[tokio::test]
async fn the_fence_is_put_up_again_around_pods_that_wait() {
    let (pools, server) = pools(vec![waiting(0, "key=")], vec![]);
    let server = server.expect([
        ("PATCH", POLICY, 200, answer(&fence())),
        keys(),
        ("PATCH", STATUS, 200, answer(&fixtures::template())),
    ]);
    reconcile(template(1), pools.clone()).await.unwrap();
    server.nothing_else(pools).await;
}

#[tokio::test]
async fn pods_that_know_another_key_go() {
    let pods = vec![waiting(0, "old="), waiting(1, "key=")];
    let (pools, server) = pools(pods, vec![fence()]);
    let pod = format!("{PODS}/{}", name(0));
    let server = server.expect([
        keys(),
        ("DELETE", pod.as_str(), 200, answer(&waiting(0, "old="))),
        ("PATCH", STATUS, 200, answer(&fixtures::template())),
    ]);
    reconcile(template(2), pools.clone()).await.unwrap();
    let sent = server.nothing_else(pools).await;
    assert_eq!(sent[1]["preconditions"]["uid"], "pod-0");
}

#[tokio::test]
async fn claims_come_before_the_pods_that_take_their_place() {
    let mut taken = waiting(0, "key=");
    taken.metadata.owner_references = None;
    let (pools, server) = pools(vec![taken, waiting(1, "key=")], vec![fence()]);
    assert_eq!(pools.refills.next("3e8f1a2b-shell", 0), Refill::Fill);
    let held = reconcile(template(2), pools.clone()).await.unwrap();
    assert_ne!(held, kube::runtime::controller::Action::await_change());
    server.expect([]).nothing_else(pools).await;
}
