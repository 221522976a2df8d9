//! How often a listener's full accept queue refused: counted by a program, or concluded from the namespace's count.

use crate::scenario::*;

fn queue(drops: u32, overflows: u64) -> ListenQueue {
    ListenQueue { waiting: 5, limit: 4, drops, overflows, deferred: false }
}

fn listening(time_ns: u64, cookie: u64, queue: ListenQueue) -> Seen {
    let socket =
        Socket::new(cookie, NETNS, end("0.0.0.0", 8000 + cookie as u16), end("::", 0), PASSIVE | HELD);
    Seen { queue, ..held_sighting(time_ns, socket, Listen, NGINX) }
}

fn begin(world: &mut World, time_ns: u64, cookie: u64) {
    let socket = listening(time_ns, cookie, queue(0, 0)).socket;
    world.report(time_ns, socket, to(Close, Listen, NGINX));
}

/// A sweep of all namespaces at `time_ns` that finds these drops by listener, and that count of the namespace.
fn sweep(world: &mut World, time_ns: u64, drops: &[(u64, u32)], total: u64) {
    let seen: Vec<_> =
        drops.iter().map(|(cookie, drops)| listening(time_ns, *cookie, queue(*drops, 0))).collect();
    world.tracker.begin_sweep(time_ns);
    let overflows = [(NETNS, total)].into_iter().collect();
    world.finish_sweep_of(&seen, &Coverage { all: true, overflows, ..covering(&[NETNS]) });
}

/// A world whose first sweep found another namespace only.
fn before_the_namespace() -> World {
    let mut world = World::new();
    world.tracker.begin_sweep(1);
    world.finish_sweep_of(&[], &Coverage { all: true, ..covering(&[NETNS + 1]) });
    world
}

fn known(world: &World, cookie: u64) -> (u64, bool) {
    world.tracker.queue(cookie).expect("a listener").overflows()
}

#[test]
fn the_only_listener_that_dropped_has_the_namespaces_overflows() {
    let mut world = before_the_namespace();
    begin(&mut world, 10, 1);
    begin(&mut world, 11, 2);
    sweep(&mut world, SECOND, &[(1, 74), (2, 0)], 46);
    assert_eq!((known(&world, 1), known(&world, 2)), ((46, false), (0, false)));
    sweep(&mut world, 2 * SECOND, &[(1, 80), (2, 0)], 50);
    assert_eq!((known(&world, 1), known(&world, 2)), ((50, false), (0, false)));
    // What it drops for another reason is no overflow.
    sweep(&mut world, 3 * SECOND, &[(1, 90), (2, 3)], 50);
    assert_eq!((known(&world, 1), known(&world, 2)), ((50, false), (0, false)));
}

#[test]
fn overflows_behind_the_look_at_the_listener_are_the_next_sweeps() {
    let mut world = before_the_namespace();
    begin(&mut world, 10, 1);
    sweep(&mut world, SECOND, &[(1, 0)], 2);
    assert_eq!(known(&world, 1), (0, false));
    sweep(&mut world, 2 * SECOND, &[(1, 4)], 2);
    assert_eq!(known(&world, 1), (2, false));
}

#[test]
fn overflows_that_several_listeners_may_have_had_are_nobodys() {
    let mut world = before_the_namespace();
    begin(&mut world, 10, 1);
    begin(&mut world, 11, 2);
    sweep(&mut world, SECOND, &[(1, 3), (2, 0)], 3);
    sweep(&mut world, 2 * SECOND, &[(1, 5), (2, 5)], 7);
    assert_eq!((known(&world, 1), known(&world, 2)), ((3, true), (0, true)));
    // Or one that has gone since.
    let mut world = before_the_namespace();
    begin(&mut world, 10, 1);
    begin(&mut world, 11, 2);
    world.report(20, listening(20, 2, queue(0, 0)).socket, ended(Listen, 0));
    sweep(&mut world, SECOND, &[(1, 3)], 3);
    assert_eq!(known(&world, 1), (0, true));
}

#[test]
fn what_happened_before_the_start_is_unknown_unless_nothing_did() {
    for (drops, total, at_first, later) in
        [(0, 9, (0, false), (4, false)), (7, 0, (0, false), (4, false)), (7, 9, (0, true), (4, true))]
    {
        let mut world = World::new();
        sweep(&mut world, SECOND, &[(1, drops)], total);
        assert_eq!(known(&world, 1), at_first, "{drops} of {total}");
        sweep(&mut world, 2 * SECOND, &[(1, drops + 6)], total + 4);
        assert_eq!(known(&world, 1), later, "{drops} of {total}");
    }
}

#[test]
fn another_namespace_with_the_inode_begins_anew() {
    let mut world = before_the_namespace();
    begin(&mut world, 10, 1);
    sweep(&mut world, SECOND, &[(1, 9)], 9);
    world.report(SECOND + 1, listening(0, 1, queue(0, 0)).socket, ended(Listen, 0));
    begin(&mut world, SECOND + 2, 2);
    sweep(&mut world, 2 * SECOND, &[(2, 3)], 3);
    assert_eq!(known(&world, 2), (0, true));
}

#[test]
fn a_program_counts_for_each_listener() {
    let mut world = World::reported_by(ReportedFacts { overflows: true, ..ReportedFacts::default() });
    let look = |world: &mut World, time_ns: u64, counts: &[(u64, u32, u64)], total| {
        let seen: Vec<_> = counts
            .iter()
            .map(|(cookie, drops, overflows)| listening(time_ns, *cookie, queue(*drops, *overflows)))
            .collect();
        world.tracker.begin_sweep(time_ns);
        let overflows = [(NETNS, total)].into_iter().collect();
        world.finish_sweep_of(&seen, &Coverage { all: true, overflows, ..covering(&[NETNS]) });
    };
    begin(&mut world, 10, 1);
    look(&mut world, SECOND, &[(1, 3, 2), (2, 0, 0), (3, 5, 1), (4, 8, 0)], 9);
    let all = |world: &World| [1, 2, 3, 4].map(|cookie| known(world, cookie));
    assert_eq!(all(&world), [(2, false), (0, false), (1, true), (0, true)]);
    look(&mut world, 2 * SECOND, &[(1, 3, 2), (2, 9, 4), (3, 5, 1), (4, 8, 2)], 15);
    assert_eq!(all(&world), [(2, false), (4, false), (1, true), (2, true)]);
}
