//! How records change the table, the processes and the counts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "../scenario/mod.rs"]
mod scenario;

mod addresses;
mod bounds;
mod closes;
mod connects;
mod counts;
mod first_sight;
mod idle;
mod lives;
mod minisocks;
mod owners;
mod random;
mod resets;
mod stalls;
mod traffic;
