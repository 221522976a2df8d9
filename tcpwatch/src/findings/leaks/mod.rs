//! What lasts too long, for `/leaks`: [`Leak`]s, worst first, each for one process, role, state and peer.

pub mod lingering;
mod socket_fd_leak;
mod words;

use std::{collections::VecDeque, time::Duration};

use rustc_hash::FxHashMap;
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    findings::{
        Severity,
        evidence::{Evidence, OtherEnd, WaitsFor},
        leaks::lingering::LingerLimits,
    },
    model::{
        address::GroupAddress,
        groups::{Peer, Role},
        processes::{Process, ProcessId},
        tracker::{Tracker, overflows::Queue},
    },
    tcp::{state::TcpState, time::Clock},
};

/// Everything that lasts too long at `clock`, worst first.
pub fn leaks(tracker: &Tracker, limits: &LingerLimits, history: &LeakHistory, clock: Clock) -> Vec<Leak> {
    let mut leaks = lingering::leaks(tracker, limits, history, clock);
    leaks.extend(socket_fd_leak::leaks(tracker, limits, history, clock));
    leaks.sort_by(|a, b| {
        let worst = b.severity.cmp(&a.severity).then(b.count.cmp(&a.count));
        worst.then(b.oldest_seconds.total_cmp(&a.oldest_seconds))
    });
    leaks
}

/// Connections of one process, role, state and peer that stand too long.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Leak {
    /// Name of the rule that found them.
    pub rule: &'static str,
    /// How urgent it is.
    pub severity: Severity,
    /// The state that they stand in; CLOSE for sockets that are no connections.
    pub state: TcpState,
    /// Which side of the connections the sockets are.
    pub role: Role,
    /// What is known of them beyond their state.
    pub evidence: Evidence,
    /// Inode of their network namespace; `null` for sockets that are no connections.
    pub netns: Option<u32>,
    /// The process that holds them, or held them last; `null` where it is not known.
    pub process: Option<Process>,
    /// Their local end; the port of a client's connections is `null` unless there is only one.
    pub local: GroupAddress,
    /// Their remote end; the port of a server's connections is `null` unless there is only one.
    pub remote: GroupAddress,
    /// Number of different addresses at the remote ends.
    pub distinct_remote_addrs: usize,
    /// Number of connections.
    pub count: usize,
    /// Seconds that the oldest has been in this state.
    pub oldest_seconds: f64,
    /// Whether `oldest_seconds` is a lower bound: one of them was in this state when tcpwatch first saw it there.
    pub oldest_is_lower_bound: bool,
    /// Connections more, or fewer, a minute; 0 where their number does not go on changing: a single step is no growth.
    /// `null` until they have been watched for half a minute.
    pub growth_per_minute: Option<f64>,
    /// Bytes received and not read by the application, over all of them.
    pub unread_bytes: u64,
    /// Bytes written and not sent, over all of them.
    pub unsent_bytes: u64,
    /// The accept queue that they wait in or for, where its listener is known; `null` of other states.
    pub queue: Option<Queue>,
    /// Who holds the other end of most of them, where that is on this node; the listener there while nobody has it.
    pub other_end: Option<OtherEnd>,
    /// The connections that the process waits for before it closes these, as a proxy does; `null` where none are known.
    pub waits_for: Option<WaitsFor>,
    /// A few of the process's file descriptors, of the rule `socket_fd_leak`; absent of others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub example_fds: Vec<u32>,
    /// What is wrong, in words.
    pub summary: String,
    /// What to do about it, in words.
    pub next_step: String,
}

/// What a leak is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    process: Option<ProcessKey>,
    role: Role,
    state: TcpState,
    evidence: Evidence,
    netns: u32,
    peer: Peer,
}

/// Identifies a process for longer than its slot in the table, which may come to name another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct ProcessKey {
    pid: u32,
    start_ns: u64,
    exec_id: u32,
}

impl ProcessKey {
    fn of(tracker: &Tracker, id: ProcessId) -> Self {
        let Process { pid, start_ns, exec_id, .. } = *tracker.processes().get(id);
        Self { pid, start_ns, exec_id }
    }
}

type Counts = FxHashMap<Key, usize>;

/// For how long counts are kept, and for how long they must have been taken before they say anything.
const WINDOW_NS: u64 = 300_000_000_000;
const GROWTH_MIN_NS: u64 = 30_000_000_000;
/// A number grows if it has changed in this many samples, and changes still.
const CHANGES: usize = 3;
/// Time between two samples of the counts.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// Samples of the last minutes: how many connections or sockets each leak had.
#[derive(Default)]
pub struct LeakHistory {
    samples: VecDeque<(u64, Counts)>,
}

impl LeakHistory {
    /// Takes a sample; to be called every [`SAMPLE_INTERVAL`].
    pub fn sample(&mut self, tracker: &Tracker, limits: &LingerLimits, now_ns: u64) {
        let mut counts = Counts::default();
        lingering::count(tracker, limits, now_ns, &mut counts);
        socket_fd_leak::count(tracker, limits, now_ns, &mut counts);
        self.samples.push_back((now_ns, counts));
        while self.samples.front().is_some_and(|(then, _)| then.saturating_add(WINDOW_NS) < now_ns) {
            self.samples.pop_front();
        }
    }

    /// Per minute, since the first of the changes that are still going on; `None` until it has been watched for long
    /// enough.
    fn growth(&self, key: &Key, count: usize, clock: Clock) -> Option<f64> {
        let (then, _) = self.samples.front()?;
        if clock.now_ns.saturating_sub(*then) < GROWTH_MIN_NS {
            return None;
        }
        let sampled = |counts: &Counts| counts.get(key).copied().unwrap_or(0);
        let changes: Vec<(u64, usize)> = self
            .samples
            .iter()
            .zip(self.samples.iter().skip(1))
            .filter(|((_, before), (_, after))| sampled(before) != sampled(after))
            .map(|(_, (then, after))| (*then, sampled(after)))
            .collect();
        let (Some((first_ns, before)), Some((last_ns, _))) = (changes.first(), changes.last()) else {
            return Some(0.0);
        };
        let mean_gap_ns = (last_ns - first_ns) / changes.len().saturating_sub(1).max(1) as u64;
        let since_last_ns = clock.now_ns.saturating_sub(*last_ns);
        // Two missing changes, or three samples without one, and it has stopped.
        let goes_on = since_last_ns <= (2 * mean_gap_ns).max(3 * SAMPLE_INTERVAL.as_nanos() as u64);
        if changes.len() < CHANGES || !goes_on {
            return Some(0.0);
        }
        let elapsed = clock.now_ns.saturating_sub(*first_ns);
        let per_minute = (count as f64 - *before as f64) * 60e9 / elapsed as f64;
        Some((per_minute * 10.0).round() / 10.0)
    }
}
