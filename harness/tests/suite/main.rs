//! The harness as its neighbours see it: what it decides ([`core`]), what survives a kill ([`kill`]), the whole process
//! against servers on loopback ([`shell`]), and one that serves sessions as they come ([`parked`]).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod core;
mod kill;
mod parked;
mod shell;
mod support;
