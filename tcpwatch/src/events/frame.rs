//! The frames in which everything that changes the node's state comes in.

use bytes::Bytes;
use rustc_hash::FxHashSet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One thing that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A record of the ring.
    Record(Bytes),
    /// A sweep begins, at this time of CLOCK_MONOTONIC.
    SweepBegin(u64),
    /// Something of what the sweep found: `SeenSocket` records.
    Seen(Bytes),
    /// It found no more.
    SweepEnd(Coverage),
    /// What /proc said of a process.
    Process(ProcessFrame),
    /// CLOCK_MONOTONIC, once a second and at the end.
    Tick(u64),
    /// Records lost since the start.
    Lost(LostRecords),
    /// What the programs only counted since the start.
    UnrecordedCounts(UnrecordedCounts),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFrame {
    pub pid: u32,
    pub start_ns: u64,
    #[serde(flatten)]
    pub details: ProcDetails,
}

/// What /proc tells of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct ProcDetails {
    pub exe: Option<String>,
    pub cgroup: Option<String>,
}

/// Which namespaces a sweep listed completely.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Inodes.
    pub namespaces: FxHashSet<u32>,
    /// No other namespace with a process or a name exists.
    pub all: bool,
}

/// What the programs count and write no record of; nothing of it is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnrecordedCounts {
    /// Retransmits and stalls of sockets that the reader had been told of a moment ago.
    pub held_back: u64,
    /// Resets sent in answer to segments of no connection: no socket was found for them, or a listener or the request
    /// of a connection refused them.
    pub no_socket_resets: u64,
    pub listener_resets: u64,
    /// Resets that a packet filter of this machine sent, in answer to segments of no local connection.
    pub policy_resets: u64,
}

/// Why records were lost, and how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LostRecords {
    pub ring_full: u64,
    pub run_skipped: u64,
}

impl LostRecords {
    pub fn total(self) -> u64 {
        self.ring_full + self.run_skipped
    }
}

/// What the records of this run report, which depends on the hooks that write them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedFacts {
    /// Records report when minisocks end; else the ends of their timers are computed.
    pub minisock_ends: bool,
    /// Records report who accepts; else sweeps find out.
    pub accepts: bool,
    /// Records identify a socket by its address, not by its cookie.
    pub identity_is_address: bool,
    /// Records of a socket's end lack its errno.
    pub errnos_missing: bool,
}
