//! Full sockets that appear, change or vanish.

use crate::scenario::*;
use tcpwatch::model::tracker::Repairs;

const NONE: Repairs = Repairs { appeared: 0, changed: 0, vanished: 0 };

#[test]
fn the_first_sweep_finds_older_connections_and_repairs_nothing() {
    let mut world = World::new();
    world.sweep(10, &[held_sighting(11, client(HELD), Established, CURL)]);
    let row = world.row(1);
    assert_eq!((row.state(), row.since_ns(), at_least(row)), (Established, 11, true));
    assert_eq!((row.role.name(), world.owner(1)), ("client", Some("curl")));
    assert_eq!(world.tracker.repairs(), NONE);
    world.report(20, client(HELD), ended(Established, ECONNRESET));
    assert_eq!(world.counts(), [0, 1, 0]);
    assert_eq!(world.observed(Established).0, 0, "its beginning was not seen");
}

#[test]
fn a_connection_first_found_by_a_later_sweep_is_a_repair() {
    let mut world = World::new();
    world.sweep(10, &[]);
    world.sweep(20, &[held_sighting(21, client(HELD), CloseWait, CURL)]);
    assert_eq!(world.state(1), Some(CloseWait));
    assert_eq!(world.tracker.repairs(), Repairs { appeared: 1, ..NONE });
}

#[test]
fn a_sighting_that_agrees_with_the_records_is_no_repair() {
    let mut world = World::new();
    world.sweep(0, &[]);
    world.connect();
    world.serve();
    for began_ns in [10, 20] {
        world.sweep(
            began_ns,
            &[
                held_sighting(began_ns + 1, client(HELD), Established, CURL),
                sighting(began_ns + 1, server(0), Established),
                held_sighting(began_ns + 1, listener(9, "0.0.0.0"), Listen, NGINX),
            ],
        );
    }
    assert_eq!((world.tracker.repairs(), world.tracker.table().len()), (NONE, 3));
    assert!(!at_least(world.row(1)) && !at_least(world.row(2)));
    assert_eq!(world.counts(), [1, 0, 0], "nobody has accepted the server's");
}

#[test]
fn a_state_without_a_record_is_entered_at_the_sighting() {
    let mut world = World::new();
    world.connect();
    world.sweep(10, &[Seen { unread_bytes: 5, ..held_sighting(SECOND, client(HELD), CloseWait, CURL) }]);
    let row = world.row(1);
    assert_eq!((row.state(), row.since_ns(), row.unread_bytes), (CloseWait, SECOND, 5));
    assert!(row.is(ConnFlags::STATE_OLDER) && !row.is(ConnFlags::OLDER) && at_least(row));
    let steps: Vec<_> = row.life().steps().map(|step| (step.state, step.cause)).collect();
    assert_eq!(steps.last(), Some(&(CloseWait, Cause::Unknown)));
    assert_eq!(world.tracker.repairs(), Repairs { changed: 1, ..NONE });
    world.report(2 * SECOND, client(HELD), ended(CloseWait, ECONNRESET));
    assert_eq!((world.observed(Established).0, world.observed(CloseWait).0), (0, 0));
    assert_eq!(world.counts(), [1, 1, 0]);
}

#[test]
fn an_establishment_found_by_a_sweep_counts_as_opened() {
    let mut world = World::new();
    world.report(1, client(HELD), to(Close, SynSent, CURL));
    world.sweep(10, &[held_sighting(SECOND, client(HELD), Established, CURL)]);
    assert_eq!(world.counts(), [1, 0, 0]);
    world.report(2 * SECOND, client(HELD), ended(Established, ECONNRESET));
    assert_eq!(world.counts(), [1, 1, 0]);
}

#[test]
fn an_establishment_without_a_record_counts_where_a_sweep_before_would_have_seen_the_connection() {
    let found = [held_sighting(21, client(HELD), Established, CURL)];
    for (swept_before, namespaces, opened) in
        [(false, &[NETNS][..], 0), (true, &[NETNS + 1], 0), (true, &[NETNS], 1)]
    {
        for by_record in [false, true] {
            let mut world = World::new();
            if swept_before {
                world.tracker.begin_sweep(10);
                world.finish_sweep_of(&[], &covering(namespaces));
            }
            if by_record {
                world.report(20, client(HELD), to(Established, FinWait1, CURL));
            } else {
                world.sweep(20, &found);
                world.sweep(SECOND, &[held_sighting(SECOND + 1, client(HELD), Established, CURL)]);
            }
            assert_eq!(world.counts_of("curl"), [opened, 0, 0], "{swept_before} {namespaces:?} {by_record}");
            assert_eq!(world.counts()[0], opened);
            world.report(2 * SECOND, client(HELD), ended(FinWait1, ECONNRESET));
            assert_eq!(world.counts_of("curl"), [opened, 1, 0]);
            world.assert_consistent();
        }
    }
}

#[test]
fn a_record_newer_than_the_sighting_wins() {
    let mut world = World::new();
    world.connect();
    world.tracker.begin_sweep(10);
    world.report(15, client(HELD), to(Established, CloseWait, 3));
    let old = Socket::new(1, NETNS, end("0.0.0.0", 0), client(0).remote, HELD);
    world.finish_sweep(&[held_sighting(12, old, Established, CURL)]);
    let row = world.row(1);
    assert_eq!((row.state(), row.since_ns(), row.unread_bytes), (CloseWait, 15, 3));
    assert_eq!((row.local, world.tracker.repairs()), (client(0).local, NONE));
}

/// A change is reported before it is made, and in between its task may lose the processor.
#[test]
fn a_sighting_soon_after_a_record_is_no_sign_of_a_lost_record() {
    let soon = 50_000_000;
    let steps = [to(Close, SynSent, CURL), to(SynSent, Established, 0), ended(Established, ECONNRESET)];
    for (count, before, now) in
        [(1, Close, Some(SynSent)), (2, SynSent, Some(Established)), (3, Established, None)]
    {
        let mut world = World::new();
        world.tracker.begin_sweep(1);
        for (time_ns, step) in (2..).zip(&steps[..count]) {
            world.report(time_ns, client(HELD), *step);
        }
        world.finish_sweep(&[held_sighting(soon, client(HELD), before, CURL)]);
        assert_eq!((world.state(1), world.tracker.repairs()), (now, NONE), "{before}");
        world.assert_consistent();
    }
    // A later sighting is one.
    let mut world = World::new();
    world.report(1, client(HELD), to(Close, SynSent, CURL));
    world.sweep(10, &[held_sighting(soon, client(HELD), Close, CURL)]);
    assert_eq!(world.state(1), Some(SynSent));
    world.sweep(SECOND, &[held_sighting(SECOND + 1, client(HELD), Close, CURL)]);
    assert_eq!((world.state(1), world.tracker.repairs()), (None, Repairs { vanished: 1, ..NONE }));
}

/// Records from before a sweep began may be read after that: between both the socket ended and connected again.
#[test]
fn a_socket_that_lives_again_soon_after_its_end_is_found_by_a_sweep() {
    let mut world = World::new();
    world.report(1, client(HELD), to(Close, SynSent, CURL));
    world.tracker.begin_sweep(10);
    world.report(2, client(HELD), ended(SynSent, ECONNREFUSED));
    world.report(3, client(HELD), to(Close, SynSent, CURL));
    world.report(4, client(HELD), to(SynSent, Established, 0));
    world.finish_sweep(&[held_sighting(11, client(HELD), Established, CURL)]);
    assert_eq!((world.state(1), world.tracker.repairs()), (Some(Established), NONE));
    world.assert_consistent();
}

#[test]
fn a_connection_that_the_sweep_does_not_find_is_over() {
    let mut world = World::new();
    world.connect();
    world.serve();
    world.sweep(10, &[held_sighting(11, listener(9, "0.0.0.0"), Listen, NGINX)]);
    assert_eq!((world.state(1), world.state(2), world.state(9)), (None, None, Some(Listen)));
    assert_eq!(world.tracker.repairs(), Repairs { vanished: 2, ..NONE });
    assert_eq!((world.last_ended().cause, world.last_ended().ended_ns), (Cause::Unknown, 10));
    assert_eq!(world.counts(), [2, 2, 0]);
    assert_eq!(world.observed(Established).0, 0, "nobody knows when it ended");
}

#[test]
fn a_connect_that_vanished_was_never_open() {
    let mut world = World::new();
    world.report(1, client(HELD), to(Close, SynSent, CURL));
    world.sweep(10, &[]);
    assert_eq!((world.state(1), world.counts()), (None, [0, 0, 0]));
}

#[test]
fn a_missing_connection_is_over_only_in_a_covered_namespace() {
    for (coverage, left) in [
        (covering(&[]), true),
        (covering(&[NETNS + 1]), true),
        // A namespace that nothing leads to may still be kept alive by this very socket.
        (Coverage { all: true, ..covering(&[NETNS + 1]) }, true),
        (covering(&[NETNS, NETNS + 1]), false),
    ] {
        let mut world = World::new();
        world.connect();
        world.tracker.begin_sweep(10);
        world.finish_sweep_of(&[], &coverage);
        assert_eq!(world.state(1).is_some(), left, "{coverage:?}");
    }
}

#[test]
fn a_connection_with_records_since_the_sweep_began_is_not_over() {
    for what in [
        to(Established, CloseWait, 0),
        What::Retransmit { state: Established, total: Some(1) },
        What::Close { state: Established, pid: Some(CURL), unread_bytes: 0 },
    ] {
        let mut world = World::new();
        world.connect();
        world.tracker.begin_sweep(10);
        world.report(11, client(HELD), what);
        world.finish_sweep(&[]);
        assert!(world.state(1).is_some(), "{what:?}");
    }
}

#[test]
fn a_connection_opened_since_the_sweep_began_is_not_over() {
    let mut world = World::new();
    world.tracker.begin_sweep(0);
    world.connect();
    world.finish_sweep(&[]);
    assert_eq!(world.state(1), Some(Established));
}

#[test]
fn a_connection_that_ended_after_the_sighting_stays_ended() {
    let mut world = World::new();
    world.connect();
    world.tracker.begin_sweep(10);
    world.report(15, client(HELD), ended(Established, ECONNRESET));
    world.finish_sweep(&[held_sighting(12, client(HELD), Established, CURL)]);
    assert!(world.tracker.table().is_empty());
    assert_eq!((world.tracker.repairs(), world.counts()), (NONE, [1, 1, 0]));
}

#[test]
fn an_unknown_connection_that_ended_after_the_sighting_stays_ended() {
    let mut world = World::new();
    world.sweep(5, &[]);
    world.tracker.begin_sweep(10);
    world.report(15, client(HELD), ended(Established, ECONNRESET));
    world.finish_sweep(&[held_sighting(12, client(HELD), Established, CURL)]);
    assert_eq!((world.state(1), world.counts()), (None, [1, 1, 0]));
}

#[test]
fn an_untracked_connection_that_ended_after_the_sighting_stays_ended() {
    let mut world = World::with_limits(Limits { connections: 1, ..LIMITS });
    world.connect();
    world.tracker.begin_sweep(10);
    world.report(15, server(HELD), ended(Established, ECONNRESET));
    world.report(16, client(HELD), ended(Established, ECONNRESET));
    world.finish_sweep(&[held_sighting(12, server(HELD), Established, NGINX)]);
    assert_eq!(world.state(2), None);
}

#[test]
fn a_socket_that_ended_before_the_sighting_and_reconnected_is_found() {
    let mut world = World::new();
    world.connect();
    world.tracker.begin_sweep(10);
    world.report(11, client(HELD), ended(Established, ECONNRESET));
    // Connected again; those records were lost.
    world.finish_sweep(&[held_sighting(SECOND, client(HELD), Established, CURL)]);
    assert_eq!(world.state(1), Some(Established));
}

#[test]
fn an_end_of_an_unknown_socket_does_not_hide_a_sighting() {
    let mut world = World::new();
    world.report(20, client(HELD), ended(Established, ECONNRESET));
    world.sweep(10, &[held_sighting(12, client(HELD), Established, CURL)]);
    assert_eq!(world.state(1), Some(Established));
}

#[test]
fn a_listeners_queue_is_known_until_it_is_gone() {
    let mut world = World::new();
    let queue = ListenQueue { waiting: 3, limit: 128, drops: 7, ..ListenQueue::default() };
    world.sweep(10, &[Seen { queue, ..held_sighting(11, listener(9, "0.0.0.0"), Listen, NGINX) }]);
    assert_eq!(world.tracker.queue(9).map(|listening| listening.queue), Some(queue));
    assert_eq!(world.row(9).role.name(), "listener");
    world.sweep(20, &[]);
    assert!(world.tracker.queue(9).is_none() && world.state(9).is_none());
    assert_eq!(world.counts(), [0, 0, 0]);
}

#[test]
fn an_older_state_is_dated_by_the_last_segment_where_that_entered_it() {
    let (now_ns, then) = (1000 * SECOND, 900 * SECOND);
    for (state, received, sent, since_ns) in [
        (CloseWait, then, 800 * SECOND, then),
        (Established, then, 800 * SECOND, 800 * SECOND),
        (FinWait1, then, then, now_ns),
    ] {
        let mut world = World::new();
        let times = [received, sent].map(|time_ns| jiffies(time_ns) as u32);
        let seen = Seen {
            jiffies: jiffies(now_ns),
            received_jiffies: times[0],
            sent_jiffies: times[1],
            ..held_sighting(now_ns, client(HELD), state, CURL)
        };
        world.sweep(now_ns, &[seen]);
        assert_eq!((world.row(1).since_ns(), at_least(world.row(1))), (since_ns, true), "{state}");
    }
}
