//! What is known of a connection once it is let through.

use std::{error::Error, sync::Arc};

use bytes::Bytes;
use http::Response;
use http_body_util::combinators::UnsyncBoxBody;
use longhand_protocol::{SessionId, egress::Seed};
use rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

use super::{audit::Audit, dial::Dialer};
use crate::{
    config::{Binding, Network},
    secret::SecretFile,
};

/// An answer to a program in a sandbox.
pub type Answer = Response<UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>>;

/// A binding with its file.
#[derive(Debug)]
pub struct Bound {
    /// The binding.
    pub binding: Binding,
    /// Its value.
    pub file: SecretFile,
}

impl Bound {
    /// A binding whose file is read when it is first needed.
    #[must_use]
    pub fn new(binding: Binding) -> Self {
        let file = SecretFile::new(binding.file.clone());
        Self { binding, file }
    }
}

/// Who asks, what may be used for it, and by which means it is reached and put on record.
#[derive(Debug, Clone)]
pub struct SessionContext {
    /// The session.
    pub session: SessionId,
    /// The sandbox that asks, by its name in the session.
    pub sandbox: Arc<str>,
    /// What the sandbox may reach without a credential.
    pub network: Network,
    /// What the placeholders are made from.
    pub seed: Seed,
    /// Every binding of the session, also those for other hosts.
    pub bindings: Arc<[Bound]>,
    /// Connections to targets.
    pub dialer: Dialer,
    /// How upstreams are known. It offers HTTP/1.1; a copy may offer more.
    pub tls: Arc<ClientConfig>,
    /// Uses and refusals.
    pub audit: Audit,
    /// Cancelled when the proxy closes: what is idle shall end.
    pub closing: CancellationToken,
}
