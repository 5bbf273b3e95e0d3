//! The APIs: public, for harnesses, and for the operator.

pub mod error;
pub mod extract;
pub mod harness;
pub mod internal;
pub mod layer;
pub mod peer;
pub mod place;
pub mod query;
pub mod wire;

#[cfg(test)]
mod tests;
