//! The whole mode over loopback: [`refusals`] are answered by the proxy itself, [`streams`] pass through it.

mod forwarding;
mod refusals;
mod streams;
mod support;
