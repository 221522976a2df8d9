//! The answers, a file each: what is read from the node, its JSON shape and its text.

pub(super) mod connection;
pub(super) mod connections;
pub(super) mod events;
pub(super) mod findings;
pub(super) mod help;
pub(super) mod history;
pub(super) mod leaks;
pub(super) mod nat;
pub(super) mod network;
pub(super) mod overview;
pub(super) mod peers;
pub(super) mod ports;
pub(super) mod processes;
pub(super) mod series;
pub(super) mod status;
pub(super) mod transfer;
