//! What the processes of Longhand have in common: how they log, how they are told to stop, and how they serve connections.
//!
//! Nothing here knows what is served, Kubernetes or etcd.

#[cfg(feature = "http")]
pub mod http;
pub mod log;
pub mod signals;
#[cfg(feature = "http")]
mod stall;
#[cfg(feature = "tls")]
pub mod tls;
