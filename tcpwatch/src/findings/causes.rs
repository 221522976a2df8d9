//! Which finding follows from which.
//!
//! An edge needs a fact that ties the two: the same connection, the same process, the same listener. Time alone makes
//! none, it only forbids one. There are no cycles, and at most two causes of each.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::findings::{
    Rule,
    life::{Finding, FindingId},
};

/// What ties a cause to its effect, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tie {
    /// A socket takes part in both.
    Socket,
    /// They are the two ends of a connection, or the cause is the other end of what the effect's processes wait for.
    Connection,
    /// The same listening socket.
    Listener,
    /// A process takes part in both.
    Process,
    /// The same server is dialled by the same processes.
    Destination,
}

/// Cause, effect, and what must tie them.
const TABLE: &[(Rule, Rule, Tie)] = &[
    (Rule::CloseWaitLeak, Rule::FinWait2Pileup, Tie::Connection),
    (Rule::RetransmitFailed, Rule::HolBlocking, Tie::Socket),
    // Handlers that never end hold what a limit on connections counts.
    (Rule::CloseWaitLeak, Rule::UnacceptedConnections, Tie::Process),
    (Rule::UnacceptedConnections, Rule::AcceptQueueOverflow, Tie::Listener),
    (Rule::UnacceptedConnections, Rule::FinWait2Pileup, Tie::Connection),
    // A pool that gives nothing back holds the handlers, and what they hold.
    (Rule::ConnectionPoolLeak, Rule::CloseWaitLeak, Tie::Process),
    (Rule::ConnectionPoolLeak, Rule::UnacceptedConnections, Tie::Process),
    // Without a free descriptor accept() fails.
    (Rule::SocketFdLeak, Rule::UnacceptedConnections, Tie::Process),
    (Rule::TimeWaitChurn, Rule::PortExhaustion, Tie::Destination),
    (Rule::ReuseportImbalance, Rule::UnacceptedConnections, Tie::Listener),
    (Rule::ReuseportImbalance, Rule::AcceptQueueOverflow, Tie::Listener),
    // Callers that meet a full queue.
    (Rule::UnacceptedConnections, Rule::ConnectFailures, Tie::Listener),
    (Rule::AcceptQueueOverflow, Rule::ConnectFailures, Tie::Listener),
    // A proxy passes on what it waits for.
    (Rule::CloseWaitLeak, Rule::CloseWaitLeak, Tie::Connection),
];

/// How much later than its effect a cause may seem to have begun: a few evaluations, and what sweeps lag.
const SLACK_NS: u64 = 10_000_000_000;
const MAX_CAUSES: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) cause: FindingId,
    pub(super) effect: FindingId,
}

/// The edges between open findings.
pub(super) fn edges(open: &[&Finding]) -> Vec<Edge> {
    let by_rule = by_rule(open);
    let of_rule = |rule: Rule| by_rule.get(&rule).map_or(&[] as &[&Finding], Vec::as_slice);
    let mut candidates = Vec::new();
    for (cause_rule, effect_rule, tie) in TABLE {
        for effect in of_rule(*effect_rule) {
            for cause in of_rule(*cause_rule) {
                let in_time = cause.latest.since_ns <= effect.latest.since_ns.saturating_add(SLACK_NS);
                if cause.id != effect.id
                    && (in_time || *tie == Tie::Connection)
                    && are_tied(cause, effect, *tie)
                {
                    candidates.push((
                        *tie,
                        cause.latest.since_ns,
                        Edge { cause: cause.id, effect: effect.id },
                    ));
                }
            }
        }
    }
    candidates.sort_by_key(|(tie, since_ns, edge)| (*tie, *since_ns, edge.cause, edge.effect));
    let mut edges: Vec<Edge> = Vec::new();
    for (.., edge) in candidates {
        let causes = edges.iter().filter(|other| other.effect == edge.effect).count();
        if causes < MAX_CAUSES && !edges.contains(&edge) && !leads_to(&edges, edge.effect, edge.cause) {
            edges.push(edge);
        }
    }
    edges
}

fn by_rule<'a>(open: &[&'a Finding]) -> FxHashMap<Rule, Vec<&'a Finding>> {
    let mut by_rule: FxHashMap<Rule, Vec<&Finding>> = FxHashMap::default();
    for finding in open {
        by_rule.entry(finding.id.rule).or_default().push(finding);
    }
    by_rule
}

fn are_tied(cause: &Finding, effect: &Finding, tie: Tie) -> bool {
    let (cause, effect) = (&cause.latest, &effect.latest);
    let has_process = || {
        let pids: FxHashSet<_> = cause.members.iter().map(|one| (one.pid, one.start_ns)).collect();
        effect.members.iter().any(|one| pids.contains(&(one.pid, one.start_ns)))
    };
    match tie {
        Tie::Socket => meet(&cause.ties.sockets, &effect.ties.sockets),
        Tie::Connection if cause.rule == effect.rule => meet(&cause.ties.sockets, &effect.ties.waits_for),
        Tie::Connection => meet(&cause.ties.sockets, &effect.ties.other_ends),
        Tie::Listener => cause.ties.listener.is_some() && cause.ties.listener == effect.ties.listener,
        Tie::Process => has_process(),
        Tie::Destination => {
            cause.ties.destination.is_some()
                && cause.ties.destination == effect.ties.destination
                && has_process()
        }
    }
}

fn meet(some: &[u64], others: &[u64]) -> bool {
    let (few, many) = if some.len() < others.len() { (some, others) } else { (others, some) };
    let few: FxHashSet<_> = few.iter().collect();
    !few.is_empty() && many.iter().any(|one| few.contains(one))
}

/// Whether a chain of edges leads from one finding to the other.
fn leads_to(edges: &[Edge], from: FindingId, to: FindingId) -> bool {
    let mut left = vec![from];
    let mut seen = FxHashSet::default();
    while let Some(id) = left.pop() {
        if id == to {
            return true;
        }
        if seen.insert(id) {
            left.extend(edges.iter().filter(|edge| edge.cause == id).map(|edge| edge.effect));
        }
    }
    false
}
