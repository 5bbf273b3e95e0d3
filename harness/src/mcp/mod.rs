//! A client of MCP servers over streamable HTTP, always through the credential proxy.
//!
//! A server is a stranger: what it sends is bounded in size and time before it is looked at, its words are data, and what
//! it says of its tools is cut to what the model API takes. [`http`] exchanges messages, [`connection`] speaks the
//! protocol, [`definitions`] and [`content`] bring tools and results into shape, [`servers`] keeps what is open.

mod connection;
mod content;
mod definitions;
mod http;
mod servers;

pub(crate) use servers::{Servers, Session};

#[cfg(test)]
mod everything;
#[cfg(test)]
mod tests;
