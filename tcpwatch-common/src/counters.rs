//! The counters of the BPF programs: what they did not write, and what they only count.
//!
//! In: nothing. Out: the indices of the per-CPU map `COUNTERS`. Deliberately absent: names and help texts, which the
//! daemon has.

/// Indices into the per-CPU array `COUNTERS`, each a `u64` number of records or resets since the programs were loaded.
pub mod counter {
    // `LOST_*`: records that found no room in the ring or queue, by the signal that had them to report. Each signal has
    // an index of its own, because one program does not interrupt itself and so needs no atomic addition.
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
    pub const LOST_TIME_WAIT: u32 = 13;
    /// Number of `LOST_*` counters; they are the first.
    pub const LOST_COUNT: u32 = 14;

    // `HELD_BACK_*`: records that were not written because one about the same socket was, less than a second before.
    // Nothing is lost: the counts stay in the map `COUNTED`.
    pub const HELD_BACK_RETRANSMIT: u32 = 14;
    pub const HELD_BACK_SYN_ACK: u32 = 15;
    pub const HELD_BACK_CONGESTION: u32 = 16;
    pub const HELD_BACK_RETRANSMIT_FAILED: u32 = 17;
    pub const HELD_BACK_OUT_OF_ORDER: u32 = 18;

    /// Resets sent in answer to segments for which there was no socket.
    pub const RESET_NO_SOCKET: u32 = 19;
    /// Resets sent in answer to segments that a listener, or the request of a connection, refused.
    pub const RESET_LISTENER: u32 = 20;
    /// Resets that a packet filter of this machine sent and that no local connection is known to be part of.
    pub const RESET_BY_POLICY: u32 = 21;
    /// Number of counters.
    pub const COUNT: u32 = 22;
}
