//! Egress mode: the way out of a sandbox. `sandboxd` relays what programs send to `HTTPS_PROXY` to this listener on the
//! pod's IP, and adds the egress token, which names the session, the sandbox and this pod.
//!
//! What decides is pure:
//! - [`token`]: who asks; [`head`]: for what; [`decide`]: which way it goes; [`hello`]: which server TLS asks for.
//!
//! What acts on it:
//! - [`serve`]: the listener; [`dial`] and [`target`]: names that are resolved once, and addresses that were judged;
//! - [`tunnel`]: TLS to hosts that nothing is bound to, and [`forward`]: plain HTTP to them; what is bound goes to
//!   [`crate::intercept`], with a [`context`];
//! - [`refusal`]: what the proxy answers itself; uses and refusals are put on record by [`crate::audit`].

pub mod context;
pub mod decide;
pub mod dial;
pub mod forward;
pub mod head;
pub mod hello;
pub mod refusal;
pub mod serve;
pub mod target;
pub mod token;
pub mod tunnel;

pub use context::{Answer, Bound, SessionContext};
pub use serve::{EgressProxy, serve};
pub use target::Target;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
