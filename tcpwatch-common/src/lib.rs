//! The binary interface between the BPF programs and the daemon: record layouts, their constants, and nothing else.
//!
//! In: nothing. Out: `#[repr(C)]` types and numbers that both sides compile. Deliberately absent: decoding, names to
//! show, and any judgement, which are the daemon's.
//!
//! All numbers are in the machine's own byte order, ports included. Addresses are 16 bytes in network byte order; an
//! IPv4 address is v4-mapped (`::ffff:a.b.c.d`). Each record starts with its kind, one of `KIND_*`, and has its time
//! at byte offset 8. Fields named `zero` are padding and hold 0.
#![no_std]

mod counters;
pub mod errno;
mod event;
mod queue;
mod retransmit_event;
mod seen;

pub use counters::counter;
pub use event::{
    CloseEvent, FLAG_BOUND, FLAG_CONNECTED, FLAG_FIN_RECEIVED, FLAG_HELD, FLAG_MINISOCK, FLAG_ORPHAN,
    FLAG_PASSIVE, FLAG_REQUEST, FLAG_UNSENT, IdleEvent, InterfaceEvent, RESET_ANSWERS, RESET_EXITING,
    RESET_POLICY, RESET_RECEIVED, RESET_ZERO_LINGER, ResetEvent, SocketEvent, TaskEvent, TrafficEvent, state,
};
pub use queue::{Queue, QueueSlot};
pub use retransmit_event::{DURATION_BOUNDS_NS, RetransmitEvent, failure, retransmit, stall};
pub use seen::{
    AskedOptions, HANDSHAKE_ACKNOWLEDGED, HANDSHAKE_DEFERRED, LIST_QUEUED, LIST_SUBFLOWS, MAX_NAMESPACES,
    OPTION_CORK, OPTION_KEEPALIVE, OPTION_LINGER, OPTION_NODELAY, OPTION_USER_TIMEOUT, SeenNamespace,
    SeenSocket, SocketList, SocketOptions, chrono,
};

/// Version of the layouts below: changes whenever one of them does. The object carries it in [`ABI_SYMBOL`], and a
/// recording in its header.
pub const ABI: u32 = 11;

/// Name of the BPF object's read-only global that holds the [`ABI`] it was built with, a `u32`.
pub const ABI_SYMBOL: &str = "TCPWATCH_ABI";

/// A [`SocketEvent`]: the socket went from `old_state` to `new_state`.
pub const KIND_TRANSITION: u8 = 1;
/// A [`RetransmitEvent`]: the kernel retransmitted on the socket, its delivery stalled or resumed, or a socket that had
/// one of these records ended.
pub const KIND_RETRANSMIT: u8 = 2;
/// A [`CloseEvent`]: the application closed its last descriptor of the socket.
pub const KIND_CLOSE: u8 = 3;
/// A [`TaskEvent`]: the process that later records name.
pub const KIND_TASK: u8 = 4;
/// A [`SocketEvent`]: a minisock in `old_state` ended. Addresses, ports, interface and namespace identify it.
pub const KIND_MINISOCK_END: u8 = 5;
/// A [`SocketEvent`]: the application accepted the connection.
pub const KIND_ACCEPT: u8 = 6;
/// A [`SocketEvent`]: the timer of a minisock in TIME_WAIT was set anew, by the peer's FIN that turned FIN_WAIT2 into
/// TIME_WAIT or by a later segment. Identified as in `KIND_MINISOCK_END`.
pub const KIND_TIME_WAIT: u8 = 14;
/// Eight bytes without a time, in the ring only: a [`Queue`] is half full, or a process named in one may end soon.
pub const KIND_WAKE: u8 = 7;
/// A [`ResetEvent`]: a reset was sent or received.
pub const KIND_RESET: u8 = 8;
/// An [`IdleEvent`], just before the transition from ESTABLISHED: the connection had been idle.
pub const KIND_IDLE: u8 = 9;
/// A [`SocketEvent`]: a transition that also carries the socket's traffic, for a socket whose addresses both begin
/// with eight zero bytes, as v4-mapped ones do. Those eight bytes hold, as numbers, `TrafficEvent::sent_bytes` in
/// `saddr` and `TrafficEvent::received_bytes` in `daddr`.
pub const KIND_TRANSITION_WITH_TRAFFIC: u8 = 10;
/// A [`SocketEvent`]: connect() failed before the socket left CLOSE.
pub const KIND_CONNECT_FAILED: u8 = 11;
/// An [`InterfaceEvent`], just before the first and the last transition of a socket that is bound to an interface, and
/// before its `KIND_CONNECT_FAILED`.
pub const KIND_INTERFACE: u8 = 12;
/// A [`TrafficEvent`], just before the transition it belongs to, where the addresses leave no room for its numbers.
pub const KIND_TRAFFIC: u8 = 13;
