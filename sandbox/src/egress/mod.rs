//! The only way out of a sandbox: a relay on loopback to the credential proxy of the sandbox's session, and what programs need
//! to find and to trust it.
//!
//! The relay's address and the path of the bundle of authorities never change, so that what was started before a binding, or
//! before its harness pod was replaced, goes on. Nothing here decides what may be reached: the proxy does.

mod authority;
mod bundle;
mod relay;
mod truststore;
mod variables;

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderValue;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::wire::EgressBinding;
use authority::AuthorityError;
use bundle::Bundle;
pub(crate) use variables::Variables;

const MAX_VARIABLES: usize = 512;
const MAX_TOKEN: usize = 8 * 1024;

/// Why a sandbox could not be bound to a proxy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error("this sandboxd was started without a relay (SANDBOXD_RELAY)")]
    NoRelay,
    #[error("`proxy` is not an address such as 10.0.0.5:8084")]
    Address,
    #[error("`token` cannot be sent in a header, or is longer than {MAX_TOKEN} bytes")]
    Token,
    #[error("`variables` has an impossible name or value, or more than {MAX_VARIABLES} entries")]
    Variables,
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("the bundle of authorities cannot be written: {0}")]
    Bundle(#[from] io::Error),
}

/// Where the relay leads.
#[derive(Clone)]
struct Way {
    proxy: SocketAddr,
    /// `Proxy-Authorization`, which programs never see.
    credential: HeaderValue,
    /// Cancelled when what was opened on this way has to end.
    ended: CancellationToken,
}

type Current = Arc<Mutex<Option<Way>>>;

fn way(current: &Mutex<Option<Way>>) -> Option<Way> {
    current.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The relay, the bundle and the variables of one sandbox.
pub(crate) struct Egress {
    listener: Mutex<Option<TcpListener>>,
    current: Current,
    bundle: Arc<Bundle>,
    variables: Variables,
    told: Vec<(OsString, OsString)>,
    /// One binding at a time.
    binding: tokio::sync::Mutex<()>,
    stop: CancellationToken,
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Egress {
    /// Listens at `address` on loopback, and writes the bundle with the roots of the image, which `environment` may name.
    ///
    /// # Errors
    /// If the address is taken, or no bundle can be made.
    pub(crate) async fn listen(
        address: SocketAddr,
        environment: &[(OsString, OsString)],
        variables: Variables,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let bundle = Bundle::new(bundle::roots(environment))?;
        let (bundled, truststore) = (bundle.path(), bundle.truststore());
        Ok(Self {
            told: variables::of_the_relay(listener.local_addr()?, bundled, truststore, environment),
            listener: Mutex::new(Some(listener)),
            current: Current::default(),
            bundle: Arc::new(bundle),
            variables,
            binding: tokio::sync::Mutex::default(),
            stop: CancellationToken::new(),
        })
    }

    /// What tools are told of the relay and the bundle from the start.
    pub(crate) fn environment(&self) -> Vec<(OsString, OsString)> {
        self.told.clone()
    }

    /// Relays until `close`. Does nothing when called again.
    pub(crate) async fn serve(&self, close: CancellationToken) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(listener) = listener {
            relay::serve(listener, Arc::clone(&self.current), close).await;
        }
        self.unbind();
    }

    /// Leads the relay to the proxy that `binding` names, whose authority is in the bundle when this returns.
    ///
    /// # Errors
    /// See [`BindError`]; what was bound before stays bound.
    pub(crate) async fn bind(&self, binding: EgressBinding) -> Result<(), BindError> {
        let _one = self.binding.lock().await;
        let proxy: SocketAddr = binding.proxy.parse().map_err(|_| BindError::Address)?;
        let credential = credential(&binding.token)?;
        if binding.variables.len() > MAX_VARIABLES || !binding.variables.iter().all(variables::is_possible) {
            return Err(BindError::Variables);
        }
        let before = way(&self.current);
        // The same proxy with another token: what is open goes on, and its authority is being watched already.
        if let Some(before) = before.clone().filter(|before| before.proxy == proxy) {
            self.set(Some(Way { credential, ..before }));
            self.variables.set(binding.variables);
            return Ok(());
        }
        let (authority, held) = authority::fetch(proxy, &credential).await?;
        self.bundle.with(&authority)?;
        let ended = self.stop.child_token();
        self.set(Some(Way { proxy, credential, ended: ended.clone() }));
        self.variables.set(binding.variables);
        if let Some(before) = before {
            before.ended.cancel();
        }
        let watch = authority::watch(proxy, Arc::clone(&self.current), Arc::clone(&self.bundle), held);
        tokio::spawn(ended.run_until_cancelled_owned(watch));
        info!(%proxy, "bound to a proxy");
        Ok(())
    }

    /// Closes the way out; whether there was one.
    pub(crate) fn unbind(&self) -> bool {
        let before = way(&self.current);
        self.set(None);
        if let Some(before) = &before {
            before.ended.cancel();
            info!(proxy = %before.proxy, "bound to no proxy any more");
        }
        before.is_some()
    }

    fn set(&self, way: Option<Way>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = way;
    }
}

fn credential(token: &str) -> Result<HeaderValue, BindError> {
    if token.is_empty() || token.len() > MAX_TOKEN {
        return Err(BindError::Token);
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| BindError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::credential;

    #[test]
    fn a_token_is_checked_and_not_shown() {
        let shown = format!("{:?}", credential("abc").unwrap());
        assert!(!shown.contains("abc"), "{shown}");
        for bad in ["", "a\nb", &"x".repeat(9_000)] {
            assert!(credential(bad).is_err(), "{bad:?}");
        }
    }
}
