//! Rule `socket_fd_leak`: TCP sockets that a process holds open and that are not connections. They were never connected
//! and do not listen, or their connection is over and they were not closed. `lsof` shows them as "can't identify
//! protocol".

use rustc_hash::FxHashMap;

use crate::{
    findings::{
        Severity,
        evidence::Evidence,
        leaks::{Counts, Key, Leak, LeakHistory, ProcessKey, lingering::LingerLimits},
    },
    model::{
        address::GroupAddress,
        groups::{Peer, Role},
        processes::ProcessId,
        tracker::{Tracker, sweep::Unconnected},
    },
    tcp::{state::TcpState, time::Clock},
};

/// Number of descriptors shown for each process.
const EXAMPLES: usize = 5;

pub(super) fn leaks(
    tracker: &Tracker,
    limits: &LingerLimits,
    history: &LeakHistory,
    clock: Clock,
) -> Vec<Leak> {
    let mut by_process: FxHashMap<Option<ProcessId>, Vec<&Unconnected>> = FxHashMap::default();
    for socket in lingering(tracker, limits, clock.now_ns) {
        by_process.entry(socket.process).or_default().push(socket);
    }
    by_process
        .into_iter()
        .map(|(process, sockets)| {
            let begun = sockets.iter().filter(|socket| !socket.older).count();
            let growth = history.growth(&key(tracker, process), begun, clock);
            leak(tracker, process, &sockets, growth, clock)
        })
        .collect()
}

pub(super) fn count(tracker: &Tracker, limits: &LingerLimits, now_ns: u64, counts: &mut Counts) {
    for socket in lingering(tracker, limits, now_ns).filter(|socket| !socket.older) {
        *counts.entry(key(tracker, socket.process)).or_default() += 1;
    }
}

fn lingering<'a>(
    tracker: &'a Tracker,
    limits: &LingerLimits,
    now_ns: u64,
) -> impl Iterator<Item = &'a Unconnected> {
    let limit = limits.get(TcpState::Close).map(|limit| u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
    let seen_by = limit.and_then(|limit| now_ns.checked_sub(limit));
    tracker
        .unconnected()
        .values()
        .filter(move |socket| seen_by.is_some_and(|seen_by| socket.since_ns <= seen_by))
}

fn key(tracker: &Tracker, process: Option<ProcessId>) -> Key {
    Key {
        process: process.map(|id| ProcessKey::of(tracker, id)),
        role: Role::Unknown,
        state: TcpState::Close,
        evidence: Evidence::None,
        netns: 0,
        peer: Peer::Unknown,
    }
}

fn leak(
    tracker: &Tracker,
    process: Option<ProcessId>,
    sockets: &[&Unconnected],
    growth: Option<f64>,
    clock: Clock,
) -> Leak {
    let count = sockets.len();
    let oldest_ns = sockets.iter().map(|socket| socket.since_ns).min().unwrap_or(clock.now_ns);
    let mut example_fds: Vec<_> = sockets.iter().map(|socket| socket.fd).collect();
    example_fds.sort_unstable();
    example_fds.truncate(EXAMPLES);
    let process = process.map(|id| tracker.processes().get(id).clone());
    let name = process.as_ref().map_or("an unknown process", |process| &*process.comm);
    let over = sockets.iter().filter(|socket| socket.connected).count();
    let bound = sockets.iter().filter(|socket| socket.bound && !socket.connected).count();
    let bare = count - over - bound;
    let kinds = [(bare, "never bound nor connected"), (bound, "only bound"), (over, "over, but not closed")];
    let kinds: Vec<_> =
        kinds.iter().filter(|(count, _)| *count > 0).map(|(count, kind)| format!("{count} {kind}")).collect();
    let growing = growth.is_some_and(|growth| growth >= 1.0);
    Leak {
        rule: "socket_fd_leak",
        severity: match count {
            100.. if growing => Severity::Critical,
            10.. => Severity::Warning,
            _ => Severity::Info,
        },
        state: TcpState::Close,
        role: Role::Unknown,
        evidence: Evidence::None,
        netns: None,
        local: GroupAddress::default(),
        remote: GroupAddress::default(),
        distinct_remote_addrs: 0,
        count,
        oldest_seconds: clock.seconds_since(oldest_ns),
        oldest_is_lower_bound: true,
        growth_per_minute: growth,
        unread_bytes: 0,
        unsent_bytes: 0,
        queue: None,
        other_end: None,
        waits_for: None,
        example_fds,
        summary: match count {
            1 => format!("{name} holds a TCP socket that is no connection: {}.", kinds.join(", ")),
            _ => format!("{name} holds {count} TCP sockets that are no connections: {}.", kinds.join(", ")),
        },
        next_step: format!(
            "Look for code in {name} that makes a socket and returns early, or that handles a failed or reset \
             connection without close()."
        ),
        process,
    }
}
