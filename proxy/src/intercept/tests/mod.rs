//! The whole way over loopback: a client, what stands for `sandboxd`'s relay, the egress proxy, and an upstream with TLS.

mod aws;
mod clients;
mod early;
mod git;
mod lfs;
mod multiplexed;
mod packages;
mod refusals;
mod rotation;
mod smuggling;
mod streams;
mod support;
