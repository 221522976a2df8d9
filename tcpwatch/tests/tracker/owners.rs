//! Whose a connection is, by what records say.

use crate::scenario::*;

/// Listeners, each its own process, and to whom a connection to `local` belongs until it is accepted.
fn listening(listeners: &[(&str, u32)], local: &str) -> Option<String> {
    let mut world = World::new();
    for ((addr, pid), cookie) in listeners.iter().zip(10..) {
        world.tell(0, listener(cookie, addr), to(Close, Listen, *pid));
    }
    let remote = if local.contains('.') { "10.0.0.1" } else { "fd00::1" };
    let socket = Socket::new(2, NETNS, end(local, 80), end(remote, 40_000), PASSIVE);
    world.tell(1, socket, to(SynRecv, Established, 0));
    assert!(world.row(2).is(ConnFlags::UNACCEPTED));
    assert!(!world.row(2).is(ConnFlags::OWNER_SEEN));
    world.owner(2).map(str::to_owned)
}

#[test]
fn a_connection_not_yet_accepted_belongs_to_the_listener_that_the_kernel_chose() {
    for (listeners, local, owner) in [
        (&[][..], "10.0.0.2", None),
        (&[("0.0.0.0", NGINX)], "10.0.0.2", Some("nginx")),
        (&[("10.0.0.9", NGINX)], "10.0.0.2", None),
        // Its own address before any.
        (&[("0.0.0.0", NGINX), ("10.0.0.2", WORKER)], "10.0.0.2", Some("worker")),
        (&[("10.0.0.2", WORKER), ("0.0.0.0", NGINX)], "10.0.0.2", Some("worker")),
        (&[("::", NGINX), ("fd00::2", WORKER)], "fd00::2", Some("worker")),
        // Of both families: IPv4 goes to `::` where nobody listens on 0.0.0.0.
        (&[("::", NGINX)], "10.0.0.2", Some("nginx")),
        (&[("::", NGINX), ("0.0.0.0", WORKER)], "10.0.0.2", Some("worker")),
        (&[("::", NGINX), ("0.0.0.0", WORKER)], "fd00::2", Some("nginx")),
        (&[("0.0.0.0", WORKER)], "fd00::2", None),
        // SO_REUSEPORT: any of them may have it.
        (&[("0.0.0.0", NGINX), ("0.0.0.0", WORKER)], "10.0.0.2", None),
        (&[("0.0.0.0", NGINX), ("0.0.0.0", NGINX)], "10.0.0.2", Some("nginx")),
        (&[("0.0.0.0", NGINX), ("0.0.0.0", 0)], "10.0.0.2", None),
    ] {
        assert_eq!(listening(listeners, local).as_deref(), owner, "{listeners:?} for {local}");
    }
}

#[test]
fn a_listener_elsewhere_is_not_the_owner() {
    let mut world = World::new();
    world.tell(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    for (cookie, netns, port) in [(20, NETNS + 1, 80), (21, NETNS, 81)] {
        let socket = Socket::new(cookie, netns, end("10.0.0.2", port), end("10.0.0.1", 40_000), PASSIVE);
        world.tell(1, socket, to(SynRecv, Established, 0));
        assert_eq!(world.owner(cookie), None);
    }
}

#[test]
fn a_listener_that_is_gone_owns_nothing_new() {
    let mut world = World::new();
    world.serve();
    world.tell(3, listener(9, "0.0.0.0"), ended(Listen, 0));
    world.tell(4, numbered(80, PASSIVE), to(SynRecv, Established, 0));
    assert_eq!((world.owner(2), world.owner(80)), (Some("nginx"), None));
}

#[test]
fn on_loopback_the_servers_side_is_the_listeners_not_the_clients() {
    let mut world = World::new();
    world.serve();
    world.connect();
    assert_eq!((world.owner(2), world.owner(1)), (Some("nginx"), Some("curl")));
    assert_eq!((world.row(2).role.name(), world.row(1).role.name()), ("server", "client"));
}

#[test]
fn whoever_closes_it_had_it() {
    for what in [
        to(Established, FinWait1, WORKER),
        to(CloseWait, LastAck, WORKER),
        What::Close { state: Established, pid: Some(WORKER), unread_bytes: 0 },
    ] {
        let mut world = World::new();
        world.serve();
        world.tell(3, server(HELD), what);
        assert_eq!(world.names(world.row(2)), [None, Some("worker"), Some("worker")], "{what:?}");
        assert!(
            world.row(2).is(ConnFlags::OWNER_SEEN) && !world.row(2).is(ConnFlags::UNACCEPTED),
            "{what:?}"
        );
    }
}

#[test]
fn a_close_by_an_unknown_process_names_nobody() {
    // It had accepted the connection, so it need not be whoever listens.
    const NOT_TOLD: u32 = 999;
    for pid in [0, NOT_TOLD] {
        let mut world = World::new();
        world.serve();
        world.tell(3, server(0), to(Established, FinWait1, pid));
        world.tell(
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
    world.tell(3, server(HELD), to(Established, FinWait1, NGINX));
    world.tell(4, server(HELD), What::Close { state: FinWait1, pid: Some(WORKER), unread_bytes: 0 });
    assert_eq!(world.names(world.row(2)), [None, Some("worker"), Some("worker")]);
}

#[test]
fn a_held_socket_has_been_accepted_by_somebody() {
    let mut world = World::new();
    world.serve();
    assert!(world.row(2).is(ConnFlags::UNACCEPTED));
    world.tell(3, server(HELD), to(Established, CloseWait, 0));
    assert!(!world.row(2).is(ConnFlags::UNACCEPTED));
    assert_eq!(world.row(2).accepted(), Some(true));
}

#[test]
fn whether_it_was_accepted_is_unknown_until_somebody_looked() {
    let mut world = World::new();
    world.serve();
    assert_eq!(world.row(2).accepted(), None);
    world.sweep(5, &[look_held(5, listener(9, "0.0.0.0"), Listen, NGINX), look(6, server(0), Established)]);
    assert_eq!(world.row(2).accepted(), Some(false));
}

#[test]
fn a_reused_pid_does_not_rename_what_its_first_carrier_had() {
    let mut world = World::new();
    world.connect();
    world.learn(TaskRecord { start_ns: 77_777, ..process(CURL, "wget") });
    world.tell(3, numbered(50, HELD), to(Close, SynSent, CURL));
    assert_eq!((world.owner(1), world.owner(50)), (Some("curl"), Some("wget")));
    world.tell(4, client(HELD), to(Established, FinWait1, CURL));
    assert_eq!(world.names(world.row(1)), [Some("curl"), Some("wget"), Some("wget")]);
}

#[test]
fn counts_go_to_the_name_that_the_owner_has_by_then() {
    let mut world = World::new();
    world.serve();
    world.tell(3, server(HELD), to(Established, FinWait1, WORKER));
    world.tell(4, server(HELD), ended(FinWait1, ECONNRESET));
    assert_eq!((world.counts_of("nginx"), world.counts_of("worker")), ([1, 0, 0], [0, 1, 0]));
    assert_eq!(world.counts(), [1, 1, 0]);
}

#[test]
fn a_child_of_a_listener_without_backlog_is_a_servers_connection_too() {
    // sk_max_ack_backlog is 0 and so inherited as nothing: only that nobody holds it tells.
    let mut world = World::new();
    world.tell(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    let socket = Socket::new(2, NETNS, end("10.0.0.2", 80), end("10.0.0.1", 40_000), 0);
    world.tell(1, socket, to(SynRecv, Established, 0));
    let row = world.row(2);
    assert_eq!(
        (row.role, row.is(ConnFlags::OLDER), row.is(ConnFlags::UNACCEPTED)),
        (tcpwatch::model::groups::Role::Server, false, true)
    );
    assert_eq!(world.owner(2), Some("nginx"));
}

#[test]
fn who_closed_is_not_guessed_when_the_record_of_the_close_was_lost() {
    let mut world = World::new();
    world.serve();
    assert_eq!(world.owner(2), Some("nginx"));
    world.tell(3, server(ORPHAN), to(FinWait1, FinWait2, 0));
    assert_eq!((world.owner(2), world.row(2).accepted()), (None, Some(true)));
    world.tell(4, server(ORPHAN | FIN), ended(FinWait2, 0));
    assert_eq!((world.state(2), world.owner(2)), (Some(TimeWait), None));
}
