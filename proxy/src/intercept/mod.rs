//! TLS interception for hosts with a binding.

use std::sync::Arc;

use http::{Request, StatusCode};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    config::Binding,
    egress::{Answer, SessionContext, Target, refusal},
};

/// What terminates TLS for the hosts with a binding. It lives as long as the process.
#[derive(Debug)]
pub struct Interceptor {
    ca_pem: String,
}

impl Interceptor {
    /// Makes the authority, which is good for the hosts of these bindings.
    pub fn new(_bindings: &[Binding]) -> Self {
        Self { ca_pem: String::new() }
    }

    /// The authority's certificate in PEM, for `GET /ca.pem`.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Serves a client after its CONNECT for `target` was answered with 200. It ends when either side does, when nothing
    /// moves for too long, or when it is dropped.
    pub async fn serve<I>(&self, client: I, target: Target, context: Arc<SessionContext>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        drop((client, target, context));
    }

    /// Judges, forwards and answers a request in absolute form to a plain HTTP host with a binding. Its head is as the client
    /// sent it, without `proxy-authorization`.
    pub async fn plain(&self, request: Request<Incoming>, target: Target, context: Arc<SessionContext>) -> Answer {
        drop((request, target, context));
        refusal::answer(StatusCode::FORBIDDEN, "not_intercepted", "no credential can be placed into plain HTTP")
    }
}
