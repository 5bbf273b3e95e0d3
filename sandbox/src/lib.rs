//! The hands of a session: `sandboxd`, one static binary that turns any image into a place where tools run, and its client.
//!
//! Without the default feature `server` the crate is what a caller needs: the [`wire`] types, the [`token`]s that open a
//! sandbox, and the [`client`]. It knows nothing of Kubernetes.

pub mod canary;
pub mod client;
pub mod provision;
pub mod token;
pub mod wire;

#[cfg(feature = "server")]
mod egress;
#[cfg(feature = "server")]
mod fence;
#[cfg(feature = "server")]
pub mod install;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod supervise;
#[cfg(feature = "server")]
mod tools;
