//! A collector that traces are sent to, in the test's namespace: `e2e/clients/collector.py`.

use std::time::Duration;

use base64::Engine as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message as _;

use super::namespace::TestNamespace;
use super::{TestResult, clients_image, exec};

const MANIFEST: &str = include_str!("../../fixtures/collector.yaml");
const START: Duration = Duration::from_secs(60);

/// A collector, which is ready.
pub struct Collector {
    /// Its URL within the cluster.
    pub url: String,
    pods: Api<Pod>,
    pod: String,
}

/// A span that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentSpan {
    /// Which program it is of.
    pub service: String,
    /// What was done.
    pub name: String,
    /// The trace, 16 bytes.
    pub trace: Vec<u8>,
    /// Itself, 8 bytes.
    pub id: Vec<u8>,
    /// What it is a part of, 8 bytes; empty for the first of a trace.
    pub parent: Vec<u8>,
}

impl Collector {
    /// Starts it.
    ///
    /// # Errors
    /// When it is not ready within a minute.
    pub async fn install(namespace: &TestNamespace) -> TestResult<Self> {
        namespace.apply(&MANIFEST.replace("${IMAGE}", &clients_image())).await?;
        let pods = namespace.api::<Pod>();
        let pod = namespace.ready_pod("collector", START).await?;
        Ok(Self { url: format!("http://collector.{}.svc:4318", namespace.name), pods, pod })
    }

    /// Every span that was sent so far.
    ///
    /// # Errors
    /// When it does not say so within a minute, or what was sent is not OTLP.
    pub async fn spans(&self) -> TestResult<Vec<SentSpan>> {
        let command = ["curl", "-sS", "http://127.0.0.1:4318/exports"];
        let (output, _) = exec(&self.pods, &self.pod, None, &command, START).await?;
        let mut spans = Vec::new();
        for export in serde_json::from_slice::<Vec<String>>(&output)? {
            let bytes = base64::engine::general_purpose::STANDARD.decode(export)?;
            let request = ExportTraceServiceRequest::decode(bytes.as_slice())?;
            for of_process in request.resource_spans {
                let attributes = of_process.resource.into_iter().flat_map(|resource| resource.attributes);
                let service = attributes
                    .filter(|attribute| attribute.key == "service.name")
                    .find_map(|attribute| match attribute.value?.value? {
                        Value::StringValue(name) => Some(name),
                        _ => None,
                    })
                    .unwrap_or_default();
                let sent = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
                spans.extend(sent.map(|span| SentSpan {
                    service: service.clone(),
                    name: span.name,
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                }));
            }
        }
        Ok(spans)
    }
}
