//! Many sandboxes race for few pods of a pool, before an API server that refuses, loses answers and takes its time, and with
//! watches that are late.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::client::Body;
use kube::core::DeserializeGuard;
use kube::{Client, ResourceExt as _};
use longhand_crds::{Sandbox, SandboxStatus};
use serde_json::{Value, json};

use super::fence::Fence;
use super::fence::tests::Told;
use super::written::Written;
use super::{Reservations, Sandboxes, network_policy, pod, reconcile};
use crate::events::Events;
use crate::fixtures;
use crate::nodes::Nodes;
use crate::owned_pods::listed;
use crate::pods::is_controlled_by;
use crate::testing::{context, fencing, images, store};

const POOL: usize = 100;
const CLAIMS: usize = 1_000;
const AT_ONCE: usize = 64;
const DEADLINE: Duration = Duration::from_secs(120);

/// The API server.
#[derive(Default)]
struct World {
    pods: BTreeMap<String, Pod>,
    statuses: BTreeMap<String, SandboxStatus>,
    /// Each pod that was ever said to be a sandbox's.
    bound: BTreeSet<(String, String)>,
    versions: u64,
    random: u64,
    /// Whether things go wrong.
    hostile: bool,
}

impl World {
    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    fn once_in(&mut self, times: u64) -> bool {
        self.hostile && self.random(times) == 0
    }

    fn put(&mut self, mut pod: Pod) -> Pod {
        self.versions += 1;
        pod.metadata.resource_version = Some(self.versions.to_string());
        pod.metadata.uid.get_or_insert_with(|| format!("uid-{}", self.versions));
        pod.metadata.creation_timestamp.get_or_insert_with(|| Time(Timestamp::now()));
        pod.status = serde_json::from_value(running()).unwrap();
        self.pods.insert(pod.name_any(), pod.clone());
        pod
    }

    fn take(&mut self, name: &str, patch: &Value) -> (u16, Value) {
        let Some(pod) = self.pods.get(name).cloned() else { return refused(404) };
        let metadata = &patch["metadata"];
        let other = |seen: &str| pod.metadata.resource_version.as_deref() != Some(seen);
        if metadata["resourceVersion"].as_str().is_some_and(other) || self.once_in(10) {
            return refused(409);
        }
        if self.once_in(20) {
            return refused(500);
        }
        let mut changed = serde_json::to_value(&pod).unwrap();
        changed["metadata"]["ownerReferences"] = metadata["ownerReferences"].clone();
        for (key, value) in metadata["annotations"].as_object().unwrap() {
            changed["metadata"]["annotations"][key] = value.clone();
        }
        let pod = self.put(serde_json::from_value(changed).unwrap());
        // It was done, and nobody learns of it.
        if self.once_in(20) { refused(500) } else { (200, serde_json::to_value(pod).unwrap()) }
    }

    fn write(&mut self, sandbox: &str, body: &Value) -> (u16, Value) {
        if self.once_in(20) {
            return refused(500);
        }
        let status: SandboxStatus = serde_json::from_value(body["status"].clone()).unwrap();
        if let Some(pod) = &status.pod_uid {
            self.bound.insert((sandbox.to_owned(), pod.clone()));
        }
        self.statuses.insert(sandbox.to_owned(), status);
        (200, serde_json::to_value(fixtures::sandbox()).unwrap())
    }

    fn answer(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match (method, parts.as_slice()) {
            ("PATCH", [.., "pods", name]) => self.take(name, body),
            ("GET", [.., "pods", name]) => {
                self.pods.get(*name).map_or_else(|| refused(404), |pod| (200, serde_json::to_value(pod).unwrap()))
            }
            ("POST", [.., "pods"]) => {
                let pod: Pod = serde_json::from_value(body.clone()).unwrap();
                if self.pods.contains_key(&pod.name_any()) {
                    return because(409, "AlreadyExists");
                }
                let pod = self.put(pod);
                if self.once_in(20) { refused(500) } else { (201, serde_json::to_value(pod).unwrap()) }
            }
            ("DELETE", [.., "pods", name]) => {
                let wanted = body["preconditions"]["uid"].as_str();
                assert_eq!(self.pods.get(*name).and_then(|pod| pod.metadata.uid.as_deref()), wanted, "{name}");
                self.pods.remove(*name);
                (200, json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }))
            }
            ("PATCH", [.., "sandboxes", name, "status"]) => self.write(name, body),
            ("GET", [.., "configmaps", _]) => {
                (200, json!({ "metadata": { "name": "keys" }, "data": { "sandboxd-verify-key": "key=" } }))
            }
            ("POST" | "PATCH", [.., "events"] | [.., "events", _]) => {
                (201, json!({ "metadata": { "name": "e" }, "eventTime": null }))
            }
            _ => panic!("{method} {path}"),
        }
    }
}

fn refused(code: u16) -> (u16, Value) {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    because(code, reason)
}

fn because(code: u16, reason: &str) -> (u16, Value) {
    (
        code,
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": "no" }),
    )
}

fn running() -> Value {
    json!({
        "phase": "Running", "podIP": "10.0.0.7",
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": Timestamp::now().to_string() }],
        "containerStatuses": [{ "name": "sandbox", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
            "state": { "running": { "startedAt": Timestamp::now().to_string() } } }],
    })
}

/// A client of the world, whose answers come in any order.
fn client(world: Arc<Mutex<World>>) -> Client {
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    tokio::spawn(async move {
        while let Some((request, send)) = handle.next_request().await {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let pauses = world.lock().unwrap().random(8);
                for _ in 0..pauses {
                    tokio::task::yield_now().await;
                }
                let (status, body) = world.lock().unwrap().answer(&method, &path, &body);
                let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
                send.send_response(response.body(Body::from(serde_json::to_vec(&body).unwrap())).unwrap());
            });
        }
    });
    Client::new(service, "default")
}

/// The sandbox of this number, with the status that a watch has shown.
fn sandbox(number: usize, status: Option<SandboxStatus>) -> Sandbox {
    let mut sandbox = fixtures::sandbox();
    sandbox.metadata.name = Some(format!("s{number}"));
    sandbox.metadata.uid = Some(format!("{number:05}-uid"));
    sandbox.metadata.creation_timestamp = Some(Time(Timestamp::now()));
    sandbox.status = status;
    sandbox
}

/// What an operator looks at whose watches have shown these pods.
fn operator(client: &Client, pods: Vec<Pod>, reservations: Reservations) -> Sandboxes {
    let (context, _) = context();
    let context = Arc::into_inner(context).unwrap();
    let context = crate::context::Context {
        events: Events::new(client.clone(), "operator-0"),
        nodes: Nodes::new(client.clone()),
        client: client.clone(),
        ..context
    };
    Sandboxes {
        context: Arc::new(context),
        templates: store([DeserializeGuard(Ok(template()))]),
        pods: listed(pods),
        claims: store(Vec::<PersistentVolumeClaim>::new()),
        policies: store([network_policy::build("team", "longhand-system")]),
        reservations,
        written: Written::default(),
        fence: Fence::new(Arc::new(Told::default())),
        complaints: super::Complaints::default(),
    }
}

fn template() -> longhand_crds::SandboxTemplate {
    let mut template = fixtures::template();
    (template.spec.warm, template.spec.idle_seconds) = (100, 3_600);
    template
}

/// Looks at sandboxes once, many at the same time; returns how many attempts failed.
async fn round(
    sandboxes: &Arc<Sandboxes>,
    statuses: &BTreeMap<String, SandboxStatus>,
    numbers: impl Iterator<Item = usize>,
) -> usize {
    let all = numbers.map(|number| sandbox(number, statuses.get(&format!("s{number}")).cloned()));
    let looked = stream::iter(all.map(|sandbox| {
        let sandboxes = Arc::clone(sandboxes);
        tokio::spawn(async move { reconcile(Arc::new(sandbox), sandboxes).await })
    }));
    let failed = looked.buffer_unordered(AT_ONCE).filter(|result| {
        let failed = result.as_ref().unwrap().is_err();
        async move { failed }
    });
    failed.count().await
}

async fn race(seed: u64) {
    let world = Arc::new(Mutex::new(World { random: seed, hostile: true, ..World::default() }));
    for number in 0..POOL {
        let warm = pod::build_warm((&images(), &fencing()), &template(), "key=", &format!("warm-{number}"));
        world.lock().unwrap().put(warm);
    }
    let client = client(Arc::clone(&world));
    let everything = || {
        let world = world.lock().unwrap();
        (world.pods.values().cloned().collect::<Vec<Pod>>(), world.statuses.clone())
    };
    // Twice with watches that have shown nothing of it, and beside another that knows nothing of this one.
    let (pods, nothing) = everything();
    let late = Arc::new(operator(&client, pods.clone(), Reservations::default()));
    let rival = Arc::new(operator(&client, pods, Reservations::default()));
    let mut failed = 0;
    for _ in 0..2 {
        let halves = (round(&late, &nothing, (0..CLAIMS).step_by(2)), round(&rival, &nothing, (1..CLAIMS).step_by(2)));
        let (one, other) = futures::join!(halves.0, halves.1);
        failed += one + other;
    }
    assert!(failed > 0, "the API server was not hostile enough");
    // Another operator begins with what there is, and again its watches are late.
    let (pods, statuses) = everything();
    let other = Arc::new(operator(&client, pods, Reservations::default()));
    round(&other, &statuses, 0..CLAIMS).await;
    world.lock().unwrap().hostile = false;
    for _ in 0..2 {
        let (pods, statuses) = everything();
        let calm = Arc::new(operator(&client, pods, Reservations::default()));
        assert_eq!(round(&calm, &statuses, 0..CLAIMS).await, 0);
    }

    let world = world.lock().unwrap();
    let pods: BTreeSet<&String> = world.bound.iter().map(|(_, pod)| pod).collect();
    let owners: BTreeSet<&String> = world.bound.iter().map(|(sandbox, _)| sandbox).collect();
    assert_eq!((pods.len(), owners.len()), (world.bound.len(), CLAIMS), "each sandbox has had one pod, and no other's");
    let mut warm = 0;
    for number in 0..CLAIMS {
        let uid = format!("{number:05}-uid");
        let ours: Vec<&Pod> = world.pods.values().filter(|pod| is_controlled_by(pod, &uid)).collect();
        let named = world.statuses[&format!("s{number}")].pod_uid.as_ref();
        assert_eq!(ours.iter().map(|pod| pod.metadata.uid.as_ref()).collect::<Vec<_>>(), [named], "sandbox {number}");
        warm += usize::from(ours[0].name_any().starts_with("warm-"));
    }
    let left = world.pods.len() - CLAIMS;
    assert_eq!(warm + left, POOL, "a pod of the pool is a sandbox's, or waits");
    assert!(warm > POOL * 9 / 10, "only {warm} of {POOL} were taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_sandboxes_race_for_a_hundred_pods_and_none_is_bound_twice_or_lost() {
    tokio::time::timeout(DEADLINE, race(7)).await.expect("the race ends");
}
