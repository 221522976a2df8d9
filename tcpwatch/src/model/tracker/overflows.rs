//! How often the full accept queue of each listener refused a connection.
//!
//! The kernel counts that for a whole network namespace (ListenOverflows). Where the signal `overflow` has no program, a
//! listener's share is concluded: each overflow is also one of the drops that the kernel counts of the listener, which
//! has many other drops. So what the namespace counted between two sweeps belongs to the listener that dropped
//! anything, if there was only one.

use rustc_hash::{FxHashMap, FxHashSet};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    events::{frame::Coverage, seen::ListenQueue},
    model::{
        table::{Conn, ConnFlags},
        tracker::Tracker,
    },
};

/// The accept queue of a listener, as of the latest sweep.
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

/// A listener as sweeps found it.
#[derive(Clone, Copy, Debug)]
pub struct Listening {
    /// As of the latest sweep.
    pub queue: ListenQueue,
    /// Overflows known to be its own.
    count: u64,
    /// There may be more: from before the first sweep, or shared with another listener.
    is_lower_bound: bool,
    /// Its drops up to which overflows are attributed; `None` until the first sweep that saw it has ended.
    settled_drops: Option<u32>,
}

impl Listening {
    pub(crate) fn new() -> Self {
        Self { queue: ListenQueue::default(), count: 0, is_lower_bound: false, settled_drops: None }
    }

    /// Connections and SYNs that its full queue refused, and whether there may be more.
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
}

impl NamespaceOverflows {
    pub(crate) fn listener_gone(&mut self, netns: u32) {
        self.gone.insert(netns);
    }
}

impl Tracker {
    /// At the end of a sweep.
    pub(crate) fn settle_overflows(&mut self, coverage: &Coverage) {
        let by_program = self.reported.overflows;
        let mut listeners: FxHashMap<u32, Vec<(&mut Listening, &Conn)>> = FxHashMap::default();
        for (cookie, listening) in &mut self.queues {
            if let Some(key) = self.table.find(*cookie) {
                let conn = self.table.get(key);
                listeners.entry(conn.netns).or_default().push((listening, conn));
            }
        }
        let known = &mut self.overflows;
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
                    listening.count = listening.queue.overflows;
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
                known.settled.insert(*netns, total - attribute(&mut here, left, gone));
            }
            for (listening, _) in here {
                listening.settled_drops = Some(listening.queue.drops);
            }
        }
        // A program counts those of namespaces that the sweep could not enter, too.
        for (listening, conn) in listeners.into_values().flatten().filter(|_| by_program) {
            listening.count = listening.queue.overflows;
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
/// that came after the listeners were read.
fn attribute(listeners: &mut [(&mut Listening, &Conn)], overflows: u64, gone: bool) -> u64 {
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
            overflows - own
        }
        several => {
            for one in several {
                one.is_lower_bound = true;
            }
            0
        }
    }
}
