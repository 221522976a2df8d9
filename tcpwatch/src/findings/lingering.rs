//! Connections that stay in a state longer than the state's limit.
//!
//! In: the table and the limits. Out: one [`Leak`] for each process, role, state and peer.
//! The cost depends on the number of lingering connections, not on the size of the table.

use std::{collections::BTreeMap, net::Ipv6Addr, time::Duration};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    findings::{Counts, Key, Leak, LeakHistory, Severity},
    model::{
        address::GroupAddress,
        groups::{GroupId, Groups, Peer, Role},
        table::{Conn, ConnFlags},
        tracker::Tracker,
    },
    tcp::{state::TcpState, time::Clock},
};

/// How long each state may last by default. docs/findings.md gives the reasons.
pub const DEFAULT_LIMITS: [(TcpState, Duration); 8] = [
    (TcpState::CloseWait, Duration::from_secs(30)),
    (TcpState::FinWait1, Duration::from_secs(30)),
    (TcpState::FinWait2, Duration::from_secs(30)),
    (TcpState::Closing, Duration::from_secs(30)),
    (TcpState::LastAck, Duration::from_secs(30)),
    (TcpState::SynSent, Duration::from_secs(5)),
    (TcpState::SynRecv, Duration::from_secs(5)),
    (TcpState::Close, Duration::from_secs(30)),
];

/// The states that have a limit, and the limit of each.
#[derive(Clone, Debug)]
pub struct LingerLimits(BTreeMap<TcpState, Duration>);

impl Default for LingerLimits {
    fn default() -> Self {
        Self(DEFAULT_LIMITS.into_iter().collect())
    }
}

impl LingerLimits {
    /// Changes the limit of a state.
    ///
    /// # Errors
    /// For a state without a limit.
    pub fn set(&mut self, state: TcpState, limit: Duration) -> Result<(), String> {
        let Some(known) = self.0.get_mut(&state) else {
            let names: Vec<_> = self.0.keys().map(|state| state.name()).collect();
            return Err(format!("{state} has no limit; the states that have: {}", names.join(", ")));
        };
        *known = limit;
        Ok(())
    }

    /// The limit of a state, if it has one.
    pub fn get(&self, state: TcpState) -> Option<Duration> {
        self.0.get(&state).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (TcpState, Duration)> {
        self.0.iter().map(|(state, limit)| (*state, *limit))
    }
}

/// The leaks at `clock`, unsorted.
pub(super) fn leaks(
    tracker: &Tracker,
    limits: &LingerLimits,
    history: &LeakHistory,
    clock: Clock,
) -> Vec<Leak> {
    let groups = group(tracker, limits, clock.now_ns).into_iter();
    groups
        .map(|(key, group)| leak(tracker, &key, &group, history.growth(&key, group.begun, clock), clock))
        .collect()
}

/// Counts the members of each leak. Leaves out connections that entered their state before tcpwatch saw them: they are
/// no growth.
pub(super) fn count(tracker: &Tracker, limits: &LingerLimits, now_ns: u64, counts: &mut Counts) {
    for conn in lingering(tracker, limits, now_ns).filter(|conn| !conn.is(ConnFlags::STATE_OLDER)) {
        *counts.entry(key(tracker, conn)).or_default() += 1;
    }
}

fn key(tracker: &Tracker, conn: &Conn) -> Key {
    let process = conn.process.map(|id| tracker.processes().get(id));
    let process = process.map(|process| (process.pid, process.start_ns, process.exec_id));
    Key { process, role: conn.role, state: conn.state(), peer: conn.peer() }
}

/// Lingering connections by state and by group of the counts, for `/metrics`.
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
        entered_by.into_iter().flat_map(move |entered_by| tracker.table().lingering(state, entered_by))
    })
}

struct Group<'a> {
    oldest: &'a Conn,
    count: usize,
    /// How many of `count` were seen to enter the state.
    begun: usize,
    unread_bytes: u64,
    addrs: FxHashSet<Ipv6Addr>,
    local_addrs: FxHashSet<Ipv6Addr>,
    unaccepted: usize,
}

fn group<'a>(tracker: &'a Tracker, limits: &'a LingerLimits, now_ns: u64) -> FxHashMap<Key, Group<'a>> {
    let mut groups: FxHashMap<Key, Group<'a>> = FxHashMap::default();
    for conn in lingering(tracker, limits, now_ns) {
        let group = groups.entry(key(tracker, conn)).or_insert_with(|| Group {
            oldest: conn,
            count: 0,
            begun: 0,
            unread_bytes: 0,
            addrs: FxHashSet::default(),
            local_addrs: FxHashSet::default(),
            unaccepted: 0,
        });
        if conn.since_ns() < group.oldest.since_ns() {
            group.oldest = conn;
        }
        group.count += 1;
        group.begun += usize::from(!conn.is(ConnFlags::STATE_OLDER));
        group.unread_bytes += u64::from(conn.unread_bytes);
        group.addrs.insert(conn.remote.addr);
        group.local_addrs.insert(conn.local.addr);
        group.unaccepted += usize::from(conn.accepted() == Some(false));
    }
    groups
}

fn leak(tracker: &Tracker, key: &Key, group: &Group<'_>, growth: Option<f64>, clock: Clock) -> Leak {
    let process = group.oldest.process.map(|id| tracker.processes().get(id).clone());
    let only = |addrs: &FxHashSet<Ipv6Addr>| match addrs.len() {
        1 => addrs.iter().next().map(Ipv6Addr::to_canonical),
        _ => None,
    };
    // Where the role is unknown, either port may be ephemeral, and the connections of the group differ in both.
    let (is_client, is_server) = (key.role == Role::Client, key.role == Role::Server);
    let name = process.as_ref().map_or("an unknown process", |process| &*process.comm);
    let peer = match key.peer {
        Peer::Remote(..) => format!("{}", key.peer),
        Peer::LocalPort(port) => format!("clients of port {port}"),
        Peer::Unknown | Peer::Other if group.count == 1 => "its peer".to_owned(),
        Peer::Unknown | Peer::Other => "their peers".to_owned(),
    };
    let (summary, next_step) = words(key.state, name, &peer, group);
    Leak {
        rule: rule(key.state),
        severity: severity(key.state, group.count, growth),
        state: key.state,
        role: key.role,
        local: GroupAddress {
            addr: only(&group.local_addrs),
            // 0: the port of a connecting socket is not known before the next sweep.
            port: (is_server || group.count == 1)
                .then_some(group.oldest.local.port)
                .filter(|port| *port != 0),
        },
        remote: GroupAddress {
            addr: only(&group.addrs),
            port: (is_client || group.count == 1).then_some(group.oldest.remote.port),
        },
        distinct_remote_addrs: group.addrs.len(),
        count: group.count,
        oldest_seconds: clock.seconds_since(group.oldest.since_ns()),
        oldest_is_lower_bound: group.begun < group.count,
        growth_per_minute: growth,
        unread_bytes: group.unread_bytes,
        summary,
        next_step,
        example_fds: Vec::new(),
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

/// CLOSE_WAIT never ends by itself: 100 connections, or 10 that grow by one a minute, are worth waking somebody for.
/// The other states end by the kernel's own timers; many connections in them mean that something outside this process
/// is wrong.
fn severity(state: TcpState, count: usize, growth: Option<f64>) -> Severity {
    let many = count >= 100 || (count >= 10 && growth.is_some_and(|growth| growth >= 1.0));
    match (state, many) {
        (TcpState::CloseWait, true) => Severity::Critical,
        (TcpState::CloseWait, false) | (_, true) => Severity::Warning,
        (_, false) if count >= 10 => Severity::Warning,
        (_, false) => Severity::Info,
    }
}

/// The summary (what is wrong) and the next step (what to do), for somebody who was just woken up.
fn words(state: TcpState, name: &str, peer: &str, group: &Group<'_>) -> (String, String) {
    let count = group.count;
    let connections = if count == 1 { "1 connection".to_owned() } else { format!("{count} connections") };
    match state {
        TcpState::CloseWait if group.unaccepted == count => (
            format!(
                "{peer} closed {connections} that {name}, which listens there, has not accepted."
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
