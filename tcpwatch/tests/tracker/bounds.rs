//! Full tables.

use crate::scenario::*;

fn open(world: &mut World, time_ns: u64, cookie: u16) {
    world.report(time_ns, numbered(cookie, HELD), to(Close, SynSent, CURL));
}

#[test]
fn a_full_table_refuses_connections_and_counts_them() {
    let mut world = World::with_limits(Limits { connections: 2, ..LIMITS });
    for cookie in 1..=4 {
        open(&mut world, 1, cookie);
    }
    assert_eq!((world.tracker.table().len(), world.tracker.untracked()), (2, 2));
    assert_eq!((world.state(2), world.state(3)), (Some(SynSent), None));
    // There is room again.
    world.report(2, numbered(1, HELD), ended(SynSent, ECONNREFUSED));
    open(&mut world, 3, 5);
    assert_eq!((world.state(5), world.tracker.untracked()), (Some(SynSent), 2));
}

#[test]
fn in_a_full_table_the_oldest_time_wait_gives_way() {
    let mut world = World::with_limits(Limits { connections: 3, ..LIMITS });
    for (cookie, time_ns) in [(1, 10), (2, 20)] {
        world.report(time_ns, numbered(cookie, ORPHAN | FIN), ended(FinWait2, 0));
    }
    open(&mut world, 30, 3);
    open(&mut world, 40, 4);
    assert_eq!(
        [1, 2, 3, 4].map(|cookie| world.state(cookie)),
        [None, Some(TimeWait), Some(SynSent), Some(SynSent)]
    );
    assert_eq!(world.tracker.untracked(), 1);
    assert_eq!(world.last_ended().conn.cookie, 1);
    world.assert_consistent();
}

#[test]
fn a_fin_wait2_does_not_give_way_because_a_peer_may_be_stuck() {
    let mut world = World::with_limits(Limits { connections: 1, ..LIMITS });
    world.report(10, numbered(1, ORPHAN), ended(FinWait2, 0));
    open(&mut world, 30, 2);
    assert_eq!((world.state(1), world.state(2)), (Some(FinWait2), None));
}

#[test]
fn an_untracked_connection_changes_nothing() {
    let mut world = World::with_limits(Limits { connections: 1, ..LIMITS });
    open(&mut world, 1, 1);
    world.report_all(client(HELD), [(2, to(SynSent, Established, 0))]);
    world.report_all(
        numbered(2, HELD),
        [
            (3, to(Close, SynSent, CURL)),
            (4, What::Retransmit { state: SynSent, total: Some(1) }),
            (5, What::Close { state: SynSent, pid: Some(CURL), unread_bytes: 0 }),
            (6, ended(SynSent, ETIMEDOUT)),
        ],
    );
    assert_eq!(world.tracker.table().len(), 1);
    world.assert_consistent();
}

#[test]
fn the_end_of_an_untracked_connection_evicts_nothing() {
    let mut world = World::with_limits(Limits { connections: 1, ..LIMITS });
    world.report(10, numbered(1, ORPHAN | FIN), ended(FinWait2, 0));
    // Not in the table, and not to be added.
    world.report(20, numbered(2, HELD), ended(Established, ECONNRESET));
    assert_eq!((world.state(1), world.tracker.untracked()), (Some(TimeWait), 0));
}

#[test]
fn the_latest_ended_connections_are_kept() {
    let mut world = World::with_limits(Limits { ended: 2, ..LIMITS });
    for cookie in 1..=4 {
        open(&mut world, 1, cookie);
        world.report(u64::from(cookie) + 1, numbered(cookie, HELD), ended(SynSent, ECONNREFUSED));
    }
    let kept: Vec<_> = world.tracker.ended().iter().map(|ended| ended.conn.cookie).collect();
    assert_eq!(kept, [3, 4]);
}

#[test]
fn a_limit_of_0_keeps_no_ended_connections() {
    let mut world = World::with_limits(Limits { ended: 0, ..LIMITS });
    open(&mut world, 1, 1);
    world.report(2, numbered(1, HELD), ended(SynSent, ECONNREFUSED));
    assert!(world.tracker.ended().is_empty());
}
