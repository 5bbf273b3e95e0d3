//! The whole mode over loopback: [`refusals`] are answered by the proxy itself, [`streams`] pass through it, [`echoes`] lose the credential, [`record`] is what the log gets, [`mcp`] is
//! what routes to MCP servers do differently, and [`upstream_proxy`] how they are reached where there is no direct way.

mod echoes;
mod forwarding;
mod mcp;
mod oauth;
mod record;
mod refusals;
mod streams;
mod support;
mod upstream_proxy;
