//! Sockets identified by their address in memory, which a later socket may have too: Linux 5.10, raw tracepoints,
//! kprobes.

use tcpwatch::model::transition::{Before, Transition};

use crate::scenario::*;

fn world() -> World {
    World::reported_by(ReportedFacts { identity_is_address: true, ..ReportedFacts::default() })
}

/// The next connection of the socket at the client's address.
fn next(flags: u8) -> Socket {
    Socket::new(1, NETNS, end("10.0.0.1", 40_001), end("10.0.0.3", 443), flags)
}

#[test]
fn a_time_wait_stays_when_its_sockets_address_is_used_again() {
    let mut world = world();
    world.time_wait(5);
    world.report_all(next(HELD), [(6, to(Close, SynSent, CURL)), (7, to(SynSent, Established, 0))]);
    assert_eq!((world.tracker.table().count(TimeWait), world.tracker.table().count(Established)), (1, 1));
    let ids: Vec<u64> = world.tracker.table().iter().map(Conn::id).collect();
    assert_ne!(ids[0], ids[1]);
    // The end of the second leaves the first alone.
    world.report(8, next(HELD), ended(Established, ECONNRESET));
    assert_eq!((world.tracker.table().len(), world.tracker.table().count(TimeWait)), (1, 1));
}

#[test]
fn a_socket_with_another_peer_is_another_even_after_a_lost_end() {
    for what in [
        to(SynRecv, Established, 0),
        to(Established, CloseWait, 0),
        What::Close { state: Established, pid: Some(WORKER), unread_bytes: 0 },
    ] {
        let mut world = world();
        world.connect();
        world.report(9, next(0), what);
        assert_eq!(world.tracker.table().len(), 1, "{what:?}");
        assert_eq!((world.row(1).remote, world.row(1).opened_ns()), (next(0).remote, 9), "{what:?}");
        assert_eq!(world.last_ended().conn.remote, client(0).remote, "{what:?}");
    }
    let mut world = world();
    world.connect();
    world.report(9, next(HELD), ended(Established, 0));
    assert_eq!((world.tracker.table().len(), world.tracker.ended().len()), (0, 2));
}

#[test]
fn a_sweep_that_sees_another_peer_sees_another_connection() {
    let mut world = world();
    world.connect();
    world.sweep(10, &[held_sighting(SECOND, next(HELD), Established, WORKER)]);
    assert_eq!((world.row(1).remote, world.owner(1)), (next(0).remote, Some("worker")));
    assert_eq!(world.tracker.repairs().vanished, 1);
}

#[test]
fn the_transition_to_time_wait_names_its_process() {
    let mut world = world();
    world.connect();
    world.report_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
    let record = SocketRecord {
        socket: client(ORPHAN | FIN),
        time_ns: 4 + SECOND,
        what: ended(FinWait2, 0),
        traffic: None,
    };
    let before = Before::note(&world.tracker, &record);
    world.tracker.apply(&Record::Socket(record));
    let transition = Transition::of(before, &world.tracker, &record, 0).unwrap();
    assert_eq!((transition.from, transition.to), (FinWait2, TimeWait));
    assert_eq!(
        (transition.process.as_ref().map(|process| &*process.comm), transition.from_seconds),
        (Some("curl"), Some(1.0))
    );
}
