//! The session log: durable, fenced, replayable.
//!
//! [`store::SessionStore`] is the contract; [`etcd::EtcdStore`] keeps it, [`memory::MemoryStore`] is what tests compare
//! it with. Nothing here knows Kubernetes.

mod active;
pub mod archive;
pub mod caps;
mod cut;
pub mod etcd;
pub mod files;
mod import;
pub mod limits;
mod lineage;
pub mod memory;
pub mod objects;
mod query;
mod record;
pub mod requests;
pub mod store;
pub mod wake;
pub mod work;

/// How many events an inbox holds unless a store is told otherwise.
pub const DEFAULT_INBOX_LIMIT: usize = 1_000;

pub use store::{SessionStore, StoreError};
