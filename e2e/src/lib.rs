//! What the end-to-end tests share: the cluster ([`cluster`]), the benchmarks ([`bench`]) and the scripted model ([`model`]).

pub mod bench;
pub mod cluster;
pub mod model;
