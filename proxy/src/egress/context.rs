//! What is known of a connection once it is let through.

use std::{error::Error, sync::Arc, time::Instant};

use bytes::Bytes;
use http::Response;
use http_body_util::combinators::UnsyncBoxBody;
use longhand_protocol::{SessionId, egress::Seed};
use rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

use super::dial::Dialer;
use crate::{
    audit::Audit,
    config::{Binding, BindingPlacement, Network},
    intercept::scrub::fits,
    refusals::LastWord,
    secret::SecretFile,
    unusable::Unusable,
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
    /// The rest of AWS keys.
    pub aws: Option<AwsFiles>,
    /// What upstreams said of it last.
    pub last_word: LastWord,
}

/// The files of AWS keys besides that of the secret access key.
#[derive(Debug)]
pub struct AwsFiles {
    /// The access key id.
    pub access_key_id: SecretFile,
    /// The session token, if the keys are temporary.
    pub session_token: Option<SecretFile>,
}

impl Bound {
    /// A binding whose file is read when it is first needed.
    #[must_use]
    pub fn new(binding: Binding) -> Self {
        let file = SecretFile::new(binding.file.clone());
        let aws = match &binding.placement {
            BindingPlacement::EnvironmentVariable { .. } => None,
            BindingPlacement::Aws(keys) => Some(AwsFiles {
                access_key_id: SecretFile::new(keys.access_key_id_file.clone()),
                session_token: keys.session_token_file.clone().map(SecretFile::new),
            }),
        };
        Self { binding, file, aws, last_word: LastWord::default() }
    }

    /// Why it cannot be used, if it cannot: by a file that gives no value, or by a value that could not be taken out of answers.
    #[must_use]
    pub fn condition(&self, now: Instant) -> Option<Unusable> {
        let id = self.aws.as_ref().map(|aws| &aws.access_key_id);
        self.files().find_map(|file| match file.current(now) {
            Err(condition) => Some(Unusable::File(condition)),
            // The id of a key is no secret.
            Ok(_) if id.is_some_and(|id| std::ptr::eq(id, file)) => None,
            Ok(value) => fits(value.expose()).err().map(Unusable::Length),
        })
    }

    /// All of its files.
    pub fn files(&self) -> impl Iterator<Item = &SecretFile> {
        let aws = self.aws.iter().flat_map(|aws| std::iter::once(&aws.access_key_id).chain(&aws.session_token));
        std::iter::once(&self.file).chain(aws)
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
