//! The harness as its neighbours see it: what it decides ([`core`]), what survives a kill ([`kill`]), and the whole process
//! against servers on loopback ([`shell`]), with models of several kinds ([`models`]) and with hostile ones ([`hostile`]).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod core;
mod hostile;
mod kill;
mod litellm;
mod models;
mod shell;
mod support;
