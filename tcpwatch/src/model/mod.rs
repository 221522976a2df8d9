//! What is known? The connections, processes and counts of the node, and the rules by which records and sweeps change
//! them.
//!
//! In: decoded records and sightings. Out: tables to read. No I/O, no clock: times come with the records.

pub mod address;
pub mod container;
mod dense_index;
pub mod dials;
pub mod groups;
pub mod idle_times;
pub mod interfaces;
pub mod live;
pub mod processes;
pub mod series;
pub mod socket_retransmits;
pub mod table;
pub mod tracker;
pub mod transition;
pub mod workload;
