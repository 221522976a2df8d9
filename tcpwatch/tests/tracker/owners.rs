//! The owner of a connection, from records.

use crate::scenario::*;

#[test]
fn an_unaccepted_connection_belongs_to_nobody_before_a_sweep() {
    let mut world = World::new();
    world.serve();
    let row = world.row(2);
    assert_eq!((row.process_seen(), row.accepted(), row.is(ConnFlags::UNACCEPTED)), (None, None, true));
    assert_eq!((world.owner(2), world.counts()), (None, [0; 3]));
}

#[test]
fn how_the_owner_is_known_is_reported() {
    let mut world = World::new();
    world.report(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    assert_eq!(world.owner_seen(9), Some(("nginx", ProcessSeen::Opener)));
    world.connect();
    assert_eq!(world.owner_seen(1), Some(("curl", ProcessSeen::Opener)));
    world.report(2, server(0), to(SynRecv, Established, 0));
    world.report(3, server(HELD), What::Accept { state: Established, pid: Some(WORKER) });
    assert_eq!(
        (world.owner_seen(2), world.row(2).accepted()),
        (Some(("worker", ProcessSeen::Holder)), Some(true))
    );
    world.report(4, server(HELD), to(Established, FinWait1, NGINX));
    assert_eq!(world.owner_seen(2), Some(("nginx", ProcessSeen::Closer)));
}

#[test]
fn what_a_server_counts_waits_for_its_owner() {
    let mut world = World::new();
    world.serve();
    world.report(5, server(HELD), to(Established, CloseWait, 0));
    assert_eq!((world.counts(), world.observed(Established)), ([0; 3], (0, 0.0)));
    world.report(7, server(HELD), to(CloseWait, LastAck, WORKER));
    assert_eq!((world.counts_of("worker"), world.counts()), ([1, 0, 0], [1, 0, 0]));
    assert_eq!((world.observed(Established).0, world.observed(CloseWait).0), (1, 1));
    world.report(8, server(ORPHAN), ended(LastAck, 0));
    assert_eq!((world.counts_of("worker"), world.observed(LastAck).0), ([1, 1, 0], 1));
}

#[test]
fn a_connection_that_ends_without_a_known_owner_counts_for_nobody() {
    let mut world = World::new();
    world.serve();
    // Somebody had accepted it, and the peer reset it.
    world.report(3, server(HELD), ended(Established, ECONNRESET));
    assert_eq!((world.counts_of("nginx"), world.counts()), ([0; 3], [1, 1, 0]));
    let conn = &world.last_ended().conn;
    assert_eq!((conn.process, conn.accepted()), (None, Some(true)));
}

#[test]
fn on_loopback_each_side_has_its_own_owner() {
    let mut world = World::new();
    world.serve();
    world.connect();
    assert_eq!((world.owner(2), world.owner(1)), (None, Some("curl")));
    assert_eq!((world.row(2).role.name(), world.row(1).role.name()), ("server", "client"));
}

#[test]
fn the_process_that_closes_becomes_the_owner() {
    for what in [
        to(Established, FinWait1, WORKER),
        to(CloseWait, LastAck, WORKER),
        What::Close { state: Established, pid: Some(WORKER), unread_bytes: 0 },
    ] {
        let mut world = World::new();
        world.serve();
        world.report(3, server(HELD), what);
        assert_eq!(world.names(world.row(2)), [None, Some("worker"), Some("worker")], "{what:?}");
        assert!(
            world.row(2).is(ConnFlags::OWNER_SEEN) && !world.row(2).is(ConnFlags::UNACCEPTED),
            "{what:?}"
        );
    }
}

#[test]
fn a_close_by_an_unknown_process_names_nobody() {
    // Some process had accepted the connection, and it need not be the listener's.
    const UNREPORTED: u32 = 999;
    for pid in [0, UNREPORTED] {
        let mut world = World::new();
        world.serve();
        world.report(3, server(0), to(Established, FinWait1, pid));
        world.report(
            4,
            server(0),
            What::Close { state: FinWait1, pid: Some(pid).filter(|pid| *pid != 0), unread_bytes: 0 },
        );
        assert_eq!(world.names(world.row(2)), [None, None, None], "pid {pid}");
        assert!(!world.row(2).is(ConnFlags::OWNER_SEEN), "pid {pid}");
    }
}

#[test]
fn a_later_closer_replaces_an_earlier_one() {
    let mut world = World::new();
    world.serve();
    world.report(3, server(HELD), to(Established, FinWait1, NGINX));
    world.report(4, server(HELD), What::Close { state: FinWait1, pid: Some(WORKER), unread_bytes: 0 });
    assert_eq!(world.names(world.row(2)), [None, Some("worker"), Some("worker")]);
}

#[test]
fn a_held_socket_is_accepted() {
    let mut world = World::new();
    world.serve();
    assert!(world.row(2).is(ConnFlags::UNACCEPTED));
    world.report(3, server(HELD), to(Established, CloseWait, 0));
    assert!(!world.row(2).is(ConnFlags::UNACCEPTED));
    assert_eq!(world.row(2).accepted(), Some(true));
}

#[test]
fn whether_it_was_accepted_is_unknown_until_a_sweep() {
    let mut world = World::new();
    world.serve();
    assert_eq!(world.row(2).accepted(), None);
    world.sweep(
        5,
        &[held_sighting(5, listener(9, "0.0.0.0"), Listen, NGINX), sighting(6, server(0), Established)],
    );
    assert_eq!(world.row(2).accepted(), Some(false));
}

#[test]
fn a_reused_pid_does_not_rename_earlier_owners() {
    let mut world = World::new();
    world.connect();
    world.learn(TaskRecord { start_ns: 77_777, ..process(CURL, "wget") });
    world.report(3, numbered(50, HELD), to(Close, SynSent, CURL));
    assert_eq!((world.owner(1), world.owner(50)), (Some("curl"), Some("wget")));
    world.report(4, client(HELD), to(Established, FinWait1, CURL));
    assert_eq!(world.names(world.row(1)), [Some("curl"), Some("wget"), Some("wget")]);
}

#[test]
fn an_exec_or_another_name_renames_nothing_that_was_done_before() {
    for (name, exec_id) in [("wget", 2), ("curl", 2), ("wget", 1)] {
        let mut world = World::new();
        world.connect();
        let socket = numbered(50, HELD);
        world.report_all(socket, [(1, to(Close, SynSent, CURL)), (2, to(SynSent, Established, 0))]);
        world.report_all(socket, [(3, to(Established, FinWait1, CURL)), (4, ended(FinWait1, ECONNRESET))]);
        world.learn(TaskRecord { exec_id, ..process(CURL, name) });
        let ids = [world.row(1).opener, world.row(1).process];
        assert!(ids.iter().all(|id| world.tracker.processes().get(id.unwrap()).exec_id == 1));
        assert_eq!(world.names(world.row(1)), [Some("curl"), Some("curl"), None]);
        assert_eq!(world.names(&world.last_ended().conn), [Some("curl"); 3]);
        world.report(5, client(HELD), to(Established, FinWait1, CURL));
        assert_eq!(world.names(world.row(1)), [Some("curl"), Some(name), Some(name)]);
    }
}

#[test]
fn each_count_goes_to_the_owner_at_that_time() {
    let mut world = World::new();
    world.serve();
    world.report(3, server(HELD), to(Established, FinWait1, WORKER));
    world.report(4, server(HELD), ended(FinWait1, ECONNRESET));
    assert_eq!((world.counts_of("nginx"), world.counts_of("worker")), ([0, 0, 0], [1, 1, 0]));
    assert_eq!(world.counts(), [1, 1, 0]);
}

#[test]
fn a_connection_of_a_listener_with_backlog_0_is_a_servers() {
    // The inherited sk_max_ack_backlog is 0 and shows nothing; that nobody holds the socket does.
    let mut world = World::new();
    world.report(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    let socket = Socket::new(2, NETNS, end("10.0.0.2", 80), end("10.0.0.1", 40_000), 0);
    world.report(1, socket, to(SynRecv, Established, 0));
    let row = world.row(2);
    assert_eq!(
        (row.role, row.is(ConnFlags::OLDER), row.is(ConnFlags::UNACCEPTED)),
        (tcpwatch::model::groups::Role::Server, false, true)
    );
}

#[test]
fn a_lost_close_record_leaves_owner_and_closer_unknown() {
    let mut world = World::new();
    world.serve();
    world.report(3, server(ORPHAN), to(FinWait1, FinWait2, 0));
    assert_eq!((world.owner(2), world.row(2).accepted()), (None, Some(true)));
    world.report(4, server(ORPHAN | FIN), ended(FinWait2, 0));
    assert_eq!((world.state(2), world.owner(2)), (Some(TimeWait), None));
}
