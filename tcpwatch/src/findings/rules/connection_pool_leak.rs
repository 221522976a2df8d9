//! `connection_pool_leak`: connections of one process to one server are taken and not given back. They only grow, or stand
//! at a maximum, idle, while requests wait.

use rustc_hash::FxHashMap;

use crate::{
    findings::{
        Rule, Severity,
        observation::{Evidence, Group, Observation, Observations, Subject, Ties, View, connections},
        rules::Spec,
        thresholds::Threshold,
    },
    model::{
        table::Conn,
        tracker::pools::{Demand, Look, Pool, PoolKey, ProcessKey},
    },
    tcp::state::TcpState,
};

const OPENS: Threshold = Threshold {
    name: "connection_pool_leak.opens",
    default: 5.0,
    reason: "opened beside idle ones within five minutes: a pool that works takes an idle one instead",
};
const WARNING_OPENS: Threshold = Threshold {
    name: "connection_pool_leak.warning_opens",
    default: 10.0,
    reason: "the usual maximum of a pool (HikariCP, node's pg and mysql2): it will soon be reached",
};
const PINNED_SECONDS: Threshold = Threshold {
    name: "connection_pool_leak.pinned_seconds",
    default: 60.0,
    reason: "requests wait and nothing moves on any connection for longer than most clients wait",
};
const CRITICAL_SECONDS: Threshold = Threshold {
    name: "connection_pool_leak.critical_seconds",
    default: 300.0,
    reason: "for five minutes nobody has got a connection: it does not heal by itself",
};

const WINDOW_NS: u64 = 300_000_000_000;
/// How old the sweep may be that the rule looks at, while something looks wrong.
const FRESH_NS: u64 = 10_000_000_000;

pub(super) const SPEC: Spec = Spec {
    rule: Rule::ConnectionPoolLeak,
    observe,
    thresholds: &[&OPENS, &WARNING_OPENS, &PINNED_SECONDS, &CRITICAL_SECONDS],
    signals: &[],
    hold_seconds: 12,
    resolution_seconds: 10.0,
    evidence: &[
        "connections",
        "opened",
        "opened_beside_idle",
        "idle",
        "maximum",
        "pinned",
        "requests_waiting",
    ],
    page: include_str!("../../../../docs/findings/connection_pool_leak.md"),
    explanation: "The process takes connections from its pool and does not give them back: a result set or transaction that is \
                  not closed on some path. The pool opens new ones beside those, until its maximum is reached; then everything that \
                  needs one waits. This is inferred: TCP does not show what is checked out of a pool.",
};

fn observe(view: &View<'_>, out: &mut Observations) {
    let mut pools: FxHashMap<ProcessKey, Vec<(&PoolKey, &Pool)>> = FxHashMap::default();
    for (key, pool) in view.tracker.pools() {
        pools.entry(key.process).or_default().push((key, pool));
    }
    let queued = queued(view);
    let mut worst: FxHashMap<Subject, Observation> = FxHashMap::default();
    for (process, pools) in pools {
        // What waits for a slow server, or stands behind one, is no leak.
        let waits = pools.iter().any(|(_, pool)| pool.latest().is_some_and(|look| look.waiting > 0));
        for (_, pool) in pools {
            let Some(found) = Found::of(view, pool, demand(view, &queued, process).filter(|_| !waits)) else {
                continue;
            };
            if view.tracker.swept_ns() + FRESH_NS <= view.now_ns {
                out.want_sweep();
            }
            let Some(observation) = found.observation(view) else { continue };
            let rank = |one: &Observation| (one.severity, one.count);
            if worst.get(&observation.subject).is_none_or(|other| rank(other) < rank(&observation)) {
                worst.insert(observation.subject.clone(), observation);
            }
        }
    }
    for one in worst.into_values() {
        out.push(one);
    }
}

/// A pool that looks wrong.
struct Found<'a> {
    pool: &'a Pool,
    latest: &'a Look,
    opened: u32,
    beside_idle: u32,
    /// More than doubled within the window.
    doubled: bool,
    /// Nothing moves on any of its connections, and these requests wait.
    pinned: Option<Demand>,
}

impl<'a> Found<'a> {
    /// `demand`: the requests that wait in the process, unless they may wait for a slow server.
    fn of(view: &View<'_>, pool: &'a Pool, demand: Option<Demand>) -> Option<Self> {
        let latest = pool.latest()?;
        let from_ns = view.now_ns.saturating_sub(WINDOW_NS);
        let first = pool.since(from_ns).next()?;
        let sum = |of: fn(&Look) -> u32| pool.since(from_ns).map(of).sum::<u32>();
        let (opened, closed) = (sum(|look| look.opened), sum(|look| look.closed));
        let (beside_idle, beside_busy) = (sum(|look| look.beside_idle), sum(|look| look.beside_busy));
        // One for each client of the process, as a proxy of websockets opens them.
        let proxies = latest.served.saturating_sub(first.served) * 5 >= (opened - first.opened) * 4;
        let grows = beside_idle >= beside_busy * 4 && closed * 10 <= opened && !proxies;
        let at_maximum = latest.count == pool.high_water && latest.unused == latest.count;
        let pinned = demand.filter(|_| at_maximum);
        let opened_beside = if grows { beside_idle } else { 0 };
        (opened_beside > 0 || pinned.is_some()).then_some(Self {
            pool,
            latest,
            opened,
            beside_idle: opened_beside,
            doubled: latest.count >= 2 * first.count.max(1),
            pinned,
        })
    }

    /// For how long nothing has moved while requests wait.
    fn pinned_since_ns(&self) -> Option<u64> {
        self.pinned.map(|demand| demand.since_ns.max(self.pool.moved_ns))
    }

    fn severity(&self, view: &View<'_>) -> Option<Severity> {
        let pinned_ns = self.pinned_since_ns().map_or(0, |since_ns| view.now_ns.saturating_sub(since_ns));
        let beside_idle = self.beside_idle as usize;
        // It was in use before: a pool that was idle from the first look on may always be.
        let was_used = self.pool.since(0).any(|look| look.used > 0 || look.opened > 0);
        let pinned_for = |threshold| was_used && pinned_ns >= view.thresholds.nanos(threshold);
        let opens = beside_idle >= view.thresholds.count(&OPENS);
        let many = beside_idle >= view.thresholds.count(&WARNING_OPENS) || (opens && self.doubled);
        if pinned_for(&CRITICAL_SECONDS) {
            Some(Severity::Critical)
        } else if pinned_for(&PINNED_SECONDS) || many {
            Some(Severity::Warning)
        } else {
            opens.then_some(Severity::Info)
        }
    }

    fn observation(&self, view: &View<'_>) -> Option<Observation> {
        let severity = self.severity(view)?;
        let table = view.tracker.table();
        let mut conns: Vec<&Conn> =
            self.pool.cookies.iter().filter_map(|cookie| Some(table.get(table.find(*cookie)?))).collect();
        conns.sort_unstable_by_key(|conn| (conn.opened_ns(), conn.cookie));
        let group = Group { conns };
        let subject = Subject::of(view.tracker, group.conns.first()?);
        let (name, peer, count) = (subject.name().to_owned(), subject.peer_text(), self.latest.count);
        let held = connections(count as usize);
        let mut evidence = vec![
            Evidence::new("connections", f64::from(count), "connections"),
            Evidence::new("idle", f64::from(self.latest.unused), "connections"),
            Evidence::new("opened", f64::from(self.opened), "connections"),
            Evidence::new("opened_beside_idle", f64::from(self.beside_idle), "connections")
                .against(view.thresholds.get(&WARNING_OPENS)),
        ];
        let (since_ns, summary) = if let Some((since_ns, demand)) = self.pinned_since_ns().zip(self.pinned) {
            let pinned = view.seconds_since(since_ns);
            evidence.extend([
                Evidence::new("maximum", f64::from(count), "connections"),
                Evidence::new("pinned", pinned, "seconds").against(view.thresholds.get(&PINNED_SECONDS)),
                Evidence::new("requests_waiting", f64::from(demand.waiting), "connections"),
            ]);
            let waits = if demand.waiting == 1 {
                "1 request waits".to_owned()
            } else {
                format!("{} requests wait", demand.waiting)
            };
            (
                since_ns,
                format!(
                    "{name} holds {held} to {peer}, its maximum so far, and has used none for {pinned:.0} s, while {waits} in \
                     it: they seem to be taken and not given back."
                ),
            )
        } else {
            let first =
                self.pool.since(view.now_ns.saturating_sub(WINDOW_NS)).find(|look| look.beside_idle > 0);
            (
                first.map_or(view.now_ns, |look| look.at_ns),
                format!(
                    "{name} opened {} more connections to {peer} beside idle ones within five minutes and closed hardly any; it \
                     holds {count}: taken ones seem not to be given back.",
                    self.opened
                ),
            )
        };
        Some(Observation {
            rule: SPEC.rule,
            severity,
            since_ns,
            since_is_lower_bound: false,
            count: count.into(),
            evidence,
            summary,
            next_step: format!(
                "Look for a path in {name} that takes a connection, rows or a transaction and returns without closing it; the pool's \
                 own counts (in use, waiting) confirm it. A time-out for taking one turns a hang into an error."
            ),
            examples: group.examples(),
            members: group.members(view.tracker),
            ties: Ties { sockets: group.sockets(), ..Ties::default() },
            subject,
        })
    }
}

/// The requests that wait in the accept queues of processes.
fn queued(view: &View<'_>) -> FxHashMap<ProcessKey, Demand> {
    let mut queued: FxHashMap<ProcessKey, Demand> = FxHashMap::default();
    for conn in view.tracker.table().in_state(TcpState::Listen) {
        let queue = view.tracker.queue(conn.cookie);
        let since_ns = queue.and_then(|queue| queue.waits_since_ns);
        if let (Some(queue), Some(since_ns), Some(id)) = (queue, since_ns, conn.process) {
            let owner = view.tracker.processes().get(id);
            let demand = Demand { waiting: queue.queue.waiting, since_ns };
            queued
                .entry((owner.pid, owner.start_ns))
                .and_modify(|before| *before = before.and(demand))
                .or_insert(demand);
        }
    }
    queued
}

/// The requests that wait in a process: those that it has accepted and not answered, and those in its accept queues.
fn demand(view: &View<'_>, queued: &FxHashMap<ProcessKey, Demand>, process: ProcessKey) -> Option<Demand> {
    let accepted = view.tracker.demand(process).copied();
    accepted.into_iter().chain(queued.get(&process).copied()).reduce(Demand::and)
}
