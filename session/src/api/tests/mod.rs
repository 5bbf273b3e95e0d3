//! Every API through its router, over a store in memory and a cluster of make-believe.

mod events;
mod harness;
mod internal;
mod sessions;
mod stream;
