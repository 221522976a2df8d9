//! Counts by process name, role and peer: connects, opened, closed, retransmitted, and how long each state lasted.
//!
//! The number of label sets is bounded. A connection holds its group while it lives. A group without a connection for ten
//! minutes is evicted when its place is needed: it vanishes with its counts, as Prometheus expects of a series that
//! ends. What finds no place is counted in `~other`, which never has anything else: rates of sums never jump.

use std::{borrow::Cow, fmt, net::Ipv6Addr, sync::Arc};

use rustc_hash::FxHashMap;

use crate::{
    events::decode::{FAILURES, Traffic},
    model::{
        dense_index::DenseIndex,
        live::Live,
        socket_retransmits::{RetransmitDelta, Retransmitted},
        table::Idle,
    },
    tcp::{
        connect_outcome::Outcome,
        first_close::FirstClose,
        histogram::{Histogram, Lasting, Latency, Layout},
        reset_reason::{Discarded, ObservedReset, ResetReason},
        serialized_by_name,
        stall::Stalls,
        state::TcpState,
    },
};

/// Which side of the connection this socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Client,
    Server,
    Listener,
    Unknown,
}

impl Role {
    pub const ALL: &[Self] = &[Self::Client, Self::Server, Self::Listener, Self::Unknown];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Listener => "listener",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

serialized_by_name!(Role);

/// Who talks to whom, without anything that grows with the number of connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupKey {
    /// The text of the process's name; `None` when its owner is not known, and of [`Groups::OTHER`].
    pub process: Option<Arc<str>>,
    pub role: Role,
    pub peer: Peer,
}

impl GroupKey {
    /// Key of the group that counts what found no place of its own.
    const OTHER: Self = Self { process: None, role: Role::Unknown, peer: Peer::Other };

    pub fn is_other(&self) -> bool {
        self.peer == Peer::Other
    }

    /// The process name as answers show it: `~other` for [`Groups::OTHER`], `None` for an unknown owner.
    pub fn shown_process(&self) -> Option<Arc<str>> {
        if self.is_other() { Some("~other".into()) } else { self.process.clone() }
    }
}

/// The server's side of the connection: for a client whom it dialled, for a server its own port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    Remote(Ipv6Addr, u16),
    LocalPort(u16),
    /// It is not known which side is the server's.
    Unknown,
    /// Of [`Groups::OTHER`] only.
    Other,
}

impl Peer {
    fn port(self) -> u16 {
        match self {
            Self::Remote(_, port) | Self::LocalPort(port) => port,
            Self::Unknown | Self::Other => 0,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote(addr, port) => {
                write!(f, "{}", std::net::SocketAddr::new(addr.to_canonical(), *port))
            }
            Self::LocalPort(port) => write!(f, ":{port}"),
            Self::Unknown => f.write_str("~unknown"),
            Self::Other => f.write_str("~other"),
        }
    }
}

/// The counts of one group.
#[derive(Clone, Debug)]
pub struct Group {
    pub key: GroupKey,
    pub counts: Counts,
    /// Connections that hold it, the minisocks among them.
    held: u32,
    active_ns: u64,
}

impl Group {
    /// How many connections of now are counted here, those in TIME_WAIT among them.
    pub fn held(&self) -> u32 {
        self.held
    }
}

#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Connections that reached ESTABLISHED.
    pub opened: u64,
    /// Connections that had been ESTABLISHED and reached CLOSE, by who closed first.
    pub closed: [u64; FirstClose::ALL.len()],
    /// Attempts to connect, and what became of those that are over.
    pub attempts: u64,
    pub connects: [u64; Outcome::ALL.len()],
    pub traffic: Traffic,
    /// Of it, received after this side had closed, and sent after the peer had.
    pub after_close: Traffic,
    pub retransmitted: Retransmitted,
    /// Retransmits that failed, by errno.
    pub failures: [u64; FAILURES.len()],
    /// Delivery that stood still.
    pub stalls: Option<Box<Stalls>>,
    pub resets: [u64; ResetReason::ALL.len()],
    /// Data that resets discarded.
    pub discarded: Discarded,
    /// How long each state lasted, without SYN_SENT and SYN_RECV. Allocated with the first observation, as all
    /// histograms here.
    pub durations: [Option<Box<Histogram<Lasting>>>; TcpState::COUNT],
    /// How long SYN_SENT lasted when ESTABLISHED followed.
    pub connected: Option<Box<Histogram<Latency>>>,
    /// How long SYN_SENT lasted otherwise: failed connects and simultaneous opens. Apart, so that successes make a
    /// histogram of their own without being observed twice.
    pub unaccepted: Option<Box<Histogram<Latency>>>,
    /// How long SYN_RECV lasted.
    pub accepted: Option<Box<Histogram<Latency>>>,
    /// How long idle connections had been idle when one side closed them, by [`Closer`].
    pub idle: [Option<Box<Histogram<Lasting>>>; Closer::ALL.len()],
    /// Of clients, as sweeps found them: how long an answer took, and the round trip then.
    pub answers: Option<Box<Answers>>,
    pub live: Live,
}

/// Who closed a connection in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Closer {
    Local,
    Peer,
}

impl Closer {
    pub const ALL: [Self; 2] = [Self::Local, Self::Peer];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Peer => "peer",
        }
    }

    /// Who made a connection leave ESTABLISHED for this state.
    pub(crate) fn of(state: TcpState) -> Option<Self> {
        match state {
            TcpState::FinWait1 => Some(Self::Local),
            TcpState::CloseWait => Some(Self::Peer),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Answers {
    pub seconds: Histogram<Latency>,
    pub round_trips: Histogram<Latency>,
}

fn add_histograms<'a, L: Layout + 'a>(
    mine: impl IntoIterator<Item = &'a mut Option<Box<Histogram<L>>>>,
    theirs: impl IntoIterator<Item = &'a Option<Box<Histogram<L>>>>,
) {
    for (mine, theirs) in mine.into_iter().zip(theirs) {
        if let Some(theirs) = theirs {
            mine.get_or_insert_default().add(theirs);
        }
    }
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        for (mine, theirs) in self.closed.iter_mut().zip(other.closed) {
            *mine += theirs;
        }
        self.attempts += other.attempts;
        for (mine, theirs) in self.connects.iter_mut().zip(other.connects) {
            *mine += theirs;
        }
        self.traffic += other.traffic;
        self.after_close += other.after_close;
        self.retransmitted.add(&other.retransmitted);
        self.add_failures(&other.failures);
        if let Some(stalls) = &other.stalls {
            self.add_stalls(stalls);
        }
        for (mine, theirs) in self.resets.iter_mut().zip(other.resets) {
            *mine += theirs;
        }
        self.discarded += other.discarded;
        add_histograms(
            self.durations.iter_mut().chain(&mut self.idle),
            other.durations.iter().chain(&other.idle),
        );
        add_histograms(
            [&mut self.connected, &mut self.unaccepted, &mut self.accepted],
            [&other.connected, &other.unaccepted, &other.accepted],
        );
        if let Some(theirs) = &other.answers {
            let mine = self.answers.get_or_insert_default();
            mine.seconds.add(&theirs.seconds);
            mine.round_trips.add(&theirs.round_trips);
        }
        self.live.add(&other.live);
    }

    pub(crate) fn count_reset(&mut self, reset: &ObservedReset) {
        self.resets[reset.reason as usize] += 1;
        self.discarded += reset.discarded;
    }

    /// But for the segments, which are counted by the socket's own count.
    pub(crate) fn add_delta(&mut self, delta: &RetransmitDelta) {
        self.add_failures(&delta.failures);
        if delta.stalls != Stalls::default() {
            self.add_stalls(&delta.stalls);
        }
    }

    fn add_failures(&mut self, failures: &[u64; FAILURES.len()]) {
        for (mine, theirs) in self.failures.iter_mut().zip(failures) {
            *mine += theirs;
        }
    }

    fn add_stalls(&mut self, stalls: &Stalls) {
        for (mine, theirs) in self.stalls.get_or_insert_default().iter_mut().zip(stalls) {
            mine.add(theirs);
        }
    }

    pub fn closed(&self) -> u64 {
        self.closed.iter().sum()
    }

    pub fn failed_connects(&self) -> u64 {
        let all = Outcome::ALL.iter().zip(self.connects);
        all.filter(|(outcome, _)| outcome.is_failure()).map(|(_, count)| count).sum()
    }

    /// How long a handshake's state lasted, whatever came after it: of SYN_SENT and SYN_RECV.
    pub fn handshake(&self, state: TcpState) -> Option<Cow<'_, Histogram<Latency>>> {
        match (state, &self.connected, &self.unaccepted) {
            (TcpState::SynRecv, ..) => self.accepted.as_deref().map(Cow::Borrowed),
            (TcpState::SynSent, Some(connected), Some(unaccepted)) => {
                let mut sum = (**connected).clone();
                sum.add(unaccepted);
                Some(Cow::Owned(sum))
            }
            (TcpState::SynSent, one, other) => one.as_deref().or(other.as_deref()).map(Cow::Borrowed),
            _ => None,
        }
    }

    pub(crate) fn observe_idle(&mut self, closer: Closer, idle: Idle) {
        let histogram = &mut self.idle[closer as usize];
        histogram.get_or_insert_default().observe(idle.before_close(closer));
    }

    pub(crate) fn observe(&mut self, from: TcpState, to: TcpState, nanos: u64) {
        match (from, to) {
            (TcpState::SynSent, TcpState::Established) => {
                self.connected.get_or_insert_default().observe(nanos);
            }
            (TcpState::SynSent, _) => self.unaccepted.get_or_insert_default().observe(nanos),
            (TcpState::SynRecv, _) => self.accepted.get_or_insert_default().observe(nanos),
            _ => self.durations[from.index()].get_or_insert_default().observe(nanos),
        }
    }
}

/// Index of a group; valid while a connection holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(DenseIndex);

const RECENT: usize = 64;

/// A group that was idle this long may lose its place.
const IDLE_NS: u64 = 600_000_000_000;

pub struct Groups {
    groups: Vec<Group>,
    by_key: FxHashMap<GroupKey, GroupId>,
    /// Groups held last, by a cheap hash: mostly it is one of these.
    recent: [GroupId; RECENT],
    limit: usize,
    /// Times that something was counted in `~other` because no place was free.
    pub folded: u64,
    /// Groups that gave their place to another.
    pub evicted: u64,
    /// Since when a search for a place would be in vain; spares a scan for each new connection.
    full_until_ns: u64,
}

impl Groups {
    pub const OTHER: GroupId = GroupId(DenseIndex::new(0));

    pub fn new(limit: usize) -> Self {
        let other = Group { key: GroupKey::OTHER, counts: Counts::default(), held: 0, active_ns: 0 };
        Self {
            groups: vec![other],
            by_key: FxHashMap::default(),
            recent: [Self::OTHER; RECENT],
            limit,
            folded: 0,
            evicted: 0,
            full_until_ns: 0,
        }
    }

    /// The group of these, held once more. `process`: as in [`GroupKey`].
    pub fn hold(&mut self, process: Option<&Arc<str>>, role: Role, peer: Peer, now_ns: u64) -> GroupId {
        // Both ends of a connection within this machine have the same port.
        let recent = (usize::from(peer.port()) + role as usize * (RECENT / 4)) % RECENT;
        let mut id = self.recent[recent];
        let key = &self.groups[id.0.get()].key;
        if (key.process.as_ref(), key.role, key.peer) != (process, role, peer) {
            let key = GroupKey { process: process.cloned(), role, peer };
            id = match self.by_key.get(&key) {
                Some(id) => *id,
                None => self.place(key, now_ns),
            };
            self.recent[recent] = id;
        }
        let group = &mut self.groups[id.0.get()];
        group.held += 1;
        group.active_ns = now_ns;
        id
    }

    pub fn release(&mut self, id: GroupId, now_ns: u64) {
        let group = &mut self.groups[id.0.get()];
        group.held -= 1;
        group.active_ns = now_ns;
    }

    pub fn key(&self, id: GroupId) -> &GroupKey {
        &self.groups[id.0.get()].key
    }

    pub fn get(&self, id: GroupId) -> &Group {
        &self.groups[id.0.get()]
    }

    pub fn counts(&mut self, id: GroupId) -> &mut Counts {
        &mut self.groups[id.0.get()].counts
    }

    /// For one count of what holds no group: those of the group of these.
    pub fn counts_of(
        &mut self,
        process: Option<&Arc<str>>,
        role: Role,
        peer: Peer,
        now_ns: u64,
    ) -> &mut Counts {
        let id = self.hold(process, role, peer, now_ns);
        self.release(id, now_ns);
        self.counts(id)
    }

    /// How long a connection was in `from` before `to`.
    pub fn observe(&mut self, id: GroupId, from: TcpState, to: TcpState, nanos: u64) {
        self.counts(id).observe(from, to, nanos);
    }

    pub fn iter(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter()
    }

    pub(crate) fn all_counts(&mut self) -> impl Iterator<Item = (GroupId, &mut Counts)> {
        let groups = self.groups.iter_mut().enumerate();
        groups.map(|(index, group)| (GroupId(DenseIndex::new(index)), &mut group.counts))
    }

    pub fn ids(&self) -> impl Iterator<Item = (GroupId, &Group)> {
        self.groups.iter().enumerate().map(|(index, group)| (GroupId(DenseIndex::new(index)), group))
    }

    fn place(&mut self, key: GroupKey, now_ns: u64) -> GroupId {
        let group = Group { key: key.clone(), counts: Counts::default(), held: 0, active_ns: now_ns };
        if self.groups.len() <= self.limit {
            let id = GroupId(DenseIndex::new(self.groups.len()));
            self.groups.push(group);
            self.by_key.insert(key, id);
            return id;
        }
        let idle = |group: &Group| group.held == 0 && group.active_ns.saturating_add(IDLE_NS) <= now_ns;
        let found = if now_ns < self.full_until_ns {
            None
        } else {
            (1..self.groups.len())
                .filter(|index| idle(&self.groups[*index]))
                .min_by_key(|index| self.groups[*index].active_ns)
        };
        let Some(index) = found else {
            self.folded += 1;
            self.full_until_ns = self.full_until_ns.max(now_ns.saturating_add(1_000_000_000));
            return Self::OTHER;
        };
        self.evicted += 1;
        let old = std::mem::replace(&mut self.groups[index], group);
        self.by_key.remove(&old.key);
        let id = GroupId(DenseIndex::new(index));
        self.by_key.insert(key, id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> GroupKey {
        GroupKey { process: Some("p".into()), role: Role::Server, peer: Peer::LocalPort(port) }
    }

    fn hold(groups: &mut Groups, port: u16, now_ns: u64) -> GroupId {
        let GroupKey { process, role, peer } = key(port);
        groups.hold(process.as_ref(), role, peer, now_ns)
    }

    #[test]
    fn beyond_the_limit_counts_go_to_other() {
        let mut groups = Groups::new(2);
        for port in 1..=5 {
            let id = hold(&mut groups, port, 0);
            groups.counts(id).opened += 1;
        }
        let opened: Vec<_> = groups.iter().map(|group| group.counts.opened).collect();
        assert_eq!(opened, [3, 1, 1]);
        assert_eq!(groups.folded, 3);
    }

    #[test]
    fn an_idle_group_gives_its_place_but_a_held_one_does_not() {
        let mut groups = Groups::new(2);
        let held = hold(&mut groups, 1, 0);
        let idle = hold(&mut groups, 2, 0);
        groups.release(idle, 0);
        assert_eq!(hold(&mut groups, 3, IDLE_NS - 1), Groups::OTHER);
        let placed = hold(&mut groups, 4, IDLE_NS + 1_000_000_000);
        assert_eq!(groups.key(placed), &key(4));
        assert_eq!(groups.key(held), &key(1));
        assert_eq!((groups.folded, groups.evicted), (1, 1));
    }

    #[test]
    fn an_evicted_group_vanishes_and_adds_nothing_to_other() {
        let mut groups = Groups::new(1);
        let idle = hold(&mut groups, 1, 0);
        groups.counts(idle).opened = 7;
        groups.observe(idle, TcpState::Established, TcpState::FinWait1, 5);
        groups.release(idle, 0);
        hold(&mut groups, 2, IDLE_NS);
        let all: Vec<_> = groups.iter().map(|group| (group.key.peer, group.counts.opened)).collect();
        assert_eq!(all, [(Peer::Other, 0), (Peer::LocalPort(2), 0)]);
        let other = groups.iter().next().unwrap();
        assert!(other.counts.durations.iter().all(Option::is_none));
    }
}
