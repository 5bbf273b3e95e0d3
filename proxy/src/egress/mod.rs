//! Egress mode: the way out of a sandbox. `sandboxd` relays what programs send to `HTTPS_PROXY` to this listener on the
//! pod's IP, and adds the egress token, which names the session, the sandbox and this pod.
//!
//! - [`context`]: what is known of a connection once it is let through, which is what [`crate::intercept`] works with;
//! - [`target`]: a host whose addresses were judged and do not change any more;
//! - [`dial`]: from a host to a connection;
//! - [`refusal`]: what the proxy answers itself;
//! - [`audit`]: uses and refusals, on their way to the session's log.

pub mod audit;
pub mod context;
pub mod dial;
pub mod refusal;
pub mod target;

pub use context::{Answer, Bound, SessionContext};
pub use target::Target;
