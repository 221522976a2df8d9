//! Full sockets: what appears, changes and vanishes.

use crate::scenario::*;
use tcpwatch::tracker::Repairs;

const NONE: Repairs = Repairs { appeared: 0, changed: 0, vanished: 0 };

#[test]
fn the_first_sweep_finds_what_is_older_and_repairs_nothing() {
    let mut world = World::new();
    world.sweep(10, &[look_held(11, client(HELD), Established, CURL)]);
    let row = world.row(1);
    assert_eq!((row.state(), row.since_ns(), row.at_least()), (Established, 11, true));
    assert_eq!((row.role.name(), world.owner(1)), ("client", Some("curl")));
    assert_eq!(world.tracker.repairs, NONE);
    world.tell(20, client(HELD), ended(Established, ECONNRESET));
    assert_eq!(world.counts(), [0, 1, 0]);
    assert_eq!(world.observed(Established).0, 0, "its beginning was not seen");
}

#[test]
fn what_appears_in_a_later_sweep_is_a_repair() {
    let mut world = World::new();
    world.sweep(10, &[]);
    world.sweep(20, &[look_held(21, client(HELD), CloseWait, CURL)]);
    assert_eq!(world.state(1), Some(CloseWait));
    assert_eq!(world.tracker.repairs, Repairs { appeared: 1, ..NONE });
}

#[test]
fn what_both_tell_alike_is_no_repair() {
    let mut world = World::new();
    world.sweep(0, &[]);
    world.connect();
    world.serve();
    for began_ns in [10, 20] {
        world.sweep(
            began_ns,
            &[
                look_held(began_ns + 1, client(HELD), Established, CURL),
                look(began_ns + 1, server(0), Established),
                look_held(began_ns + 1, listener(9, "0.0.0.0"), Listen, NGINX),
            ],
        );
    }
    assert_eq!((world.tracker.repairs, world.tracker.table.len()), (NONE, 3));
    assert!(!world.row(1).at_least() && !world.row(2).at_least());
    assert_eq!(world.counts(), [2, 0, 0]);
}

#[test]
fn a_state_that_no_record_told_of_is_entered_at_the_look() {
    let mut world = World::new();
    world.connect();
    world.sweep(10, &[Seen { unread_bytes: 5, ..look_held(SECOND, client(HELD), CloseWait, CURL) }]);
    let row = world.row(1);
    assert_eq!((row.state(), row.since_ns(), row.unread_bytes), (CloseWait, SECOND, 5));
    assert!(row.is(Marks::STATE_OLDER) && !row.is(Marks::OLDER) && row.at_least());
    let steps: Vec<_> = row.life().steps().map(|step| (step.state, step.cause)).collect();
    assert_eq!(steps.last(), Some(&(CloseWait, Cause::Unknown)));
    assert_eq!(world.tracker.repairs, Repairs { changed: 1, ..NONE });
    world.tell(2 * SECOND, client(HELD), ended(CloseWait, ECONNRESET));
    assert_eq!((world.observed(Established).0, world.observed(CloseWait).0), (0, 0));
    assert_eq!(world.counts(), [1, 1, 0]);
}

#[test]
fn an_establishment_that_a_sweep_found_is_counted_as_opened() {
    let mut world = World::new();
    world.tell(1, client(HELD), to(Close, SynSent, CURL));
    world.sweep(10, &[look_held(SECOND, client(HELD), Established, CURL)]);
    assert_eq!(world.counts(), [1, 0, 0]);
    world.tell(2 * SECOND, client(HELD), ended(Established, ECONNRESET));
    assert_eq!(world.counts(), [1, 1, 0]);
}

#[test]
fn a_record_that_is_newer_than_the_look_wins() {
    let mut world = World::new();
    world.connect();
    world.tracker.begin_sweep(10);
    world.tell(15, client(HELD), to(Established, CloseWait, 3));
    let old = Socket::new(1, NETNS, end("0.0.0.0", 0), client(0).remote, HELD);
    world.finish_sweep(&[look_held(12, old, Established, CURL)]);
    let row = world.row(1);
    assert_eq!((row.state(), row.since_ns(), row.unread_bytes), (CloseWait, 15, 3));
    assert_eq!((row.local, world.tracker.repairs), (client(0).local, NONE));
}

/// A change is told, and whoever makes it loses the processor before it has.
#[test]
fn what_a_look_finds_soon_after_a_record_is_no_sign_of_a_lost_one() {
    let soon = 50_000_000;
    let steps = [to(Close, SynSent, CURL), to(SynSent, Established, 0), ended(Established, ECONNRESET)];
    for (count, before, now) in
        [(1, Close, Some(SynSent)), (2, SynSent, Some(Established)), (3, Established, None)]
    {
        let mut world = World::new();
        world.tracker.begin_sweep(1);
        for (time_ns, step) in (2..).zip(&steps[..count]) {
            world.tell(time_ns, client(HELD), *step);
        }
        world.finish_sweep(&[look_held(soon, client(HELD), before, CURL)]);
        assert_eq!((world.state(1), world.tracker.repairs), (now, NONE), "{before}");
        world.assert_consistent();
    }
    // Later it is one.
    let mut world = World::new();
    world.tell(1, client(HELD), to(Close, SynSent, CURL));
    world.sweep(10, &[look_held(soon, client(HELD), Close, CURL)]);
    assert_eq!(world.state(1), Some(SynSent));
    world.sweep(SECOND, &[look_held(SECOND + 1, client(HELD), Close, CURL)]);
    assert_eq!((world.state(1), world.tracker.repairs), (None, Repairs { vanished: 1, ..NONE }));
}

/// Records from before a sweep began may be read after that: between both the socket ended and connected again.
#[test]
fn a_socket_that_lives_again_soon_after_its_end_is_found_by_a_sweep() {
    let mut world = World::new();
    world.tell(1, client(HELD), to(Close, SynSent, CURL));
    world.tracker.begin_sweep(10);
    world.tell(2, client(HELD), ended(SynSent, ECONNREFUSED));
    world.tell(3, client(HELD), to(Close, SynSent, CURL));
    world.tell(4, client(HELD), to(SynSent, Established, 0));
    world.finish_sweep(&[look_held(11, client(HELD), Established, CURL)]);
    assert_eq!((world.state(1), world.tracker.repairs), (Some(Established), NONE));
    world.assert_consistent();
}

#[test]
fn what_the_sweep_does_not_find_is_over() {
    let mut world = World::new();
    world.connect();
    world.serve();
    world.sweep(10, &[look_held(11, listener(9, "0.0.0.0"), Listen, NGINX)]);
    assert_eq!((world.state(1), world.state(2), world.state(9)), (None, None, Some(Listen)));
    assert_eq!(world.tracker.repairs, Repairs { vanished: 2, ..NONE });
    assert_eq!((world.last_ended().cause, world.last_ended().ended_ns), (Cause::Unknown, 10));
    assert_eq!(world.counts(), [2, 2, 0]);
    assert_eq!(world.observed(Established).0, 0, "nobody knows when it ended");
}

#[test]
fn a_connect_that_vanished_was_never_open() {
    let mut world = World::new();
    world.tell(1, client(HELD), to(Close, SynSent, CURL));
    world.sweep(10, &[]);
    assert_eq!((world.state(1), world.counts()), (None, [0, 0, 0]));
}

#[test]
fn only_in_a_covered_namespace_is_what_was_not_found_over() {
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
fn what_was_heard_of_since_the_sweep_began_is_not_over() {
    for what in [
        to(Established, CloseWait, 0),
        What::Retransmit { state: Established, total: Some(1) },
        What::Close { state: Established, pid: Some(CURL), unread_bytes: 0 },
    ] {
        let mut world = World::new();
        world.connect();
        world.tracker.begin_sweep(10);
        world.tell(11, client(HELD), what);
        world.finish_sweep(&[]);
        assert!(world.state(1).is_some(), "{what:?}");
    }
}

#[test]
fn what_began_since_the_sweep_did_is_not_over() {
    let mut world = World::new();
    world.tracker.begin_sweep(0);
    world.connect();
    world.finish_sweep(&[]);
    assert_eq!(world.state(1), Some(Established));
}

#[test]
fn what_ended_since_the_look_stays_ended() {
    let mut world = World::new();
    world.connect();
    world.tracker.begin_sweep(10);
    world.tell(15, client(HELD), ended(Established, ECONNRESET));
    world.finish_sweep(&[look_held(12, client(HELD), Established, CURL)]);
    assert!(world.tracker.table.is_empty());
    assert_eq!((world.tracker.repairs, world.counts()), (NONE, [1, 1, 0]));
}

#[test]
fn what_ended_unseen_and_without_room_stays_ended() {
    let mut world = World::with_limits(Limits { connections: 1, ..LIMITS });
    world.connect();
    world.tracker.begin_sweep(10);
    world.tell(15, server(HELD), ended(Established, ECONNRESET));
    world.tell(16, client(HELD), ended(Established, ECONNRESET));
    world.finish_sweep(&[look_held(12, server(HELD), Established, NGINX)]);
    assert_eq!(world.state(2), None);
}

#[test]
fn what_ended_before_the_look_and_lives_again_is_found() {
    let mut world = World::new();
    world.connect();
    world.tracker.begin_sweep(10);
    world.tell(11, client(HELD), ended(Established, ECONNRESET));
    // Connected again; those records were lost.
    world.finish_sweep(&[look_held(SECOND, client(HELD), Established, CURL)]);
    assert_eq!(world.state(1), Some(Established));
}

#[test]
fn an_end_before_the_sweep_does_not_hide_a_later_life() {
    let mut world = World::new();
    world.tell(20, client(HELD), ended(Established, ECONNRESET));
    world.sweep(10, &[look_held(12, client(HELD), Established, CURL)]);
    assert_eq!(world.state(1), Some(Established));
}

#[test]
fn a_listeners_queue_is_told_until_it_is_gone() {
    let mut world = World::new();
    let queue = ListenQueue { waiting: 3, limit: 128, drops: 7 };
    world.sweep(10, &[Seen { queue, ..look_held(11, listener(9, "0.0.0.0"), Listen, NGINX) }]);
    assert_eq!((world.tracker.queues.get(&9), world.row(9).role.name()), (Some(&queue), "listener"));
    world.sweep(20, &[]);
    assert!(world.tracker.queues.is_empty() && world.state(9).is_none());
    assert_eq!(world.counts(), [0, 0, 0]);
}

#[test]
fn an_older_state_is_dated_by_the_last_segment_where_that_says_something() {
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
            ..look_held(now_ns, client(HELD), state, CURL)
        };
        world.sweep(now_ns, &[seen]);
        assert_eq!((world.row(1).since_ns(), world.row(1).at_least()), (since_ns, true), "{state}");
    }
}
