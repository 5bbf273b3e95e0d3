//! OAuth access tokens that are refreshed, in base-URL mode.
//!
//! A provider hands out a new refresh token with each access token, and revokes both when an old one is used. So the session
//! service is asked before the provider is, which lets one proxy go ahead at a time, and what the provider gave is handed
//! over to it again and again until it is in the vault.
//!
//! [`grant`] is what is said to a provider and what it answers (pure), [`endpoint`] the way there, [`refresher`] who
//! renews a token and when, `state` what is known of it, [`service`] the session service.

pub mod endpoint;
pub mod grant;
pub mod problem;
pub mod refresher;
pub mod service;
mod state;

pub use problem::Problem;
pub use refresher::Refresher;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
