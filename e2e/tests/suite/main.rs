//! What Longhand promises, on a real cluster: one file a behaviour, each test in a namespace of its own.

mod admission;
mod allowance;
mod autoscale;
mod bad_input;
mod egress;
mod fencing;
mod gitops;
mod harness_images;
mod idle;
mod killed_harness;
mod lost_sandbox;
mod models;
mod quickstart;
mod sandbox_lifecycle;
mod sandbox_losses;
mod sandbox_reach;
mod sandbox_security;
mod sandbox_sessions;
mod sandbox_warm;
mod sdks;
mod secrets;
mod tenancy;
mod two_sandboxes;
mod warm;
mod without_tools;
