//! Base-URL mode: the harness is given `http://127.0.0.1:<port>/<route>` in place of an upstream's URL, sends its session
//! token where the credential would be, and the proxy puts the credential in its place.
//!
//! [`token`] says who asks, [`forward`] what becomes of a request, [`answer`] what of an answer is passed on, [`serve`] listens.

pub mod answer;
pub mod forward;
mod known;
pub mod serve;
pub mod token;

pub use forward::Proxy;
pub use serve::serve;

#[cfg(test)]
mod tests;
