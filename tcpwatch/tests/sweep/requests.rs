//! Requests: handshakes under way, which only sweeps find. When one completes, the kernel gives the connection the
//! request's cookie (inet_csk_clone_lock in net/ipv4/inet_connection_sock.c).

use crate::scenario::*;

fn request() -> Socket {
    Socket::new(2, NETNS, server(0).local, server(0).remote, REQUEST)
}

fn requested() -> World {
    let mut world = World::new();
    world.report(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    world.sweep(10, &[Seen { listener: 9, ..sighting(11, request(), SynRecv) }, listening(11)]);
    world
}

fn listening(time_ns: u64) -> Seen {
    held_sighting(time_ns, listener(9, "0.0.0.0"), Listen, NGINX)
}

#[test]
fn a_request_is_a_syn_recv_of_its_listener() {
    let world = requested();
    let row = world.row(2);
    assert_eq!((row.state(), row.role.name(), world.owner(2)), (SynRecv, "server", Some("nginx")));
    assert!(row.is(ConnFlags::REQUEST) && at_least(row));
    assert_eq!((row.accepted(), world.counts()), (Some(false), [0, 0, 0]));
}

#[test]
fn a_request_keeps_its_age_over_sweeps() {
    let mut world = requested();
    world.sweep(20, &[sighting(21, request(), SynRecv), listening(21)]);
    assert_eq!(world.row(2).since_ns(), 11);
}

#[test]
fn a_request_that_fails_leaves_no_trace() {
    let mut world = requested();
    world.sweep(20, &[listening(21)]);
    assert_eq!(world.state(2), None);
    assert!(world.tracker.ended().is_empty());
    assert_eq!((world.counts(), world.tracker.repairs().vanished), ([0, 0, 0], 0));
}

#[test]
fn a_request_that_is_established_is_a_connection_like_any_other() {
    let mut world = requested();
    world.report(15, server(0), to(SynRecv, Established, 0));
    let row = world.row(2);
    assert_eq!((row.state(), world.owner(2), world.counts()), (Established, Some("nginx"), [0, 0, 0]));
    assert!(!row.is(ConnFlags::REQUEST), "it is a full socket now");
    assert!(row.is(ConnFlags::UNACCEPTED), "and nobody has accepted it");
    assert_eq!(row.accepted(), None, "or no sweep has seen it since");
    world.report(16, server(HELD), to(Established, CloseWait, 0));
    assert_eq!(world.row(2).accepted(), Some(true));
    world.report_all(server(HELD), [(17, to(CloseWait, LastAck, WORKER)), (18, ended(LastAck, 0))]);
    assert_eq!((world.counts(), world.tracker.ended().len()), ([1, 1, 0], 1));
}

#[test]
fn a_request_that_a_sweep_finds_accepted_is_a_connection() {
    let mut world = requested();
    // The record of its establishment was lost.
    world.sweep(
        SECOND,
        &[held_sighting(SECOND + 1, server(HELD), Established, WORKER), listening(SECOND + 1)],
    );
    let row = world.row(2);
    assert_eq!((row.state(), row.accepted(), world.owner(2)), (Established, Some(true), Some("worker")));
    assert!(!row.is(ConnFlags::REQUEST));
    world.sweep(2 * SECOND, &[listening(2 * SECOND + 1)]);
    assert_eq!((world.tracker.repairs().vanished, world.tracker.ended().len()), (1, 1));
}
