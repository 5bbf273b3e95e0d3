//! The session service: stateless replicas over the session log.
//!
//! The one door for clients (the public API), for harnesses (the harness API), for tool calls, which it routes to the
//! session's sandbox and whose results it records itself, and for the operator, which has no access to logs.

mod agents;
mod allowance;
pub mod api;
pub mod app;
pub mod auth;
pub mod cache;
pub mod config;
pub mod execute;
pub mod expected;
mod health;
pub mod jobs;
pub mod limits;
pub mod metrics;
pub mod openapi;
pub mod ports;
pub mod previews;
pub mod quota;
pub mod rate;
pub mod resources;
pub mod restore;
pub mod service;
mod serving;
mod sessions;
pub mod streams;
mod tunnels;
pub mod warm;

#[cfg(test)]
mod testing;
