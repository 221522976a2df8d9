//! tcpwatch against the running kernel: real sockets of real processes. Each test has a network namespace and a daemon
//! of its own; the daemon watches the whole machine.
//!
//! Needs root, a supported kernel, `ip`, `nsenter` and `python3`; `cargo xtask test` provides them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod advice;
mod capabilities;
mod check;
mod closes;
mod connects;
mod containers;
mod counts;
mod daemon;
mod differential;
mod eventually;
mod held_threads;
mod hidden_namespaces;
mod hidden_types;
mod identities;
mod interfaces;
mod leaks;
mod life;
mod loss;
mod metrics;
mod nat;
mod netns;
mod openapi;
mod options;
mod owners;
mod ports;
mod privilege;
mod program;
mod recording;
mod resets;
mod retransmits;
mod rights;
mod stalls;
mod time_wait;
mod traffic;
mod transfer;
mod uncommon;
mod unentered;
mod waits;
mod ways;
mod witness;
mod workload;
