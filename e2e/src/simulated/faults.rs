//! A way to the API server on which things go wrong: writes that are refused, answers that get lost, watches that end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use futures::StreamExt as _;
use http::{Method, StatusCode, header};
use rand::Rng as _;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::control_plane::{ControlPlane, User};
use crate::cluster::TestResult;

/// One patch in so many is refused with a conflict.
const CONFLICT: u32 = 25;
/// One write in so many is done, and nobody learns of it.
const LOST: u32 = 50;
/// A watch ends after a time of up to this many milliseconds, but not below a tenth of it.
const WATCH_MILLIS: u64 = 5_000;
/// No object of ours is as large.
const LARGEST: usize = 1 << 22;

/// A server in front of the API server. It ends when dropped.
pub struct Faults {
    port: u16,
    way: Arc<Way>,
    _server: DropGuard,
}

struct Way {
    client: reqwest::Client,
    url: String,
    token: String,
    injected: AtomicU64,
}

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Conflict,
    LostAnswer,
}

impl Faults {
    /// Listens on loopback.
    ///
    /// # Errors
    /// When the API server's certificate cannot be read, or there is no port.
    pub async fn start(plane: &ControlPlane) -> TestResult<Self> {
        let mut builder = reqwest::Client::builder();
        for certificate in reqwest::Certificate::from_pem_bundle(&std::fs::read(plane.files.authority())?)? {
            builder = builder.add_root_certificate(certificate);
        }
        let token = plane.files.token(User::Operator).to_owned();
        let way =
            Arc::new(Way { client: builder.build()?, url: plane.url.clone(), token, injected: AtomicU64::new(0) });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (port, stop) = (listener.local_addr()?.port(), CancellationToken::new());
        let app = Router::new().fallback(forward).with_state(way.clone());
        let server = axum::serve(listener, app).with_graceful_shutdown(stop.clone().cancelled_owned());
        tokio::spawn(server.into_future());
        Ok(Self { port, way, _server: stop.drop_guard() })
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How often something went wrong.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.way.injected.load(Ordering::Relaxed)
    }
}

/// Leases stay as they are: who leads is another matter.
fn fault(method: &Method, path: &str, mut once_in: impl FnMut(u32) -> bool) -> Option<Fault> {
    if path.contains("/leases/") || ![Method::PATCH, Method::POST, Method::DELETE].contains(method) {
        return None;
    }
    if method == Method::PATCH && once_in(CONFLICT) {
        return Some(Fault::Conflict);
    }
    once_in(LOST).then_some(Fault::LostAnswer)
}

async fn forward(State(way): State<Arc<Way>>, request: Request) -> Response {
    way.answer(request)
        .await
        .unwrap_or_else(|error| refusal(StatusCode::BAD_GATEWAY, "InternalError", &error.to_string()))
}

impl Way {
    async fn answer(&self, request: Request) -> TestResult<Response> {
        let (parts, body) = request.into_parts();
        let found = fault(&parts.method, parts.uri.path(), |times| rand::rng().random_range(0..times) == 0);
        if found.is_some() {
            self.injected.fetch_add(1, Ordering::Relaxed);
        }
        if found == Some(Fault::Conflict) {
            return Ok(refusal(StatusCode::CONFLICT, "Conflict", "the object has been modified"));
        }
        let target = format!("{}{}", self.url, parts.uri.path_and_query().map_or("/", |path| path.as_str()));
        let mut forwarded = self.client.request(parts.method, target).bearer_auth(&self.token);
        for name in [header::CONTENT_TYPE, header::ACCEPT] {
            forwarded = match parts.headers.get(&name) {
                Some(value) => forwarded.header(name, value),
                None => forwarded,
            };
        }
        let answer = forwarded.body(to_bytes(body, LARGEST).await?).send().await?;
        if found == Some(Fault::LostAnswer) {
            return Ok(refusal(StatusCode::GATEWAY_TIMEOUT, "Timeout", "the answer was lost"));
        }
        let mut response = Response::builder().status(answer.status());
        if let Some(kind) = answer.headers().get(header::CONTENT_TYPE) {
            response = response.header(header::CONTENT_TYPE, kind);
        }
        if parts.uri.query().is_none_or(|query| !query.split('&').any(|part| part == "watch=true")) {
            return Ok(response.body(Body::from_stream(answer.bytes_stream()))?);
        }
        self.injected.fetch_add(1, Ordering::Relaxed);
        let open = Duration::from_millis(rand::rng().random_range(WATCH_MILLIS / 10..WATCH_MILLIS));
        let events = answer.bytes_stream().take_until(tokio::time::sleep(open));
        Ok(response.body(Body::from_stream(events))?)
    }
}

fn refusal(code: StatusCode, reason: &str, message: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code.as_u16(), "message": message,
    });
    let mut response = Response::new(Body::from(status.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use http::Method;
    use rstest::rstest;

    use super::{CONFLICT, Fault, LOST, fault};

    #[rstest]
    #[case(Method::PATCH, "/api/v1/namespaces/n/pods/p", CONFLICT, Some(Fault::Conflict))]
    #[case(Method::PATCH, "/api/v1/namespaces/n/pods/p", LOST, Some(Fault::LostAnswer))]
    #[case(Method::POST, "/api/v1/namespaces/n/pods", CONFLICT, None)]
    #[case(Method::POST, "/api/v1/namespaces/n/pods", LOST, Some(Fault::LostAnswer))]
    #[case(Method::GET, "/api/v1/namespaces/n/pods/p", LOST, None)]
    #[case(Method::PATCH, "/apis/coordination.k8s.io/v1/namespaces/n/leases/l", CONFLICT, None)]
    fn only_writes_of_what_matters_go_wrong(
        #[case] method: Method,
        #[case] path: &str,
        #[case] drawn: u32,
        #[case] expected: Option<Fault>,
    ) {
        assert_eq!(fault(&method, path, |times| times == drawn), expected);
    }
}
