//! Head-of-line blocking: how often and how long the delivery of what was sent, or received, stood still behind a lost
//! segment.

use tcpwatch_common::{RetransmitEvent, stall};

use crate::tcp::{
    histogram::{Histogram, grown},
    serialized_by_name,
};

/// What made the lost segment good, or was about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Recovery {
    /// The peer's acknowledgements told of the loss.
    Fast = stall::FAST as u8,
    /// No acknowledgement came in time.
    Timeout = stall::TIMEOUT as u8,
    /// A tail loss probe.
    Probe = stall::PROBE as u8,
    /// The peer: this is the receiving side.
    Peer = stall::PEER as u8,
}

impl Recovery {
    pub const COUNT: usize = stall::COUNT;

    /// In the order of the records' counts.
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

/// A stall that is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stalled {
    /// CLOCK_MONOTONIC, when the lost segment was first sent, or the first behind it received.
    pub since_ns: u64,
    pub recovery: Recovery,
    /// Sent after it, and waiting behind it.
    pub bytes: u32,
}

impl Stalled {
    pub(crate) fn told(raw: &RetransmitEvent) -> Option<Self> {
        let recovery = *Recovery::ALL.get(raw.stalled_kind as usize)?;
        let sending = Self { since_ns: raw.stalled_since_ns, recovery, bytes: raw.stalled_bytes };
        let receiving =
            Self { since_ns: raw.waiting_since_ns, recovery: Recovery::Peer, bytes: raw.waiting_bytes };
        // Where both stand still, the longer.
        [sending, receiving].into_iter().filter(|one| one.since_ns != 0).min_by_key(|one| one.since_ns)
    }
}

/// Stalls that are over, made good in one way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Blocked {
    pub durations: Histogram,
    /// Waited behind the lost segments.
    pub bytes: u64,
}

impl Blocked {
    pub(crate) fn told(raw: &RetransmitEvent, recovery: Recovery) -> Self {
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

    /// What is new in `told`, which is the same later.
    pub(crate) fn news(&mut self, told: &Self) -> Self {
        let [bytes] = grown(std::array::from_mut(&mut self.bytes), [told.bytes]);
        Self { durations: self.durations.news(&told.durations), bytes }
    }
}

/// Of each [`Recovery`].
pub type Stalls = [Blocked; Recovery::COUNT];
