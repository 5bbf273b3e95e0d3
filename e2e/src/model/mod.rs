//! The scripted model: a real HTTP server that speaks the Anthropic Messages API (streaming and not) and chat completions
//! (streaming), answers as a script says, refuses what the real APIs refuse, and records what it was sent.
//!
//! It is for tests and demonstrations only: its admin endpoints (`/recorded`, `/script`) ask for no key.
//!
//! [`script`] and [`template`] are what a person writes, [`request`] and [`validate`] what a client sends, [`respond`]
//! decides, [`stream`] lays a reply out as server-sent events, [`chat`] is both for chat completions; all of these are pure. [`server`] and [`record`] do the IO.

pub mod chat;
pub mod record;
pub mod request;
pub mod respond;
pub mod script;
pub mod server;
pub mod stream;
pub mod template;
pub mod validate;

pub use script::Script;
pub use server::serve;
