//! The owner of a connection, from the holders that a sweep finds.

use crate::scenario::*;

fn server_held_by(pids: &[u32]) -> Vec<Seen> {
    // The namespace's own list names no holder and comes first.
    let mut seen = vec![sighting(11, server(HELD), Established)];
    seen.extend(pids.iter().map(|pid| held_sighting(12, server(HELD), Established, *pid)));
    seen.push(held_sighting(12, listener(9, "0.0.0.0"), Listen, NGINX));
    seen
}

#[test]
fn the_holder_is_the_owner() {
    for (known, holders, owner) in [
        (NGINX, &[][..], "nginx"),
        (NGINX, &[WORKER], "worker"),
        (WORKER, &[WORKER], "worker"),
        // One of several holders, as after a fork: the known owner stays.
        (WORKER, &[NGINX, WORKER], "worker"),
        (NGINX, &[NGINX, WORKER], "nginx"),
        (CURL, &[WORKER, NGINX], "worker"),
    ] {
        let mut world = World::new();
        world.serve();
        world.report(3, server(HELD), What::Close { state: Established, pid: Some(known), unread_bytes: 0 });
        world.sweep(10, &server_held_by(holders));
        assert_eq!(world.owner(2), Some(owner), "{known}: {holders:?}");
        assert!(world.row(2).is(ConnFlags::OWNER_SEEN) && !world.row(2).is(ConnFlags::UNACCEPTED));
    }
}

#[test]
fn a_connection_with_a_holder_is_accepted() {
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
fn an_unaccepted_connection_stays_with_its_listener() {
    let mut world = World::new();
    world.serve();
    world.sweep(
        10,
        &[sighting(11, server(0), Established), held_sighting(12, listener(9, "0.0.0.0"), Listen, NGINX)],
    );
    let row = world.row(2);
    assert_eq!(
        (row.accepted(), row.is(ConnFlags::OWNER_SEEN), world.owner(2)),
        (Some(false), false, Some("nginx"))
    );
}

#[test]
fn a_listener_found_in_the_same_sweep_owns_unaccepted_connections() {
    let listening = held_sighting(12, listener(9, "0.0.0.0"), Listen, NGINX);
    for known_before in [false, true] {
        let mut world = World::new();
        if known_before {
            world.report(2, server(0), to(SynRecv, Established, 0));
            assert_eq!(world.owner(2), None);
        }
        world.sweep(10, &[sighting(11, server(0), Established), listening.clone()]);
        assert_eq!((world.owner(2), world.row(2).role.name()), (Some("nginx"), "server"));
    }
}

#[test]
fn with_listeners_of_two_processes_the_owner_is_unknown_until_one_holds_it() {
    let mut world = World::new();
    let listeners = [
        held_sighting(12, listener(8, "0.0.0.0"), Listen, WORKER),
        held_sighting(12, listener(9, "0.0.0.0"), Listen, NGINX),
    ];
    world.sweep(10, &[&listeners[..], &[sighting(11, server(0), Established)]].concat());
    assert_eq!(world.owner(2), None);
    world.sweep(20, &[&listeners[..], &[held_sighting(21, server(HELD), Established, WORKER)]].concat());
    assert_eq!(world.owner(2), Some("worker"));
}

#[test]
fn a_listener_held_by_two_processes_keeps_its_known_owner() {
    let mut world = World::new();
    world.report(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    let held_by = |pid| held_sighting(12, listener(9, "0.0.0.0"), Listen, pid);
    world.sweep(10, &[held_by(WORKER), held_by(NGINX)]);
    assert_eq!(world.owner(9), Some("nginx"));
    // The one that opened it is gone.
    world.sweep(20, &[held_by(WORKER)]);
    assert_eq!(world.names(world.row(9)), [Some("nginx"), Some("worker"), None]);
}

#[test]
fn an_orphan_keeps_the_owner_that_closed_it() {
    let mut world = World::new();
    world.connect();
    world.report(3, client(HELD), to(Established, FinWait1, CURL));
    world.sweep(10, &[sighting(11, client(ORPHAN), FinWait1)]);
    assert_eq!(world.names(world.row(1)), [Some("curl"); 3]);
}

#[test]
fn a_holder_with_the_owners_pid_but_another_start_is_another_process() {
    let mut world = World::new();
    world.connect();
    let task = TaskRecord { start_ns: 77_777, ..process(CURL, "wget") };
    world.sweep(10, &[Seen { holder: Some((task, 3)), ..sighting(11, client(HELD), Established) }]);
    assert_eq!(world.names(world.row(1)), [Some("curl"), Some("wget"), None]);
}

#[test]
fn after_an_exec_the_holder_is_what_the_process_is_now_and_the_opener_what_it_was() {
    for name in ["sleep", "curl"] {
        for also_held_by in [None, Some(WORKER)] {
            let mut world = World::new();
            world.connect();
            let task = TaskRecord { exec_id: 2, ..process(CURL, name) };
            let others = also_held_by.map(|pid| held_sighting(11, client(HELD), Established, pid));
            let own = Seen { holder: Some((task, 3)), ..sighting(11, client(HELD), Established) };
            let seen: Vec<_> = others.into_iter().chain([own]).collect();
            world.sweep(10, &seen);
            let exec_ids = |world: &World| {
                let conn = world.row(1);
                [conn.opener, conn.process].map(|id| world.tracker.processes().get(id.unwrap()).exec_id)
            };
            assert_eq!(exec_ids(&world), [1, 2]);
            assert_eq!(world.names(world.row(1)), [Some("curl"), Some(name), None]);
            // A sighting from before the exec comes late; a record of a connection opened since means the new program.
            world.learn(task);
            world.sweep(20, &[held_sighting(21, client(HELD), Established, CURL)]);
            world.report(30, numbered(50, HELD), to(Close, SynSent, CURL));
            assert_eq!(world.owner(50), Some(name));
        }
    }
}

#[test]
fn a_close_after_the_sighting_is_not_undone() {
    for what in [
        to(Established, FinWait1, WORKER),
        What::Close { state: Established, pid: Some(WORKER), unread_bytes: 0 },
    ] {
        let mut world = World::new();
        world.serve();
        world.tracker.begin_sweep(10);
        // Nginx gave its descriptor up after the sighting; the worker closed the last one.
        world.report(15, server(HELD), what);
        world.finish_sweep(&server_held_by(&[NGINX]));
        assert_eq!(world.names(world.row(2)), [None, Some("worker"), Some("worker")], "{what:?}");
    }
}

#[test]
fn later_counts_go_to_the_new_owner() {
    let mut world = World::new();
    world.serve();
    world.sweep(10, &server_held_by(&[WORKER]));
    world.report(20, server(HELD), ended(Established, ECONNRESET));
    assert_eq!((world.counts_of("nginx"), world.counts_of("worker")), ([1, 0, 0], [0, 1, 0]));
}

#[test]
fn an_orphan_from_before_the_start_does_not_belong_to_the_present_listener() {
    let mut world = World::new();
    let listening = held_sighting(11, listener(9, "0.0.0.0"), Listen, NGINX);
    world.sweep(10, &[listening, sighting(11, server(ORPHAN), LastAck)]);
    assert_eq!((world.row(2).role, world.owner(2)), (tcpwatch::model::groups::Role::Server, None));
}

#[test]
fn a_closed_connection_was_accepted() {
    // The record of the close, with its process, was lost.
    let mut world = World::new();
    world.serve();
    world.sweep(SECOND, &[sighting(SECOND + 1, server(ORPHAN), FinWait1)]);
    assert_eq!(world.row(2).accepted(), Some(true));
}
