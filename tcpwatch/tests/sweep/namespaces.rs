//! Namespaces that end, and those that get the inode of one that ended.

use crate::scenario::*;

const THEN: u64 = 1000 * SECOND;

/// A sweep of these namespaces, each with its identity; `read`: whether it reads the one in which everything happens.
fn sweep(world: &mut World, began_ns: u64, existing: &[(u32, u32)], read: bool, seen: &[Seen]) {
    let covered: &[u32] = if read { &[NETNS] } else { &[] };
    let coverage = Coverage { existing: Some(existing.iter().copied().collect()), ..covering(covered) };
    world.tracker.begin_sweep(began_ns);
    world.finish_sweep_of(seen, &coverage);
}

#[test]
fn nothing_outlives_its_namespace() {
    let mut world = World::new();
    world.time_wait(THEN);
    world.report(THEN, server(HELD), to(SynRecv, Established, 0));
    sweep(
        &mut world,
        THEN + SECOND,
        &[(NETNS, 7)],
        true,
        &[
            held_sighting(THEN + SECOND, listener(9, "0.0.0.0"), Listen, NGINX),
            sighting(
                THEN + SECOND,
                Socket::new(3, NETNS, server(0).local, end("10.0.0.1", 1), REQUEST),
                SynRecv,
            ),
            held_sighting(THEN + SECOND, server(HELD), Established, NGINX),
            minisock_sighting(THEN + SECOND, client(0), TimeWait, THEN + MINUTE),
        ],
    );
    assert_eq!(world.tracker.table().len(), 4);
    // One that cannot be read may have them still.
    sweep(&mut world, THEN + 2 * SECOND, &[(NETNS, 7)], false, &[]);
    assert_eq!(world.tracker.table().len(), 4);
    // Newer than the sweep.
    world.report(THEN + 4 * SECOND, server(HELD), to(Established, CloseWait, 0));
    sweep(&mut world, THEN + 3 * SECOND, &[(NETNS + 1, 7)], false, &[]);
    assert_eq!((world.tracker.table().len(), world.state(2)), (1, Some(CloseWait)));
    sweep(&mut world, THEN + 5 * SECOND, &[(NETNS + 1, 7)], false, &[]);
    assert!(world.tracker.table().is_empty());
    world.assert_consistent();
}

#[test]
fn another_namespace_with_the_inode_does_not_keep_the_connections_of_the_one_before() {
    for (identity, left) in [(7, true), (8, false)] {
        let mut world = World::new();
        world.connect();
        sweep(&mut world, 10 * SECOND, &[(NETNS, 7)], false, &[]);
        // Perhaps of the new one.
        world.report(11 * SECOND, server(HELD), to(SynRecv, Established, 0));
        sweep(&mut world, 20 * SECOND, &[(NETNS, identity)], false, &[]);
        assert_eq!((world.state(1).is_some(), world.state(2)), (left, Some(Established)), "{identity}");
    }
}
