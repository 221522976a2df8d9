//! tcpwatch: knows the whole life of every TCP connection on a Linux node and names what is wrong with it.
//!
//! Each folder answers one question. The modules below stand in the order of the layers: each imports only from those
//! above it. `tests/layers.rs` proves that; docs/ARCHITECTURE.md describes the layers.

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
