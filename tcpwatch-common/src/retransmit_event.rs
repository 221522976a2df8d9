//! The record of what is counted of a socket over time: retransmits, and how long delivery stalled.
//!
//! In: nothing. Out: [`RetransmitEvent`] and the indices into its arrays. Deliberately absent: rates and shares,
//! which the daemon computes from two records.

use crate::SocketEvent;

/// What was retransmitted on a socket, and how long its delivery stalled. All counts and sums only grow, from
/// `since_ns` on. 416 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[repr(C)]
pub struct RetransmitEvent {
    /// Its kind is `KIND_RETRANSMIT`; its time that of the latest change, or of the socket's end.
    pub socket: SocketEvent,
    /// Nanoseconds of CLOCK_MONOTONIC, when the programs began to count. A socket whose counts were evicted has a
    /// later one in its next record, and counts that begin at 0 again.
    pub since_ns: u64,
    /// The socket's own count of retransmitted bytes (`bytes_retrans`) at `since_ns`.
    pub bytes_before: u64,
    /// The same count now.
    pub bytes: u64,
    /// Segments retransmitted since `since_ns`, by `retransmit::*`.
    pub segments: [u64; retransmit::COUNT],
    /// Segments that the peer reported to have received twice (`dsack_dups`), in the life of the socket.
    pub duplicates: u32,
    /// Bytes that were sent after the lost segment when the present stall began.
    pub stalled_bytes: u32,
    /// Nanoseconds of CLOCK_MONOTONIC, when the present stall began; 0 without one.
    pub stalled_since_ns: u64,
    /// Nanoseconds that the completed stalls lasted together, by `stall::*`.
    pub stalls_ns: [u64; stall::COUNT],
    /// Bytes that waited in the completed stalls together, by `stall::*`.
    pub stalls_bytes: [u64; stall::COUNT],
    /// Number of completed stalls, by `stall::*` and by duration: bucket `i` counts those of at most
    /// `DURATION_BOUNDS_NS[i]`, the last bucket the longer ones. Each stall is in one bucket only.
    pub stalls: [[u32; DURATION_BOUNDS_NS.len() + 1]; stall::COUNT],
    /// Which `stall::*` the present stall is, by what is known so far.
    pub stalled_kind: u32,
    /// Retransmits that the kernel tried and could not send, by `failure::*`.
    pub failures: [u32; failure::COUNT],
    /// Received bytes from the first to the last in the out-of-order queue, gaps between them included.
    pub waiting_bytes: u32,
    /// Nanoseconds of CLOCK_MONOTONIC, since when received data waits in the out-of-order queue; 0 while none does.
    pub waiting_since_ns: u64,
}

/// Upper bounds, in nanoseconds, of the buckets in which durations are counted: from a round trip on loopback (1 ms)
/// to a leak of hours (1 h).
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
    /// A segment that the peer's acknowledgements show to be lost.
    pub const FAST: usize = 2;
    /// The same, in the recovery from a time-out.
    pub const SLOW_START: usize = 3;
    /// No acknowledgement came in time.
    pub const TIMEOUT: usize = 4;
    /// The last segment, sent again to learn whether it was lost (tail loss probe).
    pub const PROBE: usize = 5;
    /// Not known.
    pub const UNKNOWN: usize = 6;
    /// Number of kinds.
    pub const COUNT: usize = 7;
}

/// Indices into `RetransmitEvent::stalls`: what ended the wait for a lost segment.
pub mod stall {
    /// A fast recovery of this socket.
    pub const FAST: usize = 0;
    /// A time-out of this socket.
    pub const TIMEOUT: usize = 1;
    /// A tail loss probe of this socket.
    pub const PROBE: usize = 2;
    /// A retransmit of the peer, of whatever kind: received data waited for it in the out-of-order queue.
    pub const PEER: usize = 3;
    /// Number of kinds.
    pub const COUNT: usize = 4;
}

/// Indices into `RetransmitEvent::failures`: the errno with which the kernel failed to retransmit.
pub mod failure {
    /// The peer shrank its window, and the segment lies beyond it. Before Linux 5.13 also: too much is queued for sending
    /// already.
    pub const EAGAIN: usize = 0;
    /// No memory for a copy of the segment.
    pub const ENOMEM: usize = 1;
    /// The segment is still in a queue of this machine, from when it was sent before.
    pub const EBUSY: usize = 2;
    /// A queue of this machine is full.
    pub const ENOBUFS: usize = 3;
    /// A filter dropped it.
    pub const EPERM: usize = 4;
    pub const ENETUNREACH: usize = 5;
    pub const EHOSTUNREACH: usize = 6;
    /// Any other errno.
    pub const OTHER: usize = 7;
    /// Number of kinds.
    pub const COUNT: usize = 8;
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<RetransmitEvent>() == 416);
    assert!(offset_of!(RetransmitEvent, since_ns) == 64);
    assert!(offset_of!(RetransmitEvent, segments) == 88);
    assert!(offset_of!(RetransmitEvent, duplicates) == 144);
    assert!(offset_of!(RetransmitEvent, stalled_since_ns) == 152);
    assert!(offset_of!(RetransmitEvent, stalls) == 224);
    assert!(offset_of!(RetransmitEvent, failures) == 372);
    assert!(offset_of!(RetransmitEvent, waiting_since_ns) == 408);
};
