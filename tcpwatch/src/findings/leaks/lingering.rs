//! Connections that stay in a state longer than the state's limit.
//!
//! In: the table and the limits. Out: one [`Leak`] for each process, network namespace, role, state,
//! peer and kind of evidence.
//! The cost depends on the number of lingering connections, not on the size of the table.

use std::{collections::BTreeMap, net::Ipv6Addr, time::Duration};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    findings::{
        Severity,
        evidence::{self, Evidence, OtherEnd, OtherEnds, WaitsFor},
        leaks::{
            Counts, Key, Leak, LeakHistory, ProcessKey,
            words::{self, Facts},
        },
    },
    model::{
        address::GroupAddress,
        groups::{GroupId, Groups, Role},
        processes::ProcessId,
        table::{Conn, ConnFlags},
        tracker::{
            Tracker,
            overflows::{Listening, Queue},
        },
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
    let groups = group(tracker, limits, clock.now_ns);
    let has_closed = groups.keys().any(|key| key.state == TcpState::CloseWait);
    let shut_down = if has_closed { evidence::shut_down_by_process(tracker) } else { FxHashMap::default() };
    let conns = groups.values().flat_map(|group| &group.conns).chain(shut_down.values().flatten());
    let known = Known { tracker, other_ends: OtherEnds::find(tracker, conns.copied()), shut_down };
    groups
        .iter()
        .map(|(key, group)| leak(&known, key, group, history.growth(key, group.begun, clock), clock))
        .collect()
}

/// What the groups of connections are compared with.
struct Known<'a> {
    tracker: &'a Tracker,
    other_ends: OtherEnds<'a>,
    shut_down: FxHashMap<ProcessId, Vec<&'a Conn>>,
}

impl Known<'_> {
    /// What a proxy waits for: of most connections of the group, or it is chance.
    fn waits_for(&self, key: &Key, group: &Group<'_>) -> Option<WaitsFor> {
        let asked = key.state == TcpState::CloseWait && key.evidence != Evidence::Unaccepted;
        let shut_down = self.shut_down.get(&group.oldest.process.filter(|_| asked)?)?;
        let matched = evidence::waits_for(&group.conns, shut_down);
        let example = *matched.first().filter(|_| 2 * matched.len() > group.conns.len())?;
        Some(WaitsFor {
            count: matched.len(),
            remote: example.remote.into(),
            other_end: self.other_ends.of_most(self.tracker, &matched),
        })
    }

    /// The accept queue that the group's connections wait in or for, and its listener.
    fn listener(&self, key: &Key, group: &Group<'_>) -> Option<(&Conn, &Listening)> {
        let conn = match (key.state, key.evidence) {
            (TcpState::CloseWait, Evidence::Unaccepted) | (TcpState::SynRecv, _) => {
                self.tracker.listener_of(group.oldest)?
            }
            (TcpState::SynSent, _) => evidence::listener(self.tracker, key.netns, group.oldest.remote)?,
            _ => return None,
        };
        Some((conn, self.tracker.queue(conn.cookie)?))
    }
}

/// Counts the members of each leak. Leaves out connections that entered their state before tcpwatch saw them: they are
/// no growth.
pub(super) fn count(tracker: &Tracker, limits: &LingerLimits, now_ns: u64, counts: &mut Counts) {
    for conn in lingering(tracker, limits, now_ns).filter(|conn| !conn.is(ConnFlags::STATE_OLDER)) {
        *counts.entry(key(tracker, conn, now_ns)).or_default() += 1;
    }
}

fn key(tracker: &Tracker, conn: &Conn, now_ns: u64) -> Key {
    Key {
        process: conn.process.map(|id| ProcessKey::of(tracker, id)),
        role: conn.role,
        state: conn.state(),
        evidence: evidence::of(conn, now_ns),
        netns: conn.netns,
        peer: conn.peer(),
    }
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
    conns: Vec<&'a Conn>,
    /// How many of them were seen to enter the state.
    begun: usize,
    unread_bytes: u64,
    unsent_bytes: u64,
    addrs: FxHashSet<Ipv6Addr>,
    local_addrs: FxHashSet<Ipv6Addr>,
}

fn group<'a>(tracker: &'a Tracker, limits: &'a LingerLimits, now_ns: u64) -> FxHashMap<Key, Group<'a>> {
    let mut groups: FxHashMap<Key, Group<'a>> = FxHashMap::default();
    for conn in lingering(tracker, limits, now_ns) {
        let group = groups.entry(key(tracker, conn, now_ns)).or_insert_with(|| Group {
            oldest: conn,
            conns: Vec::new(),
            begun: 0,
            unread_bytes: 0,
            unsent_bytes: 0,
            addrs: FxHashSet::default(),
            local_addrs: FxHashSet::default(),
        });
        if conn.since_ns() < group.oldest.since_ns() {
            group.oldest = conn;
        }
        group.conns.push(conn);
        group.begun += usize::from(!conn.is(ConnFlags::STATE_OLDER));
        group.unread_bytes += u64::from(conn.unread_bytes);
        let unsent = conn.standing().map_or(0, |standing| standing.unsent_bytes(conn.state()));
        group.unsent_bytes += u64::from(unsent);
        group.addrs.insert(conn.remote.addr);
        group.local_addrs.insert(conn.local.addr);
    }
    groups
}

fn leak(known: &Known<'_>, key: &Key, group: &Group<'_>, growth: Option<f64>, clock: Clock) -> Leak {
    let tracker = known.tracker;
    let process = group.oldest.process.map(|id| tracker.processes().get(id).clone());
    let count = group.conns.len();
    let only = |addrs: &FxHashSet<Ipv6Addr>| match addrs.len() {
        1 => addrs.iter().next().map(Ipv6Addr::to_canonical),
        _ => None,
    };
    // Where the role is unknown, either port may be ephemeral, and the connections of the group differ in both.
    let (is_client, is_server) = (key.role == Role::Client, key.role == Role::Server);
    let listener = known.listener(key, group);
    let queue = listener.map(|(_, listening)| Queue::from(listening));
    let of_listener = listener.filter(|_| key.state == TcpState::SynSent).map(|(conn, _)| OtherEnd {
        process: conn.process.map(|id| tracker.processes().get(id).clone()),
        state: TcpState::Listen,
        count,
    });
    let mut leak = Leak {
        rule: rule(key.state),
        severity: severity(key, count, growth),
        state: key.state,
        role: key.role,
        evidence: key.evidence,
        netns: Some(key.netns),
        local: GroupAddress {
            addr: only(&group.local_addrs),
            // 0: the port of a connecting socket is not known before the next sweep.
            port: (is_server || count == 1).then_some(group.oldest.local.port).filter(|port| *port != 0),
        },
        remote: GroupAddress {
            addr: only(&group.addrs),
            port: (is_client || count == 1).then_some(group.oldest.remote.port),
        },
        distinct_remote_addrs: group.addrs.len(),
        count,
        oldest_seconds: clock.seconds_since(group.oldest.since_ns()),
        oldest_is_lower_bound: group.begun < count,
        growth_per_minute: growth,
        unread_bytes: group.unread_bytes,
        unsent_bytes: group.unsent_bytes,
        queue,
        other_end: known.other_ends.of_most(tracker, &group.conns).or(of_listener),
        waits_for: known.waits_for(key, group),
        summary: String::new(),
        next_step: String::new(),
        example_fds: Vec::new(),
        process,
    };
    let facts = Facts {
        peer: key.peer,
        holds: group.oldest.is(ConnFlags::OWNER_HOLDS),
        nothing_on_its_way: group
            .conns
            .iter()
            .all(|conn| conn.standing().is_some_and(|standing| standing.unacknowledged_segments == 0)),
    };
    (leak.summary, leak.next_step) = words::words(&leak, &facts);
    leak
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

/// CLOSE_WAIT never ends by itself: 100 connections, or 10 that grow by one a minute, are worth waking somebody for; but
/// not those that a pool will close, or that are in use. The other states end by the kernel's own timers; many
/// connections in them mean that something outside this process is wrong.
fn severity(key: &Key, count: usize, growth: Option<f64>) -> Severity {
    let growing = count >= 10 && growth.is_some_and(|growth| growth >= 1.0);
    let many = count >= 100 || growing;
    match (key.state, key.evidence) {
        (TcpState::CloseWait, Evidence::Idle) if growing && count >= 100 => Severity::Critical,
        (TcpState::CloseWait, Evidence::Idle | Evidence::Sending) if many => Severity::Warning,
        (TcpState::CloseWait, Evidence::Idle | Evidence::Sending) | (_, Evidence::Deferred) => Severity::Info,
        (TcpState::CloseWait, _) if many => Severity::Critical,
        (TcpState::CloseWait, _) => Severity::Warning,
        _ if count >= 10 => Severity::Warning,
        _ => Severity::Info,
    }
}
