//! The session log: durable, fenced, replayable.
//!
//! [`store::SessionStore`] is the contract; [`etcd::EtcdStore`] keeps it, [`memory::MemoryStore`] is what tests compare
//! it with. Nothing here knows Kubernetes.

pub mod etcd;
pub mod limits;
pub mod memory;
mod record;
pub mod store;
pub mod wake;

/// How many events an inbox holds unless a store is told otherwise.
pub const DEFAULT_INBOX_LIMIT: usize = 1_000;

pub use store::{SessionStore, StoreError};
