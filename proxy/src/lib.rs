//! The credential proxy: the sidecar of a harness pod, and the only container that holds a credential.
//!
//! It has two modes. **Base URL** ([`base_url`]): plain HTTP on loopback for the harness, which authenticates with its session
//! token; the proxy swaps that for the real credential. **Egress** ([`egress`]): an authenticated proxy on the pod's IP for
//! the session's sandboxes, which terminates TLS ([`intercept`]) where a credential is bound. Both rest on:
//!
//! - [`policy`] and [`hosts`] (pure): where a credential may go, and which paths are too ambiguous to be judged;
//! - [`address`] (pure): which network addresses an upstream may have;
//! - [`headers`] (pure): what is taken out of requests and responses;
//! - [`secret`]: values that are never shown, read from files that rotate;
//! - [`oauth`]: access tokens that are refreshed; [`refusals`]: whether upstreams take what they are given;
//! - [`audit`]: uses and refusals, on their way to the session's log;
//! - [`upstream`]: connections whose address was judged, with deadlines; [`body`]: bodies passed on as they come; [`linger`]: the rest of one
//!   whose request is answered already;
//! - [`config`], [`error`], [`health`], [`harden`]: the process around them.

pub mod address;
pub mod audit;
pub mod base_url;
pub mod body;
pub mod config;
pub mod egress;
pub mod error;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzzing;
pub mod harden;
pub mod headers;
pub mod health;
pub mod hosts;
pub mod intercept;
pub mod linger;
pub mod oauth;
pub mod policy;
pub mod refusals;
pub mod secret;
pub mod unusable;
pub mod upstream;

#[cfg(test)]
mod testing;
