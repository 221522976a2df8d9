//! A tail loss probe whose result is not known yet. In: the probe, as it was sent. Out: whether it was acknowledged,
//! whether it was needless, and how long the stall was that it ended. Deliberately absent: the counts that follow
//! from that (`stall.rs`).

use crate::read::{
    offsets::{OFF_DSACK_DUPS, OFF_SND_UNA},
    pointer::KernelPtr,
};

/// The last tail loss probe, while it is not known whether it made a lost segment good.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct TailLossProbe {
    /// When it was sent, nanoseconds of CLOCK_MONOTONIC; 0 for none.
    pub at_ns: u64,
    /// When the segment was first sent that it makes good, if one was lost.
    pub since_ns: u64,
    /// Smoothed round-trip time then, in microseconds.
    pub rtt_us: u32,
    /// The sequence number that its acknowledgement reaches.
    pub high: u32,
    /// Segments that the peer had reported to have received twice (`dsack_dups`).
    pub duplicates: u32,
    /// Bytes sent after the segment.
    pub bytes: u32,
}

impl TailLossProbe {
    #[inline(always)]
    pub fn is_acknowledged(&self, sk: impl KernelPtr) -> bool {
        sk.read::<u32>(&OFF_SND_UNA).wrapping_sub(self.high) as i32 >= 0
    }

    /// Whether the peer reported since that it received a segment twice.
    #[inline(always)]
    pub fn was_needless(&self, sk: impl KernelPtr) -> bool {
        sk.read::<u32>(&OFF_DSACK_DUPS) != self.duplicates
    }

    /// Nanoseconds from the first sending until the acknowledgement, which is taken to have come a round trip after the
    /// probe.
    #[inline(always)]
    pub fn took_ns(&self) -> u64 {
        self.at_ns - self.since_ns + self.rtt_us as u64 * 1000
    }
}
