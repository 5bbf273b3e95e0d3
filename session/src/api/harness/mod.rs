//! What brains ask: each is known by the pod that its token is bound to.

pub mod access;
pub mod claim;
pub mod credentials;
pub mod log;
pub mod mcp;
pub mod parked;
pub mod refresh;
pub mod tools;
