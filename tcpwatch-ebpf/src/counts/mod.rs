//! What is counted of one socket over time, and when is it reported? Retransmits, stalls and waits in; one map of
//! counts, and at most one record a second for each socket, with one more at its end, out. What full accept queues
//! refused has a map of its own, which sweeps read.
//!
//! Nothing here is attached to the kernel: the hooks decide what happened. Nothing here counts for the whole machine,
//! which `out::counters` does.

pub mod overflows;
pub mod segments;
pub mod socket_counts;
pub mod socket_end;
pub mod stall;
pub mod tail_loss_probe;
pub mod waiting;
