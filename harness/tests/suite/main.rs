//! The harness as its neighbours see it: what it decides ([`core`]), what is left out of a long conversation ([`context`]), what a
//! session may use ([`allowance`]), which tools run where ([`tools`]), what
//! survives a kill ([`kill`]), how a long log is woken ([`wake`]), the whole process against servers on loopback ([`shell`]),
//! with models of several kinds ([`models`]) and with hostile ones ([`hostile`]), and one that serves sessions as they come
//! ([`parked`]); [`mcp`] and [`mcp_kill`] do the same with MCP servers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod allowance;
mod context;
mod core;
mod hostile;
mod kill;
mod litellm;
mod mcp;
mod mcp_kill;
mod models;
mod parked;
mod shell;
mod support;
mod tools;
mod wake;
