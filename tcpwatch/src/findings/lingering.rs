//! Connections that stand longer than their limit in a state that should be short.
//!
//! In: the table and the limits. Out: one [`Leak`] for each process, role, state and peer, worst first.
//! It looks only at what lingers, however large the table is.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use rustc_hash::{FxHashMap, FxHashSet};
use serde::Serialize;

use crate::{
    aggregate::{GroupId, Groups, Peer, Role},
    clock::Clock,
    process::Process,
    state::TcpState,
    table::Conn,
    tracker::Tracker,
};

/// How long each state may last. Why these defaults: docs/findings.md.
pub const DEFAULT_LIMITS: [(TcpState, Duration); 7] = [
    (TcpState::CloseWait, Duration::from_secs(30)),
    (TcpState::FinWait1, Duration::from_secs(30)),
    (TcpState::FinWait2, Duration::from_secs(30)),
    (TcpState::Closing, Duration::from_secs(30)),
    (TcpState::LastAck, Duration::from_secs(30)),
    (TcpState::SynSent, Duration::from_secs(5)),
    (TcpState::SynRecv, Duration::from_secs(5)),
];

/// The states that have a limit, with it.
#[derive(Clone, Debug)]
pub struct LingerLimits(BTreeMap<TcpState, Duration>);

impl Default for LingerLimits {
    fn default() -> Self {
        Self(DEFAULT_LIMITS.into_iter().collect())
    }
}

impl LingerLimits {
    /// # Errors
    /// For a state that may last as long as it likes.
    pub fn set(&mut self, state: TcpState, limit: Duration) -> Result<(), String> {
        let Some(known) = self.0.get_mut(&state) else {
            let names: Vec<_> = self.0.keys().map(|state| state.name()).collect();
            return Err(format!("{state} has no limit; the states that have: {}", names.join(", ")));
        };
        *known = limit;
        Ok(())
    }

    pub fn iter(&self) -> impl Iterator<Item = (TcpState, Duration)> {
        self.0.iter().map(|(state, limit)| (*state, *limit))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

/// One line of `/leaks`.
#[derive(Clone, Debug, Serialize)]
pub struct Leak {
    pub rule: &'static str,
    pub severity: Severity,
    pub state: TcpState,
    pub role: Role,
    pub process: Option<Process>,
    pub local: GroupEnd,
    pub peer: GroupPeer,
    pub count: usize,
    pub oldest_seconds: f64,
    /// The oldest was already in this state when tcpwatch first saw it.
    pub at_least: bool,
    /// `null` until it has been watched for long enough.
    pub growth_per_minute: Option<f64>,
    /// Received and not read by the application, over all of them.
    pub unread_bytes: u64,
    pub summary: String,
    pub next_step: String,
}

/// What the group's connections have in common; `null` where they differ.
#[derive(Clone, Debug, Serialize)]
pub struct GroupEnd {
    pub addr: Option<String>,
    pub port: Option<u16>,
}

#[derive(Clone, Debug, Serialize)]
pub struct GroupPeer {
    pub addr: Option<String>,
    pub port: Option<u16>,
    pub distinct_addrs: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    /// Pid and start time: a table slot may come to name another process.
    process: Option<(u32, u64)>,
    role: Role,
    state: TcpState,
    peer: Peer,
}

/// Growth is measured against the count of a minute ago, or of as long ago as there are counts.
const GROWTH_WINDOW_NS: u64 = 60_000_000_000;
const GROWTH_MIN_NS: u64 = 10_000_000_000;
/// How often the counts are noted.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// How many lingered, in the last minute, in each group.
#[derive(Default)]
pub struct LingerHistory {
    samples: VecDeque<(u64, FxHashMap<Key, usize>)>,
}

impl LingerHistory {
    /// Notes the counts of now; to be called every [`SAMPLE_INTERVAL`].
    pub fn sample(&mut self, tracker: &Tracker, limits: &LingerLimits, now_ns: u64) {
        let counts =
            group(tracker, limits, now_ns).into_iter().map(|(key, group)| (key, group.count)).collect();
        self.samples.push_back((now_ns, counts));
        while self.samples.front().is_some_and(|(then, _)| then + GROWTH_WINDOW_NS < now_ns) {
            self.samples.pop_front();
        }
    }

    fn growth_per_minute(&self, key: &Key, count: usize, now_ns: u64) -> Option<f64> {
        let (then, counts) = self.samples.front()?;
        let elapsed = now_ns.saturating_sub(*then);
        if elapsed < GROWTH_MIN_NS {
            return None;
        }
        let before = counts.get(key).copied().unwrap_or(0);
        let per_minute = (count as f64 - before as f64) * 60e9 / elapsed as f64;
        Some((per_minute * 10.0).round() / 10.0)
    }
}

/// What lingers at `clock`, worst first.
pub fn leaks(tracker: &Tracker, limits: &LingerLimits, history: &LingerHistory, clock: Clock) -> Vec<Leak> {
    let mut leaks: Vec<_> = group(tracker, limits, clock.now_ns)
        .into_iter()
        .map(|(key, group)| {
            let growth = history.growth_per_minute(&key, group.count, clock.now_ns);
            leak(tracker, &key, &group, growth, clock)
        })
        .collect();
    leaks.sort_by(|a, b| {
        let worst = b.severity.cmp(&a.severity).then(b.count.cmp(&a.count));
        worst.then(b.oldest_seconds.total_cmp(&a.oldest_seconds))
    });
    leaks
}

/// How many linger, by state and by the group of the counts that they belong to, for `/metrics`.
pub fn counts(tracker: &Tracker, limits: &LingerLimits, now_ns: u64) -> BTreeMap<(TcpState, GroupId), usize> {
    let mut counts = BTreeMap::new();
    for conn in lingering(tracker, limits, now_ns) {
        *counts.entry((conn.state(), conn.group.unwrap_or(Groups::OTHER))).or_default() += 1;
    }
    counts
}

fn lingering<'a>(
    tracker: &'a Tracker,
    limits: &'a LingerLimits,
    now_ns: u64,
) -> impl Iterator<Item = &'a Conn> {
    limits.iter().flat_map(move |(state, limit)| {
        let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let entered_by = now_ns.checked_sub(limit_ns);
        entered_by.into_iter().flat_map(move |entered_by| tracker.table.lingering(state, entered_by))
    })
}

struct Group<'a> {
    oldest: &'a Conn,
    count: usize,
    unread_bytes: u64,
    addrs: FxHashSet<std::net::Ipv6Addr>,
    local_addrs: FxHashSet<std::net::Ipv6Addr>,
    unaccepted: usize,
}

fn group<'a>(tracker: &'a Tracker, limits: &'a LingerLimits, now_ns: u64) -> FxHashMap<Key, Group<'a>> {
    let mut groups: FxHashMap<Key, Group<'a>> = FxHashMap::default();
    for conn in lingering(tracker, limits, now_ns) {
        let process = conn.process.map(|id| tracker.processes.get(id));
        let process = process.map(|process| (process.pid, process.start_ns));
        let key = Key { process, role: conn.role, state: conn.state(), peer: conn.peer() };
        let group = groups.entry(key).or_insert_with(|| Group {
            oldest: conn,
            count: 0,
            unread_bytes: 0,
            addrs: FxHashSet::default(),
            local_addrs: FxHashSet::default(),
            unaccepted: 0,
        });
        if conn.since_ns() < group.oldest.since_ns() {
            group.oldest = conn;
        }
        group.count += 1;
        group.unread_bytes += u64::from(conn.unread_bytes);
        group.addrs.insert(conn.remote.addr);
        group.local_addrs.insert(conn.local.addr);
        group.unaccepted += usize::from(conn.marks.unaccepted);
    }
    groups
}

fn leak(tracker: &Tracker, key: &Key, group: &Group<'_>, growth: Option<f64>, clock: Clock) -> Leak {
    let process = group.oldest.process.map(|id| tracker.processes.get(id).clone());
    let only = |addrs: &FxHashSet<std::net::Ipv6Addr>| match addrs.len() {
        1 => addrs.iter().next().map(|addr| addr.to_canonical().to_string()),
        _ => None,
    };
    let is_client = key.role == Role::Client;
    let name = process.as_ref().map_or("an unknown process", |process| &*process.comm);
    let peer = match key.peer {
        Peer::Remote(..) => format!("{}", key.peer),
        _ => format!("clients of port {}", group.oldest.local.port),
    };
    let (summary, next_step) = words(key.state, name, &peer, group);
    Leak {
        rule: rule(key.state),
        severity: severity(key.state, group.count, growth),
        state: key.state,
        role: key.role,
        local: GroupEnd {
            addr: only(&group.local_addrs),
            port: (!is_client || group.count == 1).then_some(group.oldest.local.port),
        },
        peer: GroupPeer {
            addr: only(&group.addrs),
            port: (is_client || group.count == 1).then_some(group.oldest.remote.port),
            distinct_addrs: group.addrs.len(),
        },
        count: group.count,
        oldest_seconds: clock.seconds_since(group.oldest.since_ns()),
        at_least: group.oldest.marks.state_older,
        growth_per_minute: growth,
        unread_bytes: group.unread_bytes,
        summary,
        next_step,
        process,
    }
}

fn rule(state: TcpState) -> &'static str {
    match state {
        TcpState::CloseWait => "close_wait_leak",
        TcpState::FinWait2 => "fin_wait2_pileup",
        TcpState::FinWait1 => "lingering_fin_wait1",
        TcpState::Closing => "lingering_closing",
        TcpState::LastAck => "lingering_last_ack",
        TcpState::SynSent => "lingering_syn_sent",
        TcpState::SynRecv => "lingering_syn_recv",
        TcpState::Established => "lingering_established",
        TcpState::TimeWait => "lingering_time_wait",
        TcpState::Close => "lingering_close",
        TcpState::Listen => "lingering_listen",
    }
}

/// CLOSE_WAIT never ends by itself, so it is worth waking somebody once it is many or grows. The other
/// states end by the kernel's own timers; many of them say that something beyond this process is wrong.
fn severity(state: TcpState, count: usize, growth: Option<f64>) -> Severity {
    let many = count >= 100 || (count >= 10 && growth.is_some_and(|growth| growth >= 1.0));
    match (state, many) {
        (TcpState::CloseWait, true) => Severity::Critical,
        (TcpState::CloseWait, false) | (_, true) => Severity::Warning,
        (_, false) if count >= 10 => Severity::Warning,
        (_, false) => Severity::Info,
    }
}

/// What is wrong and what to do, for somebody who was just woken up.
fn words(state: TcpState, name: &str, peer: &str, group: &Group<'_>) -> (String, String) {
    let count = group.count;
    let connections = if count == 1 { "1 connection".to_owned() } else { format!("{count} connections") };
    match state {
        TcpState::CloseWait if group.unaccepted == count => (
            format!(
                "{peer} closed {connections}; no process has been seen to hold them, so {name}, which listens, \
                 has most likely not accepted them."
            ),
            format!(
                "See whether {name} still calls accept(): its accept loop blocked, or its connection limit reached."
            ),
        ),
        TcpState::CloseWait => (
            format!("{peer} closed {connections}, but {name} never called close() on its side."),
            format!(
                "Look for code in {name} that does not close after the peer is gone: a handler blocked on a pool \
                 or lock, an unfinished transaction, an unread response. Until it is fixed only a restart frees them."
            ),
        ),
        TcpState::FinWait2 => (
            format!("{name} closed {connections} to {peer}, but the peer never closed its side."),
            "Look at the peer: it is stuck before its close(), slower than this side's time-out, or gone."
                .to_owned(),
        ),
        TcpState::FinWait1 => (
            format!("{name} closed {connections} to {peer}; the close was never acknowledged."),
            "The peer or the network between is gone, or the peer has stopped reading (zero window) with data \
             still unsent. Check that the peer is reachable and reading."
                .to_owned(),
        ),
        TcpState::LastAck | TcpState::Closing => (
            format!("{connections} of {name} with {peer} wait for the last acknowledgement of the close."),
            "The peer or the network between is gone, or a firewall drops its last packets.".to_owned(),
        ),
        TcpState::SynSent => (
            format!("{name} waits for {connections} to {peer} to be answered."),
            "Nothing answers: a wrong address, a host that is down, a firewall that drops, or a full accept \
             queue at the other side."
                .to_owned(),
        ),
        _ => (
            format!("{connections} of {name} with {peer} stand in {state} longer than they should."),
            "The handshake does not complete: look for loss between the two ends.".to_owned(),
        ),
    }
}
