//! Who holds a socket, by what a sweep found.

use crate::scenario::*;

fn server_held_by(pids: &[u32]) -> Vec<Seen> {
    // The namespace's own list names no holder and comes first.
    let mut seen = vec![look(11, server(HELD), Established)];
    seen.extend(pids.iter().map(|pid| look_held(12, server(HELD), Established, *pid)));
    seen.push(look_held(12, listener(9, "0.0.0.0"), Listen, NGINX));
    seen
}

#[test]
fn whoever_holds_it_is_the_owner() {
    for (known, holders, owner) in [
        (NGINX, &[][..], "nginx"),
        (NGINX, &[WORKER], "worker"),
        (WORKER, &[WORKER], "worker"),
        // One of several, as after a fork: who is known stays.
        (WORKER, &[NGINX, WORKER], "worker"),
        (NGINX, &[NGINX, WORKER], "nginx"),
        (CURL, &[WORKER, NGINX], "worker"),
    ] {
        let mut world = World::new();
        world.serve();
        world.tell(3, server(HELD), What::Close { state: Established, pid: Some(known), unread_bytes: 0 });
        world.sweep(10, &server_held_by(holders));
        assert_eq!(world.owner(2), Some(owner), "{known}: {holders:?}");
        assert!(world.row(2).is(ConnFlags::OWNER_SEEN) && !world.row(2).is(ConnFlags::UNACCEPTED));
    }
}

#[test]
fn a_holder_accepted_it() {
    let mut world = World::new();
    world.serve();
    assert!(world.row(2).is(ConnFlags::UNACCEPTED) && !world.row(2).is(ConnFlags::OWNER_SEEN));
    world.sweep(10, &server_held_by(&[WORKER]));
    let row = world.row(2);
    assert_eq!(
        (row.accepted(), row.is(ConnFlags::OWNER_SEEN), world.owner(2)),
        (Some(true), true, Some("worker"))
    );
}

#[test]
fn what_nobody_accepted_stays_its_listeners() {
    let mut world = World::new();
    world.serve();
    world
        .sweep(10, &[look(11, server(0), Established), look_held(12, listener(9, "0.0.0.0"), Listen, NGINX)]);
    let row = world.row(2);
    assert_eq!(
        (row.accepted(), row.is(ConnFlags::OWNER_SEEN), world.owner(2)),
        (Some(false), false, Some("nginx"))
    );
}

#[test]
fn a_listener_that_the_same_sweep_finds_owns_what_is_not_accepted() {
    let listening = look_held(12, listener(9, "0.0.0.0"), Listen, NGINX);
    for known_before in [false, true] {
        let mut world = World::new();
        if known_before {
            world.tell(2, server(0), to(SynRecv, Established, 0));
            assert_eq!(world.owner(2), None);
        }
        world.sweep(10, &[look(11, server(0), Established), listening.clone()]);
        assert_eq!((world.owner(2), world.row(2).role.name()), (Some("nginx"), "server"));
    }
}

#[test]
fn listeners_of_two_processes_leave_the_owner_open_until_one_holds_it() {
    let mut world = World::new();
    let listeners = [
        look_held(12, listener(8, "0.0.0.0"), Listen, WORKER),
        look_held(12, listener(9, "0.0.0.0"), Listen, NGINX),
    ];
    world.sweep(10, &[&listeners[..], &[look(11, server(0), Established)]].concat());
    assert_eq!(world.owner(2), None);
    world.sweep(20, &[&listeners[..], &[look_held(21, server(HELD), Established, WORKER)]].concat());
    assert_eq!(world.owner(2), Some("worker"));
}

#[test]
fn a_listener_held_by_two_processes_keeps_the_one_that_is_known() {
    let mut world = World::new();
    world.tell(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    let held_by = |pid| look_held(12, listener(9, "0.0.0.0"), Listen, pid);
    world.sweep(10, &[held_by(WORKER), held_by(NGINX)]);
    assert_eq!(world.owner(9), Some("nginx"));
    // The one that opened it is gone.
    world.sweep(20, &[held_by(WORKER)]);
    assert_eq!(world.names(world.row(9)), [Some("nginx"), Some("worker"), None]);
}

#[test]
fn an_orphan_stays_with_whoever_closed_it() {
    let mut world = World::new();
    world.connect();
    world.tell(3, client(HELD), to(Established, FinWait1, CURL));
    world.sweep(10, &[look(11, client(ORPHAN), FinWait1)]);
    assert_eq!(world.names(world.row(1)), [Some("curl"); 3]);
}

#[test]
fn a_holder_with_the_owners_pid_but_another_start_is_another_process() {
    let mut world = World::new();
    world.connect();
    let task = TaskRecord { start_ns: 77_777, ..process(CURL, "wget") };
    world.sweep(10, &[Seen { holder: Some((task, 3)), ..look(11, client(HELD), Established) }]);
    assert_eq!(world.names(world.row(1)), [Some("curl"), Some("wget"), None]);
}

#[test]
fn a_process_that_closed_it_since_the_look_is_not_undone() {
    for what in [
        to(Established, FinWait1, WORKER),
        What::Close { state: Established, pid: Some(WORKER), unread_bytes: 0 },
    ] {
        let mut world = World::new();
        world.serve();
        world.tracker.begin_sweep(10);
        // Nginx gave its descriptor up after it was looked at; the worker closed the last one.
        world.tell(15, server(HELD), what);
        world.finish_sweep(&server_held_by(&[NGINX]));
        assert_eq!(world.names(world.row(2)), [None, Some("worker"), Some("worker")], "{what:?}");
    }
}

#[test]
fn a_new_owner_is_who_counts_go_to_from_then_on() {
    let mut world = World::new();
    world.serve();
    world.sweep(10, &server_held_by(&[WORKER]));
    world.tell(20, server(HELD), ended(Established, ECONNRESET));
    assert_eq!((world.counts_of("nginx"), world.counts_of("worker")), ([1, 0, 0], [0, 1, 0]));
}

#[test]
fn an_orphan_from_before_the_start_is_not_booked_to_whoever_listens_now() {
    let mut world = World::new();
    let listening = look_held(11, listener(9, "0.0.0.0"), Listen, NGINX);
    world.sweep(10, &[listening, look(11, server(ORPHAN), LastAck)]);
    assert_eq!((world.row(2).role, world.owner(2)), (tcpwatch::model::groups::Role::Server, None));
}

#[test]
fn whoever_closed_a_connection_had_accepted_it() {
    // The record that would have told by whom was lost.
    let mut world = World::new();
    world.serve();
    world.sweep(SECOND, &[look(SECOND + 1, server(ORPHAN), FinWait1)]);
    assert_eq!(world.row(2).accepted(), Some(true));
}
