use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use rstest::rstest;
use serde_json::{Value, json};

use super::{Cause, Pending, PodView, Stage, is_overdue};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn pod(status: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "p", "uid": "u", "creationTimestamp": "1970-01-01T00:00:10Z" },
        "status": status,
    }))
    .unwrap()
}

fn main(state: &Value, restarts: i32) -> Value {
    let last = if restarts > 0 {
        json!({ "terminated": { "exitCode": 3, "reason": "Error", "finishedAt": "1970-01-01T00:00:20Z" } })
    } else {
        json!({})
    };
    json!([{ "name": "main", "image": "i", "imageID": "", "ready": false, "restartCount": restarts, "state": state, "lastState": last }])
}

fn sidecar(state: &Value, started: bool) -> Value {
    json!([{ "name": "proxy", "image": "p", "imageID": "", "ready": started, "restartCount": 0, "started": started, "state": state }])
}

fn running() -> Value {
    json!({ "running": { "startedAt": "1970-01-01T00:00:12Z" } })
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({ "waiting": { "reason": reason, "message": message } })
}

fn ended(code: i32, reason: &str) -> Value {
    json!({ "terminated": { "exitCode": code, "reason": reason, "finishedAt": "1970-01-01T00:00:30Z" } })
}

fn stuck(reason: &str, message: &str) -> Stage {
    Stage::Pending(Pending::Stuck(Cause::new(reason, message)))
}

#[rstest]
#[case::new(json!({}), Stage::Pending(Pending::Starting))]
#[case::creating(
    json!({ "phase": "Pending", "containerStatuses": main(&waiting("ContainerCreating", ""), 0) }),
    Stage::Pending(Pending::Starting)
)]
#[case::unschedulable(
    json!({ "phase": "Pending", "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes" }] }),
    stuck("Unschedulable", "0/1 nodes")
)]
#[case::no_image(
    json!({ "phase": "Pending", "containerStatuses": main(&waiting("ImagePullBackOff", "not found"), 0) }),
    stuck("ImagePullBackOff", "container main with image i: not found")
)]
#[case::no_sidecar_image(
    json!({ "phase": "Pending", "initContainerStatuses": sidecar(&waiting("ErrImagePull", "denied"), false), "containerStatuses": main(&waiting("PodInitializing", ""), 0) }),
    stuck("ErrImagePull", "container proxy with image p: denied")
)]
#[case::sidecar_not_started(
    json!({ "phase": "Pending", "initContainerStatuses": sidecar(&running(), false), "containerStatuses": main(&waiting("PodInitializing", ""), 0) }),
    Stage::Pending(Pending::Sidecar(at(12)))
)]
#[case::sidecar_started(
    json!({ "phase": "Pending", "initContainerStatuses": sidecar(&running(), true), "containerStatuses": main(&waiting("PodInitializing", ""), 0) }),
    Stage::Pending(Pending::Starting)
)]
#[case::running(
    json!({ "phase": "Running", "containerStatuses": main(&running(), 0) }),
    Stage::Running { since: at(12), ready_since: None }
)]
#[case::ready(
    json!({ "phase": "Running", "containerStatuses": main(&running(), 0), "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:14Z" }] }),
    Stage::Running { since: at(12), ready_since: Some(at(14)) }
)]
#[case::not_ready(
    json!({ "phase": "Running", "containerStatuses": main(&running(), 0), "conditions": [{ "type": "Ready", "status": "False" }] }),
    Stage::Running { since: at(12), ready_since: None }
)]
#[case::between_restarts(
    json!({ "phase": "Running", "containerStatuses": main(&waiting("CrashLoopBackOff", "back-off"), 2) }),
    Stage::Restarting(Cause::new("Exited", "container main ended with exit code 3 (2 restarts)"))
)]
#[case::just_ended(
    json!({ "phase": "Running", "containerStatuses": main(&ended(1, "Error"), 0) }),
    Stage::Restarting(Cause::new("Exited", "container main ended with exit code 1"))
)]
#[case::done_but_for_its_sidecar(
    json!({ "phase": "Running", "initContainerStatuses": sidecar(&running(), true), "containerStatuses": main(&ended(0, "Completed"), 1) }),
    Stage::Succeeded
)]
#[case::succeeded(json!({ "phase": "Succeeded" }), Stage::Succeeded)]
#[case::out_of_memory(
    json!({ "phase": "Failed", "containerStatuses": main(&ended(137, "OOMKilled"), 0) }),
    Stage::Failed(Cause::new("OOMKilled", "container main used more memory than its limit"), at(30))
)]
#[case::exit_code(
    json!({ "phase": "Failed", "containerStatuses": main(&ended(2, "Error"), 0) }),
    Stage::Failed(Cause::new("Exited", "container main ended with exit code 2"), at(30))
)]
#[case::evicted(
    json!({ "phase": "Failed", "reason": "Evicted", "message": "low on disk", "containerStatuses": main(&ended(137, "Error"), 0) }),
    Stage::Failed(Cause::new("Evicted", "low on disk"), at(30))
)]
#[case::taken_down_with_its_node(
    json!({ "phase": "Failed", "conditions": [{ "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": "node gone" }] }),
    Stage::Failed(Cause::new("NodeLost", "node gone"), at(10))
)]
fn a_pod_has_one_stage(#[case] status: Value, #[case] expected: Stage) {
    assert_eq!(PodView::of(&pod(&status), "main").stage, expected);
}

#[test]
fn a_container_that_is_not_started_again_has_failed_before_its_pod_says_so() {
    let mut pod = pod(&json!({ "phase": "Pending", "containerStatuses": main(&ended(128, "StartError"), 0) }));
    pod.spec.get_or_insert_default().restart_policy = Some("Never".to_owned());
    let Stage::Failed(cause, ended) = PodView::of(&pod, "main").stage else { panic!("it has not failed") };
    assert_eq!((cause.reason.as_str(), ended), ("StartError", at(30)));
}

#[rstest]
#[case(json!([]), None)]
#[case(json!([{ "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drained" }]), Some(Cause::new("Evicted", "drained")))]
#[case(json!([{ "type": "DisruptionTarget", "status": "False", "reason": "EvictionByEvictionAPI" }]), None)]
fn a_deleted_pod_is_terminating_whatever_else_it_is(#[case] conditions: Value, #[case] disruption: Option<Cause>) {
    let mut pod =
        pod(&json!({ "phase": "Running", "containerStatuses": main(&running(), 0), "conditions": conditions }));
    pod.metadata.deletion_timestamp = Some(at(40).into());
    let view = PodView::of(&pod, "main");
    assert_eq!(view.stage, Stage::Terminating { disruption, due: at(40) });
    assert!(!view.is_live());
}

#[rstest]
#[case(39, false)]
#[case(69, false)]
#[case(70, true)]
fn a_pod_that_does_not_end_is_overdue(#[case] now: i64, #[case] expected: bool) {
    assert_eq!(is_overdue(at(40), at(now)), expected);
}
