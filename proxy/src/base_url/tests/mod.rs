//! The whole mode over loopback: [`refusals`] are answered by the proxy itself, [`streams`] pass through it, [`mcp`] is
//! what routes to MCP servers do differently.

mod forwarding;
mod mcp;
mod refusals;
mod streams;
mod support;
