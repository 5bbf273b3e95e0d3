//! What the end-to-end tests share: the cluster ([`cluster`]), one without containers ([`simulated`]), the benchmarks ([`bench`]) and the
//! scripted model ([`model`]).

pub mod bench;
pub mod cluster;
pub mod model;
pub mod simulated;
