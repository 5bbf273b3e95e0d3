//! What the brain does next, decided from the log alone.
//!
//! [`step`] is pure: it takes the state and what came back from the last effect, and gives the next effect. There is
//! never more than one effect at a time, and everything that must survive is in the log before the next one is decided,
//! so a brain that is killed between any two of them is replaced by one that reads the log and goes on.

pub mod checkpoint;
mod commit;
mod context;
mod conversation;
mod cost;
mod limits;
pub mod mcp;
mod request;
mod state;
mod step;
mod summary;
pub mod tools;
pub mod transcript;

pub use limits::Used;
pub use state::{Effect, Input, Moved, Next, Rest, State};
pub use step::{has_interrupt, step};
pub use transcript::Transcript;

/// How often a model is asked before the next one is, or the turn is given up.
pub const MAX_ATTEMPTS: u32 = 5;

/// How many tool calls of one answer are run: they are put on record in one transaction of the log.
pub const MAX_CALLS: usize = 32;
