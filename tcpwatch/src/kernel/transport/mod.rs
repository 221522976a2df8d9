//! The transport of records from the BPF programs to the daemon: the queues of state changes and the ring buffer,
//! merged in the order of their times, and the counters of lost records.

pub(crate) mod buffer_sizes;
pub(crate) mod counted;
pub mod inbox;
pub(crate) mod loss;
pub mod queue;
pub(crate) mod ring;

pub use self::{counted::CountedRetransmits, loss::LossCounters, queue::Queues, ring::Ring};
