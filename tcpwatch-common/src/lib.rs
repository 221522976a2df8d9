//! The records that the BPF programs write and the daemon reads: their layout, and nothing else.
//!
//! All numbers are in the machine's own byte order, ports included. An IPv4 address is written
//! v4-mapped (`::ffff:a.b.c.d`). Each record starts with its kind, one of `KIND_*`, and has its time at byte 8.
#![no_std]

/// Changes whenever a layout below does. The object carries it in [`ABI_SYMBOL`], and a recording in
/// its header.
pub const ABI: u32 = 9;

/// The BPF object's read-only global that holds the [`ABI`] it was built with.
pub const ABI_SYMBOL: &str = "TCPWATCH_ABI";

/// A [`SocketEvent`]: the socket went from `old_state` to `new_state`.
pub const KIND_TRANSITION: u8 = 1;
/// A [`RetransmitEvent`]: the kernel retransmitted on the socket, its delivery stands still or goes on again, or the
/// socket ends that this was told of.
pub const KIND_RETRANSMIT: u8 = 2;
/// A [`CloseEvent`]: the application closed its last descriptor of the socket.
pub const KIND_CLOSE: u8 = 3;
/// A [`SocketEvent`]: a minisock in `old_state` is gone; its cookie is 0, its ends say which it was.
pub const KIND_MINISOCK_END: u8 = 5;
/// A [`SocketEvent`]: the application accepted the connection.
pub const KIND_ACCEPT: u8 = 6;
/// A [`ResetEvent`]: a reset was sent or received.
pub const KIND_RESET: u8 = 8;
/// Eight bytes, in the ring only: a [`Queue`] fills.
pub const KIND_WAKE: u8 = 7;
/// A [`TaskEvent`]: the process that the next records name.
pub const KIND_TASK: u8 = 4;
/// An [`IdleEvent`], just before the transition from ESTABLISHED: the connection had been idle.
pub const KIND_IDLE: u8 = 9;
/// A [`SocketEvent`]: a transition that also tells the socket's traffic, of a socket whose addresses both begin with
/// eight zero bytes, as those of IPv4 do. In their places are, as numbers, `TrafficEvent::sent_bytes` in `saddr` and
/// `TrafficEvent::received_bytes` in `daddr`.
pub const KIND_TRANSITION_WITH_TRAFFIC: u8 = 10;
/// A [`SocketEvent`]: connect() failed before the socket left CLOSE.
pub const KIND_CONNECT_FAILED: u8 = 11;
/// A [`TrafficEvent`], just before the transition with which it is told where the addresses leave no room for it.
pub const KIND_TRAFFIC: u8 = 13;

/// The peer's FIN was received (`SOCK_DONE`).
pub const FLAG_FIN_RECEIVED: u8 = 2;
/// No process holds the socket any more (`SOCK_DEAD`).
pub const FLAG_ORPHAN: u8 = 4;
/// The socket was made by a listener (it inherited a backlog, `sk_max_ack_backlog`): a passive open.
pub const FLAG_PASSIVE: u8 = 8;
/// The socket has a file (`sk_socket` is set): a process opened or accepted it and did not close it yet.
pub const FLAG_HELD: u8 = 16;
/// Not a full socket: what the kernel keeps in its place in TIME_WAIT, or in FIN_WAIT2 without an owner.
pub const FLAG_MINISOCK: u8 = 32;
/// Not a full socket: a connection request whose handshake is not complete.
pub const FLAG_REQUEST: u8 = 64;
/// Of a transition from SYN_SENT to CLOSE: no segment was sent.
pub const FLAG_UNSENT: u8 = 128;

/// Of a `ResetEvent`: the reset was received; else sent.
pub const RESET_RECEIVED: u32 = 1;
/// Sent in answer to a segment; else by the kernel of its own accord, for the application or a timer.
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
    /// Any `KIND_*` but `KIND_TASK` and `KIND_WAKE`.
    pub kind: u8,
    pub old_state: u8,
    pub new_state: u8,
    /// `FLAG_*`
    pub flags: u8,
    /// Inode of the socket's network namespace.
    pub netns: u32,
    /// CLOCK_MONOTONIC. Of a transition that a packet brings about, to CLOSE mostly too: when the kernel took that up.
    pub time_ns: u64,
    /// The kernel's own identity of the socket; `ss -e` prints it as `sk:`. Where the programs cannot have it
    /// (`IDENTITY_IS_ADDRESS`): the socket's address, combined with a secret, used again once the socket is gone.
    pub cookie: u64,
    /// By kind and `new_state`:
    /// - a transition only the application can cause (to SYN_SENT, LISTEN, FIN_WAIT1 or LAST_ACK) and
    ///   `KIND_CLOSE` and `KIND_ACCEPT`: the process (tgid) in whose context it happened, 0 when that was a kernel
    ///   thread or the ring had no room to say which process it is;
    /// - a transition to CLOSE_WAIT: received bytes the application has not read;
    /// - a transition to CLOSE: the socket's error (`sk_err`) in the upper 8 bits, segments retransmitted so
    ///   far (`total_retrans`) in the lower 24, as many as fit;
    /// - a transition from SYN_RECV to ESTABLISHED: `total_retrans`, where the socket was made by a listener
    ///   (tcp_create_openreq_child in net/ipv4/tcp_minisocks.c) its retransmits of the SYN-ACK;
    /// - `KIND_CONNECT_FAILED`: the errno that connect() returns in the upper 8 bits, as much as fits, and the process in
    ///   the lower 24, of which the kernel uses 22 (PID_MAX_LIMIT in include/linux/threads.h);
    /// - `KIND_RESET`: `RESET_*`;
    /// - `KIND_RETRANSMIT`: `total_retrans`, 0 where that is not known and of listeners;
    /// - else 0.
    pub value: u32,
    pub sport: u16,
    pub dport: u16,
    pub saddr: [u8; 16],
    pub daddr: [u8; 16],
}

/// What the application let go of. 72 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct CloseEvent {
    /// Its kind is `KIND_CLOSE`.
    pub socket: SocketEvent,
    /// Received bytes that the application did not read: closing with some resets the connection.
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
    /// Received bytes that the application has not read.
    pub unread_bytes: u32,
    /// Sequence numbers written and not sent, and sent and not acknowledged: bytes, and one for a SYN or FIN. 0 of
    /// minisocks.
    pub unsent: u32,
    pub unacknowledged: u32,
    pub zero: u32,
}

/// What was retransmitted on a socket, and how its delivery stood still. All counts grow only. 416 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct RetransmitEvent {
    /// Its kind is `KIND_RETRANSMIT`; its time that of the latest change, or of the socket's end.
    pub socket: SocketEvent,
    /// CLOCK_MONOTONIC, when the programs began to count. The same socket may be counted anew.
    pub since_ns: u64,
    /// The socket's own count of retransmitted bytes (`bytes_retrans`) before that, and now.
    pub bytes_before: u64,
    pub bytes: u64,
    /// Segments retransmitted since then, by `retransmit::*`.
    pub segments: [u64; retransmit::COUNT],
    /// Segments that the peer said it had twice (`dsack_dups`).
    pub duplicates: u32,
    /// The bytes that waited when the present stall began.
    pub stalled_bytes: u32,
    /// CLOCK_MONOTONIC, since when delivery stands still; 0 while it does not.
    pub stalled_since_ns: u64,
    /// Of the stalls that are over, by `stall::*`: how long they lasted, and the bytes that waited.
    pub stalls_ns: [u64; stall::COUNT],
    pub stalls_bytes: [u64; stall::COUNT],
    /// The same stalls, counted by how long they lasted: up to `DURATION_BOUNDS_NS`, and longer.
    pub stalls: [[u32; DURATION_BOUNDS_NS.len() + 1]; stall::COUNT],
    /// Which `stall::*` the present one is, as far as can be told.
    pub stalled_kind: u32,
    /// Retransmits that the kernel tried and could not send, by `failure::*`.
    pub failures: [u32; failure::COUNT],
    /// From the first to the last byte received that wait in the out-of-order queue.
    pub waiting_bytes: u32,
    /// CLOCK_MONOTONIC, since when received data waits there; 0 while none does.
    pub waiting_since_ns: u64,
}

/// Upper bounds of the buckets that durations are counted in: from a loopback round trip to a leak of hours.
pub const DURATION_BOUNDS_NS: [u64; 8] = [
    1_000_000,
    10_000_000,
    100_000_000,
    1_000_000_000,
    10_000_000_000,
    60_000_000_000,
    600_000_000_000,
    3_600_000_000_000,
];

/// Indices into `RetransmitEvent::segments`: why the kernel retransmitted.
pub mod retransmit {
    /// A SYN.
    pub const SYN: usize = 0;
    /// A SYN-ACK.
    pub const SYN_ACK: usize = 1;
    /// What the peer's acknowledgements say is lost.
    pub const FAST: usize = 2;
    /// The same in the recovery from a time-out.
    pub const SLOW_START: usize = 3;
    /// No acknowledgement came in time.
    pub const TIMEOUT: usize = 4;
    /// The last segment again, to hear whether it was lost (tail loss probe).
    pub const PROBE: usize = 5;
    /// Not known.
    pub const UNKNOWN: usize = 6;
    /// Number of kinds.
    pub const COUNT: usize = 7;
}

/// Indices into `RetransmitEvent::stalls`: what ended the wait for a lost segment.
pub mod stall {
    /// A fast recovery.
    pub const FAST: usize = 0;
    /// A time-out.
    pub const TIMEOUT: usize = 1;
    /// A tail loss probe.
    pub const PROBE: usize = 2;
    /// The peer, whatever it took: received data waited for the segment in the out-of-order queue.
    pub const PEER: usize = 3;
    /// Number of kinds.
    pub const COUNT: usize = 4;
}

/// Indices into `RetransmitEvent::failures`: the errno with which the kernel could not retransmit.
pub mod failure {
    /// Too much is queued for sending already.
    pub const EAGAIN: usize = 0;
    pub const ENOMEM: usize = 1;
    /// What was sent before is still on its way out of this machine.
    pub const EBUSY: usize = 2;
    pub const ENOBUFS: usize = 3;
    /// A filter dropped it.
    pub const EPERM: usize = 4;
    pub const ENETUNREACH: usize = 5;
    pub const EHOSTUNREACH: usize = 6;
    pub const OTHER: usize = 7;
    /// Number of kinds.
    pub const COUNT: usize = 8;
}

/// How long a connection had been idle when it left ESTABLISHED; not told of those that were not. 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct IdleEvent {
    /// `KIND_IDLE`
    pub kind: u8,
    pub zero: [u8; 7],
    /// CLOCK_MONOTONIC; the same as of the transition.
    pub time_ns: u64,
    /// As of the transition.
    pub cookie: u64,
    /// Ticks since data was last sent and received, or since it was established.
    pub sent_ticks: u32,
    pub received_ticks: u32,
}

/// What a connection has carried when it leaves ESTABLISHED, and when it ends. 40 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct TrafficEvent {
    /// `KIND_TRAFFIC`
    pub kind: u8,
    pub zero: [u8; 7],
    /// CLOCK_MONOTONIC; the same as of the transition.
    pub time_ns: u64,
    /// As of the transition.
    pub cookie: u64,
    /// Data sent, each byte once: `bytes_sent` without `bytes_retrans`.
    pub sent_bytes: u64,
    /// Data received, each byte once: `bytes_received`, which counts a FIN as one, without it.
    pub received_bytes: u64,
}

/// A process, written before the first record that names it and again when its name changes. 40 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct TaskEvent {
    /// `KIND_TASK`
    pub kind: u8,
    pub zero: [u8; 3],
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// CLOCK_MONOTONIC; the same as of the record that names it.
    pub time_ns: u64,
    /// Start of the process, CLOCK_BOOTTIME; with `tgid` it identifies the process.
    pub start_ns: u64,
    /// Name of the thread group's leader, NUL-terminated.
    pub comm: [u8; 16],
}

/// Room for one record in a [`Queue`]: a [`SocketEvent`], or a shorter one and nothing.
pub type QueueSlot = [u64; 8];

/// A processor's queue of state changes, and of the processes that they name. Its slots lie in another map; `head` and
/// `tail` count records, and stand on cache lines of their own, as one is written by that processor and one by the
/// reader. 128 bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Queue {
    /// Records written so far.
    pub head: u64,
    /// A record is being written, or room for it looked for.
    pub busy: u64,
    pub zero: [u64; 6],
    /// Records read so far.
    pub tail: u64,
    pub more_zero: [u64; 7],
}

/// One TCP socket as an iterator found it: with a descriptor of a process (task_file), or without (tcp).
/// 248 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct SeenSocket {
    pub state: u8,
    /// `FLAG_*`
    pub flags: u8,
    /// Not 0 if data was sent on it: both halves of `data_segs_out`, combined.
    pub data_sent: u16,
    pub netns: u32,
    /// CLOCK_MONOTONIC, when this socket was looked at.
    pub time_ns: u64,
    /// The kernel's 64-bit tick count at that time.
    pub jiffies: u64,
    pub cookie: u64,
    /// The process that holds it: start (CLOCK_BOOTTIME), id, descriptor, name. All 0 from the iterator tcp.
    pub start_ns: u64,
    pub tgid: u32,
    pub fd: u32,
    pub comm: [u8; 16],
    /// Received bytes that the application has not read.
    pub unread_bytes: u32,
    pub total_retrans: u32,
    /// A listener's connections that wait to be accepted, their limit, and connections it dropped.
    pub queue: u32,
    pub queue_limit: u32,
    pub drops: u32,
    /// Ticks (the lower 32 bits) when a segment was last received, data last sent, and data last received.
    pub received_jiffies: u32,
    pub sent_jiffies: u32,
    pub data_received_jiffies: u32,
    /// Smoothed round-trip time in eighths of a microsecond (`srtt_us`), 0 before the first measurement.
    pub srtt: u32,
    /// Ticks in which there was something to send or unacknowledged, by `chrono::*`, the present one included. This, the
    /// next and all from `delivery_rate` to `congestion` are 0 from the iterator tcp.
    pub sending_jiffies: [u32; chrono::COUNT],
    /// Segments received out of order (`rcv_ooopack`).
    pub out_of_order: u32,
    pub sport: u16,
    pub dport: u16,
    /// Tick at which a minisock's timer is set to end it.
    pub expires_jiffies: u64,
    /// As in [`TrafficEvent`]; 0 of minisocks and requests.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Bytes a second, as last measured; 0 before the first measurement.
    pub delivery_rate: u64,
    pub options: SocketOptions,
    /// Probes of a closed window that the peer has not answered (`icsk_probes_out`).
    pub window_probes: u32,
    /// Bytes that it may hold to be sent, and received (`sk_sndbuf`, `sk_rcvbuf`).
    pub send_buffer: u32,
    pub receive_buffer: u32,
    /// The least round-trip time of the last minutes, `u32::MAX` before the first measurement; and the mean deviation of
    /// the smoothed one.
    pub min_rtt_us: u32,
    pub rtt_variation_us: u32,
    /// The name of its congestion control, filled up with zeros.
    pub congestion: [u8; 16],
    pub saddr: [u8; 16],
    pub daddr: [u8; 16],
    pub zero: u32,
}

/// Indices into `SeenSocket::sending_jiffies`: what held back the sender (enum tcp_chrono in include/linux/tcp.h, less 1).
pub mod chrono {
    /// The congestion window, or nothing.
    pub const BUSY: usize = 0;
    /// The peer's receive window.
    pub const PEER_WINDOW: usize = 1;
    /// The send buffer.
    pub const SEND_BUFFER: usize = 2;
    /// Number of kinds.
    pub const COUNT: usize = 3;
}

/// Keep-alive is on (SO_KEEPALIVE).
pub const OPTION_KEEPALIVE: u16 = 1;
/// SO_LINGER is on.
pub const OPTION_LINGER: u16 = 2;
/// TCP_NODELAY is on.
pub const OPTION_NODELAY: u16 = 4;
/// TCP_CORK is on.
pub const OPTION_CORK: u16 = 8;
/// TCP_USER_TIMEOUT is set.
pub const OPTION_USER_TIMEOUT: u16 = 16;

/// The options of one TCP socket. 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct SocketOptions {
    /// How long close() waits, with `OPTION_LINGER`.
    pub linger_jiffies: u64,
    /// TCP_USER_TIMEOUT, 0 where it is not set.
    pub user_timeout_ms: u32,
    /// TCP_KEEPIDLE, TCP_KEEPINTVL and TCP_KEEPCNT, or what the network namespace has in their place; whether
    /// keep-alive is on or not.
    pub keepalive_time_jiffies: u32,
    pub keepalive_intvl_jiffies: u32,
    pub keepalive_probes: u16,
    /// `OPTION_*`
    pub flags: u16,
}

/// The same, told to who asks for one socket. 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct AskedOptions {
    pub options: SocketOptions,
    pub sport: u16,
    pub dport: u16,
    pub zero: u32,
}

/// Indices into the per-CPU `COUNTERS` array: records that found no room, by the program that had something to
/// say; those that it did not write because it had told of that socket a moment ago; and resets of no connection.
pub mod counter {
    pub const LOST_STATE: u32 = 0;
    pub const LOST_RETRANSMIT: u32 = 1;
    pub const LOST_CLOSE: u32 = 2;
    pub const LOST_MINISOCK: u32 = 3;
    pub const LOST_ACCEPT: u32 = 4;
    pub const LOST_SYN_ACK: u32 = 5;
    pub const LOST_SENT_RESET: u32 = 6;
    pub const LOST_RECEIVED_RESET: u32 = 7;
    pub const LOST_CONGESTION: u32 = 8;
    pub const LOST_RETRANSMIT_FAILED: u32 = 9;
    pub const LOST_OUT_OF_ORDER: u32 = 10;
    pub const LOST_CONNECT: u32 = 11;
    pub const LOST_POLICY_RESET: u32 = 12;
    /// Number of counters of lost records.
    pub const LOST_COUNT: u32 = 13;
    pub const HELD_BACK_RETRANSMIT: u32 = 13;
    pub const HELD_BACK_SYN_ACK: u32 = 14;
    pub const HELD_BACK_CONGESTION: u32 = 15;
    pub const HELD_BACK_RETRANSMIT_FAILED: u32 = 16;
    pub const HELD_BACK_OUT_OF_ORDER: u32 = 17;
    /// Resets sent in answer to segments that no socket was found for, and that a listener or the request of a
    /// connection refused; and those that a packet filter of this machine sent that no local connection has to do with.
    pub const RESET_NO_SOCKET: u32 = 18;
    pub const RESET_LISTENER: u32 = 19;
    pub const RESET_BY_POLICY: u32 = 20;
    /// Number of counters.
    pub const COUNT: u32 = 21;
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
    assert!(size_of::<RetransmitEvent>() == 416);
    assert!(offset_of!(RetransmitEvent, since_ns) == 64);
    assert!(offset_of!(RetransmitEvent, segments) == 88);
    assert!(offset_of!(RetransmitEvent, duplicates) == 144);
    assert!(offset_of!(RetransmitEvent, stalled_since_ns) == 152);
    assert!(offset_of!(RetransmitEvent, stalls) == 224);
    assert!(offset_of!(RetransmitEvent, failures) == 372);
    assert!(offset_of!(RetransmitEvent, waiting_since_ns) == 408);
    assert!(size_of::<IdleEvent>() == 32);
    assert!(offset_of!(IdleEvent, time_ns) == 8);
    assert!(offset_of!(IdleEvent, cookie) == 16);
    assert!(size_of::<TaskEvent>() == 40);
    assert!(offset_of!(TaskEvent, time_ns) == 8);
    assert!(offset_of!(TaskEvent, start_ns) == 16);
    assert!(offset_of!(TaskEvent, comm) == 24);
    assert!(size_of::<Queue>() == 128);
    assert!(
        size_of::<QueueSlot>() == size_of::<SocketEvent>() && size_of::<QueueSlot>() > size_of::<TaskEvent>()
    );
    assert!(
        size_of::<QueueSlot>() > size_of::<IdleEvent>() && size_of::<QueueSlot>() > size_of::<TrafficEvent>()
    );
    assert!(size_of::<TrafficEvent>() == 40);
    assert!(offset_of!(TrafficEvent, time_ns) == 8);
    assert!(offset_of!(TrafficEvent, cookie) == 16);
    assert!(offset_of!(TrafficEvent, sent_bytes) == 24);
    assert!(offset_of!(Queue, tail) == 64);
    assert!(size_of::<SeenSocket>() == 248);
    assert!(offset_of!(SeenSocket, time_ns) == 8);
    assert!(offset_of!(SeenSocket, start_ns) == 32);
    assert!(offset_of!(SeenSocket, comm) == 48);
    assert!(offset_of!(SeenSocket, unread_bytes) == 64);
    assert!(offset_of!(SeenSocket, sending_jiffies) == 100);
    assert!(offset_of!(SeenSocket, sport) == 116);
    assert!(offset_of!(SeenSocket, expires_jiffies) == 120);
    assert!(offset_of!(SeenSocket, sent_bytes) == 128);
    assert!(offset_of!(SeenSocket, delivery_rate) == 144);
    assert!(offset_of!(SeenSocket, options) == 152);
    assert!(offset_of!(SeenSocket, congestion) == 196);
    assert!(offset_of!(SeenSocket, saddr) == 212);
    assert!(size_of::<SocketOptions>() == 24);
    assert!(offset_of!(SocketOptions, user_timeout_ms) == 8);
    assert!(offset_of!(SocketOptions, keepalive_probes) == 20);
    assert!(size_of::<AskedOptions>() == 32);
    assert!(offset_of!(AskedOptions, sport) == 24);
};
