//! The session service: stateless replicas over the session log.
//!
//! The one door for clients (the public API), for harnesses (the harness API), for tool calls, which it routes to the
//! session's sandbox and whose results it records itself, and for the operator, which has no access to logs.

pub mod api;
pub mod app;
pub mod auth;
pub mod cache;
pub mod config;
pub mod execute;
mod health;
pub mod metrics;
pub mod previews;
pub mod resources;
mod server;
pub mod service;
mod sessions;

#[cfg(test)]
mod testing;
