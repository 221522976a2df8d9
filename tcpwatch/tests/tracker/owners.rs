//! The owner of a connection, from records.

use crate::scenario::*;

/// The owner of an unaccepted connection to `local`, where these listeners (address and process) exist.
fn listening(listeners: &[(&str, u32)], local: &str) -> Option<String> {
    let mut world = World::new();
    for ((addr, pid), cookie) in listeners.iter().zip(10..) {
        world.report(0, listener(cookie, addr), to(Close, Listen, *pid));
    }
    let remote = if local.contains('.') { "10.0.0.1" } else { "fd00::1" };
    let socket = Socket::new(2, NETNS, end(local, 80), end(remote, 40_000), PASSIVE);
    world.report(1, socket, to(SynRecv, Established, 0));
    assert!(world.row(2).is(ConnFlags::UNACCEPTED));
    assert!(!world.row(2).is(ConnFlags::OWNER_SEEN));
    world.owner(2).map(str::to_owned)
}

#[test]
fn an_unaccepted_connection_belongs_to_the_listener_that_the_kernel_chooses() {
    for (listeners, local, owner) in [
        (&[][..], "10.0.0.2", None),
        (&[("0.0.0.0", NGINX)], "10.0.0.2", Some("nginx")),
        (&[("10.0.0.9", NGINX)], "10.0.0.2", None),
        // A listener on the very address comes before one on every address.
        (&[("0.0.0.0", NGINX), ("10.0.0.2", WORKER)], "10.0.0.2", Some("worker")),
        (&[("10.0.0.2", WORKER), ("0.0.0.0", NGINX)], "10.0.0.2", Some("worker")),
        (&[("::", NGINX), ("fd00::2", WORKER)], "fd00::2", Some("worker")),
        // A listener on `::` serves both families: IPv4 goes to it where nobody listens on 0.0.0.0.
        (&[("::", NGINX)], "10.0.0.2", Some("nginx")),
        (&[("::", NGINX), ("0.0.0.0", WORKER)], "10.0.0.2", Some("worker")),
        (&[("::", NGINX), ("0.0.0.0", WORKER)], "fd00::2", Some("nginx")),
        (&[("0.0.0.0", WORKER)], "fd00::2", None),
        // SO_REUSEPORT: either may accept it.
        (&[("0.0.0.0", NGINX), ("0.0.0.0", WORKER)], "10.0.0.2", None),
        (&[("0.0.0.0", NGINX), ("0.0.0.0", NGINX)], "10.0.0.2", Some("nginx")),
        (&[("0.0.0.0", NGINX), ("0.0.0.0", 0)], "10.0.0.2", None),
    ] {
        assert_eq!(listening(listeners, local).as_deref(), owner, "{listeners:?} for {local}");
    }
}

#[test]
fn a_listener_in_another_namespace_or_on_another_port_is_not_the_owner() {
    let mut world = World::new();
    world.report(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    for (cookie, netns, port) in [(20, NETNS + 1, 80), (21, NETNS, 81)] {
        let socket = Socket::new(cookie, netns, end("10.0.0.2", port), end("10.0.0.1", 40_000), PASSIVE);
        world.report(1, socket, to(SynRecv, Established, 0));
        assert_eq!(world.owner(cookie), None);
    }
}

#[test]
fn a_closed_listener_owns_no_new_connection() {
    let mut world = World::new();
    world.serve();
    world.report(3, listener(9, "0.0.0.0"), ended(Listen, 0));
    world.report(4, numbered(80, PASSIVE), to(SynRecv, Established, 0));
    assert_eq!((world.owner(2), world.owner(80)), (Some("nginx"), None));
}

#[test]
fn on_loopback_each_side_has_its_own_owner() {
    let mut world = World::new();
    world.serve();
    world.connect();
    assert_eq!((world.owner(2), world.owner(1)), (Some("nginx"), Some("curl")));
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
    assert_eq!((world.counts_of("nginx"), world.counts_of("worker")), ([1, 0, 0], [0, 1, 0]));
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
    assert_eq!(world.owner(2), Some("nginx"));
}

#[test]
fn a_lost_close_record_leaves_owner_and_closer_unknown() {
    let mut world = World::new();
    world.serve();
    assert_eq!(world.owner(2), Some("nginx"));
    world.report(3, server(ORPHAN), to(FinWait1, FinWait2, 0));
    assert_eq!((world.owner(2), world.row(2).accepted()), (None, Some(true)));
    world.report(4, server(ORPHAN | FIN), ended(FinWait2, 0));
    assert_eq!((world.state(2), world.owner(2)), (Some(TimeWait), None));
}
