//! Every API through its router, over a store in memory and a cluster of make-believe.

mod agents;
mod allowance;
mod credentials;
mod environments;
mod events;
mod files;
mod fuzz;
mod harness;
mod internal;
mod limits;
mod mcp;
mod network;
mod once;
mod ports;
mod reach;
mod refresh;
mod session_agents;
mod sessions;
mod stream;
mod transfers;
mod vaults;
mod warm;
mod work;
