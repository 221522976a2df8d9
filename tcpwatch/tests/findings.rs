//! Findings: each fires, stays silent beside a healthy control, and begins exactly at its limit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod scenario;

use std::time::{Duration, SystemTime};

use scenario::*;
use tcpwatch::{
    findings::{Leak, LeakHistory, Severity, leaks, lingering::LingerLimits},
    tcp::time::Clock,
};

/// Long after the machine started.
const THEN: u64 = 1000 * SECOND;
const LIMIT: u64 = 30 * SECOND;

fn clock(now_ns: u64) -> Clock {
    Clock { now_ns, wall: SystemTime::UNIX_EPOCH + Duration::from_nanos(now_ns) }
}

fn found(world: &World, now_ns: u64) -> Vec<Leak> {
    found_with(world, &LeakHistory::default(), now_ns)
}

fn found_with(world: &World, history: &LeakHistory, now_ns: u64) -> Vec<Leak> {
    leaks(&world.tracker, &LingerLimits::default(), history, clock(now_ns))
}

fn rules(world: &World, now_ns: u64) -> Vec<&'static str> {
    found(world, now_ns).iter().map(|leak| leak.rule).collect()
}

/// Connections of curl; each enters `state` at one of the times `at`.
fn standing(world: &mut World, state: TcpState, at: &[u64]) {
    for (cookie, time_ns) in (1..).zip(at) {
        let socket = numbered(cookie, HELD);
        world.report(THEN - 10 * MINUTE, socket, to(Close, SynSent, CURL));
        if state.follows_established() {
            world.report(THEN - 9 * MINUTE, socket, to(SynSent, Established, 0));
        }
        world.report(*time_ns, socket, to(Established, state, CURL));
    }
}

/// The states with a limit, the rule of each, and the limit.
const LINGERING: [(TcpState, &str, u64); 7] = [
    (CloseWait, "close_wait_leak", LIMIT),
    (FinWait1, "lingering_fin_wait1", LIMIT),
    (FinWait2, "fin_wait2_pileup", LIMIT),
    (Closing, "lingering_closing", LIMIT),
    (LastAck, "lingering_last_ack", LIMIT),
    (SynSent, "lingering_syn_sent", 5 * SECOND),
    (SynRecv, "lingering_syn_recv", 5 * SECOND),
];

#[test]
fn a_state_that_lasts_too_long_is_found() {
    for (state, rule, limit_ns) in LINGERING {
        let mut world = World::new();
        standing(&mut world, state, &[THEN, THEN + SECOND]);
        let leaks = found(&world, THEN + SECOND + limit_ns);
        let [leak] = &leaks[..] else { panic!("{state}: {leaks:?}") };
        assert_eq!((leak.rule, leak.state, leak.count), (rule, state, 2));
        assert_eq!(leak.process.as_ref().map(|process| &*process.comm), Some("curl"), "{state}");
        assert!((leak.oldest_seconds - (limit_ns / SECOND + 1) as f64).abs() < 0.001, "{state}");
        assert_eq!((leak.oldest_is_lower_bound, leak.growth_per_minute), (false, None), "{state}");
        assert_eq!(leak.remote.to_string(), "10.0.0.2:80", "{state}");
        assert!(!leak.summary.is_empty() && !leak.next_step.is_empty(), "{state}");
    }
}

#[test]
fn states_without_a_limit_are_never_found() {
    let mut world = World::new();
    world.serve();
    world.connect();
    world.report(THEN, numbered(50, ORPHAN | FIN), ended(FinWait2, 0));
    assert_eq!(rules(&world, THEN + 1000 * MINUTE), [] as [&str; 0]);
}

#[test]
fn a_healthy_connection_beside_a_leak_is_not_part_of_it() {
    for (state, _, limit_ns) in LINGERING {
        let mut world = World::new();
        standing(&mut world, state, &[THEN, THEN + limit_ns]);
        let counts: Vec<_> = found(&world, THEN + limit_ns + 1).iter().map(|leak| leak.count).collect();
        assert_eq!(counts, [1], "{state}");
    }
}

#[test]
fn a_limit_is_reached_to_the_nanosecond() {
    for (state, rule, limit_ns) in LINGERING {
        let mut world = World::new();
        standing(&mut world, state, &[THEN]);
        assert_eq!(rules(&world, THEN + limit_ns - 1), [] as [&str; 0], "{state}");
        assert_eq!(rules(&world, THEN + limit_ns), [rule], "{state}");
    }
}

#[test]
fn a_state_without_a_limit_cannot_get_one() {
    let mut limits = LingerLimits::default();
    for state in [Established, TimeWait, Listen] {
        assert!(limits.set(state, Duration::from_secs(1)).is_err(), "{state}");
        assert_eq!(limits.get(state), None, "{state}");
    }
    limits.set(CloseWait, Duration::from_secs(7)).unwrap();
    assert_eq!(limits.get(CloseWait), Some(Duration::from_secs(7)));
}

#[test]
fn before_the_uptime_reaches_a_limit_nothing_can_linger() {
    let mut world = World::new();
    world.report(1, client(HELD), to(Close, SynSent, CURL));
    assert_eq!(rules(&world, 2), [] as [&str; 0]);
}

#[test]
fn an_orphaned_fin_wait2_is_the_leak_of_the_process_that_closed_it() {
    let mut world = World::new();
    world.connect();
    world.report(THEN, client(HELD), to(Established, FinWait1, CURL));
    world.report(THEN + SECOND, client(ORPHAN), to(FinWait1, FinWait2, 0));
    world.report(THEN + 2 * SECOND, client(ORPHAN), ended(FinWait2, 0));
    let leaks = found(&world, THEN + SECOND + LIMIT);
    assert_eq!((leaks[0].rule, leaks[0].count), ("fin_wait2_pileup", 1));
    assert_eq!(leaks[0].process.as_ref().map(|process| process.pid), Some(CURL));
}

#[test]
fn a_close_wait_found_by_the_first_sweep_is_as_old_as_its_last_segment() {
    let since = |cookie, then| Seen {
        jiffies: jiffies(THEN),
        received_jiffies: jiffies(then) as u32,
        ..held_sighting(THEN, numbered(cookie, HELD), CloseWait, CURL)
    };
    let mut world = World::new();
    // The younger one stands first in the kernel's tables.
    world.sweep(THEN, &[since(10, THEN - SECOND), since(11, THEN - 10 * MINUTE)]);
    let leaks = found(&world, THEN);
    let [leak] = &leaks[..] else { panic!("{leaks:?}") };
    assert_eq!((leak.count, leak.oldest_is_lower_bound), (1, true));
    assert!((leak.oldest_seconds - 600.0).abs() < 0.001, "{}", leak.oldest_seconds);
}

#[test]
fn a_leak_shows_what_its_connections_have_in_common() {
    let mut world = World::new();
    world.report(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    for (cookie, local, remote, unread) in
        [(20, "10.0.0.2", "10.0.0.1", 5), (21, "10.0.0.2", "10.0.0.7", 6), (22, "10.0.0.2", "10.0.0.7", 0)]
    {
        let socket = Socket::new(cookie, NETNS, end(local, 80), end(remote, 40_000), PASSIVE | HELD);
        world.report(THEN - 1, socket, to(SynRecv, Established, 0));
        world.report(THEN, socket, to(Established, CloseWait, unread));
    }
    let leaks = found(&world, THEN + LIMIT);
    let [leak] = &leaks[..] else { panic!("{leaks:?}") };
    assert_eq!((leak.count, leak.unread_bytes, leak.role.name()), (3, 11, "server"));
    assert_eq!(leak.local.to_string(), "10.0.0.2:80");
    assert_eq!((leak.remote.addr, leak.remote.port, leak.distinct_remote_addrs), (None, None, 2));
}

#[test]
fn leaks_are_separate_by_process_role_and_peer() {
    let mut world = World::new();
    for (cookie, pid, remote, port) in [
        (20, CURL, "10.0.0.2", 80),
        (21, CURL, "10.0.0.2", 81),
        (22, CURL, "10.0.0.3", 80),
        (23, WORKER, "10.0.0.2", 80),
        (24, CURL, "10.0.0.2", 80),
    ] {
        let socket = Socket::new(cookie, NETNS, end("10.0.0.1", cookie as u16), end(remote, port), HELD);
        world.report(THEN, socket, to(Close, SynSent, pid));
    }
    let mut counts: Vec<_> = found(&world, THEN + LIMIT).iter().map(|leak| leak.count).collect();
    counts.sort_unstable();
    assert_eq!(counts, [1, 1, 1, 2]);
}

#[test]
fn a_reused_pid_does_not_inherit_a_leak() {
    let mut world = World::new();
    standing(&mut world, CloseWait, &[THEN]);
    world.learn(TaskRecord { start_ns: 77_777, ..process(CURL, "curl") });
    let socket = numbered(50, HELD);
    world.report_all(
        socket,
        [
            (THEN - 2, to(Close, SynSent, CURL)),
            (THEN - 1, to(SynSent, Established, 0)),
            (THEN, to(Established, CloseWait, 0)),
        ],
    );
    let counts: Vec<_> = found(&world, THEN + LIMIT).iter().map(|leak| leak.count).collect();
    assert_eq!(counts, [1, 1]);
}

#[test]
fn the_severity_of_a_leak_grows_with_its_size() {
    use Severity::{Critical, Info, Warning};
    for (state, expected) in [
        (CloseWait, [(1, Warning), (99, Warning), (100, Critical)]),
        (FinWait1, [(9, Info), (10, Warning), (100, Warning)]),
        (SynSent, [(9, Info), (10, Warning), (100, Warning)]),
    ] {
        for (count, severity) in expected {
            let mut world = World::new();
            standing(&mut world, state, &vec![THEN; count]);
            assert_eq!(found(&world, THEN + LIMIT)[0].severity, severity, "{count} in {state}");
        }
    }
}

#[test]
fn ten_growing_connections_are_as_severe_as_a_hundred() {
    let limits = LingerLimits::default();
    for (count, severity) in [(9, Severity::Warning), (10, Severity::Critical)] {
        let mut history = LeakHistory::default();
        let mut world = World::new();
        history.sample(&world.tracker, &limits, THEN);
        standing(&mut world, CloseWait, &vec![THEN; count]);
        let leaks = found_with(&world, &history, THEN + 40 * SECOND);
        assert_eq!(leaks[0].growth_per_minute, Some(count as f64 * 1.5));
        assert_eq!(leaks[0].severity, severity, "{count}");
    }
}

#[test]
fn growth_is_reported_after_half_a_minute() {
    let limits = LingerLimits::default();
    let mut world = World::new();
    standing(&mut world, CloseWait, &[THEN, THEN]);
    let mut history = LeakHistory::default();
    let now_ns = THEN + LIMIT;
    assert_eq!(found_with(&world, &history, now_ns)[0].growth_per_minute, None);
    history.sample(&world.tracker, &limits, now_ns);
    for (later, growth) in [(30 * SECOND - 1, None), (30 * SECOND, Some(0.0))] {
        assert_eq!(found_with(&world, &history, now_ns + later)[0].growth_per_minute, growth);
    }
    // One is closed. Growth is measured against the sample of a minute ago, not an older one.
    history.sample(&world.tracker, &limits, now_ns + MINUTE + 1);
    world.report(now_ns + MINUTE + 1, numbered(1, HELD), ended(CloseWait, ECONNRESET));
    let leaks = found_with(&world, &history, now_ns + MINUTE + 1 + 30 * SECOND);
    assert_eq!((leaks[0].count, leaks[0].growth_per_minute), (1, Some(-2.0)));
}

#[test]
fn the_worst_comes_first() {
    let mut world = World::new();
    standing(&mut world, FinWait1, &[THEN; 9]);
    for (cookie, state) in [(500, CloseWait), (501, LastAck), (502, LastAck)] {
        let socket = numbered(cookie, HELD);
        world.report(THEN - 1, socket, to(Close, SynSent, CURL));
        world.report(THEN, socket, to(Established, state, CURL));
    }
    assert_eq!(rules(&world, THEN + LIMIT), ["close_wait_leak", "lingering_fin_wait1", "lingering_last_ack"]);
}

#[test]
fn connections_older_than_the_daemon_are_no_growth_when_they_reach_the_limit() {
    let limits = LingerLimits::default();
    for rule in ["fin_wait2_pileup", "socket_fd_leak"] {
        let (mut world, mut history) = (World::new(), LeakHistory::default());
        for time_ns in (THEN..=THEN + 2 * LIMIT).step_by(5 * SECOND as usize) {
            if rule == "socket_fd_leak" {
                held_in_close(&mut world, time_ns, 150);
            } else {
                let held = |cookie| held_sighting(time_ns, numbered(cookie, HELD), FinWait2, CURL);
                world.sweep(time_ns, &(1..=150).map(held).collect::<Vec<_>>());
            }
            history.sample(&world.tracker, &limits, time_ns);
            for leak in found_with(&world, &history, time_ns) {
                let growth = leak.growth_per_minute.unwrap_or(0.0);
                let at = (time_ns - THEN) / SECOND;
                assert_eq!((leak.rule, growth), (rule, 0.0), "{at} s after the start, {}", leak.summary);
                assert_eq!(leak.severity, Severity::Warning);
            }
        }
    }
}

/// Sockets of curl in CLOSE, seen first at `time_ns`.
fn held_in_close(world: &mut World, time_ns: u64, count: u64) {
    let bare = |cookie| Socket::new(cookie, NETNS, end("0.0.0.0", 0), end("0.0.0.0", 0), HELD);
    let seen: Vec<_> = (0..count)
        .map(|cookie| {
            let fd = 100 - cookie as u32 % 90;
            Seen {
                holder: Some((process(CURL, "curl"), fd)),
                ..sighting(time_ns, bare(1000 + cookie), Close)
            }
        })
        .collect();
    world.sweep(time_ns, &seen);
}

#[test]
fn an_fd_leak_is_found_with_its_descriptors() {
    let mut world = World::new();
    held_in_close(&mut world, THEN, 7);
    held_in_close(&mut world, THEN + LIMIT, 7);
    let leaks = found(&world, THEN + LIMIT);
    let [leak] = &leaks[..] else { panic!("{leaks:?}") };
    assert_eq!(
        (leak.rule, leak.count, leak.state, leak.severity),
        ("socket_fd_leak", 7, Close, Severity::Info)
    );
    assert_eq!(leak.example_fds, [94, 95, 96, 97, 98]);
    assert_eq!(leak.process.as_ref().map(|process| &*process.comm), Some("curl"));
}

#[test]
fn sockets_in_use_and_young_ones_are_no_fd_leak() {
    let mut world = World::new();
    held_in_close(&mut world, THEN, 1);
    held_in_close(&mut world, THEN + SECOND, 3);
    let counts: Vec<_> = found(&world, THEN + LIMIT).iter().map(|leak| leak.count).collect();
    assert_eq!(counts, [1]);
    let held = held_sighting(THEN + LIMIT, client(HELD), Established, CURL);
    world.sweep(THEN + LIMIT, &[held]);
    assert_eq!(rules(&world, THEN + 100 * MINUTE), [] as [&str; 0]);
}

#[test]
fn an_fd_leak_begins_at_its_limit() {
    let mut world = World::new();
    held_in_close(&mut world, THEN, 1);
    assert_eq!(rules(&world, THEN + LIMIT - 1), [] as [&str; 0]);
    assert_eq!(rules(&world, THEN + LIMIT), ["socket_fd_leak"]);
}

#[test]
fn the_severity_of_an_fd_leak_depends_on_size_and_growth() {
    let limits = LingerLimits::default();
    for (before, count, severity) in [
        (9, 9, Severity::Info),
        (10, 10, Severity::Warning),
        (100, 100, Severity::Warning),
        (0, 99, Severity::Warning),
        (0, 100, Severity::Critical),
    ] {
        let mut world = World::new();
        let mut history = LeakHistory::default();
        held_in_close(&mut world, THEN, before);
        history.sample(&world.tracker, &limits, THEN + LIMIT);
        held_in_close(&mut world, THEN + LIMIT + SECOND, count);
        let leaks = found_with(&world, &history, THEN + 2 * LIMIT + SECOND);
        assert_eq!((leaks[0].count as u64, leaks[0].severity), (count, severity), "{before} before");
    }
}
