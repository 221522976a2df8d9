//! Minisocks: what the kernel keeps of a socket after CLOSE, and whose changes of state it does not report.

use crate::scenario::*;

/// The client's orphaned FIN_WAIT2 since 4, a minisock since `time_ns`.
fn orphaned_fin_wait2(world: &mut World, time_ns: u64) {
    world.connect();
    world.report_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
    world.report(time_ns, client(ORPHAN), ended(FinWait2, 0));
}

#[test]
fn an_orphan_in_fin_wait2_stays_there_until_its_timer_ends_it() {
    let mut world = World::new();
    orphaned_fin_wait2(&mut world, 10);
    let row = world.row(1);
    assert_eq!((row.state(), row.since_ns(), row.is(ConnFlags::MINISOCK)), (FinWait2, 4, true));
    assert_eq!(world.names(row), [Some("curl"); 3]);
    assert!(world.tracker.has_unreported_minisocks());
    assert_eq!(world.observed(FinWait2).0, 0, "it is still there");
    world.tracker.expire(10 + MINUTE - 1);
    assert_eq!(world.state(1), Some(FinWait2));
    world.tracker.expire(10 + MINUTE);
    assert_eq!(world.state(1), None);
    let ended = world.last_ended();
    assert_eq!((ended.cause, ended.ended_ns), (Cause::Timer, 10 + MINUTE));
    assert_eq!(world.counts(), [1, 1, 0]);
    assert!(!world.tracker.has_unreported_minisocks());
}

/// Seen from the minisock's side.
fn minisock_of(socket: Socket) -> Socket {
    Socket::new(0, socket.netns, socket.local, socket.remote, MINISOCK)
}

const TIME_WAITS: ReportedFacts = ReportedFacts {
    minisock_ends: true,
    time_waits: true,
    overflows: false,
    identity_is_address: false,
    errnos_missing: false,
};

#[test]
fn an_orphan_in_fin_wait2_enters_time_wait_when_a_record_reports_it() {
    let mut world = World::reported_by(TIME_WAITS);
    orphaned_fin_wait2(&mut world, 10);
    assert!(!world.tracker.has_unreported_minisocks(), "records report all that becomes of it");
    world.report(20 * SECOND, minisock_of(client(0)), What::TimeWait);
    let row = world.row(1);
    assert_eq!((row.state(), row.since_ns(), row.expires_ns()), (TimeWait, 20 * SECOND, 80 * SECOND));
    assert_eq!(row.life().steps().last().unwrap().cause, Cause::Peer);
    assert_eq!(world.observed(FinWait2).0, 1);
    // The peer's FIN came again.
    world.report(50 * SECOND, minisock_of(client(0)), What::TimeWait);
    let row = world.row(1);
    assert_eq!((row.since_ns(), row.expires_ns()), (20 * SECOND, 110 * SECOND));
    world.report(110 * SECOND, minisock_of(client(0)), What::MinisockEnd);
    assert_eq!((world.last_ended().cause, world.tracker.table().len()), (Cause::Timer, 0));
    assert_eq!(world.observed(FinWait2).0, 1);
    world.assert_consistent();
}

#[test]
fn timers_that_start_anew_keep_the_order_of_expiry() {
    let mut world = World::new();
    for cookie in 1..=4 {
        world.report(u64::from(cookie) * SECOND, numbered(cookie, ORPHAN | FIN), ended(FinWait2, 0));
    }
    world.report(10 * SECOND, minisock_of(numbered(1, 0)), What::TimeWait);
    world.tracker.expire(65 * SECOND);
    assert_eq!(world.tracker.table().iter().map(|conn| conn.cookie).collect::<Vec<_>>(), [1]);
    world.assert_consistent();
}

#[test]
fn an_orphan_is_in_time_wait_when_its_peers_fin_was_acknowledged() {
    let elsewhere = Socket::new(2, NETNS + 1, server(0).local, server(0).remote, PASSIVE);
    let nowhere = Socket::new(2, 0, server(0).local, server(0).remote, PASSIVE);
    for (peer, what, state) in [
        (server(ORPHAN), ended(LastAck, 0), TimeWait),
        // It was reset, or gave up.
        (server(ORPHAN), ended(LastAck, ECONNRESET), FinWait2),
        (server(ORPHAN), ended(LastAck, ETIMEDOUT), FinWait2),
        (server(ORPHAN), ended(CloseWait, 0), FinWait2),
        (elsewhere, ended(LastAck, 0), FinWait2),
        (nowhere, ended(LastAck, 0), FinWait2),
        (numbered(2, 0), ended(LastAck, 0), FinWait2),
    ] {
        let mut world = World::new();
        orphaned_fin_wait2(&mut world, 10);
        world.report(20, peer, what);
        assert_eq!(world.state(1), Some(state), "{peer:?} {what:?}");
        let since_ns = if state == TimeWait { 20 } else { 4 };
        assert_eq!(world.row(1).since_ns(), since_ns, "{peer:?} {what:?}");
        world.assert_consistent();
    }
}

#[test]
fn a_peers_end_changes_nothing_where_records_report_it() {
    let mut world = World::reported_by(TIME_WAITS);
    orphaned_fin_wait2(&mut world, 10);
    world.report(20, server(ORPHAN), ended(LastAck, 0));
    assert_eq!(world.state(1), Some(FinWait2), "its own record comes");
}

#[test]
fn a_minisocks_state_follows_from_the_sockets_end_alone() {
    for (flags, state) in [(ORPHAN, FinWait2), (ORPHAN | FIN, TimeWait)] {
        let mut world = World::new();
        world.connect();
        world.report(3, client(HELD), to(Established, FinWait1, CURL));
        // FIN_WAIT1 -> FIN_WAIT2 was lost.
        world.report(10, client(flags), ended(FinWait2, 0));
        assert_eq!((world.state(1), world.row(1).is(ConnFlags::MINISOCK)), (Some(state), true));
        assert_eq!(world.observed(FinWait1).0, 0);
        world.tracker.expire(10 + MINUTE);
        assert_eq!(world.state(1), None, "{state}");
    }
}

#[test]
fn a_time_wait_lasts_a_minute() {
    let mut world = World::new();
    world.time_wait(10);
    world.tracker.expire(10 + MINUTE - 1);
    assert_eq!(world.state(1), Some(TimeWait));
    world.tracker.expire(2 * MINUTE);
    assert_eq!(world.state(1), None);
    assert_eq!((world.last_ended().cause, world.last_ended().ended_ns), (Cause::Timer, 10 + MINUTE));
}

#[test]
fn each_minisock_expires_in_its_own_time() {
    let mut world = World::new();
    for (cookie, time_ns) in (1..).zip([10, 20, 30]) {
        world.report(time_ns, numbered(cookie, ORPHAN | FIN), ended(FinWait2, 0));
        world.report(time_ns + 5, numbered(cookie + 100, ORPHAN), ended(FinWait2, 0));
    }
    world.tracker.expire(MINUTE + 20);
    let left: Vec<_> = world.tracker.table().iter().map(|conn| conn.cookie).collect();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!([3, 102, 103].iter().all(|cookie| left.contains(cookie)), "{left:?}");
}

#[test]
fn a_reported_end_is_exact_and_shows_whether_the_timer_caused_it() {
    for (reported_ns, cause) in
        [(30 * SECOND, Cause::Peer), (10 + MINUTE, Cause::Timer), (63 * SECOND, Cause::Timer)]
    {
        let mut world = World::new();
        world.time_wait(10);
        let minisock = Socket::new(0, NETNS, client(0).local, client(0).remote, MINISOCK);
        world.report(reported_ns, minisock, What::MinisockEnd);
        assert_eq!(world.state(1), None);
        assert_eq!((world.last_ended().cause, world.last_ended().ended_ns), (cause, reported_ns));
    }
}

#[test]
fn where_ends_are_reported_the_timer_waits_for_the_record() {
    let mut world = World::reported_by(ReportedFacts { minisock_ends: true, ..ReportedFacts::default() });
    world.time_wait(10);
    world.tracker.expire(64 * SECOND);
    assert_eq!(world.state(1), Some(TimeWait));
    world.tracker.expire(66 * SECOND);
    assert_eq!(world.state(1), None, "its record was lost");
}

#[test]
fn the_reported_end_of_an_unknown_minisock_changes_nothing() {
    let mut world = World::new();
    world.connect();
    for socket in [client(0), server(0)] {
        let minisock = Socket::new(0, NETNS, socket.local, socket.remote, MINISOCK);
        world.report(9, minisock, What::MinisockEnd);
    }
    assert_eq!((world.state(1), world.tracker.ended().len()), (Some(Established), 0));
}

#[test]
fn a_new_connection_with_the_same_addresses_replaces_the_minisock() {
    let again = |flags| Socket::new(77, NETNS, client(0).local, client(0).remote, flags);
    for (socket, what) in [
        (again(HELD), to(Close, SynSent, CURL)),
        (again(HELD), to(SynSent, Established, 0)),
        (again(PASSIVE), to(SynRecv, Established, 0)),
        (again(HELD), What::Retransmit { state: Established, total: Some(1) }),
    ] {
        let mut world = World::new();
        world.time_wait(10);
        world.report(20, socket, what);
        assert_eq!((world.state(1), world.state(77).is_some()), (None, true), "{what:?}");
        let ended = world.last_ended();
        assert_eq!((ended.conn.cookie, ended.ended_ns), (1, 20), "{what:?}");
        world.assert_consistent();
    }
}

#[test]
fn a_minisock_is_replaced_once_the_new_connections_port_is_known() {
    let mut world = World::new();
    world.time_wait(10);
    let bare = Socket::new(77, NETNS, end("0.0.0.0", 0), client(0).remote, HELD);
    world.report(20, bare, to(Close, SynSent, CURL));
    assert_eq!(world.state(1), Some(TimeWait));
    let again = Socket::new(77, NETNS, client(0).local, client(0).remote, HELD);
    world.report(21, again, to(SynSent, Established, 0));
    assert_eq!((world.state(1), world.state(77)), (None, Some(Established)));
}

#[test]
fn the_same_addresses_in_another_namespace_replace_nothing() {
    let mut world = World::new();
    world.time_wait(10);
    let elsewhere = Socket::new(77, NETNS + 1, client(0).local, client(0).remote, HELD);
    world.report(20, elsewhere, to(Close, SynSent, CURL));
    // Neither does the other side of the same connection.
    world.report(21, server(0), to(SynRecv, Established, 0));
    assert_eq!(world.state(1), Some(TimeWait));
}

#[test]
fn the_same_addresses_on_another_interface_are_another_minisock() {
    let mut world = World::new();
    for (cookie, interface) in [(1, 3), (2, 4)] {
        let socket =
            |flags| Socket::new(cookie, NETNS, client(0).local, client(0).remote, flags).on(interface);
        world.report_all(
            socket(HELD),
            [
                (1, to(Close, SynSent, CURL)),
                (2, to(SynSent, Established, 0)),
                (3, to(Established, FinWait1, CURL)),
                (4, to(FinWait1, FinWait2, 0)),
            ],
        );
        world.report(5, socket(ORPHAN | FIN), ended(FinWait2, 0));
    }
    assert_eq!((world.state(1), world.state(2)), (Some(TimeWait), Some(TimeWait)));
    let minisock = Socket::new(0, NETNS, client(0).local, client(0).remote, MINISOCK);
    for (interface, states) in [(0, [true, true]), (5, [true, true]), (4, [true, false]), (3, [false, false])]
    {
        world.report(9, minisock.on(interface), What::MinisockEnd);
        assert_eq!([1, 2].map(|cookie| world.find(cookie).is_some()), states, "on {interface}");
    }
    world.assert_consistent();
}

#[test]
fn a_time_wait_replaces_one_with_the_same_addresses() {
    let mut world = World::new();
    world.time_wait(10);
    // All records before its end were lost.
    let again = Socket::new(77, NETNS, client(0).local, client(0).remote, ORPHAN | FIN);
    world.report(20, again, ended(FinWait2, 0));
    assert_eq!((world.state(1), world.state(77)), (None, Some(TimeWait)));
    assert_eq!(world.tracker.table().count(TimeWait), 1);
    world.assert_consistent();
}
