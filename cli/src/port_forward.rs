//! A port of a pod on a loopback port of this machine, over the API server, for as long as the value lives.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::Portforwarder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::backend::{Backend, Destination};
use crate::cluster;
use crate::error::{Error, Result};

/// Connections at the same time; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 256;

/// A pod's port on a loopback port. Dropping it closes the port and every connection.
#[derive(Debug)]
pub struct PortForward {
    address: SocketAddr,
    _stop: DropGuard,
}

/// Where connections go.
#[derive(Clone, Debug)]
enum Route {
    /// To this pod and no other.
    Pod { pods: Api<Pod>, destination: Destination },
    /// To a pod that is ready at the moment, so that a client which connects again survives the end of a replica.
    Service(Backend),
}

impl Route {
    async fn find(&self) -> Result<(Api<Pod>, Destination)> {
        match self {
            Self::Pod { pods, destination } => Ok((pods.clone(), destination.clone())),
            Self::Service(backend) => {
                let pods = Api::namespaced(backend.client.clone(), &backend.namespace);
                Ok((pods, backend.find().await?))
            }
        }
    }
}

impl PortForward {
    /// Opens a loopback port that leads to `port` of `pod`.
    ///
    /// # Errors
    /// When no loopback port can be opened. A pod that cannot be reached shows as connections that close at once.
    pub async fn open(pods: Api<Pod>, pod: String, port: u16) -> std::io::Result<Self> {
        Self::start(Route::Pod { pods, destination: Destination { pod, port } }).await
    }

    /// Opens a loopback port that leads to the ready pods of a Service. That there is one, and that the user may reach it, is
    /// checked first, for a clear answer.
    ///
    /// # Errors
    /// When there is no ready pod, the user may not forward to it, or no loopback port can be opened.
    pub async fn to_service(backend: Backend) -> Result<Self> {
        let route = Route::Service(backend);
        let (pods, destination) = route.find().await?;
        forward(&pods, &destination).await?.abort();
        Self::start(route).await.map_err(Error::Listen)
    }

    async fn start(route: Route) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, Arc::new(route))));
        Ok(Self { address, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Accepts until the future is dropped, which ends the connections too.
async fn accept(listener: TcpListener, route: Arc<Route>) {
    let connections = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let stop = CancellationToken::new();
    let _stop_connections = stop.clone().drop_guard();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                // Pieces do not wait for one another; a connection that is gone says so when it is used.
                let _ = stream.set_nodelay(true);
                let route = Arc::clone(&route);
                connections.spawn(stop.clone().run_until_cancelled_owned(async move {
                    if let Err(error) = relay(stream, &route).await {
                        tracing::debug!(%error, "a forwarded connection ended");
                    }
                    drop(slot);
                }));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to forward");
                return;
            }
        }
    }
}

async fn forward(pods: &Api<Pod>, Destination { pod, port }: &Destination) -> Result<Portforwarder> {
    let ports = [*port];
    let doing = format!("open a port-forward to pod {pod} (it takes `get` and `create` on pods/portforward)");
    cluster::request(doing, pods.portforward(pod, &ports)).await
}

async fn relay(mut stream: TcpStream, route: &Route) -> Result<(), RelayError> {
    let (pods, destination) = route.find().await?;
    let mut forwarder = forward(&pods, &destination).await?;
    let port = destination.port;
    let mut remote = forwarder.take_stream(port).ok_or(RelayError::NoStream(port))?;
    tokio::io::copy_bidirectional(&mut stream, &mut remote).await?;
    drop(remote);
    forwarder.join().await.map_err(|error| RelayError::Forward(error.to_string()))
}

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Cluster(#[from] Error),
    #[error("the API server gave no stream for port {0}")]
    NoStream(u16),
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    #[error("the stream to the pod broke: {0}")]
    Forward(String),
}

#[cfg(test)]
mod tests {
    use http::{Request, Response, StatusCode};
    use kube::Client;
    use kube::client::Body;
    use serde_json::json;

    use super::PortForward;
    use crate::backend::Backend;

    /// An API server that shows a Service and its pod, and lets nobody forward to it.
    async fn api(request: Request<Body>) -> Result<Response<Body>, std::convert::Infallible> {
        let (status, body) = match request.uri().path() {
            "/api/v1/namespaces/n/services/s" => {
                (StatusCode::OK, json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 8080}]}}))
            }
            "/api/v1/namespaces/n/pods" => {
                let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
                (StatusCode::OK, json!({"metadata": {}, "items": [{"metadata": {"name": "p"}, "status": ready}]}))
            }
            "/api/v1/namespaces/n/pods/p/portforward" => {
                let message = "pods \"p\" is forbidden";
                let status = json!({"status": "Failure", "message": message, "reason": "Forbidden", "code": 403});
                (StatusCode::FORBIDDEN, status)
            }
            other => panic!("nobody should ask for {other}"),
        };
        let mut response = Response::new(Body::from(body.to_string().into_bytes()));
        *response.status_mut() = status;
        Ok(response)
    }

    #[tokio::test]
    async fn a_user_who_may_not_forward_is_told_at_once() {
        let client = Client::new(tower::service_fn(api), "default");
        let backend = Backend { client, namespace: "n".to_owned(), service: "s".to_owned() };
        let error = PortForward::to_service(backend).await.unwrap_err().to_string();
        assert!(error.contains("pods/portforward") && error.contains("is forbidden"), "{error}");
    }
}
