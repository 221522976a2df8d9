//! tcpwatch: knows the whole life of every TCP connection on a Linux node and names what is wrong with it.
//!
//! Each folder answers one question; the order here is the order of the layers, and a module imports only from those
//! above it in this list. `tests/layers.rs` proves that; docs/ARCHITECTURE.md maps it.

pub mod tcp;

pub mod events;

pub mod model;

pub mod findings;

pub mod kernel;

pub mod node;

pub mod http;

pub mod recorder;

pub mod pipeline;

pub mod cli;
