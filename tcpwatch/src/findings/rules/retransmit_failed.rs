//! `retransmit_failed`: the kernel wants to send segments again and cannot even send them: nothing leaves this machine.

use rustc_hash::FxHashMap;

use crate::{
    events::decode::FAILURES,
    findings::{
        Rule, Severity,
        evidence::OtherEnds,
        observation::{Evidence, Group, Observation, Observations, Subject, Ties, View, connections},
        rules::Spec,
        thresholds::Threshold,
    },
    model::{
        groups::Peer,
        table::Conn,
        tracker::troubles::{Failing, Trouble},
    },
    tcp::state::TcpState,
};

const ATTEMPTS: Threshold = Threshold {
    name: "retransmit_failed.attempts",
    default: 2.0,
    reason: "that fail in a row on one connection; a route that changes costs one",
};
const FROZEN_SECONDS: Threshold = Threshold {
    name: "retransmit_failed.frozen_seconds",
    default: 1.0,
    reason: "two time-outs are over (0.2 and 0.4 s), and so is a route or an address that moves",
};
const CONNECTIONS: Threshold = Threshold {
    name: "retransmit_failed.connections",
    default: 3.0,
    reason: "that fail within 5 s: one reason for all, so the second attempt need not be waited for",
};
const SHRUNK_SECONDS: Threshold = Threshold {
    name: "retransmit_failed.shrunk_window_seconds",
    default: 10.0,
    reason: "EAGAIN alone: the peer shrank its window, which is its right; it should open it again soon",
};
const CRITICAL_SECONDS: Threshold = Threshold {
    name: "retransmit_failed.critical_seconds",
    default: 15.0,
    reason: "the usual patience of clients",
};
const CRITICAL: Threshold = Threshold {
    name: "retransmit_failed.critical_connections",
    default: 10.0,
    reason: "it is the route, the filter or the machine, not a connection",
};

pub(super) const SPEC: Spec = Spec {
    rule: Rule::RetransmitFailed,
    observe,
    thresholds: &[&ATTEMPTS, &FROZEN_SECONDS, &CONNECTIONS, &SHRUNK_SECONDS, &CRITICAL_SECONDS, &CRITICAL],
    signals: &["retransmit_failed"],
    hold_seconds: 6,
    resolution_seconds: 2.0,
    evidence: &[
        "frozen",
        "frozen_for",
        "attempts",
        "waiting",
        "EAGAIN",
        "ENOMEM",
        "EBUSY",
        "ENOBUFS",
        "EPERM",
        "ENETUNREACH",
        "EHOSTUNREACH",
        "other",
    ],
    page: include_str!("../../../../docs/findings/retransmit_failed.md"),
    explanation: "A segment was lost, and the kernel of this machine fails to send it again: no route, a filter that drops it, no \
                  memory. Nothing appears on the wire, the peer's duplicate acknowledgements stay without an answer, and the \
                  connection is frozen until sending works again or the kernel gives up.",
};

/// Attempts this close to each other have one reason.
const TOGETHER_NS: u64 = 5_000_000_000;

const EAGAIN: usize = tcpwatch_common::failure::EAGAIN;
const EBUSY: usize = tcpwatch_common::failure::EBUSY;
const ENOMEM: usize = tcpwatch_common::failure::ENOMEM;

/// A connection that is frozen.
struct Frozen<'a> {
    conn: &'a Conn,
    failing: &'a Failing,
    /// Bytes that wait.
    bytes: u64,
}

fn observe(view: &View<'_>, out: &mut Observations) {
    let mut groups: FxHashMap<Subject, Vec<Frozen<'_>>> = FxHashMap::default();
    for (cookie, trouble) in view.tracker.troubles() {
        if let Some(failing) =
            trouble.failing.as_ref().filter(|failing| failing.goes_on(view.now_ns) && counts(failing) > 0)
            && let Some(key) = view.tracker.table().find(*cookie)
        {
            let conn = view.tracker.table().get(key);
            let frozen = Frozen { conn, failing, bytes: waiting_bytes(trouble) };
            groups.entry(Subject::of(view.tracker, conn)).or_default().push(frozen);
        }
    }
    groups.retain(|_, frozen| is_open(view, frozen));
    let all = groups.values().flatten().map(|frozen| frozen.conn);
    let other_ends = OtherEnds::find(view.tracker, all);
    for (subject, mut frozen) in groups {
        frozen.sort_unstable_by_key(|one| (one.failing.since_ns, one.conn.cookie));
        out.push(observation(view, subject, &frozen, &other_ends));
    }
}

/// Attempts that say something: what is still in a queue of this machine (EBUSY) is on its way.
fn counts(failing: &Failing) -> u64 {
    failing.count() - failing.attempts[EBUSY]
}

fn waiting_bytes(trouble: &Trouble) -> u64 {
    trouble.present.map_or(0, |present| present.stalled.bytes.into())
}

fn is_open(view: &View<'_>, frozen: &[Frozen<'_>]) -> bool {
    let frozen_long = frozen.iter().any(|one| is_frozen(view, one.failing));
    let together = frozen.iter().filter(|one| {
        !is_shrunk_window(one.failing) && one.failing.latest_ns.saturating_add(TOGETHER_NS) >= view.now_ns
    });
    frozen_long || together.count() >= view.thresholds.count(&CONNECTIONS)
}

/// The peer shrank its window, so that the segment is beyond it: nothing else says EAGAIN, but before Linux 5.13 a full queue.
fn is_shrunk_window(failing: &Failing) -> bool {
    counts(failing) == failing.attempts[EAGAIN]
}

fn is_frozen(view: &View<'_>, failing: &Failing) -> bool {
    let least = if is_shrunk_window(failing) { &SHRUNK_SECONDS } else { &FROZEN_SECONDS };
    let lasted = view.now_ns.saturating_sub(failing.since_ns) >= view.thresholds.nanos(least);
    lasted && counts(failing) >= view.thresholds.count(&ATTEMPTS) as u64
}

fn severity(view: &View<'_>, frozen: &[Frozen<'_>]) -> Severity {
    // Nobody waits for what a process has closed.
    let in_use = |one: &&Frozen<'_>| matches!(one.conn.state(), TcpState::Established | TcpState::CloseWait);
    let used: Vec<_> = frozen.iter().filter(in_use).collect();
    let without_memory = |one: &&Frozen<'_>| one.failing.attempts[ENOMEM] == counts(one.failing);
    if used.is_empty() || used.iter().all(|one| without_memory(one) && counts(one.failing) < 3) {
        return Severity::Info;
    }
    let critical_ns = view.thresholds.nanos(&CRITICAL_SECONDS);
    let long = |one: &Frozen<'_>| view.now_ns.saturating_sub(one.failing.since_ns) >= critical_ns;
    if used.len() >= view.thresholds.count(&CRITICAL) || used.iter().any(|one| long(one)) {
        Severity::Critical
    } else {
        Severity::Warning
    }
}

fn observation(
    view: &View<'_>,
    subject: Subject,
    frozen: &[Frozen<'_>],
    other_ends: &OtherEnds<'_>,
) -> Observation {
    let group = Group { conns: frozen.iter().map(|one| one.conn).collect() };
    let since_ns = frozen[0].failing.since_ns;
    let seconds = view.seconds_since(since_ns);
    let mut attempts = [0; FAILURES.len()];
    for (sum, index) in attempts.iter_mut().zip(0..) {
        *sum = frozen.iter().map(|one| one.failing.attempts[index]).sum::<u64>();
    }
    let bytes: u64 = frozen.iter().map(|one| one.bytes).sum();
    let mut evidence = vec![
        Evidence::new("frozen", frozen.len() as f64, "connections"),
        Evidence::new("frozen_for", seconds, "seconds").against(view.thresholds.get(&FROZEN_SECONDS)),
        Evidence::new("attempts", attempts.iter().sum::<u64>() as f64, "attempts")
            .against(view.thresholds.get(&ATTEMPTS)),
        Evidence::new("waiting", bytes as f64, "bytes").at_least(true),
    ];
    let failed = FAILURES.into_iter().zip(attempts).filter(|(_, count)| *count > 0);
    evidence.extend(failed.map(|(errno, count)| Evidence::new(errno, count as f64, "attempts")));
    let most = (0..FAILURES.len()).filter(|index| *index != EBUSY).max_by_key(|index| attempts[*index]);
    let errno = most.map_or("other", |index| FAILURES[index]);
    let (name, peer) = (subject.name(), subject.peer_text());
    let summary = format!(
        "The kernel fails to send {} of {name} with {peer} again what was lost ({errno}): nothing has left for {seconds:.1} s.",
        connections(frozen.len()),
    );
    let destination = match subject.peer {
        Peer::Remote(addr, port) => Some((addr, port)),
        Peer::LocalPort(_) | Peer::Unknown | Peer::Other => None,
    };
    Observation {
        rule: SPEC.rule,
        severity: severity(view, frozen),
        since_ns,
        since_is_lower_bound: false,
        count: frozen.len() as u64,
        evidence,
        summary,
        next_step: next_step(errno).to_owned(),
        examples: group.examples(),
        members: group.members(view.tracker),
        ties: Ties {
            sockets: group.sockets(),
            other_ends: other_ends.cookies(&group.conns),
            destination,
            ..Ties::default()
        },
        subject,
    }
}

fn next_step(errno: &str) -> &'static str {
    match errno {
        "EHOSTUNREACH" | "ENETUNREACH" => {
            "The route is gone, or its interface: `ip route get DST from SRC`, `ip rule`, `ip -s link`. `ss -K dst DST` ends what \
             is frozen."
        }
        "EPERM" => {
            "A filter of this machine drops it: `iptables -L OUTPUT -nv`, `nft list ruleset`, a full connection table (`dmesg` says \
             `nf_conntrack: table full`), or an eBPF program of the cgroup."
        }
        "ENOMEM" => {
            "Memory for TCP is short: `nstat -az TcpExtTCPWqueueTooBig TcpExtTCPMemoryPressures`, `sysctl net.ipv4.tcp_mem`, and \
             the limit of the cgroup."
        }
        "ENOBUFS" => "A queue of this machine is full: `tc -s qdisc` counts what it drops.",
        "EAGAIN" => {
            "The peer has shrunk its window below what was sent already: look at why it does not read. Before Linux 5.13 it can \
             also mean that too much is queued here."
        }
        _ => "`ip route get DST from SRC`, `nft list ruleset` and `tc -s qdisc` show the usual reasons.",
    }
}
