//! Findings: each fires, stays silent beside a healthy control, and begins exactly at its limit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod scenario;

use std::time::{Duration, SystemTime};

use scenario::*;
use tcpwatch::{
    findings::{
        Severity,
        evidence::Evidence,
        leaks::{Leak, LeakHistory, leaks, lingering::LingerLimits},
    },
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

/// The growth and severity of curl's leak, where a connection each enters CLOSE_WAIT at the times `at` (seconds after
/// THEN), as of `now`, with samples every 5 s.
fn growth_of(at: &[u64], now: u64) -> (Option<f64>, Option<Severity>) {
    let mut world = World::new();
    let times: Vec<_> = at.iter().map(|at| THEN + at * SECOND).collect();
    standing(&mut world, CloseWait, &times);
    let mut history = LeakHistory::default();
    for second in (0..=now).step_by(5) {
        history.sample(&world.tracker, &LingerLimits::default(), THEN + second * SECOND);
    }
    let leaks = found_with(&world, &history, THEN + now * SECOND);
    let first = leaks.first();
    (first.and_then(|leak| leak.growth_per_minute), first.map(|leak| leak.severity))
}

#[test]
fn a_step_is_no_growth() {
    for (what, at, now, growth, severity) in [
        ("12 at once", vec![0; 12], 31, 0.0, Severity::Warning),
        ("12 at once, a minute later", vec![0; 12], 95, 0.0, Severity::Warning),
        ("two steps", [vec![0; 6], vec![20; 6]].concat(), 60, 0.0, Severity::Warning),
        ("one each 5 s", (0..12).map(|index| 5 * index).collect(), 85, 12.0, Severity::Critical),
        ("one a minute", (0..12).map(|index| 60 * index).collect(), 700, 1.0, Severity::Critical),
        ("9, one each 5 s", (0..9).map(|index| 5 * index).collect(), 70, 12.0, Severity::Warning),
        ("grown, then constant", (0..12).map(|index| 5 * index).collect(), 120, 0.0, Severity::Warning),
    ] {
        let (found, found_severity) = growth_of(&at, now);
        assert_eq!(
            (found.map(f64::round), found_severity),
            (Some(growth), Some(severity)),
            "{what}: {found:?}"
        );
    }
}

#[test]
fn growth_is_reported_after_half_a_minute() {
    let mut world = World::new();
    standing(&mut world, CloseWait, &[THEN, THEN]);
    let mut history = LeakHistory::default();
    let now_ns = THEN + LIMIT;
    assert_eq!(found_with(&world, &history, now_ns)[0].growth_per_minute, None);
    history.sample(&world.tracker, &LingerLimits::default(), now_ns);
    for (later, growth) in [(30 * SECOND - 1, None), (30 * SECOND, Some(0.0))] {
        assert_eq!(found_with(&world, &history, now_ns + later)[0].growth_per_minute, growth);
    }
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
    for (counts, severity) in [
        ([9, 9, 9, 9], Severity::Info),
        ([10, 10, 10, 10], Severity::Warning),
        ([0, 100, 100, 100], Severity::Warning),
        ([0, 33, 66, 99], Severity::Warning),
        ([0, 33, 66, 100], Severity::Critical),
    ] {
        let (mut world, mut history) = (World::new(), LeakHistory::default());
        // The first sweep's are older than the daemon.
        held_in_close(&mut world, THEN, 0);
        for second in 1..=65 {
            let now_ns = THEN + second * SECOND;
            held_in_close(&mut world, now_ns, counts[(second / 10).min(3) as usize]);
            if second % 5 == 0 {
                history.sample(&world.tracker, &limits, now_ns);
            }
        }
        let leaks = found_with(&world, &history, THEN + 65 * SECOND);
        assert_eq!((leaks[0].count as u64, leaks[0].severity), (counts[3], severity), "{counts:?}");
    }
}

/// Times of data before a sweep at `now_ns`, and what else a sighting of CLOSE_WAIT is judged by.
fn closed_sighting(now_ns: u64, socket: Socket, sent_ns: u64, received_ns: u64) -> Seen {
    Seen {
        jiffies: jiffies(now_ns),
        received_jiffies: jiffies(THEN) as u32,
        sent_jiffies: jiffies(sent_ns) as u32,
        data_received_jiffies: jiffies(received_ns) as u32,
        data_sent: true,
        traffic: Traffic { sent_bytes: 100, received_bytes: 100 },
        ..held_sighting(now_ns, socket, CloseWait, CURL)
    }
}

/// The only finding, and its texts together.
fn only(world: &World, now_ns: u64) -> (Leak, String) {
    let mut leaks = found(world, now_ns);
    assert_eq!(leaks.len(), 1, "{leaks:?}");
    let leak = leaks.remove(0);
    let text = format!("{} {}", leak.summary, leak.next_step);
    (leak, text)
}

#[test]
fn what_a_peer_closed_while_it_was_idle_is_a_pools() {
    let now_ns = THEN + LIMIT;
    let socket = numbered(1, HELD);
    let idle = closed_sighting(now_ns, socket, THEN - SECOND, THEN - SECOND + 1_000_000);
    for (what, seen, evidence, severity) in [
        ("idle", idle.clone(), Evidence::Idle, Severity::Info),
        (
            "a farewell",
            Seen { data_received_jiffies: jiffies(THEN) as u32, unread_bytes: 31, ..idle.clone() },
            Evidence::Idle,
            Severity::Info,
        ),
        ("an unread answer", Seen { unread_bytes: 31, ..idle.clone() }, Evidence::None, Severity::Warning),
        (
            "an unanswered request",
            closed_sighting(now_ns, socket, THEN - SECOND, THEN - 2 * SECOND),
            Evidence::None,
            Severity::Warning,
        ),
        (
            "closed behind the answer",
            closed_sighting(now_ns, socket, THEN - 3_000_000, THEN - 2_000_000),
            Evidence::None,
            Severity::Warning,
        ),
        ("sends", closed_sighting(now_ns, socket, now_ns - SECOND, THEN), Evidence::Sending, Severity::Info),
        ("has something to send", Seen { unsent: 5, ..idle.clone() }, Evidence::Sending, Severity::Info),
    ] {
        let mut world = World::new();
        world.sweep(now_ns, &[seen]);
        let (leak, text) = only(&world, now_ns);
        assert_eq!((leak.evidence, leak.severity), (evidence, severity), "{what}: {text}");
        assert_eq!(text.contains("has not closed its side"), evidence == Evidence::None, "{what}: {text}");
    }
}

#[test]
fn what_no_descriptor_refers_to_is_named_so() {
    let now_ns = THEN + LIMIT;
    let held = |seen| Seen { socket: numbered(1, HELD), ..seen };
    let seen = held(Seen { holder: None, ..closed_sighting(now_ns, numbered(1, HELD), THEN, THEN) });
    let ours = held_sighting(now_ns, listener(9, "0.0.0.0"), Listen, NGINX);
    let mut world = World::new();
    world.sweep(now_ns, &[seen.clone(), ours.clone()]);
    let (leak, text) = only(&world, now_ns);
    assert_eq!(leak.evidence, Evidence::NoDescriptor);
    assert!(text.contains("io_uring") && !text.contains("unknown process"), "{text}");
    // Seen with a descriptor behind that, and where no descriptor could be read at all.
    let found = held_sighting(now_ns, numbered(1, HELD), CloseWait, CURL);
    for sightings in [&[seen.clone(), found, ours][..], &[seen]] {
        let mut world = World::new();
        world.sweep(now_ns, sightings);
        assert_eq!(only(&world, now_ns).0.evidence, Evidence::None, "{sightings:?}");
    }
}

#[test]
fn held_and_orphaned_fin_wait2_are_two_groups_and_so_are_namespaces() {
    let now_ns = THEN + LIMIT;
    let seen = |cookie, netns, flags| {
        let socket = Socket::new(cookie, netns, end("10.0.0.1", cookie as u16), end("10.0.0.2", 80), flags);
        Seen {
            jiffies: jiffies(now_ns),
            received_jiffies: jiffies(THEN) as u32,
            ..sighting(now_ns, socket, FinWait2)
        }
    };
    let mut world = World::new();
    let held = Seen { holder: Some((process(CURL, "curl"), 3)), ..seen(1, NETNS, HELD) };
    world.sweep(now_ns, &[held, seen(2, NETNS, ORPHAN), seen(3, NETNS, ORPHAN), seen(4, NETNS + 1, ORPHAN)]);
    let mut leaks = found(&world, now_ns);
    leaks.sort_by_key(|leak| (leak.netns, leak.count));
    let groups: Vec<_> = leaks.iter().map(|leak| (leak.netns, leak.evidence, leak.count)).collect();
    let (here, there) = (Some(NETNS), Some(NETNS + 1));
    assert_eq!(
        groups,
        [(here, Evidence::Held, 1), (here, Evidence::Orphaned, 2), (there, Evidence::Orphaned, 1)]
    );
    assert!(leaks[0].summary.contains("shut down its sending side"), "{}", leaks[0].summary);
    assert!(leaks[0].next_step.contains("no timer"), "{}", leaks[0].next_step);
    assert!(leaks[1].next_step.contains("tcp_fin_timeout"), "{}", leaks[1].next_step);
}

#[test]
fn a_proxy_names_what_it_waits_for_and_who_holds_that() {
    let now_ns = THEN + LIMIT;
    let at =
        |time_ns, seen| Seen { jiffies: jiffies(now_ns), received_jiffies: jiffies(time_ns) as u32, ..seen };
    let mut seen = Vec::new();
    for index in 0..12 {
        let from = end("127.0.0.1", 50_000 + index);
        let onward = end("127.0.0.1", 51_000 + index);
        let (front, back) = (end("127.0.0.1", 80), end("127.0.0.1", 9020));
        let closed_ns = THEN + u64::from(index) * 10_000_000;
        let cookie = u64::from(index) * 10 + 100;
        for (cookie, local, remote, flags, state, pid, later) in [
            (cookie, front, from, PASSIVE | HELD, CloseWait, NGINX, 0),
            (cookie + 1, onward, back, HELD, FinWait2, NGINX, 1_000_000),
            (cookie + 2, back, onward, PASSIVE | HELD, CloseWait, WORKER, 1_000_000),
        ] {
            let socket = Socket::new(cookie, NETNS, local, remote, flags);
            seen.push(at(closed_ns + later, held_sighting(now_ns, socket, state, pid)));
        }
    }
    let mut world = World::new();
    world.sweep(now_ns, &seen);
    let leaks = found(&world, THEN + 2 * LIMIT);
    let of = |state, name| {
        leaks
            .iter()
            .find(|leak| leak.state == state && leak.process.as_ref().is_some_and(|one| &*one.comm == name))
            .unwrap()
    };
    let proxy = of(CloseWait, "nginx");
    let waits_for = proxy.waits_for.as_ref().unwrap();
    assert_eq!((waits_for.count, waits_for.remote.port), (12, 9020));
    assert!(proxy.next_step.starts_with("Look at worker (pid "), "{}", proxy.next_step);
    let shut = of(FinWait2, "nginx");
    assert_eq!(shut.other_end.as_ref().map(|other| (other.state, other.count)), Some((CloseWait, 12)));
    assert!(shut.next_step.starts_with("Look at worker (pid "), "{}", shut.next_step);
    let backend = of(CloseWait, "worker");
    assert!(
        backend.waits_for.is_none() && backend.summary.contains("has not closed its side"),
        "{backend:?}"
    );
    assert_eq!(backend.other_end.as_ref().map(|other| other.state), Some(FinWait2));
}

#[test]
fn a_connect_that_an_older_connection_answers_is_told_apart() {
    let now_ns = THEN + 5 * SECOND;
    let socket = numbered(1, HELD);
    let waiting = || {
        let mut world = World::new();
        world.report(THEN, socket, to(Close, SynSent, CURL));
        world
    };
    let (leak, text) = only(&waiting(), now_ns);
    assert_eq!(leak.evidence, Evidence::None);
    assert!(!text.contains("Nothing answers") && text.contains("look the same"), "{text}");

    let mut world = waiting();
    world.report_reset(ResetRecord { answers: true, ..reset(THEN + SECOND, socket, SynSent) });
    let (leak, text) = only(&world, now_ns);
    assert_eq!((leak.evidence, world.state(1)), (Evidence::Challenged, Some(SynSent)));
    assert!(
        text.contains("older connection") && text.contains("reset") && !text.contains("host that is down"),
        "{text}"
    );

    let mut world = waiting();
    let stale = Socket::new(2, NETNS, end("10.0.0.2", 80), end("10.0.0.1", 1), PASSIVE | HELD);
    let sent = Seen { unacknowledged: 1, ..held_sighting(now_ns, socket, SynSent, CURL) };
    world.sweep(now_ns, &[sent.clone(), held_sighting(now_ns, stale, FinWait2, NGINX)]);
    let (leak, text) = only(&world, now_ns);
    assert_eq!(leak.other_end.map(|other| other.state), Some(FinWait2));
    assert!(text.contains("nginx (pid ") && text.contains("FIN_WAIT2"), "{text}");

    let mut world = waiting();
    let queue = ListenQueue { waiting: 5, limit: 4, drops: 9, ..ListenQueue::default() };
    let full = Seen { queue, ..held_sighting(now_ns, listener(9, "10.0.0.2"), Listen, NGINX) };
    world.sweep(now_ns, &[sent, full]);
    let (leak, text) = only(&world, now_ns);
    assert_eq!(leak.queue.map(|queue| (queue.queue, queue.queue_limit)), Some((5, 4)));
    assert!(text.contains("nginx") && text.contains("holds 5 (limit 4"), "{text}");

    let mut world = waiting();
    world.sweep(now_ns, &[held_sighting(now_ns, socket, SynSent, CURL)]);
    let (leak, text) = only(&world, now_ns);
    assert_eq!(leak.evidence, Evidence::Unsent);
    assert!(text.contains("Fast Open"), "{text}");
}

#[test]
fn handshakes_are_lost_deferred_or_refused() {
    let socket = Socket::new(5, NETNS, end("10.0.0.2", 80), end("10.0.0.1", 40_000), REQUEST);
    let queue = |deferred| ListenQueue { waiting: 5, limit: 4, deferred, ..ListenQueue::default() };
    for (acknowledged, deferred, evidence, severity, said) in [
        (false, false, Evidence::None, Severity::Info, "lost between the two"),
        (false, true, Evidence::None, Severity::Info, "lost between the two"),
        (true, false, Evidence::Acknowledged, Severity::Info, "queue was full"),
        (true, true, Evidence::Deferred, Severity::Info, "Nothing is lost"),
    ] {
        let mut world = World::new();
        let listens =
            Seen { queue: queue(deferred), ..held_sighting(THEN, listener(9, "0.0.0.0"), Listen, NGINX) };
        let waits = Seen {
            queue: queue(deferred),
            handshake_acknowledged: acknowledged,
            ..sighting(THEN, socket, SynRecv)
        };
        world.sweep(THEN, &[listens, waits]);
        let (leak, text) = only(&world, THEN + 5 * SECOND);
        assert_eq!((leak.evidence, leak.severity), (evidence, severity), "{text}");
        assert!(text.contains(said), "{text}");
        assert_eq!(text.contains("lost between"), !acknowledged, "{text}");
    }
}

#[test]
fn the_queue_of_a_leak_is_that_of_the_listener_whatever_ports_say() {
    // A transparent proxy listens on another port; a server on that of the connections.
    let proxy = Socket::new(9, NETNS, end("0.0.0.0", 8080), end("::", 0), PASSIVE | HELD);
    let waits = |waiting| ListenQueue { waiting, limit: 4, ..ListenQueue::default() };
    let listens = |socket, waiting| Seen {
        queue: waits(waiting),
        ..held_sighting(THEN, socket, Listen, if waiting == 5 { NGINX } else { WORKER })
    };
    let listeners = [listens(proxy, 5), listens(listener(8, "10.0.0.2"), 0)];

    let mut world = World::new();
    let closed = sighting(THEN, server(FIN), CloseWait);
    world.sweep_with_lists(THEN, &[&listeners[..], &[closed]].concat(), &[accept_queue(THEN, 9, &[2])]);
    let (leak, _) = only(&world, THEN + LIMIT);
    assert_eq!((leak.evidence, leak.process.map(|one| one.pid)), (Evidence::Unaccepted, Some(NGINX)));
    assert_eq!(leak.queue.map(|queue| queue.queue), Some(5));

    let mut world = World::new();
    let socket = Socket::new(5, NETNS, end("10.0.0.2", 80), end("10.0.0.1", 40_000), REQUEST);
    let request = Seen { listener: 9, handshake_acknowledged: true, ..sighting(THEN, socket, SynRecv) };
    world.sweep(THEN, &[&listeners[..], &[request]].concat());
    let (leak, _) = only(&world, THEN + 5 * SECOND);
    assert_eq!(leak.queue.map(|queue| queue.queue), Some(5));
}

#[test]
fn a_fin_that_was_never_sent_is_not_said_to_be_unanswered() {
    let now_ns = THEN + LIMIT;
    for (unsent, unacknowledged, said) in
        [(1001, 0, "does not read"), (1001, 3, "is not acknowledged"), (0, 1, "its FIN is not acknowledged")]
    {
        let mut world = World::new();
        standing(&mut world, FinWait1, &[THEN]);
        let seen = Seen { unsent, unacknowledged, ..sighting(now_ns, numbered(1, ORPHAN), FinWait1) };
        world.sweep(now_ns, &[seen]);
        let (leak, text) = only(&world, now_ns);
        assert_eq!(leak.unsent_bytes, u64::from(unsent.saturating_sub(1)));
        assert!(text.contains(said), "{text}");
        assert_eq!(text.contains("FIN are not sent yet"), unsent > 0, "{text}");
    }
}
