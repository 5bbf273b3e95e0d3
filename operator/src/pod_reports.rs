//! What pods say of themselves over HTTP, to whoever asks: small, and soon or not at all.

use std::time::Duration;

use reqwest::{Client, Error, Response};
use serde::de::DeserializeOwned;

/// Asks pods of the cluster.
pub(crate) struct PodReports(Client);

impl PodReports {
    /// Waits for a whole answer as long as `deadline`.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub(crate) fn new(deadline: Duration) -> Result<Self, Error> {
        // Pods of the cluster only: no proxy, and no root certificates, which an image from scratch lacks.
        // Each pod is a host of its own and seldom asked, so that a connection would be kept for nothing.
        let builder = Client::builder().no_proxy().tls_certs_only([]).pool_max_idle_per_host(0);
        builder.timeout(deadline).build().map(Self)
    }

    /// The head of an answer, whatever its status.
    pub(crate) async fn get(&self, pod_ip: &str, port: u16, path: &str) -> Result<Response, Error> {
        let host = if pod_ip.contains(':') { format!("[{pod_ip}]") } else { pod_ip.to_owned() };
        self.0.get(format!("http://{host}:{port}{path}")).send().await
    }
}

/// What an answer says; `None` if that is more than `limit` bytes, or something else.
pub(crate) async fn read<T: DeserializeOwned>(mut answer: Response, limit: usize) -> Result<Option<T>, Error> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(serde_json::from_slice(&body).ok())
}
