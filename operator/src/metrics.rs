//! What the operator counts. Labels are kinds and fixed words, never names.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

const RECONCILES: &str = "longhand_operator_reconciles_total";
const RECONCILE_SECONDS: &str = "longhand_operator_reconcile_seconds";
const WATCH_ERRORS: &str = "longhand_operator_watch_errors_total";
const LEADER: &str = "longhand_operator_leader";
const PODS_CREATED: &str = "longhand_operator_pods_created_total";
const PODS_LOST: &str = "longhand_operator_pods_lost_total";
const WARM_TAKEN: &str = "longhand_operator_warm_sandboxes_taken_total";
const WARM_CONFLICTS: &str = "longhand_operator_warm_sandbox_conflicts_total";
const HARNESS_STARTS: &str = "longhand_operator_harness_starts_total";
const WARM_PODS: &str = "longhand_operator_warm_harnesses";
const STAGE_SECONDS: &str = "longhand_operator_stage_seconds";
const NOT_FENCED: &str = "longhand_operator_sandboxes_not_fenced_total";
const SWEPT: &str = "longhand_operator_logs_swept_total";

const BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
const UPKEEP: Duration = Duration::from_secs(5);

/// A stretch of time that a session waits for.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    /// From the wake key to the harness pod's creation.
    WakeToPod,
    /// From a sandbox pod's creation (a whole second) to its readiness.
    SandboxReady,
}

/// Starts counting in this process.
///
/// # Errors
/// When the process counts already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)?
        .install_recorder()?;
    describe_counter!(RECONCILES, "Reconciles, by kind and result");
    describe_histogram!(RECONCILE_SECONDS, Unit::Seconds, "How long a reconcile takes, by kind");
    describe_counter!(WATCH_ERRORS, "Broken watches, by kind");
    describe_gauge!(LEADER, "1 while this replica holds the lease");
    describe_counter!(PODS_CREATED, "Pods made, by role");
    describe_counter!(PODS_LOST, "Pods replaced because they failed or are gone, by role");
    describe_counter!(WARM_TAKEN, "Pods of a pool that became a sandbox");
    describe_counter!(WARM_CONFLICTS, "Pods of a pool that were another sandbox's by the time they were to be taken");
    describe_counter!(HARNESS_STARTS, "Harnesses that sessions got, by whether one was ready or had to be made");
    describe_gauge!(WARM_PODS, "Harness pods of agents that belong to no session, by what they do");
    describe_histogram!(STAGE_SECONDS, Unit::Seconds, "What a session waits for, by stage");
    describe_counter!(NOT_FENCED, "Sandboxes that were found not to be fenced in, by reason");
    describe_counter!(SWEPT, "Logs deleted because their resource is gone");
    leader(false);
    Ok(handle)
}

/// Keeps the histograms small until `token` is cancelled.
pub async fn upkeep(handle: PrometheusHandle, token: CancellationToken) {
    let mut ticks = tokio::time::interval(UPKEEP);
    while token.run_until_cancelled(ticks.tick()).await.is_some() {
        handle.run_upkeep();
    }
}

/// A reconcile has ended.
pub fn reconciled(kind: &'static str, ok: bool, took: Duration) {
    counter!(RECONCILES, "kind" => kind, "result" => if ok { "ok" } else { "error" }).increment(1);
    histogram!(RECONCILE_SECONDS, "kind" => kind).record(took);
}

/// A watch broke and is begun again.
pub fn watch_error(kind: &'static str) {
    counter!(WATCH_ERRORS, "kind" => kind).increment(1);
}

/// Whether this replica leads.
pub fn leader(leads: bool) {
    gauge!(LEADER).set(if leads { 1.0 } else { 0.0 });
}

/// A pod was made.
pub fn pod_created(role: &'static str) {
    counter!(PODS_CREATED, "role" => role).increment(1);
}

/// A session got a harness.
pub fn harness_start(kind: &'static str) {
    counter!(HARNESS_STARTS, "kind" => kind).increment(1);
}

/// So many harness pods of all agents do this.
pub fn warm_pods(state: &'static str, pods: usize) {
    gauge!(WARM_PODS, "state" => state).set(u32::try_from(pods).unwrap_or(u32::MAX));
}

/// A pod failed or is gone.
pub fn pod_lost(role: &'static str) {
    counter!(PODS_LOST, "role" => role).increment(1);
}

/// A sandbox was found not to be fenced in: by its canaries, or since a policy lets it out.
pub fn not_fenced(policy: bool) {
    counter!(NOT_FENCED, "reason" => if policy { "policy" } else { "canary" }).increment(1);
}

/// A pod of a pool has become a sandbox.
pub fn warm_taken() {
    counter!(WARM_TAKEN).increment(1);
}

/// A pod of a pool could not be taken, as it has changed since it was seen.
pub fn warm_conflict() {
    counter!(WARM_CONFLICTS).increment(1);
}

/// A stage is over.
pub fn stage(stage: Stage, took: Duration) {
    let name = match stage {
        Stage::WakeToPod => "wake_to_pod",
        Stage::SandboxReady => "sandbox_ready",
    };
    histogram!(STAGE_SECONDS, "stage" => name).record(took);
}

/// A log was deleted because its resource is gone.
pub fn swept() {
    counter!(SWEPT).increment(1);
}
