//! Opened, closed, retransmitted, and how long.

use crate::scenario::*;

fn retransmit(total: u32) -> What {
    What::Retransmit { state: Established, total: Some(total) }
}

fn end_with(total_retrans: u32) -> What {
    What::End { from: Established, error: ECONNRESET, total_retrans }
}

#[test]
fn retransmits_are_counted_once_each_however_they_are_told() {
    for (records, counted) in [
        (&[retransmit(1), retransmit(2), end_with(2)][..], 2),
        // Several segments in one record, or records lost between.
        (&[retransmit(4), end_with(4)], 4),
        // All records lost: the end tells.
        (&[end_with(6)], 6),
        (&[retransmit(1), end_with(6)], 6),
        // The end's 24 bits are full before the socket's 32.
        (&[retransmit((1 << 24) + 5), end_with((1 << 24) - 1)], (1 << 24) + 5),
        // Out of order.
        (&[retransmit(3), retransmit(2), retransmit(4)], 4),
        (&[retransmit(u32::MAX), retransmit(0)], u64::from(u32::MAX)),
        (&[end_with(0)], 0),
    ] {
        let mut world = World::new();
        world.connect();
        for (time_ns, what) in (3..).zip(records) {
            world.tell(time_ns, client(HELD), *what);
        }
        assert_eq!(world.counts()[2], counted, "{records:?}");
    }
}

#[test]
fn of_an_older_connection_only_what_happens_before_our_eyes_is_counted() {
    for (records, counted) in [
        (&[retransmit(40)][..], 1),
        (&[retransmit(40), retransmit(42), end_with(43)], 4),
        (&[to(Established, CloseWait, 0), What::End { from: CloseWait, error: 0, total_retrans: 9 }], 0),
        (&[end_with(9)], 0),
        (&[retransmit(0)], 0),
    ] {
        let mut world = World::new();
        for (time_ns, what) in (3..).zip(records) {
            world.tell(time_ns, client(HELD), *what);
        }
        assert_eq!(world.counts()[2], counted, "{records:?}");
    }
}

#[test]
fn a_sweep_makes_good_lost_retransmits() {
    let mut world = World::new();
    world.connect();
    world.sweep(5, &[Seen { total_retrans: 3, ..look(6, client(HELD), Established) }]);
    assert_eq!(world.counts()[2], 3);
    world.sweep(7, &[Seen { total_retrans: 3, ..look(8, client(HELD), Established) }]);
    world.tell(9, client(HELD), retransmit(4));
    assert_eq!(world.counts()[2], 4);
}

#[test]
fn of_an_older_connection_a_sweep_says_where_counting_starts() {
    let mut world = World::new();
    world.sweep(5, &[Seen { total_retrans: 30, ..look(6, client(HELD), Established) }]);
    assert_eq!(world.counts()[2], 0);
    world.tell(9, client(HELD), retransmit(31));
    assert_eq!(world.counts()[2], 1);
}

#[test]
fn opening_and_closing_are_counted_once_each() {
    let mut world = World::new();
    for cookie in 1..=5 {
        let socket = numbered(cookie, HELD);
        world.tell_all(
            socket,
            [
                (1, to(Close, SynSent, CURL)),
                (2, to(SynSent, Established, 0)),
                (3, to(Established, FinWait1, CURL)),
                (4, to(FinWait1, FinWait2, 0)),
            ],
        );
        world.tell(5, numbered(cookie, ORPHAN | FIN), ended(FinWait2, 0));
    }
    assert_eq!(world.counts(), [5, 5, 0]);
    world.tracker.expire(2 * MINUTE);
    assert_eq!((world.counts(), world.tracker.table.len()), ([5, 5, 0], 0));
}

#[test]
fn an_establishment_whose_record_was_lost_is_counted_by_what_follows_it() {
    for next in
        [to(Established, CloseWait, 0), to(Established, FinWait1, CURL), ended(Established, ECONNRESET)]
    {
        let mut world = World::new();
        world.tell(1, client(HELD), to(Close, SynSent, CURL));
        world.tell(3, client(HELD), next);
        assert_eq!(world.counts()[0], 1, "{next:?}: its opening was seen, so it is ours to count");
    }
}

#[test]
fn a_state_whose_end_was_lost_has_no_known_duration() {
    let mut world = World::new();
    world.connect();
    // ESTABLISHED -> FIN_WAIT1 was lost.
    world.tell(9, client(HELD), to(FinWait1, FinWait2, 0));
    world.tell(10, client(HELD), ended(FinWait2, ECONNRESET));
    assert_eq!((world.observed(Established).0, world.observed(FinWait1).0), (0, 0));
    assert_eq!(world.observed(FinWait2).0, 1);
}

#[test]
fn a_group_is_free_again_once_its_last_connection_is_gone() {
    let mut world = World::with_limits(Limits { label_sets: 1, ..LIMITS });
    world.connect();
    world.tell(3, client(HELD), ended(Established, ECONNRESET));
    let later = 20 * MINUTE;
    world.tell(later, server(0), to(SynRecv, Established, 0));
    let roles: Vec<_> = world.tracker.groups.iter().map(|group| group.key.role.name()).collect();
    assert_eq!(roles, ["unknown", "server"], "the client's place was taken");
    assert_eq!(world.counts(), [2, 1, 0], "and no count lost");
}

#[test]
fn a_group_with_a_connection_keeps_its_place() {
    let mut world = World::with_limits(Limits { label_sets: 1, ..LIMITS });
    world.connect();
    world.tell(20 * MINUTE, server(0), to(SynRecv, Established, 0));
    let roles: Vec<_> = world.tracker.groups.iter().map(|group| group.key.role.name()).collect();
    assert_eq!(roles, ["unknown", "client"]);
    assert_eq!(world.counts(), [2, 0, 0]);
}
