//! What is counted. Labels are routes, status classes and fixed words; never names, identifiers or paths.

use std::time::Duration;

use http::StatusCode;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

const REQUESTS: &str = "longhand_http_requests_total";
const REQUEST_SECONDS: &str = "longhand_http_request_seconds";
const REVIEWS: &str = "longhand_reviews_total";
const STREAMS: &str = "longhand_streams_open";
const STREAMS_ENDED: &str = "longhand_streams_ended_total";
const EXECUTES: &str = "longhand_executes_total";
const EXECUTE_SECONDS: &str = "longhand_execute_seconds";
const EXECUTES_RUNNING: &str = "longhand_executes_running";
const PROVISION_SECONDS: &str = "longhand_sandbox_provision_seconds";
const QUEUED_SECONDS: &str = "longhand_event_queued_seconds";
const CLAIMS: &str = "longhand_claims_total";
const DRAINS: &str = "longhand_drains_total";

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
    describe_counter!(REVIEWS, "TokenReviews and SubjectAccessReviews that were asked");
    describe_gauge!(STREAMS, "Event streams that are open");
    describe_counter!(STREAMS_ENDED, "Event streams that ended, by cause");
    describe_counter!(EXECUTES, "Tool calls by how they ended");
    describe_histogram!(EXECUTE_SECONDS, Unit::Seconds, "Time of a tool call, with its sandbox's provisioning");
    describe_gauge!(EXECUTES_RUNNING, "Tool calls that run");
    describe_histogram!(PROVISION_SECONDS, Unit::Seconds, "Time that a tool call waited for its sandbox");
    describe_histogram!(QUEUED_SECONDS, Unit::Seconds, "Time from the acceptance of an event to its promotion");
    describe_counter!(CLAIMS, "Claims of sessions, by outcome");
    describe_counter!(DRAINS, "Drains of sandboxes, by outcome");
    Ok(handle)
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

/// The operator asked to drain a sandbox.
pub(crate) fn drain(drained: bool) {
    counter!(DRAINS, "outcome" => if drained { "drained" } else { "busy" }).increment(1);
}
