//! Records about sockets that are not in the table, or whose cookie means another life now.

use crate::scenario::*;

const LIVE: [TcpState; 8] = [Established, SynSent, SynRecv, FinWait1, FinWait2, CloseWait, LastAck, Closing];

#[test]
fn a_socket_first_heard_of_in_mid_life_is_at_least_as_old_as_that() {
    for state in LIVE {
        for what in [
            What::Retransmit { state, total: Some(3) },
            What::Close { state, pid: Some(CURL), unread_bytes: 0 },
        ] {
            let mut world = World::new();
            world.tell(7, client(HELD), what);
            let row = world.row(1);
            assert_eq!((row.state(), row.since_ns(), row.opened_ns()), (state, 7, 7), "{what:?}");
            assert!(row.is(ConnFlags::OLDER) && row.is(ConnFlags::STATE_OLDER) && row.at_least(), "{what:?}");
            assert_eq!(world.counts()[..2], [0, 0], "{what:?}");
        }
    }
}

#[test]
fn a_transition_of_an_unknown_socket_dates_its_state_but_not_its_life() {
    for (from, state) in [
        (SynSent, Established),
        (Established, CloseWait),
        (Established, FinWait1),
        (CloseWait, LastAck),
        (FinWait1, FinWait2),
        (FinWait1, Closing),
    ] {
        let mut world = World::new();
        world.tell(7, client(HELD), to(from, state, 0));
        world.tell(9, client(HELD), ended(state, ECONNRESET));
        let conn = &world.last_ended().conn;
        assert!(
            conn.is(ConnFlags::OLDER) && !conn.is(ConnFlags::STATE_OLDER) && conn.at_least(),
            "{from} {state}"
        );
        assert_eq!(world.observed(from).0, 0, "{from}: its beginning was not seen");
        assert_eq!(world.observed(state).0, 1, "{state}: all of it was seen");
    }
}

#[test]
fn a_socket_first_heard_of_at_its_end_leaves_nothing_in_the_table() {
    for state in [&LIVE[..], &[Listen]].concat() {
        let mut world = World::new();
        world.tell(7, client(HELD), ended(state, ECONNRESET));
        assert!(world.tracker.table().is_empty(), "{state}");
        assert_eq!(world.counts(), [0, u64::from(state.follows_established()), 0], "{state}");
        assert_eq!(world.observed(state).0, 0, "{state}");
    }
}

#[test]
fn an_unknown_socket_that_goes_to_time_wait_is_kept() {
    let mut world = World::new();
    world.tell(7, client(ORPHAN | FIN), ended(FinWait2, 0));
    let row = world.row(1);
    assert_eq!((row.state(), row.since_ns()), (TimeWait, 7));
    assert!(row.is(ConnFlags::MINISOCK) && row.is(ConnFlags::OLDER) && !row.is(ConnFlags::STATE_OLDER));
}

#[test]
fn one_socket_that_connects_again_lives_twice() {
    let mut world = World::new();
    world.tell_all(
        client(HELD),
        [
            (1, to(Close, SynSent, CURL)),
            (2, ended(SynSent, ECONNREFUSED)),
            (3, to(Close, SynSent, CURL)),
            (4, to(SynSent, Established, 0)),
        ],
    );
    assert_eq!((world.row(1).opened_ns(), world.tracker.ended().len()), (3, 1));
    assert_eq!(world.counts(), [1, 0, 0]);
}

#[test]
fn a_new_life_does_not_go_on_with_the_old_one_whose_end_was_lost() {
    let mut world = World::new();
    world.connect();
    world.tell(8, client(HELD), to(Close, SynSent, WORKER));
    world.tell(9, client(HELD), to(SynSent, Established, 0));
    let row = world.row(1);
    assert_eq!((row.opened_ns(), world.names(row)), (8, [Some("worker"), Some("worker"), None]));
    assert_eq!(world.counts(), [2, 1, 0]);
    assert_eq!(world.tracker.ended().len(), 1);
}

/// connect(AF_UNSPEC) and connect() on a socket that was shut down and is in TIME_WAIT: the kernel keeps both
/// the minisock and the socket, with one cookie.
#[test]
fn a_socket_that_connects_while_its_old_connection_is_in_time_wait_is_one_full_row() {
    let mut world = World::new();
    world.connect();
    world.tell_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
    world.tell(5, client(HELD | FIN), ended(FinWait2, 0));
    let again = Socket::new(1, NETNS, end("10.0.0.1", 40_001), end("10.0.0.2", 80), HELD);
    world.tell_all(again, [(8, to(Close, SynSent, CURL)), (9, to(SynSent, Established, 0))]);
    world.assert_consistent();
    let row = world.row(1);
    assert_eq!((row.state(), row.is(ConnFlags::MINISOCK), row.opened_ns()), (Established, false, 8));
    assert_eq!(world.counts(), [2, 1, 0]);
    world.tell(10, again, ended(Established, ECONNRESET));
    assert_eq!(world.state(1), None);
    world.assert_consistent();
}

#[test]
fn a_listener_that_listens_again_on_another_port_is_forgotten_as_a_whole() {
    let mut world = World::new();
    world.connect();
    world.tell(3, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    // Its end was lost. An unbound socket gets another port from listen().
    let elsewhere = Socket::new(9, NETNS, end("0.0.0.0", 8080), end("::", 0), PASSIVE | HELD);
    world.tell(4, elsewhere, to(Close, Listen, NGINX));
    world.tell(5, elsewhere, ended(Listen, 0));
    world.tell(6, client(HELD), ended(Established, ECONNRESET));
    // Not in the listener's place in the table, which is empty now.
    world.tell(7, server(0), to(SynRecv, Established, 0));
    assert_eq!(world.owner(2), None, "nobody listens any more");
}

#[test]
fn a_client_that_becomes_a_listener_owns_what_it_will_accept() {
    let mut world = World::new();
    let socket = Socket::new(9, NETNS, end("10.0.0.2", 80), end("10.0.0.7", 7), HELD);
    world.tell(1, socket, to(Close, SynSent, NGINX));
    // Its end was lost.
    world.tell(2, listener(9, "10.0.0.2"), to(Close, Listen, NGINX));
    world.tell(3, server(0), to(SynRecv, Established, 0));
    assert_eq!((world.row(9).role.name(), world.owner(2)), ("listener", Some("nginx")));
}
