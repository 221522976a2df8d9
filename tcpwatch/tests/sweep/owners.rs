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

/// The owner of a connection to port 80 that a sweep finds in the accept queue of listener 9, where these other listeners
/// exist too. `holders`: of listener 9.
fn queued(holders: &[u32], others: &[Seen]) -> Option<(String, ProcessSeen)> {
    let mut world = World::new();
    let mut seen = vec![sighting(11, listener(9, "0.0.0.0"), Listen), sighting(11, server(0), Established)];
    seen.extend_from_slice(others);
    seen.extend(holders.iter().map(|pid| held_sighting(12, listener(9, "0.0.0.0"), Listen, *pid)));
    world.sweep_with_lists(10, &seen, &[accept_queue(11, 9, &[2])]);
    assert_eq!(world.row(2).accepted(), Some(false));
    world.owner_seen(2).map(|(name, how)| (name.to_owned(), how))
}

#[test]
fn an_unaccepted_connection_belongs_to_the_listener_that_queues_it() {
    let of = |name: &str| Some((name.to_owned(), ProcessSeen::Listener));
    // Another listener has the very address of the connection, or port 80 in the same namespace.
    let nearer = held_sighting(12, listener(8, "10.0.0.2"), Listen, WORKER);
    let same = held_sighting(12, listener(8, "0.0.0.0"), Listen, WORKER);
    assert_eq!(queued(&[NGINX], &[]), of("nginx"));
    assert_eq!(queued(&[NGINX], &[nearer]), of("nginx"));
    assert_eq!(queued(&[NGINX], std::slice::from_ref(&same)), of("nginx"));
    // No process was found to hold the listener.
    assert_eq!(queued(&[], &[same]), None);
}

#[test]
fn an_unaccepted_connection_in_no_queue_belongs_to_nobody() {
    let mut world = World::new();
    world.serve();
    let seen =
        [sighting(11, server(0), Established), held_sighting(12, listener(9, "0.0.0.0"), Listen, NGINX)];
    world.sweep(10, &seen);
    assert_eq!((world.row(2).accepted(), world.owner(2)), (Some(false), None));
    // The listener made it after its queue was listed; the next sweep knows.
    world.sweep_with_lists(
        20,
        &[seen[0].clone(), seen[1].clone()].map(|seen| Seen { time_ns: 21, ..seen }),
        &[accept_queue(21, 9, &[2])],
    );
    assert_eq!(world.owner_seen(2), Some(("nginx", ProcessSeen::Listener)));
    assert_eq!(world.counts(), [0; 3], "who accepts it may be another");
}

#[test]
fn a_process_that_gave_the_listener_up_does_not_own_what_waits_there() {
    let mut world = World::new();
    world.serve();
    let seen = |time_ns, pid| {
        [
            sighting(time_ns, server(0), Established),
            held_sighting(time_ns, listener(9, "0.0.0.0"), Listen, pid),
        ]
    };
    for (time_ns, pid, owner) in [(10, NGINX, "nginx"), (20, WORKER, "worker")] {
        world.sweep_with_lists(time_ns, &seen(time_ns + 1, pid), &[accept_queue(time_ns + 1, 9, &[2])]);
        assert_eq!((world.owner(2), world.owner(9)), (Some(owner), Some(owner)));
    }
}

#[test]
fn what_a_list_leaves_out_is_in_the_only_queue_that_is_longer() {
    for (long_queues, owner) in [(1, Some("nginx")), (2, None)] {
        let mut world = World::new();
        world.serve();
        let lists = [9, 8].map(|cookie| SeenList {
            of: ListOwner::Listener { cookie, truncated: true },
            ..accept_queue(11, cookie, &[77])
        });
        let mut seen = vec![sighting(11, server(0), Established)];
        for (cookie, pid) in [(9, NGINX), (8, WORKER)] {
            seen.push(held_sighting(12, listener(cookie, "0.0.0.0"), Listen, pid));
        }
        world.sweep_with_lists(10, &seen, &lists[..long_queues]);
        assert_eq!(world.owner(2), owner, "{long_queues}");
    }
}

#[test]
fn an_accepted_connection_loses_the_listeners_process() {
    let mut world = World::new();
    world.serve();
    let seen =
        [sighting(11, server(0), Established), held_sighting(12, listener(9, "0.0.0.0"), Listen, NGINX)];
    world.sweep_with_lists(10, &seen, &[accept_queue(11, 9, &[2])]);
    assert_eq!(world.owner(2), Some("nginx"));
    world.report(20, server(HELD), to(Established, CloseWait, 0));
    assert_eq!((world.row(2).accepted(), world.owner(2)), (Some(true), None));
}

#[test]
fn the_holder_of_a_closed_socket_had_owned_its_connection() {
    let mut world = World::new();
    world.serve();
    world.report(3, server(HELD), ended(Established, ECONNRESET));
    world.sweep(10, &[held_sighting(11, server(HELD), Close, WORKER)]);
    let conn = &world.tracker.ended().iter().find(|ended| ended.conn.cookie == 2).unwrap().conn;
    assert_eq!((world.name(conn.process), conn.process_seen()), (Some("worker"), Some(ProcessSeen::Holder)));
}

#[test]
fn subflows_belong_to_the_process_that_holds_their_multipath_socket() {
    let mut world = World::new();
    world.connect();
    world.serve();
    let held = SeenList { of: ListOwner::Holder(process(WORKER, "worker")), ..accept_queue(12, 0, &[0, 2]) };
    let seen = [sighting(11, server(HELD), Established), sighting(11, client(HELD), Established)];
    world.sweep_with_lists(10, &seen, &[held]);
    assert_eq!(world.owner_seen(2), Some(("worker", ProcessSeen::Holder)));
    assert_eq!(world.owner_seen(1), Some(("curl", ProcessSeen::Opener)));
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
    assert_eq!((world.counts_of("nginx"), world.counts_of("worker")), ([0, 0, 0], [1, 1, 0]));
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
