//! What is done, as spans of traces, for a collector that takes OTLP over HTTP.
//!
//! It is set up by the variables of OpenTelemetry: `OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._TRACES_ENDPOINT`), without which nothing
//! is traced, `OTEL_TRACES_SAMPLER`, `OTEL_RESOURCE_ATTRIBUTES` and the others of its SDK:
//! <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>. Spans wait in a queue that is bounded; what
//! a collector does not take is dropped, and nothing waits for it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::uri::Scheme;
use http::{Request, Response, Uri};
use longhand_protocol::trace::{TraceParent, set_source};
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, HttpExporterBuilderSet, SpanExporter, SpanExporterBuilder, WithHttpConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::registry::LookupSpan;

/// The target of a span that is for the log alone, such as that of a request which only waits.
pub const UNTRACED: &str = "longhand::untraced";
/// Ours are traced, those of libraries are not.
const TRACED: &str = "longhand";
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// As long as OTLP says that an export may take.
const EXPORT: Duration = Duration::from_secs(10);
/// For what is left at the end of the process.
const LAST_EXPORT: Duration = Duration::from_secs(2);
/// Of a collector's answer; more than this is not one.
const MAX_ANSWER: usize = 64 * 1024;

/// The traces of this process.
#[derive(Debug)]
#[must_use = "spans that are not exported yet are lost without `end`"]
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Traces if the environment says whereto; exports are sent by `runtime`.
    ///
    /// # Errors
    /// When it says something that cannot be used.
    pub(crate) fn from_env(service: &'static str, runtime: &Handle) -> Result<Self, ExporterBuildError> {
        let set = |name: &&str| std::env::var(name).is_ok_and(|value| !value.trim().is_empty());
        if !ENDPOINTS.iter().any(set) {
            return Ok(Self::none());
        }
        Self::export(service, SpanExporter::builder().with_http(), runtime)
    }

    fn export(
        service: &'static str,
        exporter: SpanExporterBuilder<HttpExporterBuilderSet>,
        runtime: &Handle,
    ) -> Result<Self, ExporterBuildError> {
        let client = Collector { runtime: runtime.clone(), http: OnceLock::new(), is_away: AtomicBool::new(false) };
        let exporter = exporter.with_http_client(client).build()?;
        let instance = std::env::var("HOSTNAME").unwrap_or_default();
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", instance))
            .build();
        Ok(Self(Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())))
    }

    /// Nothing is traced.
    pub(crate) const fn none() -> Self {
        Self(None)
    }

    /// What makes spans of `tracing` those of traces, and lets requests and resources say what they belong to.
    pub fn layer<S>(&self) -> Option<impl Layer<S> + use<S>>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let tracer = self.0.as_ref()?.tracer(TRACED);
        set_source(current);
        let ours = Targets::new().with_target(TRACED, LevelFilter::INFO).with_target(UNTRACED, LevelFilter::OFF);
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        let layer = layer.with_location(false).with_threads(false).with_tracked_inactivity(false).with_target(false);
        Some(layer.with_filter(ours))
    }

    /// Exports what is left, if the collector takes it soon.
    pub async fn end(self) {
        let Some(provider) = self.0 else { return };
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST_EXPORT));
        if timeout(LAST_EXPORT * 2, ended).await.is_err() {
            tracing::warn!("the last spans were not exported in time");
        }
    }
}

/// This span, as what belongs to `parent`, if there is one.
#[must_use]
pub fn belonging(span: Span, parent: Option<TraceParent>) -> Span {
    if let Some(parent) = parent {
        let flags = if parent.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::default() };
        let (trace, id) = (TraceId::from(parent.trace()), SpanId::from(parent.span()));
        let context = SpanContext::new(trace, id, flags, true, TraceState::NONE);
        // A process that does not trace has nothing to set it for.
        drop(span.set_parent(Context::new().with_remote_span_context(context)));
    }
    span
}

/// A span of the trace of `parent`, and none if there is no such trace.
#[must_use]
pub fn only_in(parent: Option<TraceParent>, span: impl FnOnce() -> Span) -> Span {
    if parent.is_some() { belonging(span(), parent) } else { Span::none() }
}

/// The span that runs now.
fn current() -> Option<TraceParent> {
    let context = Span::current().context();
    let span = context.span();
    let span = span.span_context();
    TraceParent::new(
        u128::from_be_bytes(span.trace_id().to_bytes()),
        u64::from_be_bytes(span.span_id().to_bytes()),
        span.is_sampled(),
    )
}

/// Sends exports, which a thread of the SDK asks for, by the runtime of this process.
#[derive(Debug)]
struct Collector {
    runtime: Handle,
    /// Made for the first export: by then the process has its TLS provider.
    http: OnceLock<reqwest::Client>,
    /// Whether the last export failed, which is said once.
    is_away: AtomicBool,
}

impl Collector {
    fn http(&self, uri: &Uri) -> Result<reqwest::Client, HttpError> {
        if let Some(http) = self.http.get() {
            return Ok(http.clone());
        }
        let http = reqwest::Client::builder().timeout(EXPORT);
        // Whoever needs no roots shall not fail for the lack of them: an image from scratch may have none.
        let http = if uri.scheme() == Some(&Scheme::HTTP) { http.tls_certs_only([]) } else { http };
        let http = http.build()?;
        Ok(self.http.get_or_init(|| http).clone())
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (http, request) = (self.http(request.uri())?, reqwest::Request::try_from(request)?);
        let sent = self.runtime.spawn(async move {
            let mut answer = http.execute(request).await?;
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = answer.status();
            *response.headers_mut() = std::mem::take(answer.headers_mut());
            let mut body = BytesMut::new();
            while let Some(piece) = answer.chunk().await? {
                if body.len() + piece.len() > MAX_ANSWER {
                    return Err(HttpError::from("an answer that is longer than one of a collector"));
                }
                body.extend_from_slice(&piece);
            }
            Ok(response.map(|_| body.freeze()))
        });
        sent.await?
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let uri = request.uri().to_string();
        let sent = self.send(request).await;
        let problem = match &sent {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answers {}", answer.status())),
            Err(error) => Some(whole(&**error)),
        };
        let was_away = self.is_away.swap(problem.is_some(), Ordering::Relaxed);
        match problem {
            Some(problem) if !was_away => {
                tracing::warn!(uri, problem, "the collector of traces does not take them; they are dropped");
            }
            None if was_away => tracing::info!(uri, "the collector of traces takes them again"),
            _ => {}
        }
        sent
    }
}

/// An error with what it comes from.
fn whole(error: &(dyn std::error::Error + 'static)) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests;
