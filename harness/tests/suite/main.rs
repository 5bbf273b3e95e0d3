//! The harness as its neighbours see it: what it decides ([`core`]), what survives a kill ([`kill`]), and the whole process
//! against servers on loopback ([`shell`]); [`mcp`] and [`mcp_kill`] do the same with MCP servers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod core;
mod kill;
mod mcp;
mod mcp_kill;
mod shell;
mod support;
