//! What a rule observes at one moment: the material of findings.

use std::{net::Ipv6Addr, sync::Arc};

use rustc_hash::{FxHashMap, FxHashSet};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    findings::{
        Rule, Severity,
        thresholds::Thresholds,
        trend::{Trend, Trends},
    },
    model::{
        container::Container,
        groups::{Peer, Role},
        processes::Process,
        table::Conn,
        tracker::Tracker,
        workload::Workload,
    },
};

/// Whom a finding is about. One finding at a time is open for each rule and subject.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// `None` where the owner is not known.
    pub workload: Option<Workload>,
    /// Inode of the network namespace: loopback addresses mean something else in each.
    pub netns: u32,
    pub role: Role,
    pub peer: Peer,
}

impl Subject {
    /// Of one connection.
    pub fn of(tracker: &Tracker, conn: &Conn) -> Self {
        let process = conn.process.map(|id| tracker.processes().get(id));
        Self { workload: process.map(Workload::of), netns: conn.netns, role: conn.role, peer: conn.peer() }
    }

    /// The name of the processes, for sentences.
    pub fn name(&self) -> &str {
        self.workload.as_ref().map_or("an unknown process", |workload| &workload.comm)
    }

    /// The same at the beginning of one.
    pub fn peer_sentence(&self) -> String {
        let text = self.peer_text();
        let mut chars = text.chars();
        chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
    }

    /// The peer, for sentences: `10.0.0.2:6379`, or `clients of port 80`.
    pub fn peer_text(&self) -> String {
        match self.peer {
            Peer::Remote(..) => self.peer.to_string(),
            Peer::LocalPort(port) => format!("clients of port {port}"),
            Peer::Unknown | Peer::Other => "its peers".to_owned(),
        }
    }
}

/// A number that a finding rests on.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Evidence {
    /// What was counted or measured.
    pub name: &'static str,
    /// How much.
    pub value: f64,
    /// Of the value and the limit: `connections`, `seconds`, `bytes`, `percent`, `per_minute`.
    pub unit: &'static str,
    /// What it was held against; `null` where it only says more.
    pub limit: Option<f64>,
    /// Whether the value is a lower bound.
    pub is_lower_bound: bool,
}

impl Evidence {
    pub fn new(name: &'static str, value: f64, unit: &'static str) -> Self {
        Self { name, value: (value * 1000.0).round() / 1000.0, unit, limit: None, is_lower_bound: false }
    }

    #[must_use]
    pub fn against(self, limit: f64) -> Self {
        Self { limit: Some(limit), ..self }
    }

    #[must_use]
    pub fn at_least(self, is_lower_bound: bool) -> Self {
        Self { is_lower_bound, ..self }
    }
}

/// A process that takes part in a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub pid: u32,
    pub start_ns: u64,
    pub container: Option<Arc<Container>>,
}

impl From<&Process> for Member {
    fn from(process: &Process) -> Self {
        Self { pid: process.pid, start_ns: process.start_ns, container: process.container.clone() }
    }
}

/// Connections kept of an observation, to find causes and to show a few.
pub const MAX_SOCKETS: usize = 1000;

/// By what an observation is tied to others.
#[derive(Clone, Debug, Default)]
pub struct Ties {
    /// Cookies of its connections, the oldest first, at most [`MAX_SOCKETS`].
    pub sockets: Vec<u64>,
    /// Cookies of their other ends, where those are on this node.
    pub other_ends: Vec<u64>,
    /// Cookies of the other ends of the connections that its processes wait for, as a proxy does.
    pub waits_for: Vec<u64>,
    /// The listener that its connections wait at, or do not get to: its cookie.
    pub listener: Option<u64>,
    /// The server that its connections go to; where that is not the peer of the subject, as for a listener's own address.
    pub destination: Option<(Ipv6Addr, u16)>,
}

/// What a rule observes of one subject at one moment.
#[derive(Clone, Debug)]
pub struct Observation {
    pub rule: Rule,
    pub subject: Subject,
    pub severity: Severity,
    /// CLOCK_MONOTONIC when the condition began.
    pub since_ns: u64,
    /// It may have begun before: tcpwatch saw it like that first.
    pub since_is_lower_bound: bool,
    /// Connections, or whatever the rule counts.
    pub count: u64,
    pub evidence: Vec<Evidence>,
    /// One sentence: what is wrong, with whose numbers.
    pub summary: String,
    pub next_step: String,
    /// Ids of a few connections, as `/connections/ID` takes them.
    pub examples: Vec<u64>,
    /// The processes, those of the oldest connections first.
    pub members: Vec<Member>,
    pub ties: Ties,
}

/// What rules look at.
pub struct View<'a> {
    pub tracker: &'a Tracker,
    pub thresholds: &'a Thresholds,
    /// CLOCK_MONOTONIC.
    pub now_ns: u64,
    /// CLOCK_MONOTONIC when tcpwatch began to watch.
    pub watched_since_ns: u64,
    pub(super) trends: &'a Trends,
}

impl View<'_> {
    pub fn trend(&self, rule: Rule, subject: &Subject) -> Option<&Trend> {
        self.trends.get(rule, subject)
    }

    pub fn seconds_since(&self, then_ns: u64) -> f64 {
        self.now_ns.saturating_sub(then_ns) as f64 / 1e9
    }
}

/// What the rules observe now.
#[derive(Default)]
pub struct Observations {
    pub(super) all: Vec<Observation>,
    pub(super) counts: Vec<(Rule, Subject, u64)>,
    pub(super) wants_sweep: bool,
}

impl Observations {
    pub fn push(&mut self, observation: Observation) {
        self.all.push(observation);
    }

    /// A sweep would show what the rule has to know.
    pub fn want_sweep(&mut self) {
        self.wants_sweep = true;
    }

    /// A number whose trend the rule wants to know the next time, whether it is an observation or not.
    pub fn count(&mut self, rule: Rule, subject: &Subject, count: u64) {
        self.counts.push((rule, subject.clone(), count));
    }
}

/// Connections of one subject, oldest first.
#[derive(Default)]
pub struct Group<'a> {
    pub conns: Vec<&'a Conn>,
}

impl<'a> Group<'a> {
    /// Sorts connections by subject.
    pub fn by_subject(
        tracker: &'a Tracker,
        conns: impl Iterator<Item = &'a Conn>,
    ) -> FxHashMap<Subject, Self> {
        let mut groups: FxHashMap<Subject, Self> = FxHashMap::default();
        for conn in conns {
            groups
                .entry(Subject::of(tracker, conn))
                .or_insert_with(|| Group { conns: Vec::new() })
                .conns
                .push(conn);
        }
        for group in groups.values_mut() {
            group.conns.sort_unstable_by_key(|conn| (conn.since_ns(), conn.cookie));
        }
        groups
    }

    pub fn sockets(&self) -> Vec<u64> {
        self.conns.iter().take(MAX_SOCKETS).map(|conn| conn.cookie).collect()
    }

    /// Ids of a few, the oldest first.
    pub fn examples(&self) -> Vec<u64> {
        self.conns.iter().take(3).map(|conn| conn.id()).collect()
    }

    /// Its processes, each once, those of the oldest connections first.
    pub fn members(&self, tracker: &Tracker) -> Vec<Member> {
        let mut seen = FxHashSet::default();
        let processes = self.conns.iter().filter_map(|conn| Some(tracker.processes().get(conn.process?)));
        let new = processes.filter(|process| seen.insert((process.pid, process.start_ns)));
        new.take(MAX_SOCKETS).map(Member::from).collect()
    }
}

/// `1 connection`, `12 connections`.
pub fn connections(count: usize) -> String {
    if count == 1 { "1 connection".to_owned() } else { format!("{count} connections") }
}
