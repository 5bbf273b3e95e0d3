//! The credential proxy: the sidecar of a harness pod, and the only container that holds a credential.
//!
//! It has one mode, **base URL** ([`base_url`]): plain HTTP on loopback for the harness, which authenticates with its session
//! token; the proxy swaps that for the real credential. What decides and what speaks to upstreams knows nothing of the
//! mode, so that another mode is another module beside `base_url`:
//!
//! - [`policy`] (pure): where a credential may go, and which paths are too ambiguous to be judged;
//! - [`address`] (pure): which network addresses an upstream may have;
//! - [`headers`] (pure): what is taken out of requests and responses;
//! - [`secret`]: values that are never shown, read from files that rotate;
//! - [`upstream`]: connections whose address was judged, with deadlines; [`body`]: bodies passed on as they come;
//! - [`config`], [`error`], [`health`], [`harden`]: the process around them.

pub mod address;
pub mod base_url;
pub mod body;
pub mod config;
pub mod egress;
pub mod error;
pub mod harden;
pub mod headers;
pub mod health;
pub mod hosts;
pub mod intercept;
pub mod policy;
pub mod secret;
pub mod upstream;
