//! What the brain does next, decided from the log alone.
//!
//! [`step`] is pure: it takes the state and what came back from the last effect, and gives the next effect. There is
//! never more than one effect at a time, and everything that must survive is in the log before the next one is decided,
//! so a brain that is killed between any two of them is replaced by one that reads the log and goes on.

mod commit;
pub mod mcp;
mod request;
mod state;
mod step;
pub mod tools;
pub mod transcript;

pub use state::{Effect, Input, Moved, Next, Rest, State};
pub use step::{has_interrupt, step};
pub use transcript::Transcript;

/// How often a model request is tried before the turn is given up.
pub const MAX_ATTEMPTS: u32 = 5;
