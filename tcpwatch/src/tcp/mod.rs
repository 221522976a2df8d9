//! What does TCP say? The protocol's states, ends, times and options, as RFC 9293 and the kernel define them.
//!
//! In: numbers that the kernel keeps of a socket. Out: their meaning. Nothing here knows a connection table, does I/O
//! or reads a clock.

pub mod answer_time;
pub mod connect_outcome;
pub mod errno;
pub mod first_close;
pub mod histogram;
pub mod life;
pub mod modes;
mod named;
pub mod reset_reason;
pub mod socket_options;
pub mod stall;
pub mod state;
pub mod ticks;
pub mod time;

pub(crate) use self::named::serialized_by_name;
