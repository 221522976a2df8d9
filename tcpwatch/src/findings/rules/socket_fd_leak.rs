//! `socket_fd_leak`: a process holds TCP sockets that are no connections: never used, only bound, or over and not closed.

use rustc_hash::FxHashMap;

use crate::{
    findings::{
        Rule, Severity,
        descriptors::{self, Descriptors},
        observation::{Evidence, Member, Observation, Observations, Subject, Ties, View},
        rules::Spec,
        thresholds::Threshold,
        trend::Trend,
    },
    model::{
        groups::{Peer, Role},
        processes::ProcessId,
        tracker::sweep::Unconnected,
        workload::Workload,
    },
};

const AGE_SECONDS: Threshold = Threshold {
    name: "socket_fd_leak.age_seconds",
    default: 30.0,
    reason: "between socket() and connect() or listen() lie microseconds",
};
const SOCKETS: Threshold = Threshold {
    name: "socket_fd_leak.sockets",
    default: 10.0,
    reason: "a handful that stays is kept on purpose: for ioctl(), or to reserve ports",
};
const CRITICAL: Threshold = Threshold {
    name: "socket_fd_leak.critical_sockets",
    default: 100.0,
    reason: "and more each minute: a soft limit of 1,024 descriptors is near",
};
const SHARE_PERCENT: Threshold = Threshold {
    name: "socket_fd_leak.share_percent",
    default: 50.0,
    reason: "of the descriptors that the process may have: the next accept() or open() may fail",
};
const CRITICAL_SECONDS: Threshold = Threshold {
    name: "socket_fd_leak.critical_seconds_to_limit",
    default: 3600.0,
    reason: "at this rate the process has no descriptor left within the hour",
};

/// From so many on sweeps are wanted as often as that.
const WATCHED: usize = 5;
const FRESH_NS: u64 = 10_000_000_000;
const EXAMPLES: usize = 5;

pub(super) const SPEC: Spec = Spec {
    rule: Rule::SocketFdLeak,
    observe,
    thresholds: &[&AGE_SECONDS, &SOCKETS, &CRITICAL, &SHARE_PERCENT, &CRITICAL_SECONDS],
    signals: &["held"],
    hold_seconds: 4,
    resolution_seconds: 10.0,
    evidence: &["never_used", "only_bound", "over", "oldest", "growth", "descriptors", "seconds_to_limit"],
    page: include_str!("../../../../docs/findings/socket_fd_leak.md"),
    explanation: "The process has opened TCP sockets that are no connections: they were never connected and do not listen, or \
                  their connection is over and they were not closed. Each takes a descriptor until the process closes it or ends. \
                  Mostly it is an error path that forgets close().",
};

fn observe(view: &View<'_>, out: &mut Observations) {
    let mut by_process: FxHashMap<ProcessId, Vec<(ProcessId, &Unconnected)>> = FxHashMap::default();
    for socket in view.tracker.unconnected().values() {
        if let Some(process) = socket.process {
            by_process.entry(process).or_default().push((process, socket));
        }
    }
    let mut by_workload: FxHashMap<Workload, Vec<(ProcessId, &Unconnected)>> = FxHashMap::default();
    for (process, sockets) in by_process {
        let workload = Workload::of(view.tracker.processes().get(process));
        by_workload.entry(workload).or_default().extend(sockets);
    }
    let age_ns = view.thresholds.nanos(&AGE_SECONDS);
    for (workload, mut sockets) in by_workload {
        let all = sockets.len();
        sockets.retain(|(_, socket)| socket.since_ns + age_ns <= view.now_ns);
        let subject =
            Subject { workload: Some(workload), netns: 0, role: Role::Unknown, peer: Peer::Unknown };
        out.count(SPEC.rule, &subject, sockets.len() as u64);
        let trend = view.trend(SPEC.rule, &subject);
        let is_settled = trend.is_some_and(|trend| trend.seconds() >= 300.0 && trend.growth().is_none());
        if all >= WATCHED && !is_settled && view.tracker.swept_ns() + FRESH_NS <= view.now_ns {
            out.want_sweep();
        }
        if !sockets.is_empty() {
            sockets.sort_unstable_by_key(|(_, socket)| (socket.since_ns, socket.fd));
            out.push(observation(view, subject, &sockets));
        }
    }
}

fn severity(
    view: &View<'_>,
    count: usize,
    growth: Option<f64>,
    descriptors: Option<&Descriptors>,
) -> Severity {
    let share = descriptors.map_or(0.0, |one| 100.0 * count as f64 / one.limit.max(1) as f64);
    let ends_soon = descriptors
        .and_then(|one| one.seconds_to_limit)
        .is_some_and(|seconds| seconds < view.thresholds.get(&CRITICAL_SECONDS));
    let many = count >= view.thresholds.count(&SOCKETS);
    if growth.is_some() && many && (ends_soon || count >= view.thresholds.count(&CRITICAL)) {
        Severity::Critical
    } else if many && (growth.is_some() || share >= view.thresholds.get(&SHARE_PERCENT)) {
        Severity::Warning
    } else {
        Severity::Info
    }
}

fn observation(view: &View<'_>, subject: Subject, sockets: &[(ProcessId, &Unconnected)]) -> Observation {
    let count = sockets.len();
    let growth = view.trend(SPEC.rule, &subject).and_then(Trend::growth);
    let mut members: Vec<Member> = Vec::new();
    for (process, _) in sockets {
        let member = Member::from(view.tracker.processes().get(*process));
        if !members.contains(&member) {
            members.push(member);
        }
    }
    let descriptors = descriptors::of(view, &members);
    let over = sockets.iter().filter(|(_, socket)| socket.connected).count();
    let bound = sockets.iter().filter(|(_, socket)| socket.bound && !socket.connected).count();
    let (_, oldest) = sockets[0];
    let mut evidence = vec![
        Evidence::new("never_used", (count - over - bound) as f64, "sockets"),
        Evidence::new("only_bound", bound as f64, "sockets"),
        Evidence::new("over", over as f64, "sockets"),
        Evidence::new("oldest", view.seconds_since(oldest.since_ns), "seconds").at_least(true),
    ];
    evidence.extend(growth.map(|growth| Evidence::new("growth", growth, "per_minute")));
    evidence.extend(descriptors.iter().flat_map(Descriptors::evidence));
    let name = subject.name().to_owned();
    let kinds =
        [(count - over - bound, "never used"), (bound, "only bound"), (over, "of connections that are over")];
    let kinds: Vec<_> =
        kinds.iter().filter(|(count, _)| *count > 0).map(|(count, kind)| format!("{count} {kind}")).collect();
    let grows = growth.map_or(String::new(), |growth| format!(", {growth:.1} more each minute"));
    let what =
        if count == 1 { "a TCP socket that is no connection" } else { "TCP sockets that are no connections" };
    let number = if count == 1 { String::new() } else { format!("{count} ") };
    let limit = descriptors.as_ref().map_or(String::new(), |one| format!(" {}", one.sentence()));
    let fds: Vec<_> = sockets.iter().take(EXAMPLES).map(|(_, socket)| socket.fd.to_string()).collect();
    let path = if over > 0 {
        "handles a connection that failed or was reset without close()"
    } else {
        "makes a socket and returns early without close()"
    };
    Observation {
        rule: SPEC.rule,
        severity: severity(view, count, growth, descriptors.as_ref()),
        since_ns: oldest.since_ns,
        since_is_lower_bound: true,
        count: count as u64,
        evidence,
        summary: format!("{name} holds {number}{what}{grows}: {}.{limit}", kinds.join(", ")),
        next_step: format!("Look for code in {name} that {path}. Descriptors of some: {}.", fds.join(", ")),
        examples: Vec::new(),
        members,
        ties: Ties::default(),
        subject,
    }
}
