//! The frames that carry all input which changes the node's state.

use std::net::IpAddr;

use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::events::decode::Identity;

/// One piece of input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A record of the ring or of a queue.
    Record(Bytes),
    /// A sweep begins, at this time of CLOCK_MONOTONIC in nanoseconds.
    SweepBegin(u64),
    /// Sightings of the sweep under way: `SeenSocket` records.
    Seen(Bytes),
    /// The sweep is done.
    SweepEnd(Coverage),
    /// A process, as /proc describes it.
    Process(ProcessFrame),
    /// Names of interfaces that sockets are bound to.
    Interfaces(InterfaceNames),
    /// The accept queues of listeners, asked for between sweeps.
    Queues(ListenQueues),
    /// What a network namespace is set to, where that is new.
    Namespace(NamespaceSettings),
    /// How many descriptors a process of a finding has open.
    Descriptors(DescriptorCount),
    /// A look at each of a few sockets that were asked about by themselves.
    Looks(Vec<Look>),
    /// CLOCK_MONOTONIC in nanoseconds: at least once a second, and at the end.
    Tick(u64),
    /// Records lost since the start.
    Lost(LostRecords),
    /// Events since the start that the programs only count.
    UnrecordedCounts(UnrecordedCounts),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFrame {
    #[serde(flatten)]
    pub identity: Identity,
    #[serde(flatten)]
    pub details: ProcDetails,
}

/// What the kernel said of a socket that was asked about by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// Its identity in the records (`SocketEvent::cookie`).
    pub cookie: u64,
    /// `None`: it is gone.
    pub sender: Option<SenderLook>,
}

/// How a connection sends. Names in parentheses are members of `struct tcp_info` (include/uapi/linux/tcp.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SenderLook {
    /// CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// Microseconds in which there was something to send or unacknowledged, since it began (`busy_time`).
    pub busy_us: u64,
    /// Segments with data sent since it began, retransmitted ones included (`data_segs_out`).
    pub data_segments: u32,
    /// Segments retransmitted since it began (`total_retrans`).
    pub retransmitted: u32,
    /// Bytes written and not sent (`notsent_bytes`).
    pub unsent_bytes: u32,
    /// Segments sent and not acknowledged (`unacked`).
    pub unacknowledged_segments: u32,
    /// The largest segment (`snd_mss`).
    pub mss_bytes: u32,
    /// What the peer has room for (`snd_wnd`).
    pub peer_window_bytes: u32,
    /// The least round trip; `None` before the first measurement (`min_rtt`).
    pub min_rtt_us: Option<u32>,
}

/// Names of the interfaces of one network namespace that the sweep under way found sockets bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceNames {
    /// Inode of the namespace.
    pub netns: u32,
    /// By index.
    pub names: Vec<(u32, String)>,
}

/// The accept queues of the listeners of some network namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenQueues {
    /// CLOCK_MONOTONIC in nanoseconds, before the first was read.
    pub time_ns: u64,
    pub namespaces: Vec<NamespaceQueues>,
}

/// The accept queues of the listeners of one network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceQueues {
    /// Inode of the namespace.
    pub netns: u32,
    /// How often a full accept queue had refused there (ListenOverflows), read behind the queues.
    pub overflows: Option<u64>,
    /// The listeners in whose queue something waits, and those that have dropped something. The queues of all others are
    /// empty.
    pub listeners: Vec<QueueRead>,
}

/// One accept queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRead {
    /// The kernel's cookie of the listener.
    pub cookie: u64,
    pub addr: IpAddr,
    pub port: u16,
    pub waiting: u32,
    pub limit: u32,
    /// Segments that it dropped, whatever for (`sk_drops`).
    pub drops: u32,
}

/// What a network namespace is set to, by its files in /proc/sys/net; `None` of what cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceSettings {
    /// Inode of the namespace.
    pub netns: u32,
    /// The most that listen() grants (core/somaxconn).
    pub somaxconn: Option<u32>,
    /// Whether a connecting socket takes the port of a TIME_WAIT over (ipv4/tcp_tw_reuse): 0 never, 1 after a second, 2 only
    /// on loopback.
    pub tw_reuse: Option<u32>,
    /// The first and last of the ports that the kernel chooses from when a socket connects, and the spans of those that it
    /// leaves out.
    pub local_ports: Option<(u16, u16)>,
    pub reserved_ports: Vec<(u16, u16)>,
}

impl NamespaceSettings {
    /// Whether the kernel may choose this port when a socket connects.
    pub fn is_local_port(&self, port: u16) -> bool {
        let within = |(first, last): &(u16, u16)| (*first..=*last).contains(&port);
        self.local_ports.as_ref().is_some_and(within) && !self.reserved_ports.iter().any(within)
    }

    /// From how many ports the kernel chooses when a socket connects.
    pub fn local_port_count(&self) -> Option<usize> {
        let (first, last) = self.local_ports?;
        Some((first..=last).filter(|port| self.is_local_port(*port)).count())
    }
}

/// How many descriptors a process has open, and how many it may have (RLIMIT_NOFILE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorCount {
    pub pid: u32,
    /// As in `Identity`.
    pub start_ns: u64,
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
    pub open: u64,
    pub limit: u64,
}

/// A process's properties in /proc.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct ProcDetails {
    pub exe: Option<String>,
    /// Whether its file was deleted or replaced; `exe` is the path that it had.
    pub exe_deleted: Option<bool>,
    pub cgroup: Option<String>,
}

/// Which namespaces a sweep read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Inodes of those that it read completely.
    pub namespaces: FxHashSet<u32>,
    /// Every namespace that there is at the end of the sweep: its inode, and what tells it from another one with that
    /// inode (`SeenNamespace::identity`). `None` where the kernel does not list them.
    pub existing: Option<FxHashMap<u32, u32>>,
    /// It read everything that there is.
    pub all: bool,
    /// How often a full accept queue refused in each of them (ListenOverflows), as far as it can be read.
    pub overflows: FxHashMap<u32, u64>,
}

/// Events that the programs count without a record. None of them is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnrecordedCounts {
    /// Retransmits and stalls of sockets that the programs had reported a moment before.
    pub held_back: u64,
    /// Resets sent in answer to segments for which no socket was found.
    pub no_socket_resets: u64,
    /// Resets sent in answer to segments that a listener, or the request of a connection, refused.
    pub listener_resets: u64,
    /// Resets that a packet filter of this machine sent, in answer to segments of no local connection.
    pub policy_resets: u64,
}

/// Lost records, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LostRecords {
    /// The ring or a queue had no room.
    pub ring_full: u64,
    /// The kernel skipped a run of a program that would have run inside itself (reported since Linux 5.12).
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
    /// Records report when an orphan in FIN_WAIT2 enters TIME_WAIT; else it follows from the other end, where that is known.
    pub time_waits: bool,
    /// Records identify a socket by its address, not by its cookie.
    pub identity_is_address: bool,
    /// Records of a socket's end lack its errno.
    pub errnos_missing: bool,
    /// Sightings of listeners report how often their full queues refused; else that is concluded from `Coverage`.
    pub overflows: bool,
}
