//! Head-of-line blocking: how often and how long the delivery of sent or received data stood still behind a lost
//! segment.

use tcpwatch_common::{RetransmitEvent, stall};

use crate::tcp::{
    histogram::{Histogram, Stalling, grown},
    serialized_by_name,
};

/// How the lost segment is recovered, or was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Recovery {
    /// Fast recovery: the peer's acknowledgements showed the loss.
    Fast = stall::FAST as u8,
    /// A time-out: no acknowledgement came in time.
    Timeout = stall::TIMEOUT as u8,
    /// A tail loss probe.
    Probe = stall::PROBE as u8,
    /// The peer recovers it: this is the receiving side.
    Peer = stall::PEER as u8,
}

impl Recovery {
    pub const COUNT: usize = stall::COUNT;

    /// All, in the order of the records' counts.
    pub const ALL: [Self; Self::COUNT] = [Self::Fast, Self::Timeout, Self::Probe, Self::Peer];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Timeout => "timeout",
            Self::Probe => "probe",
            Self::Peer => "peer",
        }
    }
}

serialized_by_name!(Recovery);

/// A stall that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stalled {
    /// CLOCK_MONOTONIC: when the lost segment was first sent or, on the receiving side, when the first segment behind
    /// it was received.
    pub since_ns: u64,
    pub recovery: Recovery,
    /// Bytes that wait behind the lost segment; on the sending side, as many as when the stall began.
    pub bytes: u32,
}

impl Stalled {
    /// The stall that a record reports. Where both directions stand still, the longer one.
    pub(crate) fn of(raw: &RetransmitEvent) -> Option<Self> {
        let recovery = *Recovery::ALL.get(raw.stalled_kind as usize)?;
        let sending = Self { since_ns: raw.stalled_since_ns, recovery, bytes: raw.stalled_bytes };
        let receiving =
            Self { since_ns: raw.waiting_since_ns, recovery: Recovery::Peer, bytes: raw.waiting_bytes };
        [sending, receiving].into_iter().filter(|one| one.since_ns != 0).min_by_key(|one| one.since_ns)
    }
}

/// Ended stalls that were recovered in one way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Blocked {
    pub durations: Histogram<Stalling>,
    /// Bytes that waited behind the lost segments.
    pub bytes: u64,
}

impl Blocked {
    pub(crate) fn of(raw: &RetransmitEvent, recovery: Recovery) -> Self {
        let kind = recovery as usize;
        Self {
            durations: Histogram::of(raw.stalls[kind].map(u64::from), raw.stalls_ns[kind]),
            bytes: raw.stalls_bytes[kind],
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.durations.add(&other.durations);
        self.bytes += other.bytes;
    }

    /// Adopts `latest`, later values of the same counts, and returns the growth.
    pub(crate) fn delta(&mut self, latest: &Self) -> Self {
        let [bytes] = grown(std::array::from_mut(&mut self.bytes), [latest.bytes]);
        Self { durations: self.durations.delta(&latest.durations), bytes }
    }
}

/// Ended stalls by [`Recovery`].
pub type Stalls = [Blocked; Recovery::COUNT];
