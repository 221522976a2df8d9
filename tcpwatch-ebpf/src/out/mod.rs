//! How do records leave? Records and their counts of losses in; the ring, the queues and the counters out.
//!
//! Nothing here decides whether something is worth a record, and nothing here waits: where there is no room, a record
//! is dropped and the loss counted.

pub mod counters;
pub mod failed_connects;
pub mod queue;
pub mod reset_event;
pub mod ring;
pub mod socket_event;
pub mod task_event;

/// The target of every log entry. By default that is the module's path, which each program would copy byte by byte.
pub const LOG_TARGET: &str = "tcpwatch_ebpf";
