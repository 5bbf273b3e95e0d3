//! What is counted. Labels are routes, status classes and fixed words; never names, identifiers or paths.

use std::time::Duration;

use http::StatusCode;
use longhand_protocol::event::EventBody;
use longhand_protocol::refresh::RefreshAnswer;
use longhand_session_log::etcd::{Archived, Collected, Space};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

const REQUESTS: &str = "longhand_http_requests_total";
const REQUEST_SECONDS: &str = "longhand_http_request_seconds";
const RATE_LIMITED: &str = "longhand_rate_limited_total";
const LIMIT_REACHED: &str = "longhand_limit_reached_total";
const NAMESPACES_NEAR: &str = "longhand_namespaces_near_limit";
const REPEATED: &str = "longhand_repeated_requests_total";
const REPEATED_REMOVED: &str = "longhand_idempotency_keys_removed_total";
const PEERS: &str = "longhand_preview_peers";
const PEER_POSTS: &str = "longhand_preview_posts_total";
const REVIEWS: &str = "longhand_reviews_total";
const STREAMS: &str = "longhand_streams_open";
const STREAMS_ENDED: &str = "longhand_streams_ended_total";
const EXECUTES: &str = "longhand_executes_total";
const EXECUTE_SECONDS: &str = "longhand_execute_seconds";
const EXECUTES_RUNNING: &str = "longhand_executes_running";
const PROVISION_SECONDS: &str = "longhand_sandbox_provision_seconds";
const QUEUED_SECONDS: &str = "longhand_event_queued_seconds";
const CLAIMS: &str = "longhand_claims_total";
const PARKED: &str = "longhand_harnesses_parked";
const OFFERS: &str = "longhand_session_offers_total";
const DRAINS: &str = "longhand_drains_total";
const EGRESS_BINDINGS: &str = "longhand_egress_bindings_total";
const CREDENTIAL_EVENTS: &str = "longhand_credential_events_total";
const CREDENTIAL_REFRESHES: &str = "longhand_credential_refreshes_total";

const LOG_DB: &str = "longhand_log_etcd_db_bytes";
const LOG_USED: &str = "longhand_log_etcd_used_bytes";
const LOG_QUOTA: &str = "longhand_log_etcd_quota_bytes";
const LOG_ALARM: &str = "longhand_log_etcd_no_space";
const LOG_ARCHIVED_EVENTS: &str = "longhand_log_archived_events_total";
const LOG_ARCHIVED_BYTES: &str = "longhand_log_archived_bytes_total";
const LOG_SEGMENTS: &str = "longhand_log_segments_written_total";
const LOG_OBJECTS: &str = "longhand_log_objects";
const LOG_OBJECT_BYTES: &str = "longhand_log_object_bytes";
const LOG_ORPHANS: &str = "longhand_log_orphans_removed_total";
const LOG_JOB_FAILURES: &str = "longhand_log_job_failures_total";

const BUCKETS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Makes the process count, and returns what renders the counts.
///
/// # Errors
/// When the process counts already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)?
        .install_recorder()?;
    describe_counter!(REQUESTS, "Requests by method, route and class of status");
    describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "Time to the head of an answer, by route");
    describe_counter!(RATE_LIMITED, "Requests that were refused with 429, by what had too many");
    describe_counter!(
        LIMIT_REACHED,
        "Requests that were refused since a session or namespace is full, by what is limited"
    );
    describe_gauge!(NAMESPACES_NEAR, "Namespaces that come near to a limit or have reached it, by what is limited");
    describe_counter!(REPEATED, "Requests that repeat an Idempotency-Key, by what became of them");
    describe_counter!(REPEATED_REMOVED, "Idempotency-Keys that were forgotten after their time");
    describe_gauge!(PEERS, "Other replicas that are told of previews");
    describe_counter!(PEER_POSTS, "Previews for other replicas, by what became of them");
    describe_counter!(REVIEWS, "TokenReviews and SubjectAccessReviews that were asked");
    describe_gauge!(STREAMS, "Event streams that are open");
    describe_counter!(STREAMS_ENDED, "Event streams that ended, by cause");
    describe_counter!(EXECUTES, "Tool calls by how they ended");
    describe_histogram!(EXECUTE_SECONDS, Unit::Seconds, "Time of a tool call, with its sandbox's provisioning");
    describe_gauge!(EXECUTES_RUNNING, "Tool calls that run");
    describe_histogram!(PROVISION_SECONDS, Unit::Seconds, "Time that a tool call waited for its sandbox");
    describe_histogram!(QUEUED_SECONDS, Unit::Seconds, "Time from the acceptance of an event to its promotion");
    describe_counter!(CLAIMS, "Claims of sessions, by outcome");
    describe_gauge!(PARKED, "Harnesses that wait at this replica for a session");
    describe_counter!(OFFERS, "Sessions with new work that were offered to harnesses that wait, by what became of it");
    describe_counter!(EGRESS_BINDINGS, "Sandboxes that were to be bound to their session's proxy, by outcome");
    describe_counter!(CREDENTIAL_EVENTS, "Uses and refusals of credentials that proxies reported, by event");
    describe_counter!(CREDENTIAL_REFRESHES, "What proxies that refresh access tokens were answered");
    describe_counter!(DRAINS, "Drains of sandboxes, by outcome");
    describe_gauge!(LOG_DB, Unit::Bytes, "The largest database file of a member of etcd");
    describe_gauge!(LOG_USED, Unit::Bytes, "How much of that file is in use");
    describe_gauge!(LOG_QUOTA, Unit::Bytes, "How large such a file may become");
    describe_gauge!(LOG_ALARM, "1 while etcd has no space left and takes no new events");
    describe_counter!(LOG_ARCHIVED_EVENTS, "Events that have left etcd for the object store");
    describe_counter!(LOG_ARCHIVED_BYTES, Unit::Bytes, "Bytes of the segments that they are in");
    describe_counter!(LOG_SEGMENTS, "Segments that were written");
    describe_gauge!(LOG_OBJECTS, "Objects in the object store when it was last looked through, by kind");
    describe_gauge!(LOG_OBJECT_BYTES, Unit::Bytes, "Their bytes, by kind");
    describe_counter!(LOG_ORPHANS, "Objects that nothing referred to and that were removed");
    describe_counter!(LOG_JOB_FAILURES, "Jobs of the log that failed, by job; they are tried again");
    Ok(handle)
}

/// A cluster of etcd was asked how full it is.
pub(crate) fn log_space(shard: usize, space: &Space) {
    let shard = shard.to_string();
    if let Some(fullest) = space.members.iter().max_by_key(|member| member.db_bytes) {
        gauge!(LOG_DB, "shard" => shard.clone()).set(float(fullest.db_bytes));
        gauge!(LOG_USED, "shard" => shard.clone()).set(float(fullest.used_bytes));
        gauge!(LOG_QUOTA, "shard" => shard.clone()).set(float(fullest.quota_bytes));
    }
    gauge!(LOG_ALARM, "shard" => shard).set(if space.alarm { 1.0 } else { 0.0 });
}

/// Events have left etcd.
pub(crate) fn log_archived(archived: &Archived) {
    counter!(LOG_SEGMENTS).increment(1);
    counter!(LOG_ARCHIVED_EVENTS).increment(archived.events);
    counter!(LOG_ARCHIVED_BYTES).increment(archived.bytes);
}

/// The object store was looked through.
pub(crate) fn log_collected(collected: &Collected) {
    gauge!(LOG_OBJECTS, "kind" => "segment").set(float(collected.segments));
    gauge!(LOG_OBJECTS, "kind" => "payload").set(float(collected.payloads));
    gauge!(LOG_OBJECT_BYTES, "kind" => "segment").set(float(collected.segment_bytes));
    gauge!(LOG_OBJECT_BYTES, "kind" => "payload").set(float(collected.payload_bytes));
    gauge!(LOG_OBJECTS, "kind" => "file").set(float(collected.files));
    gauge!(LOG_OBJECT_BYTES, "kind" => "file").set(float(collected.file_bytes));
    counter!(LOG_ORPHANS).increment(collected.removed);
}

/// A job of the log failed.
pub(crate) fn log_job_failed(job: &'static str) {
    counter!(LOG_JOB_FAILURES, "job" => job).increment(1);
}

#[expect(clippy::cast_precision_loss, reason = "a gauge has no other type")]
fn float(number: u64) -> f64 {
    number as f64
}

/// A request was answered.
pub(crate) fn request(method: &str, route: &str, status: StatusCode, took: Duration) {
    let class = match status.as_u16() {
        0..=399 => "ok",
        401 => "401",
        403 => "403",
        409 => "409",
        412 => "412",
        400..=499 => "4xx",
        504 => "504",
        _ => "5xx",
    };
    let method = match method {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        _ => "other",
    };
    counter!(REQUESTS, "method" => method, "route" => route.to_owned(), "status" => class).increment(1);
    histogram!(REQUEST_SECONDS, "route" => route.to_owned()).record(took);
}

/// A caller, a session or a namespace has had its share.
pub(crate) fn rate_limited(of: &'static str) {
    counter!(RATE_LIMITED, "of" => of).increment(1);
}

/// A request was refused since a limit is reached.
pub(crate) fn limit_reached(of: &'static str, what: &'static str) {
    counter!(LIMIT_REACHED, "of" => of, "what" => what).increment(1);
}

/// So many namespaces come near to a limit, or have reached it.
pub(crate) fn namespaces_near(what: &'static str, reached: bool, count: usize) {
    let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    gauge!(NAMESPACES_NEAR, "what" => what, "reached" => if reached { "true" } else { "false" }).set(count);
}

/// A request came with an `Idempotency-Key` that is known.
pub(crate) fn repeated(outcome: &'static str) {
    counter!(REPEATED, "outcome" => outcome).increment(1);
}

/// Requests with an `Idempotency-Key` were forgotten.
pub(crate) fn forgotten(count: u64) {
    counter!(REPEATED_REMOVED).increment(count);
}

/// So many other replicas are known.
pub(crate) fn peers(count: usize) {
    gauge!(PEERS).set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
}

/// Previews for another replica were sent, or not.
pub(crate) fn peer_post(outcome: &'static str, count: usize) {
    counter!(PEER_POSTS, "outcome" => outcome).increment(u64::try_from(count).unwrap_or(u64::MAX));
}

/// The API server was asked.
pub(crate) fn review(what: &'static str, answered: bool) {
    counter!(REVIEWS, "what" => what, "outcome" => if answered { "answered" } else { "failed" }).increment(1);
}

/// Counts a stream for as long as it is held.
#[derive(Debug)]
pub(crate) struct OpenStream {
    pub(crate) end: &'static str,
}

impl OpenStream {
    pub(crate) fn begin() -> Self {
        gauge!(STREAMS).increment(1.0);
        Self { end: "client" }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        gauge!(STREAMS).decrement(1.0);
        counter!(STREAMS_ENDED, "cause" => self.end).increment(1);
    }
}

/// Counts a tool call for as long as it is held.
#[derive(Debug)]
pub(crate) struct RunningCall;

impl RunningCall {
    pub(crate) fn begin() -> Self {
        gauge!(EXECUTES_RUNNING).increment(1.0);
        Self
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        gauge!(EXECUTES_RUNNING).decrement(1.0);
    }
}

/// A tool call has ended.
pub(crate) fn executed(outcome: &'static str, took: Duration) {
    counter!(EXECUTES, "outcome" => outcome).increment(1);
    histogram!(EXECUTE_SECONDS, "outcome" => outcome).record(took);
}

/// A tool call had to wait for its sandbox.
pub(crate) fn provisioned(took: Duration) {
    histogram!(PROVISION_SECONDS).record(took);
}

/// A queued event entered the log.
pub(crate) fn promoted(queued: Duration) {
    histogram!(QUEUED_SECONDS).record(queued);
}

/// A harness asked for a session.
pub(crate) fn claim(outcome: &'static str) {
    counter!(CLAIMS, "outcome" => outcome).increment(1);
}

/// So many harnesses wait here for a session.
pub(crate) fn parked(harnesses: usize) {
    gauge!(PARKED).set(u32::try_from(harnesses).unwrap_or(u32::MAX));
}

/// A session with new work may be for a harness that waits here.
pub(crate) fn offer(outcome: &'static str) {
    counter!(OFFERS, "outcome" => outcome).increment(1);
}

/// A sandbox was to be bound to its session's proxy.
pub(crate) fn egress_bound(bound: bool) {
    counter!(EGRESS_BINDINGS, "outcome" => if bound { "bound" } else { "failed" }).increment(1);
}

/// A proxy reported what it did.
pub(crate) fn credential(event: &EventBody) {
    let outcome = if matches!(event, EventBody::CredentialUsed { .. }) { "used" } else { "denied" };
    counter!(CREDENTIAL_EVENTS, "outcome" => outcome).increment(1);
}

/// A proxy was answered about the refresh of an access token.
pub(crate) fn refresh(answer: &RefreshAnswer) {
    let outcome = match answer {
        RefreshAnswer::Go {} => "go",
        RefreshAnswer::Busy {} => "busy",
        RefreshAnswer::Failed { .. } => "failed",
        RefreshAnswer::Superseded {} => "superseded",
        RefreshAnswer::Stored { .. } => "stored",
        RefreshAnswer::Noted {} => "noted",
    };
    counter!(CREDENTIAL_REFRESHES, "outcome" => outcome).increment(1);
}

/// The operator asked to drain a sandbox.
pub(crate) fn drain(drained: bool) {
    counter!(DRAINS, "outcome" => if drained { "drained" } else { "busy" }).increment(1);
}
