//! `longhand`: sessions from the command line, also as `kubectl longhand`.
//!
//! The session service is reached through the kubeconfig: a port-forward to one of its pods ([`port_forward`]), and a token of
//! audience `longhand` that the API server issues for a ServiceAccount of the session's namespace ([`token`]). The kubeconfig's
//! own credentials go to the API server and nowhere else.

pub mod args;
pub mod backend;
pub mod cluster;
pub mod command;
pub mod error;
pub mod follow;
pub mod manifest;
pub mod output;
pub mod port_forward;
pub mod render;
pub mod sandbox;
pub mod service;
pub mod session;
pub mod token;

pub use args::Args;
pub use error::{Error, Result};
