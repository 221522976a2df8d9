//! Sweeps of all sockets: what they repair, and what they must leave alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "../scenario/mod.rs"]
mod scenario;

mod answers;
mod kernel;
mod live;
mod minisocks;
mod namespaces;
mod overflows;
mod owners;
mod requests;
mod rows;
mod storm;
mod unconnected;
