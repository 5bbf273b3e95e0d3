//! What Longhand promises, on a real cluster: one file a behaviour, each test in a namespace of its own.

mod bad_input;
mod fencing;
mod gitops;
mod idle;
mod killed_harness;
mod lost_sandbox;
mod models;
mod quickstart;
mod sandbox_lifecycle;
mod sandbox_reach;
mod sandbox_sessions;
mod sandbox_warm;
mod sdks;
mod secrets;
mod warm;
mod without_tools;
