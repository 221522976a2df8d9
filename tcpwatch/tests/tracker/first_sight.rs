//! Records of sockets that are not in the table, or whose cookie belongs to another connection now.

use crate::scenario::*;

const LIVE: [TcpState; 8] = [Established, SynSent, SynRecv, FinWait1, FinWait2, CloseWait, LastAck, Closing];

#[test]
fn a_socket_first_reported_in_mid_life_has_a_lower_bound_as_its_age() {
    for state in LIVE {
        for what in [
            What::Retransmit { state, total: Some(3) },
            What::Close { state, pid: Some(CURL), unread_bytes: 0 },
        ] {
            let mut world = World::new();
            world.report(7, client(HELD), what);
            let row = world.row(1);
            assert_eq!((row.state(), row.since_ns(), row.opened_ns()), (state, 7, 7), "{what:?}");
            assert!(row.is(ConnFlags::OLDER) && row.is(ConnFlags::STATE_OLDER) && at_least(row), "{what:?}");
            assert_eq!(world.counts()[..2], [0, 0], "{what:?}");
        }
    }
}

#[test]
fn a_transition_of_an_unknown_socket_dates_the_state_but_not_the_connection() {
    for (from, state) in [
        (SynSent, Established),
        (Established, CloseWait),
        (Established, FinWait1),
        (CloseWait, LastAck),
        (FinWait1, FinWait2),
        (FinWait1, Closing),
    ] {
        let mut world = World::new();
        world.report(7, client(HELD), to(from, state, 0));
        world.report(9, client(HELD), ended(state, ECONNRESET));
        let conn = &world.last_ended().conn;
        assert!(
            conn.is(ConnFlags::OLDER) && !conn.is(ConnFlags::STATE_OLDER) && at_least(conn),
            "{from} {state}"
        );
        assert_eq!(world.observed(from).0, 0, "{from}: its beginning was not seen");
        assert_eq!(world.observed(state).0, 1, "{state}: all of it was seen");
    }
}

#[test]
fn a_socket_first_reported_at_its_end_is_not_in_the_table() {
    for state in [&LIVE[..], &[Listen]].concat() {
        let mut world = World::new();
        world.report(7, client(HELD), ended(state, ECONNRESET));
        assert!(world.tracker.table().is_empty(), "{state}");
        assert_eq!(world.counts(), [0, u64::from(state.follows_established()), 0], "{state}");
        assert_eq!(world.observed(state).0, 0, "{state}");
    }
}

#[test]
fn an_unknown_socket_that_goes_to_time_wait_is_kept() {
    let mut world = World::new();
    world.report(7, client(ORPHAN | FIN), ended(FinWait2, 0));
    let row = world.row(1);
    assert_eq!((row.state(), row.since_ns()), (TimeWait, 7));
    assert!(row.is(ConnFlags::MINISOCK) && row.is(ConnFlags::OLDER) && !row.is(ConnFlags::STATE_OLDER));
}

#[test]
fn a_socket_that_connects_again_is_a_new_connection() {
    let mut world = World::new();
    world.report_all(
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
fn a_new_connection_does_not_continue_the_old_one_whose_end_was_lost() {
    let mut world = World::new();
    world.connect();
    world.report(8, client(HELD), to(Close, SynSent, WORKER));
    world.report(9, client(HELD), to(SynSent, Established, 0));
    let row = world.row(1);
    assert_eq!((row.opened_ns(), world.names(row)), (8, [Some("worker"), Some("worker"), None]));
    assert_eq!(world.counts(), [2, 1, 0]);
    assert_eq!(world.tracker.ended().len(), 1);
}

/// connect(AF_UNSPEC) and connect() on a socket that was shut down and is in TIME_WAIT: the kernel keeps both
/// the minisock and the socket, with one cookie.
#[test]
fn a_socket_that_connects_during_its_time_wait_is_one_row() {
    let mut world = World::new();
    world.connect();
    world.report_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
    world.report(5, client(HELD | FIN), ended(FinWait2, 0));
    let again = Socket::new(1, NETNS, end("10.0.0.1", 40_001), end("10.0.0.2", 80), HELD);
    world.report_all(again, [(8, to(Close, SynSent, CURL)), (9, to(SynSent, Established, 0))]);
    world.assert_consistent();
    let row = world.row(1);
    assert_eq!((row.state(), row.is(ConnFlags::MINISOCK), row.opened_ns()), (Established, false, 8));
    assert_eq!(world.counts(), [2, 1, 0]);
    world.report(10, again, ended(Established, ECONNRESET));
    assert_eq!(world.state(1), None);
    world.assert_consistent();
}

#[test]
fn a_listener_that_changes_its_port_is_dropped_from_the_old_one() {
    let mut world = World::new();
    world.connect();
    world.report(3, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    // Its end was lost. An unbound socket gets another port from listen().
    let elsewhere = Socket::new(9, NETNS, end("0.0.0.0", 8080), end("::", 0), PASSIVE | HELD);
    world.report(4, elsewhere, to(Close, Listen, NGINX));
    world.report(5, elsewhere, ended(Listen, 0));
    world.report(6, client(HELD), ended(Established, ECONNRESET));
    // The listener's place in the table is empty now and must not be taken for this connection's.
    world.report(7, server(0), to(SynRecv, Established, 0));
    assert_eq!(world.owner(2), None, "nobody listens any more");
}

#[test]
fn a_client_may_become_a_listener() {
    let mut world = World::new();
    let socket = Socket::new(9, NETNS, end("10.0.0.2", 80), end("10.0.0.7", 7), HELD);
    world.report(1, socket, to(Close, SynSent, NGINX));
    // Its end was lost.
    world.report(2, listener(9, "10.0.0.2"), to(Close, Listen, NGINX));
    assert_eq!((world.row(9).role.name(), world.owner(9)), ("listener", Some("nginx")));
}
