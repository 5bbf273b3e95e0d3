//! Ways into sandboxes: which one is meant, files in and out, and what is said over a terminal.

pub mod blocking;
pub mod folder;
pub mod place;
pub mod terminal;
