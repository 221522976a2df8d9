//! Sockets in CLOSE that a process holds.

use crate::scenario::*;

fn bare(cookie: u64) -> Socket {
    Socket::new(cookie, NETNS, end("0.0.0.0", 0), end("0.0.0.0", 0), HELD)
}

#[test]
fn a_held_socket_in_close_ages_over_sweeps_and_is_no_connection() {
    let mut world = World::new();
    for began_ns in [10, 20, 30] {
        world.sweep(began_ns, &[held_sighting(began_ns + 1, bare(5), Close, CURL)]);
    }
    let socket = world.tracker.unconnected()[&5];
    assert_eq!((socket.since_ns, socket.fd, socket.bound, socket.connected), (11, 3, false, false));
    assert_eq!(world.name(socket.process), Some("curl"));
    assert!(world.tracker.table().is_empty());
    world.sweep(40, &[]);
    assert!(world.tracker.unconnected().is_empty());
    world.sweep(50, &[held_sighting(51, bare(5), Close, CURL)]);
    assert_eq!(world.tracker.unconnected()[&5].since_ns, 51, "a new one, or closed in between");
}

#[test]
fn whether_the_socket_was_bound_or_connected_is_known() {
    let ends = |local: &str, port, remote: &str, remote_port| {
        Socket::new(5, NETNS, end(local, port), end(remote, remote_port), HELD)
    };
    for (socket, bound, connected) in [
        (ends("0.0.0.0", 0, "0.0.0.0", 0), false, false),
        (ends("0.0.0.0", 8080, "0.0.0.0", 0), true, false),
        (ends("10.0.0.1", 40_000, "10.0.0.2", 80), true, true),
    ] {
        let mut world = World::new();
        world.sweep(10, &[held_sighting(11, socket, Close, CURL)]);
        let socket = world.tracker.unconnected()[&5];
        assert_eq!((socket.bound, socket.connected), (bound, connected));
    }
}

#[test]
fn a_socket_in_close_without_a_holder_is_ignored() {
    let mut world = World::new();
    world.sweep(10, &[sighting(11, bare(5), Close)]);
    assert!(world.tracker.unconnected().is_empty());
}

#[test]
fn a_socket_in_close_with_two_holders_counts_once() {
    let mut world = World::new();
    world.sweep(10, &[held_sighting(11, bare(5), Close, CURL), held_sighting(12, bare(5), Close, WORKER)]);
    assert_eq!(world.tracker.unconnected().len(), 1);
    // The first gave it up.
    world.sweep(20, &[held_sighting(21, bare(5), Close, WORKER)]);
    let socket = world.tracker.unconnected()[&5];
    assert_eq!((socket.since_ns, world.name(socket.process)), (11, Some("worker")));
}

#[test]
fn an_ended_connection_that_is_still_held_is_a_socket_in_close() {
    let mut world = World::new();
    world.connect();
    world.report(3, client(HELD), ended(Established, ECONNRESET));
    world.sweep(10, &[held_sighting(11, client(HELD), Close, CURL)]);
    assert!(world.tracker.table().is_empty());
    assert!(world.tracker.unconnected()[&1].connected);
}

#[test]
fn a_connection_whose_end_was_lost_is_over_when_it_is_seen_in_close() {
    for coverage in [covering(&[NETNS]), covering(&[])] {
        let mut world = World::new();
        world.connect();
        world.tracker.begin_sweep(10);
        world.finish_sweep_of(&[held_sighting(SECOND, client(HELD), Close, CURL)], &coverage);
        assert_eq!(world.state(1), None, "{coverage:?}");
        assert_eq!(world.counts(), [1, 1, 0], "{coverage:?}");
    }
}

#[test]
fn the_socket_of_a_time_wait_may_still_be_held() {
    let mut world = World::new();
    world.connect();
    world.report_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
    world.report(5, client(HELD | FIN), ended(FinWait2, 0));
    let minisock = minisock_sighting(11, client(0), TimeWait, MINUTE);
    world.sweep(10, &[minisock, held_sighting(11, client(HELD), Close, CURL)]);
    assert_eq!((world.state(1), world.tracker.unconnected().len()), (Some(TimeWait), 1));
}

#[test]
fn a_socket_used_between_two_sweeps_does_not_age() {
    let mut world = World::new();
    world.sweep(10, &[held_sighting(11, client(HELD), Close, CURL)]);
    world.report_all(client(HELD), [(12, to(Close, SynSent, CURL)), (13, ended(SynSent, ECONNREFUSED))]);
    world.sweep(20, &[held_sighting(21, client(HELD), Close, CURL)]);
    let since_ns = world.tracker.unconnected()[&1].since_ns;
    assert!(since_ns >= 13, "it left CLOSE and came back at 13, not {since_ns}");
}
