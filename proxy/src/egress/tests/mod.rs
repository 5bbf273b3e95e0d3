//! The whole mode over loopback: [`access`] is who may ask for what, [`tunnels`] and [`plain`] are what passes through it,
//! [`clients`] are programs as they are.

mod access;
mod clients;
mod plain;
mod support;
mod tunnels;
