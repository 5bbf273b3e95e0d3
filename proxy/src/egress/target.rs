//! Where a connection goes: a host and a port, with the addresses that its name had when it was judged.

use std::net::SocketAddr;

use crate::{
    address::{Class, classify},
    policy::{Host, Scheme},
};

/// A destination that may be reached. Every connection for it goes to one of its addresses, whatever its name stands for
/// by then.
#[derive(Debug, Clone)]
pub struct Target {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// The host that was asked for.
    pub host: Host,
    /// The port that was asked for.
    pub port: u16,
    /// How it is reached.
    pub route: Route,
}

/// The way to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// To one of these addresses.
    Direct(Vec<SocketAddr>),
    /// Through the upstream proxy, which resolves the name.
    Proxied,
}

impl Target {
    /// Whether an address of it is of a private network, so that only a binding that says `allowPrivate` may be used.
    #[must_use]
    pub fn is_private(&self) -> bool {
        match &self.route {
            Route::Direct(addresses) => addresses.iter().any(|address| classify(address.ip()) != Class::Public),
            Route::Proxied => false,
        }
    }

    /// The host and the port as a `Host` header or `:authority` says them: without the port that the scheme means anyway.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.host.in_authority()
        } else {
            format!("{}:{}", self.host.in_authority(), self.port)
        }
    }
}
