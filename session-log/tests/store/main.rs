//! What every store promises, on memory and on a real etcd; and what etcd does to a store.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cloned_ref_to_slice_refs,
    reason = "a test says by a panic that it failed, and says what it means with a literal list"
)]

mod archive;
mod conformance;
mod crash;
mod etcd;
mod faults;
mod files;
mod freshness;
mod maintenance;
mod memory;
mod model;
mod objects;
mod requests;
mod secure;
mod sharded;
mod space;
mod steps;
mod support;
mod transfers;
