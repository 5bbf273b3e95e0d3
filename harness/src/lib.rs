//! The built-in harness: a brain that reads a session's log, calls the model, asks for tools and writes down what
//! happens.
//!
//! [`core`] decides, [`model`] speaks to the model API, [`shell`] does what was decided. Nothing is kept anywhere but in
//! the log, so the process may be killed at any instruction.

pub mod config;
pub mod core;
mod mcp;
pub mod model;
pub mod shell;

pub use config::{Config, Endpoints, ParkedConfig};
pub use shell::{Exit, Harness, Parked};
