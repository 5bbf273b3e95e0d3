//! What the processes of Longhand have in common: how they log and trace, how they are told to stop, how they serve
//! connections, and how they speak MCP.
//!
//! Nothing here knows what is served, Kubernetes or etcd.

#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "listen")]
pub mod listen;
pub mod log;
#[cfg(feature = "mcp")]
pub mod mcp;
pub mod relay;
pub mod signals;
#[cfg(feature = "http")]
mod stall;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(feature = "trace")]
pub mod trace;
