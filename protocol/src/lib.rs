//! Wire types of Longhand's public API and of its harness API, and a Rust client for both.
//!
//! The public API is the Managed Agents API (`managed-agents-2026-04-01`); the harness API is what a brain speaks to
//! the session service. This crate knows neither Kubernetes nor etcd.

pub mod client;
pub mod egress;
pub mod error;
pub mod event;
pub mod export;
pub mod fields;
pub mod harness;
pub mod id;
pub mod internal;
pub mod model;
pub mod provision;
pub mod refresh;
pub mod sandbox_tools;
mod schema;
pub mod secret;
pub mod trace;
pub mod wire;

pub use error::{ErrorBody, ErrorEnvelope, ErrorType};
pub use event::{ClientEvent, Event, EventBody, NewEvent, Record};
pub use id::{EventId, FileId, OutcomeId, SessionId, ThreadId};
