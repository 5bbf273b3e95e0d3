//! Objects of the public API other than events, one module a family.

pub mod agents;
mod change;
pub mod environments;
mod events;
pub mod files;
mod forks;
pub mod handoffs;
mod pages;
pub mod ports;
pub mod resources;
mod session_agent;
mod sessions;
mod threads;
pub mod toolsets;
pub mod vaults;
pub mod work;

pub use change::Change;
pub use events::{EventsSent, NumberedEvent, SendEvents};
pub use forks::{Fork, ForkSession};
pub use pages::{Order, Page};
pub use session_agent::{AgentChoice, AgentTag, AgentWithOverrides, OverridesTag, SessionAgent, UpdateSessionAgent};
pub use sessions::{
    Budget, CacheCreation, CreateSession, Money, NewSession, Session, SessionDeleted, SessionStats, SessionStatus,
    SessionUsage, UpdateSession,
};
pub use threads::{Thread, ThreadStats};
