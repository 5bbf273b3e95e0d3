//! The real plans, carried out in every order against a small etcd.
//!
//! Each scope is a few who act: clients, harnesses of which one may be a zombie, replicas of the service, those who make
//! and remove the session. A step is a look or a transaction of one of them, a transaction whose answer is lost and that
//! arrives at any later time, a crash, the end of a lease. All states that can be reached are visited; the laws are
//! checked in each.
//!
//! A mutant is an etcd that ignores one guard of one kind of change. Each breaks a law, or the guard stands for another
//! that implies it; [`mutants`] says which.

mod actors;
mod etcd;
mod laws;
mod mutants;
mod past;
mod scopes;
mod search;
mod wish;
mod world;
