//! What the end-to-end tests share: the cluster ([`cluster`]), one without containers ([`simulated`]), the benchmarks ([`bench`]), what
//! the kernel says of a process ([`proc_status`]) and the scripted model ([`model`]).

pub mod bench;
pub mod cluster;
pub mod model;
pub mod proc_status;
pub mod simulated;
