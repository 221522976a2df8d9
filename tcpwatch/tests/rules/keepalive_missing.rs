use tcpwatch::{
    events::decode::{IdleRecord, Kind, Retransmits},
    findings::Severity,
    tcp::stall::{Recovery, Stalled},
};
use tcpwatch_common::OPTION_KEEPALIVE;

use crate::{THEN, Watched, evidence, scenario::*};

const RULE: &str = "keepalive_missing";

const HOUR: u64 = 60 * MINUTE;

fn conn(port: u16) -> Socket {
    Socket::new(port.into(), NETNS, end("10.0.0.1", port), end("10.9.0.2", 5432), HELD)
}

/// Connections that were last used at that time, with these options, swept at `THEN`.
fn silent(world: &mut World, count: u16, used_ns: u64, options: SocketOptions) {
    let sockets: Vec<Socket> = (0..count).map(|one| conn(1000 + one)).collect();
    for socket in &sockets {
        world.report(THEN - 10 * HOUR, *socket, to(Close, SynSent, WORKER));
        world.report(THEN - 10 * HOUR, *socket, to(SynSent, Established, 0));
    }
    let seen = sockets.iter().map(|socket| Seen {
        jiffies: jiffies(THEN),
        sent_jiffies: jiffies(used_ns) as u32,
        received_jiffies: jiffies(used_ns) as u32,
        data_received_jiffies: jiffies(used_ns) as u32,
        data_sent: true,
        traffic: Traffic { sent_bytes: 10, received_bytes: 10 },
        options,
        ..held_sighting(THEN, *socket, Established, WORKER)
    });
    world.sweep(THEN, &seen.collect::<Vec<_>>());
}

fn severity(world: &World) -> Option<Severity> {
    let mut watched = Watched::from(THEN);
    watched.until(world, THEN + 4 * SECOND);
    watched.find(RULE).map(|finding| finding.severity)
}

const OFF: SocketOptions = SocketOptions {
    flags: 0,
    user_timeout_ms: 0,
    linger_jiffies: 0,
    keepalive_time_jiffies: 7_200_000,
    keepalive_intvl_jiffies: 75_000,
    keepalive_probes: 9,
};

#[test]
fn a_dozen_silent_connections_that_nothing_probes_are_an_info() {
    let used_ns = THEN - 3 * HOUR;
    for (what, count, used_ns, options, expected) in [
        ("off", 12, used_ns, OFF, Some(Severity::Info)),
        (
            "on, first probe after two hours",
            12,
            used_ns,
            SocketOptions { flags: OPTION_KEEPALIVE, ..OFF },
            Some(Severity::Info),
        ),
        ("a few", 9, used_ns, OFF, None),
        ("used within the hour", 12, THEN - HOUR, OFF, None),
        (
            "probed each minute",
            12,
            used_ns,
            SocketOptions { flags: OPTION_KEEPALIVE, keepalive_time_jiffies: 60_000, ..OFF },
            None,
        ),
    ] {
        let mut world = World::new();
        silent(&mut world, count, used_ns, options);
        assert_eq!(severity(&world), expected, "{what}");
    }
}

#[test]
fn both_ends_on_this_node_are_silent() {
    let mut world = World::new();
    for port in 1000..1012 {
        let other =
            Socket::new(u64::from(port) + 5000, NETNS, conn(port).remote, conn(port).local, PASSIVE | HELD);
        world.report(THEN - HOUR, other, to(SynRecv, Established, 0));
        world.report(THEN - HOUR, other, What::Accept { state: Established, pid: Some(NGINX) });
    }
    silent(&mut world, 12, THEN - 3 * HOUR, OFF);
    // The sweep has not seen the others.
    for port in 1000..1012 {
        let other =
            Socket::new(u64::from(port) + 5000, NETNS, conn(port).remote, conn(port).local, PASSIVE | HELD);
        world.report(THEN + 1, other, to(SynRecv, Established, 0));
    }
    assert_eq!(severity(&world), None);
}

/// A connection that was idle for so long, and was used then, 15 s before `THEN`, in vain.
fn hangs(world: &mut World, port: u16, pause: u64, timeouts: u64) {
    let (socket, closed_ns) = (conn(port), THEN - SECOND);
    world.report(THEN - HOUR, socket, to(Close, SynSent, WORKER));
    world.report(THEN - HOUR, socket, to(SynSent, Established, 0));
    let sent_ns = closed_ns - 15 * SECOND;
    let stalled = Some(Stalled { since_ns: sent_ns, recovery: Recovery::Timeout, bytes: 100 });
    let mut retransmits = Retransmits { since_ns: sent_ns, stalled, ..Retransmits::default() };
    retransmits.segments[Kind::Timeout as usize] = timeouts;
    let total = Some(timeouts as u32);
    let record = SocketRecord {
        socket,
        time_ns: closed_ns - SECOND,
        what: What::Retransmit { state: Established, total },
        traffic: None,
    };
    world.tracker.apply(&Record::Retransmit(record, Box::new(retransmits)));
    let received_ticks = ((pause + 15) * 1000) as u32;
    if pause == STAYS_OPEN {
        return;
    }
    let idle = IdleRecord { cookie: port.into(), time_ns: closed_ns, sent_ticks: 3000, received_ticks };
    world.tracker.apply(&Record::Idle(idle));
    world.report_with_traffic(closed_ns, socket, to(Established, FinWait1, WORKER), (500, 400));
}

#[test]
fn connections_that_are_used_in_vain_after_a_pause_are_a_warning() {
    let mut world = World::new();
    hangs(&mut world, 1, 65, 5);
    assert_eq!(severity(&world), None, "one may be chance");
    hangs(&mut world, 2, 70, 5);
    let mut watched = Watched::from(THEN);
    let finding = watched.until(&world, THEN + 4 * SECOND).of(RULE);
    assert_eq!(finding.severity, Severity::Warning);
    assert_eq!(
        ["broken", "broken_by_reset", "shortest_pause"].map(|name| evidence(finding, name) as u64),
        [2, 0, 65]
    );
    assert_eq!(watched.until(&world, THEN + 2 * HOUR).find(RULE).map(|one| one.severity), None);
}

/// The pause of a connection that nobody closes.
const STAYS_OPEN: u64 = 99;

#[test]
fn connections_that_hang_and_stay_open_are_found_by_a_sweep_and_count_once() {
    let mut world = World::new();
    for port in [1, 2] {
        hangs(&mut world, port, STAYS_OPEN, 5);
    }
    for now_ns in [THEN, THEN + SECOND] {
        let seen = [1, 2].map(|port| Seen {
            jiffies: jiffies(now_ns),
            sent_jiffies: jiffies(THEN - 3 * SECOND) as u32,
            received_jiffies: jiffies(THEN - 100 * SECOND) as u32,
            data_received_jiffies: jiffies(THEN - 100 * SECOND) as u32,
            data_sent: true,
            traffic: Traffic { sent_bytes: 500, received_bytes: 400 },
            total_retrans: 5,
            ..held_sighting(now_ns, conn(port), Established, WORKER)
        });
        world.sweep(now_ns, &seen);
    }
    let mut watched = Watched::from(THEN);
    let finding = watched.until(&world, THEN + 4 * SECOND).of(RULE);
    assert_eq!(finding.severity, Severity::Warning);
    assert_eq!(["broken", "shortest_pause"].map(|name| evidence(finding, name) as u64), [2, 84]);
}

#[test]
fn a_short_pause_or_a_single_loss_proves_nothing() {
    let mut world = World::new();
    for port in 1..9 {
        hangs(&mut world, port, 20, 5);
        hangs(&mut world, 100 + port, 65, 1);
    }
    assert_eq!(severity(&world), None);
}

#[test]
fn a_reset_in_answer_to_the_first_use_after_a_pause_counts_and_one_of_a_sender_does_not() {
    for (traffic, expected) in [((500, 400), Some(Severity::Warning)), ((500_000, 400), None)] {
        let mut world = World::new();
        for port in [1, 2] {
            let (socket, at_ns) = (conn(port), THEN - SECOND);
            world.report(THEN - HOUR, socket, to(Close, SynSent, WORKER));
            world.report(THEN - HOUR, socket, to(SynSent, Established, 0));
            world.report_reset(received_reset(at_ns, socket, Established));
            let idle =
                IdleRecord { cookie: port.into(), time_ns: at_ns, sent_ticks: 20, received_ticks: 350_020 };
            world.tracker.apply(&Record::Idle(idle));
            world.report_with_traffic(at_ns, socket, ended(Established, ECONNRESET), traffic);
        }
        assert_eq!(severity(&world), expected);
    }
}
