//! How often the full accept queue of each listener refused a connection.
//!
//! The kernel counts that for a whole network namespace (ListenOverflows). Where the signal `overflow` has no program, a
//! listener's share is concluded: each overflow is also one of the drops that the kernel counts of the listener, which
//! has many other drops. So what the namespace counted between two sweeps belongs to the listener that dropped
//! anything, if there was only one.

use std::collections::VecDeque;

use rustc_hash::{FxHashMap, FxHashSet};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    events::{
        decode::Endpoint,
        frame::{Coverage, ListenQueues, NamespaceQueues, QueueRead},
        seen::ListenQueue,
    },
    model::{
        table::{Conn, ConnFlags},
        tracker::Tracker,
    },
    tcp::state::TcpState,
};

/// The accept queue of a listener, as it was looked at last.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Queue {
    /// Connections that wait to be accepted.
    pub queue: u32,
    /// Connections that may wait; the kernel admits one more.
    pub queue_limit: u32,
    /// Connections and SYNs that the kernel refused because the queue was full, since the listener began: its share of
    /// the namespace's `ListenOverflows`.
    pub overflows: u64,
    /// Whether `overflows` is a lower bound: there may have been more before tcpwatch saw the listener, or at the same
    /// time as of another listener.
    pub overflows_is_lower_bound: bool,
    /// Whether the listener waits for data before it makes a connection (TCP_DEFER_ACCEPT).
    pub deferred: bool,
}

impl From<&Listening> for Queue {
    fn from(listening: &Listening) -> Self {
        let (overflows, overflows_is_lower_bound) = listening.overflows();
        Self {
            queue: listening.queue.waiting,
            queue_limit: listening.queue.limit,
            overflows,
            overflows_is_lower_bound,
            deferred: listening.queue.deferred,
        }
    }
}

impl Queue {
    /// Whether the kernel refuses further connections.
    pub fn is_full(&self) -> bool {
        self.queue > self.queue_limit
    }
}

/// A listener as sweeps and the looks between them found it.
#[derive(Clone, Debug)]
pub struct Listening {
    /// As it was looked at last.
    pub queue: ListenQueue,
    /// CLOCK_MONOTONIC of the first look since which each has found something in the queue; `None` while it is empty.
    pub waits_since_ns: Option<u64>,
    /// CLOCK_MONOTONIC of the latest look.
    pub looked_ns: u64,
    /// CLOCK_MONOTONIC of the latest look that found less in the queue than the one before: something was accepted.
    pub shrank_ns: Option<u64>,
    /// The most that was found in the queue since `waits_since_ns`.
    pub most_waiting: u32,
    /// Its overflows of the last [`KEPT_NS`]: when each became known, and how many.
    refused: VecDeque<(u64, u64)>,
    /// When it last refused at the same time as another, so that only estimates are known.
    shared_ns: Option<u64>,
    /// Overflows known to be its own.
    count: u64,
    /// There may be more: from before the first sweep, or shared with another listener.
    is_lower_bound: bool,
    /// Its drops up to which overflows are attributed; `None` until the first sweep that saw it has ended.
    settled_drops: Option<u32>,
}

impl Listening {
    pub(crate) fn new() -> Self {
        Self {
            queue: ListenQueue::default(),
            waits_since_ns: None,
            looked_ns: 0,
            shrank_ns: None,
            most_waiting: 0,
            refused: VecDeque::new(),
            shared_ns: None,
            count: 0,
            is_lower_bound: false,
            settled_drops: None,
        }
    }

    /// A look at the queue.
    pub(crate) fn observe(&mut self, queue: ListenQueue, now_ns: u64) {
        if queue.waiting < self.queue.waiting {
            self.shrank_ns = Some(now_ns);
        }
        if queue.waiting == 0 {
            (self.waits_since_ns, self.most_waiting) = (None, 0);
        } else {
            self.waits_since_ns.get_or_insert(now_ns);
            self.most_waiting = self.most_waiting.max(queue.waiting);
        }
        (self.queue, self.looked_ns) = (queue, now_ns);
    }

    /// For how long each look has found something in the queue.
    pub fn waited_ns(&self) -> u64 {
        self.waits_since_ns.map_or(0, |since_ns| self.looked_ns.saturating_sub(since_ns))
    }

    /// The count of the program.
    fn count_reported(&mut self, now_ns: u64) {
        self.refuse(self.queue.overflows.saturating_sub(self.count), now_ns);
        self.count = self.queue.overflows;
    }

    fn refuse(&mut self, count: u64, now_ns: u64) {
        while self.refused.front().is_some_and(|(then_ns, _)| then_ns.saturating_add(KEPT_NS) < now_ns) {
            self.refused.pop_front();
        }
        if count > 0 {
            self.refused.push_back((now_ns, count));
        }
    }

    /// Whether what [`Listening::refused`] counts from then on is an estimate: another listener refused at the same time.
    pub fn is_shared_since(&self, from_ns: u64) -> bool {
        self.shared_ns.is_some_and(|shared_ns| shared_ns >= from_ns)
    }

    /// Its overflows that became known from `from_ns` on and before `until_ns`, at most a few minutes back.
    pub fn refused(&self, from_ns: u64, until_ns: u64) -> u64 {
        let between = |(then_ns, _): &&(u64, u64)| (from_ns..until_ns).contains(then_ns);
        self.refused.iter().filter(between).map(|(_, count)| count).sum()
    }

    /// When the first of them became known.
    pub fn refused_first_ns(&self) -> Option<u64> {
        self.refused.front().map(|(then_ns, _)| *then_ns)
    }

    /// When the latest overflow became known, if that is a few minutes ago at most.
    pub fn refused_last_ns(&self) -> Option<u64> {
        self.refused.back().map(|(then_ns, _)| *then_ns)
    }

    /// Connections and SYNs that its full queue has refused, and whether there may be more.
    pub fn overflows(&self) -> (u64, bool) {
        (self.count, self.is_lower_bound || self.settled_drops.is_none())
    }
}

/// What is known of the counts of namespaces.
#[derive(Debug, Default)]
pub(crate) struct NamespaceOverflows {
    /// The part of each namespace's count that is attributed, or can never be.
    settled: FxHashMap<u32, u64>,
    /// Whether a listener of the namespace has gone since that was settled.
    gone: FxHashSet<u32>,
    /// Namespaces that the first sweep found, if it found all: earlier listeners of theirs are unknown.
    older: Option<FxHashSet<u32>>,
    swept: bool,
    /// The count of each namespace as it was read last.
    latest: FxHashMap<u32, u64>,
    /// Some were read between sweeps, and a program knows whose they are.
    unattributed: bool,
}

impl NamespaceOverflows {
    pub(crate) fn listener_gone(&mut self, netns: u32) {
        self.gone.insert(netns);
    }

    /// Notes the counts. Returns whether one has grown.
    fn read(&mut self, coverage: &Coverage) -> bool {
        let mut grown = false;
        for (netns, total) in &coverage.overflows {
            grown |= self.latest.insert(*netns, *total).is_some_and(|before| before < *total);
        }
        grown
    }
}

/// For how long it is kept when overflows became known.
const KEPT_NS: u64 = 300_000_000_000;
/// A queue of a healthy listener is rarely found in use by several looks in a row.
const WAITS_NS: u64 = 3_000_000_000;

impl Tracker {
    /// The accept queues, read between two sweeps.
    pub fn apply_queues(&mut self, read: &ListenQueues) {
        let mut coverage = Coverage::default();
        let mut found: FxHashMap<(u32, u64), &QueueRead> = FxHashMap::default();
        for NamespaceQueues { netns, overflows, listeners } in &read.namespaces {
            coverage.namespaces.insert(*netns);
            coverage.overflows.extend(overflows.map(|count| (*netns, count)));
            found.extend(
                listeners.iter().filter_map(|one| Some(((*netns, self.listener_of_read(*netns, one)?), one))),
            );
        }
        let listeners = self.table.in_state(TcpState::Listen);
        let looked_at = listeners.filter(|conn| coverage.namespaces.contains(&conn.netns));
        for conn in looked_at {
            let listening = self.queues.entry(conn.cookie).or_insert_with(Listening::new);
            let queue = match found.get(&(conn.netns, conn.cookie)) {
                Some(QueueRead { waiting, limit, drops, .. }) => {
                    ListenQueue { waiting: *waiting, limit: *limit, drops: *drops, ..listening.queue }
                }
                None => ListenQueue { waiting: 0, ..listening.queue },
            };
            listening.observe(queue, read.time_ns);
        }
        self.overflows.unattributed |= self.overflows.read(&coverage) && self.reported.overflows;
        if !self.reported.overflows {
            self.settle_overflows(&coverage, read.time_ns);
        }
    }

    /// The identity in the table of a listener whose queue was read.
    fn listener_of_read(&self, netns: u32, read: &QueueRead) -> Option<u64> {
        if !self.reported.identity_is_address {
            return Some(read.cookie);
        }
        let local = Endpoint::new(read.addr, read.port);
        let here = self.listeners.get(&(netns, read.port))?.iter().map(|key| self.table.get(*key));
        let mut same = here.filter(|conn| conn.local == local);
        let only = same.next()?;
        same.next().is_none().then_some(only.cookie)
    }

    /// Whether a sweep could say more: something has waited in an accept queue for a few looks, or it is not known which
    /// listener refused.
    pub fn queues_want_sweep(&self) -> bool {
        self.overflows.unattributed || self.queues.values().any(|one| one.waited_ns() >= WAITS_NS)
    }

    /// At the end of a sweep, or when the queues were read.
    pub(crate) fn settle_overflows(&mut self, coverage: &Coverage, now_ns: u64) {
        let by_program = self.reported.overflows;
        let mut listeners: FxHashMap<u32, Vec<(&mut Listening, &Conn)>> = FxHashMap::default();
        for (cookie, listening) in &mut self.queues {
            if let Some(key) = self.table.find(*cookie) {
                let conn = self.table.get(key);
                listeners.entry(conn.netns).or_default().push((listening, conn));
            }
        }
        let known = &mut self.overflows;
        if known.read(coverage) | by_program {
            known.unattributed = false;
        }
        let first_sweep = !std::mem::replace(&mut known.swept, true);
        if first_sweep {
            known.older = coverage.all.then(|| coverage.namespaces.clone());
        }
        for netns in &coverage.namespaces {
            let total = coverage.overflows.get(netns).copied();
            let mut here = listeners.remove(netns).unwrap_or_default();
            let gone = known.gone.remove(netns);
            let before = known
                .settled
                .get(netns)
                .copied()
                .filter(|before| total.is_some_and(|total| total >= *before));
            // A namespace that began after the first sweep has counted nothing before.
            let is_new = !first_sweep
                && !known.settled.contains_key(netns)
                && known.older.as_ref().is_some_and(|older| !older.contains(netns));
            let before = before.or(is_new.then_some(0));
            for (listening, conn) in &mut here {
                if by_program {
                    listening.count_reported(now_ns);
                }
                if listening.settled_drops.is_none() {
                    let counted = if by_program { listening.count } else { 0 };
                    let seen_from_birth = !conn.is(ConnFlags::OLDER) && (by_program || before.is_some());
                    let none_before =
                        listening.queue.drops == 0 || total.is_some_and(|total| total <= counted);
                    listening.is_lower_bound = !seen_from_birth && !none_before;
                    let birth = if seen_from_birth { 0 } else { listening.queue.drops };
                    listening.settled_drops = Some(birth);
                }
            }
            if let Some(total) = total.filter(|_| !by_program) {
                let left = total - before.unwrap_or(total);
                known.settled.insert(*netns, total - attribute(&mut here, left, gone, now_ns));
            }
            for (listening, _) in here {
                listening.settled_drops = Some(listening.queue.drops);
            }
        }
        // A program counts those of namespaces that the sweep could not enter, too.
        for (listening, conn) in listeners.into_values().flatten().filter(|_| by_program) {
            listening.count_reported(now_ns);
            if listening.settled_drops.is_none() {
                listening.is_lower_bound = conn.is(ConnFlags::OLDER) && listening.queue.drops > 0;
                listening.settled_drops = Some(listening.queue.drops);
            }
        }
        if coverage.all {
            known.settled.retain(|netns, _| coverage.namespaces.contains(netns));
            known.gone.retain(|netns| coverage.namespaces.contains(netns));
            if let Some(older) = &mut known.older {
                older.retain(|netns| coverage.namespaces.contains(netns));
            }
        }
    }
}

/// Attributes overflows to the listeners that dropped something, and returns how many are left for the next sweep: those
/// that came after the listeners were read. Of several, each may have refused as many as its part of the drops.
fn attribute(listeners: &mut [(&mut Listening, &Conn)], overflows: u64, gone: bool, now_ns: u64) -> u64 {
    if overflows == 0 {
        return 0;
    }
    let dropped = |listening: &Listening| {
        u64::from(
            listening.queue.drops.wrapping_sub(listening.settled_drops.unwrap_or(listening.queue.drops)),
        )
    };
    let mut suspects: Vec<&mut Listening> =
        listeners.iter_mut().map(|(listening, _)| &mut **listening).filter(|one| dropped(one) > 0).collect();
    match &mut suspects[..] {
        [] if !gone => overflows,
        [only] if !gone => {
            let own = overflows.min(dropped(only));
            only.count += own;
            only.refuse(own, now_ns);
            overflows - own
        }
        several => {
            let all: u64 = several.iter().map(|one| dropped(one)).sum();
            let (mut before, mut given) = (0, 0);
            for one in several {
                before += dropped(one);
                let upto = overflows * before / all;
                one.refuse(upto - given, now_ns);
                given = upto;
                (one.is_lower_bound, one.shared_ns) = (true, Some(now_ns));
            }
            0
        }
    }
}
