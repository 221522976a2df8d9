//! The records that the iterators write: sockets as a sweep observes them, network namespaces, and the options of one
//! socket.
//!
//! In: nothing. Out: [`SeenSocket`], [`SocketList`], [`SeenNamespace`] and [`AskedOptions`], with the flags and indices in
//! them. Deliberately absent: what happens between two sweeps, which the events report.

/// One TCP socket as an iterator found it: with a descriptor of a process (task_file), or without (tcp).
/// 288 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct SeenSocket {
    /// `state::*`
    pub state: u8,
    /// `FLAG_*`, combined.
    pub flags: u8,
    /// Non-zero if data was sent on it: the upper half of `data_segs_out` combined (or) with the lower.
    pub data_sent: u16,
    /// Inode number of its network namespace.
    pub netns: u32,
    /// Nanoseconds of CLOCK_MONOTONIC, when this socket was read.
    pub time_ns: u64,
    /// The kernel's 64-bit tick count (jiffies) at that time.
    pub jiffies: u64,
    /// As `SocketEvent::cookie`; known for a minisock and a request too.
    pub cookie: u64,
    /// Start of the process that holds it, nanoseconds of CLOCK_BOOTTIME. This, `tgid`, `fd`, `comm`,
    /// `exec_id` and `stack` are 0 from the iterator tcp.
    pub start_ns: u64,
    /// Process id, in the initial pid namespace.
    pub tgid: u32,
    /// Descriptor, a number of that process.
    pub fd: u32,
    /// Name of the thread group's leader, NUL-terminated.
    pub comm: [u8; 16],
    /// Received bytes that the application has not read.
    pub unread_bytes: u32,
    /// Segments retransmitted in the life of the socket.
    pub total_retrans: u32,
    /// For a listener, and for a request of its listener: connections that wait to be accepted (`sk_ack_backlog`).
    pub queue: u32,
    /// Likewise: how many may wait (`sk_max_ack_backlog`).
    pub queue_limit: u32,
    /// Segments that the socket dropped (`sk_drops`); a listener's for many reasons, of which a full queue is one.
    pub drops: u32,
    /// Tick (lower 32 bits of jiffies) when a segment was last received.
    pub received_jiffies: u32,
    /// Tick when data was last sent.
    pub sent_jiffies: u32,
    /// Tick when data was last received.
    pub data_received_jiffies: u32,
    /// Smoothed round-trip time in eighths of a microsecond (`srtt_us`), 0 before the first measurement.
    pub srtt: u32,
    /// Ticks in which there was something to send or unacknowledged, by `chrono::*`, the present period included. This,
    /// `out_of_order`, and all from `delivery_rate` to `congestion` are 0 from the iterator tcp.
    pub sending_jiffies: [u32; chrono::COUNT],
    /// Segments received out of order (`rcv_ooopack`).
    pub out_of_order: u32,
    /// Local port.
    pub sport: u16,
    /// Remote port; 0 for a listener.
    pub dport: u16,
    /// Tick (64 bits) at which a minisock's timer is set to end it; 0 for the others.
    pub expires_jiffies: u64,
    /// As `TrafficEvent::sent_bytes`; 0 for minisocks and requests.
    pub sent_bytes: u64,
    /// As `TrafficEvent::received_bytes`; 0 for minisocks and requests.
    pub received_bytes: u64,
    /// Bytes a second, as last measured; 0 before the first measurement.
    pub delivery_rate: u64,
    pub options: SocketOptions,
    /// Probes of a closed window that the peer has not answered (`icsk_probes_out`, while something waits to be sent: else
    /// that counts keep-alive probes).
    pub window_probes: u32,
    /// Bytes of memory that data to be sent may take (`sk_sndbuf`).
    pub send_buffer: u32,
    /// Bytes of memory that received data may take (`sk_rcvbuf`).
    pub receive_buffer: u32,
    /// The least round-trip time of the last minutes, in microseconds (`rtt_min`); `u32::MAX` before the first
    /// measurement.
    pub min_rtt_us: u32,
    /// Mean deviation of the round-trip time, in microseconds (`mdev_us`, which is in quarters).
    pub rtt_variation_us: u32,
    /// Name of its congestion control, padded with zeros.
    pub congestion: [u8; 16],
    /// Local address.
    pub saddr: [u8; 16],
    /// Remote address; all 0 for a listener.
    pub daddr: [u8; 16],
    /// Segments sent and not acknowledged (`packets_out`).
    pub unacknowledged: u32,
    /// Index of the interface that it is bound to (`skc_bound_dev_if`), 0 for none.
    pub interface: u32,
    /// As `TaskEvent::exec_id`.
    pub exec_id: u32,
    /// As `TaskEvent::stack`.
    pub stack: u32,
    /// Sequence numbers written and not sent: one a byte, and one for a FIN.
    pub unsent: u32,
    /// `HANDSHAKE_*`, combined; of listeners and requests.
    pub handshake: u32,
    pub zero: u32,
    /// The cookie of the listener that a request was made to; 0 for any other socket.
    pub listener: u64,
    /// For a listener: connections and SYNs that its full queue refused, as the signal `overflow` counts them.
    pub overflows: u64,
}

/// Sockets that belong to another socket, which is visited itself. 288 bytes, as [`SeenSocket`], among which it is
/// written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct SocketList {
    /// 0, which is no state: a `SeenSocket` has its state here.
    pub zero: u8,
    /// `LIST_QUEUED` or `LIST_SUBFLOWS`
    pub kind: u8,
    /// How many of `cookies` are set.
    pub count: u8,
    /// 1 in the last record about a list that goes on.
    pub truncated: u8,
    /// As in `SeenSocket`: the process that holds the sockets, 0 for `LIST_QUEUED`.
    pub tgid: u32,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// The cookie of the listener, 0 for `LIST_SUBFLOWS`.
    pub listener: u64,
    /// This, `comm`, `fd`, `exec_id` and `stack`: as in `SeenSocket`.
    pub start_ns: u64,
    pub comm: [u8; 16],
    pub fd: u32,
    pub exec_id: u32,
    pub stack: u32,
    pub zeros: u32,
    /// As `SocketEvent::cookie`.
    pub cookies: [u64; SocketList::SOCKETS],
}

impl SocketList {
    /// Sockets in one record.
    pub const SOCKETS: usize = 28;
}

/// A [`SocketList`] of the connections in a listener's accept queue.
pub const LIST_QUEUED: u8 = 1;
/// A [`SocketList`] of the subflows of a Multipath TCP socket, to which the descriptor of a process refers.
pub const LIST_SUBFLOWS: u8 = 2;

/// The listener waits for data before it makes a connection of a request (TCP_DEFER_ACCEPT).
pub const HANDSHAKE_DEFERRED: u32 = 1;
/// The client has acknowledged the SYN-ACK of this request, and the listener made no connection of it.
pub const HANDSHAKE_ACKNOWLEDGED: u32 = 2;

/// Indices into `SeenSocket::sending_jiffies`: what held back the sender (enum tcp_chrono in include/linux/tcp.h,
/// less 1).
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
    /// How long close() waits, in kernel ticks (jiffies); holds only with `OPTION_LINGER`.
    pub linger_jiffies: u64,
    /// TCP_USER_TIMEOUT in milliseconds, 0 where it is not set.
    pub user_timeout_ms: u32,
    /// TCP_KEEPIDLE in kernel ticks (jiffies), or what the network namespace sets in its place; whether keep-alive is
    /// on or off.
    pub keepalive_time_jiffies: u32,
    /// TCP_KEEPINTVL in kernel ticks (jiffies), likewise.
    pub keepalive_intvl_jiffies: u32,
    /// TCP_KEEPCNT, likewise.
    pub keepalive_probes: u16,
    /// `OPTION_*`, combined.
    pub flags: u16,
}

/// The options of the one socket that was asked for, with its ports to recognize it by. 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct AskedOptions {
    pub options: SocketOptions,
    /// Local port.
    pub sport: u16,
    /// Remote port.
    pub dport: u16,
    pub zero: u32,
}

/// The network namespaces that one reading lists, at most. The verifier follows the program through each: for 2,000 that took
/// 0.7 s at the start [measured].
pub const MAX_NAMESPACES: usize = 700;

/// A network namespace. 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct SeenNamespace {
    /// Its number among all namespaces since the machine started (`net_cookie`); 0 on Linux 5.10, until something asks
    /// the kernel for it.
    pub cookie: u64,
    /// Its inode number, which another one gets when it is gone; 0 in a record of no namespace.
    pub inode: u32,
    /// Tells it from another one with its inode number: a random number (`hash_mix`), combined with a secret.
    pub identity: u32,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<SeenSocket>() == 288);
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
    assert!(offset_of!(SeenSocket, interface) == 248);
    assert!(offset_of!(SeenSocket, listener) == 272);
    assert!(size_of::<SocketList>() == size_of::<SeenSocket>());
    assert!(offset_of!(SocketList, time_ns) == 8);
    assert!(offset_of!(SocketList, comm) == 32);
    assert!(offset_of!(SocketList, cookies) == 64);
    assert!(offset_of!(SeenSocket, overflows) == 280);
    assert!(size_of::<SocketOptions>() == 24);
    assert!(offset_of!(SocketOptions, user_timeout_ms) == 8);
    assert!(offset_of!(SocketOptions, keepalive_probes) == 20);
    assert!(size_of::<AskedOptions>() == 32);
    assert!(offset_of!(AskedOptions, sport) == 24);
    assert!(size_of::<SeenNamespace>() == 16);
    assert!(offset_of!(SeenNamespace, identity) == 12);
};
