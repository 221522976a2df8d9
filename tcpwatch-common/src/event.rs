//! The records that report what happened to a socket, but for retransmits and stalls.
//!
//! In: nothing. Out: the records of the hooks, with the flags and states in them. Deliberately absent: what a sweep
//! finds (`seen.rs`), and what is counted over time (`retransmit_event.rs`).

/// Bound to an interface (`sk_bound_dev_if`): by SO_BINDTODEVICE, by the scope of a link-local address, or to a VRF.
/// Which one, an [`InterfaceEvent`] reports.
pub const FLAG_BOUND: u8 = 1;
/// Of a socket in CLOSE that a sweep finds, where `FLAG_UNSENT` has no meaning: it has been in a connection, or tried to.
pub const FLAG_CONNECTED: u8 = 128;
/// The peer's FIN was received (`SOCK_DONE`).
pub const FLAG_FIN_RECEIVED: u8 = 2;
/// No process holds the socket any more (`SOCK_DEAD`).
pub const FLAG_ORPHAN: u8 = 4;
/// The socket was made by a listener, so it is a passive open (it inherited a backlog, `sk_max_ack_backlog`).
pub const FLAG_PASSIVE: u8 = 8;
/// The socket has a file (`sk_socket` is set): a process opened or accepted it and did not close it yet.
pub const FLAG_HELD: u8 = 16;
/// Not a full socket: what the kernel keeps in its place in TIME_WAIT, or in FIN_WAIT2 without an owner.
pub const FLAG_MINISOCK: u8 = 32;
/// Not a full socket: a connection request whose handshake is not complete.
pub const FLAG_REQUEST: u8 = 64;
/// On a transition from SYN_SENT to CLOSE: no segment was sent, and the application did not close the socket. On one to
/// SYN_SENT, or to CLOSE from a later state: none is sent, because the socket is in repair mode (TCP_REPAIR).
pub const FLAG_UNSENT: u8 = 128;

/// On a `ResetEvent`: the reset was received; without this flag it was sent.
pub const RESET_RECEIVED: u32 = 1;
/// Sent in answer to a segment; without this flag by the kernel of its own accord, for the application or a timer.
pub const RESET_ANSWERS: u32 = 2;
/// The socket's linger time is zero.
pub const RESET_ZERO_LINGER: u32 = 4;
/// Sent, not as an answer, in the context of a process that exits.
pub const RESET_EXITING: u32 = 8;
/// Sent by a packet filter of this machine, in place of the socket or, with `RESET_RECEIVED`, to it.
pub const RESET_POLICY: u32 = 16;

/// The kernel's TCP states (include/net/tcp_states.h), which BPF programs see as they are.
pub mod state {
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
}

/// What happened to a socket. 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct SocketEvent {
    /// `KIND_TRANSITION`, `KIND_TRANSITION_WITH_TRAFFIC`, `KIND_ACCEPT`, `KIND_MINISOCK_END`, `KIND_TIME_WAIT` or
    /// `KIND_CONNECT_FAILED`; inside a longer record, that record's kind.
    pub kind: u8,
    /// `state::*`, before.
    pub old_state: u8,
    /// `state::*`, after; the same as `old_state` where the state did not change.
    pub new_state: u8,
    /// `FLAG_*`, combined.
    pub flags: u8,
    /// Inode number of the socket's network namespace; 0 where it is not known.
    pub netns: u32,
    /// Nanoseconds of CLOCK_MONOTONIC. For a transition that a packet causes (and for most to CLOSE): when the kernel
    /// took up that packet.
    pub time_ns: u64,
    /// The kernel's own identity of the socket; `ss -e` prints it as `sk:`. Where the programs cannot have it
    /// (`IDENTITY_IS_ADDRESS`): the socket's address combined with a secret, which another socket may have later. For a
    /// minisock: the index of the interface that it is bound to, 0 for none.
    pub cookie: u64,
    /// By kind and `new_state`:
    /// - a transition that only the application can cause (to SYN_SENT, LISTEN, FIN_WAIT1 or LAST_ACK), and
    ///   `KIND_CLOSE` and `KIND_ACCEPT`: the process (tgid) in whose context it happened, 0 when that was a kernel
    ///   thread or the `TaskEvent` about the process could not be written;
    /// - a transition to CLOSE_WAIT: received bytes that the application has not read;
    /// - a transition to CLOSE: the socket's errno (`sk_err`) in the upper 8 bits, segments retransmitted so
    ///   far (`total_retrans`) in the lower 24, at most 2^24 - 1;
    /// - a transition from SYN_RECV to ESTABLISHED: `total_retrans`, where the socket was made by a listener
    ///   (tcp_create_openreq_child in net/ipv4/tcp_minisocks.c) its retransmits of the SYN-ACK;
    /// - a transition from SYN_SENT to ESTABLISHED: microseconds from the SYN to its acknowledgement, 0 where the SYN was
    ///   retransmitted;
    /// - `KIND_CONNECT_FAILED`: the errno that connect() returns in the upper 8 bits, at most 255, and the process
    ///   (tgid) in the lower 24, of which the kernel uses 22 (PID_MAX_LIMIT in include/linux/threads.h);
    /// - `KIND_RESET`: `RESET_*`, combined;
    /// - `KIND_RETRANSMIT`: `total_retrans`, in segments; 0 where that is not known and for listeners;
    /// - else 0.
    pub value: u32,
    /// Local port.
    pub sport: u16,
    /// Remote port; 0 for a listener.
    pub dport: u16,
    /// Local address.
    pub saddr: [u8; 16],
    /// Remote address; all 0 for a listener.
    pub daddr: [u8; 16],
}

/// What the application closed. 72 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct CloseEvent {
    /// Its kind is `KIND_CLOSE`.
    pub socket: SocketEvent,
    /// Received bytes that the application did not read. Unless 0, closing resets the connection.
    pub unread_bytes: u32,
    pub zero: u32,
}

/// A reset. 80 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct ResetEvent {
    /// Its kind is `KIND_RESET`; both states are that of the socket, or of the minisock, whose cookie is 0.
    pub socket: SocketEvent,
    /// Received bytes that the application has not read; 0 for a minisock.
    pub unread_bytes: u32,
    /// Sequence numbers written and not sent: one a byte, and one for a SYN or FIN. 0 for a minisock.
    pub unsent: u32,
    /// Sequence numbers sent and not acknowledged, counted as `unsent`.
    pub unacknowledged: u32,
    /// The process in whose context the application's close sent it; 0 for any other reset, for a kernel thread, or where
    /// the `TaskEvent` about the process could not be written.
    pub tgid: u32,
}

/// How long a connection had been idle when it left ESTABLISHED; written only for one that had been. 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct IdleEvent {
    /// `KIND_IDLE`
    pub kind: u8,
    pub zero: [u8; 7],
    /// Nanoseconds of CLOCK_MONOTONIC; the same as in the transition.
    pub time_ns: u64,
    /// As in the transition.
    pub cookie: u64,
    /// Kernel ticks (jiffies) since data was last sent, or since the connection was established; `u32::MAX` where the
    /// kernel has noted neither, which it does not when both ends opened it at once.
    pub sent_ticks: u32,
    /// The same since data was last received.
    pub received_ticks: u32,
}

/// What a connection has carried by the time it leaves ESTABLISHED, and by its end. 40 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct TrafficEvent {
    /// `KIND_TRAFFIC`
    pub kind: u8,
    pub zero: [u8; 7],
    /// Nanoseconds of CLOCK_MONOTONIC; the same as in the transition.
    pub time_ns: u64,
    /// As in the transition.
    pub cookie: u64,
    /// Bytes of data sent, each once: `bytes_sent` without `bytes_retrans`.
    pub sent_bytes: u64,
    /// Bytes of data received, each once: `bytes_received` without the FIN, which the kernel counts as one.
    pub received_bytes: u64,
}

/// The interface that a socket is bound to. 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct InterfaceEvent {
    /// `KIND_INTERFACE`
    pub kind: u8,
    pub zero: [u8; 3],
    /// Index of the interface in the socket's network namespace.
    pub interface: u32,
    /// Nanoseconds of CLOCK_MONOTONIC; the same as in the record that follows.
    pub time_ns: u64,
    /// As in the record that follows.
    pub cookie: u64,
}

/// A process, written before the first record that names it, and again after an exec or when its name changes. 48 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct TaskEvent {
    /// `KIND_TASK`
    pub kind: u8,
    pub zero: [u8; 3],
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Nanoseconds of CLOCK_MONOTONIC; not later than in the records that name the process.
    pub time_ns: u64,
    /// Start of the process, nanoseconds of CLOCK_BOOTTIME; with `tgid` it identifies the process. 0 where it is not
    /// known (the way `tracepoint`).
    pub start_ns: u64,
    /// Name of the thread group's leader, NUL-terminated.
    pub comm: [u8; 16],
    /// How often the process, or those that it was forked from, called exec (`self_exec_id`, the lower 32 bits): two
    /// records with the same `start_ns` and another of these are of two programs. 0 where it is not known.
    pub exec_id: u32,
    /// Where the program's stack begins (`start_stack` of its memory, in units of 16 bytes, the lower 32 bits): differs
    /// after an exec, and /proc/PID/stat shows it. 0 where it is not known, as while the process exits.
    pub stack: u32,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<SocketEvent>() == 64);
    assert!(offset_of!(SocketEvent, netns) == 4);
    assert!(offset_of!(SocketEvent, time_ns) == 8);
    assert!(offset_of!(SocketEvent, cookie) == 16);
    assert!(offset_of!(SocketEvent, value) == 24);
    assert!(offset_of!(SocketEvent, sport) == 28);
    assert!(offset_of!(SocketEvent, saddr) == 32);
    assert!(offset_of!(SocketEvent, daddr) == 48);
    assert!(size_of::<CloseEvent>() == 72);
    assert!(offset_of!(CloseEvent, unread_bytes) == 64);
    assert!(size_of::<ResetEvent>() == 80);
    assert!(offset_of!(ResetEvent, unread_bytes) == 64);
    assert!(size_of::<IdleEvent>() == 32);
    assert!(offset_of!(IdleEvent, time_ns) == 8);
    assert!(offset_of!(IdleEvent, cookie) == 16);
    assert!(size_of::<TrafficEvent>() == 40);
    assert!(offset_of!(TrafficEvent, time_ns) == 8);
    assert!(offset_of!(TrafficEvent, cookie) == 16);
    assert!(offset_of!(TrafficEvent, sent_bytes) == 24);
    assert!(size_of::<InterfaceEvent>() == 24);
    assert!(offset_of!(InterfaceEvent, time_ns) == 8);
    assert!(offset_of!(InterfaceEvent, cookie) == 16);
    assert!(size_of::<TaskEvent>() == 48);
    assert!(offset_of!(TaskEvent, time_ns) == 8);
    assert!(offset_of!(TaskEvent, start_ns) == 16);
    assert!(offset_of!(TaskEvent, comm) == 24);
    assert!(offset_of!(TaskEvent, exec_id) == 40);
};
