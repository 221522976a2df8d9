//! TIME_WAIT and orphaned FIN_WAIT2, of which sweeps report more than records do.

use crate::scenario::*;

/// The client's TIME_WAIT is entered at this second 1000, when the kernel's ticks are not known yet.
const THEN: u64 = 1000 * SECOND;

fn time_wait() -> World {
    let mut world = World::new();
    world.time_wait(THEN);
    world
}

#[test]
fn a_minisock_first_known_by_its_sockets_end_has_the_cookie_by_which_the_kernel_knows_it() {
    let mut world = World::new();
    world.report(10, client(ORPHAN | FIN), ended(FinWait2, 0));
    assert_eq!(world.state(1), Some(TimeWait));
    let known = Socket::new(77, NETNS, client(0).local, client(0).remote, MINISOCK);
    world.sweep(20, &[minisock_sighting(21, known, TimeWait, MINUTE)]);
    assert_eq!((world.state(1), world.state(77)), (None, Some(TimeWait)));
    world.assert_consistent();
}

#[test]
fn a_minisock_is_recognised_by_its_addresses_and_keeps_its_owner() {
    let mut world = time_wait();
    let again = Socket::new(555, NETNS, client(0).local, client(0).remote, MINISOCK);
    world.sweep(THEN + SECOND, &[minisock_sighting(THEN + SECOND, again, TimeWait, THEN + MINUTE)]);
    let row = world.row(1);
    assert_eq!((row.state(), row.since_ns(), world.names(row)), (TimeWait, THEN, [Some("curl"); 3]));
    assert_eq!(world.tracker.table().len(), 1);
    assert_eq!(world.tracker.repairs().appeared, 0);
}

#[test]
fn a_minisock_is_found_on_its_interface_only() {
    let mut world = World::new();
    let seen = |cookie, interface| {
        let socket = Socket::new(cookie, NETNS, client(0).local, client(0).remote, 0);
        let sighting = minisock_sighting(THEN, socket, TimeWait, THEN + MINUTE);
        Seen { socket: sighting.socket.on(interface), ..sighting }
    };
    for began_ns in [THEN - 1, THEN + 1] {
        world.sweep(began_ns, &[seen(1, 3), seen(2, 4)]);
        assert_eq!((world.row(1).interface, world.row(2).interface), (3, 4));
    }
    assert_eq!((world.tracker.repairs().appeared, world.tracker.table().len()), (0, 2));
    world.sweep(THEN + 2, &[seen(2, 4)]);
    assert_eq!((world.state(1), world.state(2)), (None, Some(TimeWait)));
}

/// The record of its end is written before the kernel removes it.
#[test]
fn a_sighting_soon_after_the_record_of_its_end_does_not_bring_a_minisock_back() {
    for (after_ns, state) in [(50_000_000, None), (SECOND, Some(TimeWait))] {
        let mut world = time_wait();
        world.tracker.begin_sweep(THEN + 1);
        world.report(THEN + 2, client(0), What::MinisockEnd);
        let seen_ns = THEN + 2 + after_ns;
        world.finish_sweep(&[minisock_sighting(seen_ns, client(0), TimeWait, seen_ns + MINUTE)]);
        assert_eq!(world.state(1), state, "{after_ns} ns after it");
    }
}

/// Records of its beginning are read after the sweep has begun, and one of its changes never comes.
#[test]
fn a_minisock_continues_the_socket_that_it_is_left_of() {
    let mut world = World::new();
    world.tracker.begin_sweep(5);
    world.connect();
    world.report(3, client(HELD), to(Established, FinWait1, CURL));
    let left = |seen_ns| minisock_sighting(seen_ns, client(0), FinWait2, seen_ns + MINUTE);
    world.finish_sweep(&[left(50_000_000)]);
    world.sweep(SECOND, &[left(SECOND)]);
    let row = world.row(1);
    assert_eq!((row.state(), world.names(row)), (FinWait2, [Some("curl"); 3]));
}

/// The record of its socket's end may still be on its way.
#[test]
fn a_sighting_soon_after_a_record_does_not_turn_a_socket_into_a_minisock() {
    for (after_ns, vanished, minisock) in [(50_000_000, 0, false), (SECOND, 1, true)] {
        let mut world = World::new();
        world.connect();
        world.report_all(
            client(HELD),
            [(THEN, to(Established, FinWait1, CURL)), (THEN, to(FinWait1, FinWait2, 0))],
        );
        let seen_ns = THEN + after_ns;
        world.sweep(THEN + 1, &[minisock_sighting(seen_ns, client(0), TimeWait, seen_ns + MINUTE)]);
        assert_eq!(world.tracker.repairs().vanished, vanished, "{after_ns} ns after it");
        assert_eq!(world.row(1).is(ConnFlags::MINISOCK), minisock, "{after_ns} ns after it");
        assert_eq!(world.tracker.sweep_left_doubts(), !minisock);
    }
}

/// The daemon starts in the middle: a sweep reads the minisock before the peer's FIN comes, and ends after it.
#[test]
fn a_record_during_the_sweep_corrects_the_state_of_a_minisock_that_it_found() {
    let minisock = Socket::new(0, NETNS, client(0).local, client(0).remote, MINISOCK);
    for (socket, what) in [(minisock, What::TimeWait), (server(ORPHAN), ended(LastAck, 0))] {
        for record_first in [false, true] {
            let mut world = World::new();
            world.tracker.begin_sweep(THEN);
            let seen = minisock_sighting(THEN + 1, client(0), FinWait2, THEN + MINUTE);
            if record_first {
                world.report(THEN + SECOND, socket, what);
                world.tracker.apply_seen(&seen);
            } else {
                world.tracker.apply_seen(&seen);
                world.report(THEN + SECOND, socket, what);
            }
            world.finish_sweep(&[]);
            let row = world.row(1);
            assert_eq!(row.state(), TimeWait, "{what:?}");
            assert!(row.since_ns().abs_diff(THEN + SECOND) < 2_000_000, "{}", row.since_ns());
            assert!(row.expires_ns() >= THEN + 61 * SECOND, "{}", row.expires_ns());
        }
    }
}

#[test]
fn an_older_minisock_is_dated_by_its_timer() {
    let mut world = World::new();
    let seen = minisock_sighting(THEN, client(0), TimeWait, THEN + 20 * SECOND);
    world.sweep(THEN, &[seen]);
    let row = world.row(1);
    assert_eq!(
        (row.state(), row.since_ns(), row.is(ConnFlags::MINISOCK)),
        (TimeWait, THEN - 40 * SECOND, true)
    );
    assert!(row.is(ConnFlags::OLDER) && !row.is(ConnFlags::STATE_OLDER));
    assert_eq!((row.role.name(), world.owner(1)), ("unknown", None));
    // The wheel's step at 1000 ticks a second is 4.096 s.
    assert!((THEN + 20 * SECOND..THEN + 25 * SECOND).contains(&row.expires_ns()), "{}", row.expires_ns());
    world.tracker.expire(THEN + 25 * SECOND);
    assert_eq!((world.state(1), world.counts()), (None, [0, 0, 0]));
}

#[test]
fn an_older_minisock_on_a_listeners_port_has_the_server_role() {
    let mut world = World::new();
    let seen = minisock_sighting(THEN, server(0), TimeWait, THEN + 20 * SECOND);
    world.sweep(THEN, &[seen, held_sighting(THEN, listener(9, "0.0.0.0"), Listen, NGINX)]);
    assert_eq!(world.row(2).role.name(), "server");
    assert_eq!(world.counts_of("nginx"), [0, 0, 0]);
}

#[test]
fn the_kernels_timer_replaces_the_estimated_one() {
    let mut world = World::new();
    world.connect();
    world.report_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
    world.report(THEN, client(ORPHAN), ended(FinWait2, 0));
    assert_eq!(world.row(1).expires_ns(), THEN + MINUTE);
    // tcp_fin_timeout is 10 s here.
    world.sweep(THEN, &[minisock_sighting(THEN, client(0), FinWait2, THEN + 10 * SECOND)]);
    world.tracker.expire(THEN + 16 * SECOND);
    assert_eq!(world.state(1), None);
}

#[test]
fn corrected_timers_end_minisocks_in_the_order_of_the_kernel() {
    let mut world = World::new();
    // Ticks are unknown at first: the table expects each to end after a minute.
    for cookie in 1..=8 {
        world.report(THEN, numbered(cookie, ORPHAN | FIN), ended(FinWait2, 0));
    }
    let expires = |cookie: u16| THEN + MINUTE - u64::from(cookie) * 7 * SECOND;
    let seen: Vec<_> = (1..=8)
        .map(|cookie| minisock_sighting(THEN, numbered(cookie, 0), TimeWait, expires(cookie)))
        .collect();
    world.sweep(THEN, &seen);
    // Later than the fifth's expiry by more than a step of the timer wheel.
    world.tracker.expire(expires(5) + 5 * SECOND);
    let mut left: Vec<_> = world.tracker.table().iter().map(|conn| conn.cookie).collect();
    left.sort_unstable();
    assert_eq!(left, [1, 2, 3, 4]);
}

#[test]
fn an_older_minisock_expires_before_a_younger_one_that_was_known_earlier() {
    let mut world = time_wait();
    world.sweep(
        THEN + SECOND,
        &[
            minisock_sighting(THEN + SECOND, client(0), TimeWait, THEN + MINUTE),
            minisock_sighting(THEN + SECOND, numbered(50, 0), TimeWait, THEN + 5 * SECOND),
        ],
    );
    world.tracker.expire(THEN + 15 * SECOND);
    assert_eq!((world.state(1), world.state(50)), (Some(TimeWait), None));
}

#[test]
fn a_fin_wait2_whose_peer_closed_became_a_time_wait() {
    let mut world = World::new();
    world.connect();
    world.report_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
    world.report(THEN, client(ORPHAN), ended(FinWait2, 0));
    let now_ns = THEN + 30 * SECOND;
    // It has 50 s left of its minute: the peer's FIN came 20 s after.
    world.sweep(now_ns, &[minisock_sighting(now_ns, client(0), TimeWait, now_ns + 50 * SECOND)]);
    let row = world.row(1);
    assert_eq!(
        (row.state(), row.since_ns(), world.names(row)),
        (TimeWait, THEN + 20 * SECOND, [Some("curl"); 3])
    );
    assert!(row.expires_ns() >= now_ns + 50 * SECOND);
    assert_eq!((world.tracker.table().count(FinWait2), world.tracker.table().count(TimeWait)), (0, 1));
    assert_eq!(world.counts(), [1, 1, 0]);
    world.assert_consistent();
}

#[test]
fn a_minisock_that_is_gone_is_removed_and_was_counted_before() {
    let mut world = time_wait();
    world.sweep(THEN + SECOND, &[]);
    assert_eq!((world.state(1), world.counts()), (None, [1, 1, 0]));
    assert_eq!(world.tracker.repairs().vanished, 0);
}

#[test]
fn a_namespace_that_is_gone_takes_its_minisocks_but_not_its_sockets() {
    for (all, minisock_left) in [(true, false), (false, true)] {
        let mut world = time_wait();
        world.report(THEN, server(0), to(SynRecv, Established, 0));
        world.tracker.begin_sweep(THEN + SECOND);
        world.finish_sweep_of(&[], &Coverage { all, ..covering(&[NETNS + 1]) });
        assert_eq!((world.state(1).is_some(), world.state(2)), (minisock_left, Some(Established)));
    }
}

#[test]
fn a_minisock_newer_than_the_sighting_is_left_unchanged() {
    let mut world = World::new();
    world.time_wait(THEN);
    let seen = minisock_sighting(THEN - SECOND, client(0), FinWait2, THEN + 5 * SECOND);
    world.sweep(THEN - 2 * SECOND, &[seen]);
    assert_eq!((world.state(1), world.row(1).expires_ns()), (Some(TimeWait), THEN + MINUTE));
}

#[test]
fn a_connection_whose_end_was_lost_becomes_the_time_wait_with_its_addresses() {
    let mut world = World::new();
    world.connect();
    world.report(3, client(HELD), to(Established, FinWait1, CURL));
    world.sweep(THEN, &[minisock_sighting(THEN, client(0), TimeWait, THEN + 50 * SECOND)]);
    let row = world.row(1);
    assert_eq!(
        (row.state(), row.since_ns(), row.is(ConnFlags::MINISOCK)),
        (TimeWait, THEN - 10 * SECOND, true)
    );
    assert_eq!(world.names(row), [Some("curl"); 3]);
    assert_eq!((world.tracker.table().len(), world.counts()), (1, [1, 1, 0]));
    world.assert_consistent();
    world.tracker.expire(THEN + MINUTE);
    assert_eq!((world.state(1), world.counts()), (None, [1, 1, 0]));
}

/// As above, but the ring still reported the connection while the sweep ran, or the sweep did not cover the namespace.
/// There is one connection, so there must be one row.
#[test]
fn a_connection_whose_end_was_lost_while_the_sweep_ran_is_not_doubled() {
    for coverage in [covering(&[NETNS]), covering(&[])] {
        let mut world = World::new();
        world.connect();
        world.tracker.begin_sweep(THEN - 2 * SECOND);
        world.report(THEN - SECOND, client(HELD), to(Established, FinWait1, CURL));
        let seen = minisock_sighting(THEN, client(0), TimeWait, THEN + MINUTE);
        world.finish_sweep_of(&[seen], &coverage);
        world.assert_consistent();
        let row = world.row(1);
        assert_eq!((row.state(), world.names(row)), (TimeWait, [Some("curl"); 3]), "{coverage:?}");
        assert_eq!((world.tracker.table().len(), world.counts()), (1, [1, 1, 0]), "{coverage:?}");
    }
}

#[test]
fn a_minisock_that_ended_after_the_sighting_stays_ended() {
    let minisock = Socket::new(0, NETNS, client(0).local, client(0).remote, MINISOCK);
    let again = Socket::new(77, NETNS, client(0).local, client(0).remote, HELD);
    for (socket, what) in [(minisock, What::MinisockEnd), (again, to(SynSent, Established, 0))] {
        let mut world = time_wait();
        world.tracker.begin_sweep(THEN + SECOND);
        world.report(THEN + 3 * SECOND, socket, what);
        world.finish_sweep(&[minisock_sighting(THEN + 2 * SECOND, client(0), TimeWait, THEN + MINUTE)]);
        assert_eq!(world.state(1), None, "{what:?}");
        assert_eq!(world.tracker.table().count(TimeWait), 0, "{what:?}");
        assert_eq!(world.tracker.repairs().appeared, 0, "{what:?}");
    }
}

#[test]
fn an_unknown_minisock_that_ended_after_the_sighting_is_not_added() {
    let mut world = World::new();
    world.tracker.begin_sweep(THEN);
    let minisock = Socket::new(0, NETNS, client(0).local, client(0).remote, MINISOCK);
    world.report(THEN + 3 * SECOND, minisock, What::MinisockEnd);
    world.finish_sweep(&[minisock_sighting(THEN + 2 * SECOND, client(0), TimeWait, THEN + MINUTE)]);
    assert!(world.tracker.table().is_empty());
}

#[test]
fn a_socket_seen_full_and_then_as_a_minisock_is_the_minisock() {
    let mut world = World::new();
    world.connect();
    world.report_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
    world.tracker.begin_sweep(THEN);
    world.report(THEN + 2, client(ORPHAN | FIN), ended(FinWait2, 0));
    world.finish_sweep(&[
        sighting(THEN + 1, client(ORPHAN), FinWait2),
        minisock_sighting(THEN + 3, client(0), TimeWait, THEN + MINUTE),
    ]);
    assert_eq!((world.state(1), world.tracker.table().len()), (Some(TimeWait), 1));
    world.assert_consistent();
}

#[test]
fn a_full_socket_in_place_of_its_minisock_is_a_new_connection() {
    let mut world = time_wait();
    let again = Socket::new(1, NETNS, end("10.0.0.1", 40_001), end("10.0.0.2", 80), HELD);
    // It connected again; those records were lost.
    world.sweep(THEN + SECOND, &[held_sighting(THEN + SECOND, again, Established, CURL)]);
    world.assert_consistent();
    assert_eq!((world.state(1), world.row(1).is(ConnFlags::MINISOCK)), (Some(Established), false));
    world.report(THEN + MINUTE, again, ended(Established, ECONNRESET));
    world.assert_consistent();
    assert!(world.tracker.table().is_empty());
}

#[test]
fn a_minisock_that_outlives_its_estimate_keeps_its_owner_and_steps() {
    let mut world = World::new();
    world.connect();
    world.report_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
    world.report(THEN, client(ORPHAN), ended(FinWait2, 0));
    world.tracker.expire(THEN + MINUTE);
    assert_eq!(world.state(1), None);
    // The peer's FIN came in its last seconds and set the timer anew.
    let again = Socket::new(555, NETNS, client(0).local, client(0).remote, MINISOCK);
    let now = THEN + MINUTE + 2 * SECOND;
    world.sweep(now, &[minisock_sighting(now, again, TimeWait, THEN + 2 * MINUTE - 5 * SECOND)]);
    let row = world.row(555);
    assert_eq!(
        (row.state(), row.since_ns(), world.names(row)),
        (TimeWait, THEN + 55 * SECOND, [Some("curl"); 3])
    );
    let states: Vec<_> = row.life().steps().map(|step| step.state).collect();
    assert_eq!(states, [SynSent, Established, FinWait1, FinWait2, TimeWait]);
    assert_eq!((row.role.name(), world.tracker.repairs().appeared), ("client", 0));
    assert_eq!(world.tracker.ended().len(), 0, "it is not over");
}
