use std::convert::Infallible;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{Span, info_span};
use tracing_subscriber::layer::SubscriberExt as _;

use super::*;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn to(endpoint: &str) -> Traces {
    // Another provider that is installed already would do as well.
    drop(rustls::crypto::ring::default_provider().install_default());
    let exporter = SpanExporter::builder().with_http().with_endpoint(format!("{endpoint}/v1/traces"));
    Traces::export("test", exporter, &Handle::current()).unwrap()
}

/// A collector that takes what comes, and what came.
async fn collector() -> (String, mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let sender = sender.clone();
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let sender = sender.clone();
                async move {
                    assert_eq!(request.uri().path(), "/v1/traces");
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    sender.send(body.to_vec()).unwrap();
                    Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (endpoint, receiver)
}

fn contains(export: &[u8], text: &str) -> bool {
    export.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_was_done_is_exported_as_a_part_of_the_trace_that_it_belongs_to() {
    let (endpoint, mut exports) = collector().await;
    let traces = to(&endpoint);
    let parent: TraceParent = PARENT.parse().unwrap();
    let subscriber = tracing_subscriber::registry().with(traces.layer());
    tracing::subscriber::with_default(subscriber, || {
        assert_eq!(current(), None);
        let span = info_span!(target: "longhand_test", "outer", answer = 42);
        belonging(span, Some(parent)).in_scope(|| {
            let outer = current().unwrap();
            assert_eq!((outer.trace(), outer.is_sampled()), (parent.trace(), true));
            assert_ne!(outer.span(), parent.span());
            info_span!(target: "longhand_test", "inner").in_scope(|| {
                assert_eq!(current().unwrap().trace(), parent.trace());
                tracing::info!(target: "longhand_test", "something happened");
            });
            // What is done in a span that is not traced belongs to the one around it.
            info_span!(target: "library", "of others").in_scope(|| assert_eq!(current(), Some(outer)));
            info_span!(target: UNTRACED, "for the log alone").in_scope(|| assert_eq!(current(), Some(outer)));
        });
        assert!(only_in(None, || info_span!(target: "longhand_test", "of no trace")).is_none());
        let unsampled: TraceParent = PARENT.replace("-01", "-00").parse().unwrap();
        let span = belonging(info_span!(target: "longhand_test", "not recorded"), Some(unsampled));
        span.in_scope(|| assert!(!current().unwrap().is_sampled()));
    });
    traces.end().await;
    let export = exports.recv().await.unwrap();
    for text in ["outer", "inner", "answer", "something happened", "service.name", "test"] {
        assert!(contains(&export, text), "{text}");
    }
    for text in ["of others", "for the log alone", "not recorded"] {
        assert!(!contains(&export, text), "{text}");
    }
    let trace = parent.trace().to_be_bytes();
    assert!(export.windows(trace.len()).any(|window| window == trace));
}

#[tokio::test(flavor = "current_thread")]
async fn nobody_waits_for_a_collector_that_is_away() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // It takes connections and says nothing.
    let traces = to(&format!("http://{}", listener.local_addr().unwrap()));
    let subscriber = tracing_subscriber::registry().with(traces.layer());
    tracing::subscriber::with_default(subscriber, || info_span!(target: "longhand_test", "lost").in_scope(|| {}));
    let began = Instant::now();
    traces.end().await;
    assert!(began.elapsed() < LAST_EXPORT * 2 + Duration::from_secs(1), "{:?}", began.elapsed());
}

#[test]
fn without_a_collector_nothing_is_traced() {
    let traces = Traces::none();
    let subscriber = tracing_subscriber::registry().with(traces.layer());
    tracing::subscriber::with_default(subscriber, || {
        let span = belonging(info_span!(target: "longhand_test", "a span"), PARENT.parse().ok());
        span.in_scope(|| assert_eq!(current(), None));
        assert!(Span::current().is_none());
    });
}
