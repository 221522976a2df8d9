//! Whole lives, from the first record to the last.

use crate::scenario::*;

fn lived(conn: &Conn) -> Vec<(TcpState, Cause, u64)> {
    conn.life().steps().map(|step| (step.state, step.cause, step.since_ns)).collect()
}

#[test]
fn a_client_that_closes_first_ends_in_time_wait_and_is_named_as_closer() {
    let mut world = World::new();
    world.report_all(
        client(HELD),
        [
            (1, to(Close, SynSent, CURL)),
            (2, to(SynSent, Established, 0)),
            (3, to(Established, FinWait1, CURL)),
        ],
    );
    world.report(4, client(ORPHAN), to(FinWait1, FinWait2, 0));
    world.report(5, client(ORPHAN | FIN), ended(FinWait2, 0));
    let row = world.row(1);
    assert_eq!(
        lived(row),
        [
            (SynSent, Cause::Application, 1),
            (Established, Cause::Peer, 2),
            (FinWait1, Cause::Application, 3),
            (FinWait2, Cause::Peer, 4),
            (TimeWait, Cause::Peer, 5),
        ]
    );
    assert_eq!(world.names(row), [Some("curl"); 3]);
    assert!(row.is(ConnFlags::MINISOCK) && !at_least(row));
    assert_eq!(world.counts_of("curl"), [1, 1, 0]);
    for state in [SynSent, Established, FinWait1, FinWait2] {
        assert_eq!(world.observed(state).0, 1, "{state}");
    }
}

#[test]
fn a_close_after_a_shutdown_adds_no_step() {
    for (last, steps, closer) in [(FinWait1, 3, WORKER), (FinWait2, 4, CURL)] {
        let mut world = World::new();
        world.connect();
        world.report(3, client(HELD), to(Established, FinWait1, CURL));
        if last == FinWait2 {
            world.report(4, client(HELD), to(FinWait1, FinWait2, 0));
        }
        let pid = if last == FinWait1 { WORKER } else { 0 };
        world.report(9, client(ORPHAN), to(last, last, pid));
        let row = world.row(1);
        assert_eq!((row.state(), row.since_ns(), lived(row).len()), (last, steps, steps as usize));
        assert_eq!(row.closer, world.tracker.processes().by_pid(closer), "{last}");
        world.assert_consistent();
    }
}

#[test]
fn a_server_that_closes_second_leaves_no_minisock() {
    let mut world = World::new();
    world.serve();
    world.report_all(
        server(HELD | FIN),
        [(3, to(Established, CloseWait, 7)), (4, to(CloseWait, LastAck, NGINX)), (5, ended(LastAck, 0))],
    );
    assert_eq!(world.state(2), None);
    let ended = world.last_ended();
    assert_eq!(
        lived(&ended.conn),
        [(Established, Cause::Peer, 2), (CloseWait, Cause::Peer, 3), (LastAck, Cause::Application, 4),]
    );
    assert_eq!((ended.cause, ended.ended_ns), (Cause::Peer, 5));
    assert_eq!(world.names(&ended.conn), [None, Some("nginx"), Some("nginx")]);
    assert_eq!(ended.conn.unread_bytes, 0, "read before it closed");
    assert_eq!(world.counts_of("nginx"), [1, 1, 0]);
}

#[test]
fn a_server_that_closes_first_keeps_the_time_wait() {
    let mut world = World::new();
    world.serve();
    world.report_all(server(HELD), [(3, to(Established, FinWait1, NGINX)), (4, to(FinWait1, FinWait2, 0))]);
    world.report(5, server(ORPHAN | FIN), ended(FinWait2, 0));
    assert_eq!(world.state(2), Some(TimeWait));
    assert_eq!(world.names(world.row(2)), [None, Some("nginx"), Some("nginx")]);
}

#[test]
fn a_simultaneous_close_goes_through_closing_to_time_wait() {
    let mut world = World::new();
    world.connect();
    world.report_all(
        client(ORPHAN | FIN),
        [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, Closing, 0)), (5, ended(Closing, 0))],
    );
    let steps: Vec<_> = world.row(1).life().steps().map(|step| step.state).collect();
    assert_eq!(steps, [SynSent, Established, FinWait1, Closing, TimeWait]);
    assert_eq!(world.observed(Closing).0, 1);
}

#[test]
fn a_simultaneous_open_keeps_the_client_role() {
    let mut world = World::new();
    world.report_all(
        client(HELD),
        [(1, to(Close, SynSent, CURL)), (2, to(SynSent, SynRecv, 0)), (3, to(SynRecv, Established, 0))],
    );
    let row = world.row(1);
    assert_eq!((row.role.name(), at_least(row)), ("client", false));
    assert_eq!(world.counts_of("curl"), [1, 0, 0]);
}

#[test]
fn a_reset_ends_every_state_and_leaves_no_minisock() {
    let paths: [&[TcpState]; 8] = [
        &[SynSent],
        &[SynSent, Established],
        &[SynSent, Established, CloseWait],
        &[SynSent, Established, CloseWait, LastAck],
        &[SynSent, Established, FinWait1],
        &[SynSent, Established, FinWait1, FinWait2],
        &[SynSent, Established, FinWait1, Closing],
        &[SynSent, SynRecv],
    ];
    for path in paths {
        let mut world = World::new();
        let mut from = Close;
        for (time_ns, state) in (1..).zip(path) {
            world.report(time_ns, client(ORPHAN | FIN), to(from, *state, 0));
            from = *state;
        }
        world.report(9, client(ORPHAN | FIN), ended(from, ECONNRESET));
        assert!(world.tracker.table().is_empty(), "{from}");
        let ended = world.last_ended();
        assert_eq!((ended.cause, ended.conn.error), (Cause::Peer, ECONNRESET), "{from}");
        assert_eq!(world.observed(from).0, 1, "{from}");
        let established = u64::from(path.contains(&Established));
        assert_eq!(world.counts(), [established, established, 0], "{from}");
    }
}

#[test]
fn a_failed_connect_has_a_duration_but_was_never_open() {
    for (error, cause) in [(ECONNREFUSED, Cause::Peer), (ETIMEDOUT, Cause::Timer), (0, Cause::Application)] {
        let mut world = World::new();
        world.report(SECOND, client(HELD), to(Close, SynSent, CURL));
        world.report(4 * SECOND, client(HELD), ended(SynSent, error));
        assert_eq!(world.last_ended().cause, cause, "errno {error}");
        assert_eq!(world.counts(), [0, 0, 0], "errno {error}");
        assert_eq!(world.observed(SynSent), (1, 3.0), "errno {error}");
    }
}

#[test]
fn a_listener_ends_by_its_application_and_is_not_counted() {
    let mut world = World::new();
    let socket = listener(9, "0.0.0.0");
    world.report(1, socket, to(Close, Listen, NGINX));
    assert_eq!(world.names(world.row(9)), [Some("nginx"), Some("nginx"), None]);
    world.report(2, socket, ended(Listen, 0));
    assert_eq!(world.last_ended().cause, Cause::Application);
    assert!(world.tracker.table().is_empty());
    assert_eq!(world.counts(), [0, 0, 0]);
}

#[test]
fn a_half_close_held_open_becomes_time_wait_once_the_peers_fin_comes() {
    let mut world = World::new();
    world.connect();
    // shutdown(SHUT_WR): the descriptor stays.
    world.report_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
    world.report(5, client(HELD | FIN), ended(FinWait2, 0));
    assert_eq!(world.state(1), Some(TimeWait));
}

#[test]
fn a_disconnect_in_fin_wait2_ends_the_connection() {
    let mut world = World::new();
    world.connect();
    world.report_all(
        client(HELD),
        [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0)), (5, ended(FinWait2, 0))],
    );
    assert!(world.tracker.table().is_empty());
}

#[test]
fn a_connecting_socket_gets_its_local_address_with_the_next_record() {
    let mut world = World::new();
    let bare = Socket::new(1, NETNS, end("0.0.0.0", 0), end("10.0.0.2", 80), HELD);
    world.report(1, bare, to(Close, SynSent, CURL));
    world.report(2, client(HELD), to(SynSent, Established, 0));
    assert_eq!(world.row(1).local, end("10.0.0.1", 40_000));
}

#[test]
fn clocks_that_differ_make_no_negative_duration() {
    let mut world = World::new();
    world.report(5 * SECOND, client(HELD), to(Close, SynSent, CURL));
    world.report(4 * SECOND, client(HELD), to(SynSent, Established, 0));
    world.report(3 * SECOND, client(HELD), ended(Established, ECONNRESET));
    let since: Vec<_> = world.last_ended().conn.life().steps().map(|step| step.since_ns).collect();
    assert_eq!(since, [5 * SECOND, 5 * SECOND]);
    assert_eq!((world.observed(SynSent), world.observed(Established)), ((1, 0.0), (1, 0.0)));
}
