//! Counts: opened, closed and retransmitted, and the durations of states.

use tcpwatch::{
    events::decode::{Kind, Retransmits},
    model::socket_retransmits::Retransmitted,
};

use crate::scenario::*;

const SECOND: u64 = 1_000_000_000;

fn retransmit(total: u32) -> What {
    What::Retransmit { state: Established, total: Some(total) }
}

fn end_with(total_retrans: u32) -> What {
    What::End { from: Established, error: ECONNRESET, total_retrans }
}

#[test]
fn each_retransmit_counts_once_however_it_is_reported() {
    for (records, counted) in [
        (&[retransmit(1), retransmit(2), end_with(2)][..], 2),
        // Several segments in one record, or records lost between.
        (&[retransmit(4), end_with(4)], 4),
        // All records lost: the end has the total.
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
            world.report(time_ns, client(HELD), *what);
        }
        assert_eq!(world.counts()[2], counted, "{records:?}");
    }
}

#[test]
fn retransmits_before_the_first_record_do_not_count() {
    for (records, counted) in [
        (&[retransmit(40)][..], 1),
        (&[retransmit(40), retransmit(42), end_with(43)], 4),
        (&[to(Established, CloseWait, 0), What::End { from: CloseWait, error: 0, total_retrans: 9 }], 0),
        (&[end_with(9)], 0),
        (&[retransmit(0)], 0),
    ] {
        let mut world = World::new();
        for (time_ns, what) in (3..).zip(records) {
            world.report(time_ns, client(HELD), *what);
        }
        assert_eq!(world.counts()[2], counted, "{records:?}");
    }
}

#[test]
fn a_sweep_counts_the_retransmits_of_lost_records() {
    let mut world = World::new();
    world.connect();
    // A sweep counts only what is not reported within a second: records come late, and know the kind.
    for (time_ns, total_retrans, counted) in
        [(5, 3, 0), (SECOND, 4, 0), (SECOND + 10, 4, 3), (2 * SECOND, 4, 3), (2 * SECOND + 20, 5, 4)]
    {
        world.sweep(time_ns, &[Seen { total_retrans, ..sighting(time_ns + 1, client(HELD), Established) }]);
        assert_eq!(world.counts()[2], counted, "{time_ns}");
    }
    world.report(3 * SECOND, client(HELD), retransmit(6));
    assert_eq!(world.counts()[2], 6);
    world.sweep(
        9 * SECOND,
        &[Seen { total_retrans: 6, ..sighting(9 * SECOND + 1, client(HELD), Established) }],
    );
    assert_eq!(world.counts()[2], 6);
}

#[test]
fn retransmits_before_the_first_sweep_do_not_count() {
    let mut world = World::new();
    world.sweep(5, &[Seen { total_retrans: 30, ..sighting(6, client(HELD), Established) }]);
    assert_eq!(world.counts()[2], 0);
    world.report(9, client(HELD), retransmit(31));
    assert_eq!(world.counts()[2], 1);
}

#[test]
fn opening_and_closing_are_counted_once_each() {
    let mut world = World::new();
    for cookie in 1..=5 {
        let socket = numbered(cookie, HELD);
        world.report_all(
            socket,
            [
                (1, to(Close, SynSent, CURL)),
                (2, to(SynSent, Established, 0)),
                (3, to(Established, FinWait1, CURL)),
                (4, to(FinWait1, FinWait2, 0)),
            ],
        );
        world.report(5, numbered(cookie, ORPHAN | FIN), ended(FinWait2, 0));
    }
    assert_eq!(world.counts(), [5, 5, 0]);
    world.tracker.expire(2 * MINUTE);
    assert_eq!((world.counts(), world.tracker.table().len()), ([5, 5, 0], 0));
}

#[test]
fn a_lost_establishment_is_counted_with_the_next_record() {
    for next in
        [to(Established, CloseWait, 0), to(Established, FinWait1, CURL), ended(Established, ECONNRESET)]
    {
        let mut world = World::new();
        world.report(1, client(HELD), to(Close, SynSent, CURL));
        world.report(3, client(HELD), next);
        assert_eq!(world.counts()[0], 1, "{next:?}: its opening was seen, so it is ours to count");
    }
}

#[test]
fn a_state_whose_end_was_lost_has_no_known_duration() {
    let mut world = World::new();
    world.connect();
    // ESTABLISHED -> FIN_WAIT1 was lost.
    world.report(9, client(HELD), to(FinWait1, FinWait2, 0));
    world.report(10, client(HELD), ended(FinWait2, ECONNRESET));
    assert_eq!((world.observed(Established).0, world.observed(FinWait1).0), (0, 0));
    assert_eq!(world.observed(FinWait2).0, 1);
}

#[test]
fn a_group_is_free_again_once_its_last_connection_is_gone() {
    let mut world = World::with_limits(Limits { label_sets: 1, ..LIMITS });
    world.connect();
    world.report(3, client(HELD), ended(Established, ECONNRESET));
    let later = 20 * MINUTE;
    world.report(later, server(0), to(SynRecv, Established, 0));
    world.report(later, server(HELD), What::Accept { state: Established, pid: Some(WORKER) });
    let roles: Vec<_> = world.tracker.groups().iter().map(|group| group.key.role.name()).collect();
    assert_eq!(roles, ["unknown", "server"], "the client's place was taken");
    assert_eq!(world.counts(), [1, 0, 0], "its counts went with it");
}

#[test]
fn a_group_with_a_connection_keeps_its_place() {
    let mut world = World::with_limits(Limits { label_sets: 1, ..LIMITS });
    world.connect();
    world.report(20 * MINUTE, server(0), to(SynRecv, Established, 0));
    world.report(20 * MINUTE, server(HELD), What::Accept { state: Established, pid: Some(WORKER) });
    let roles: Vec<_> = world.tracker.groups().iter().map(|group| group.key.role.name()).collect();
    assert_eq!(roles, ["unknown", "client"]);
    assert_eq!(world.counts(), [2, 0, 0]);
}

/// Segments of each kind in the groups of a process, `""` for an unknown one.
fn kinds(world: &World, process: &str) -> Vec<(&'static str, u64)> {
    let of =
        world.tracker.groups().iter().filter(|group| group.key.process.as_deref().unwrap_or("") == process);
    let mut sum = Retransmitted::default();
    of.for_each(|group| sum.add(&group.counts.retransmitted));
    let kinds = Kind::ALL.iter().map(|kind| kind.name()).zip(sum.segments);
    kinds.filter(|(_, count)| *count > 0).collect()
}

/// A record of a socket's retransmits: the socket's own count, and the programs' by kind.
fn report(world: &mut World, time_ns: u64, socket: Socket, total: Option<u32>, segments: &[(Kind, u64)]) {
    let mut retransmits = Retransmits { since_ns: 3, ..Retransmits::default() };
    for (kind, count) in segments {
        retransmits.segments[*kind as usize] = *count;
    }
    let state = if socket == listener(9, "0.0.0.0") { Listen } else { Established };
    let record = SocketRecord { socket, time_ns, what: What::Retransmit { state, total }, traffic: None };
    world.tracker.apply(&Record::Retransmit(record, Box::new(retransmits)));
}

#[test]
fn retransmit_kinds_are_the_programs_and_their_sum_is_the_sockets() {
    let mut world = World::new();
    world.connect();
    report(&mut world, 4, client(HELD), Some(2), &[(Kind::Fast, 2)]);
    // One was not seen.
    report(&mut world, 5, client(HELD), Some(5), &[(Kind::Fast, 3), (Kind::Timeout, 1)]);
    // Segments that a sweep counted long before their record stay of an unknown kind.
    for time_ns in [6, 2 * SECOND] {
        world
            .sweep(time_ns, &[Seen { total_retrans: 7, ..sighting(time_ns + 1, client(HELD), Established) }]);
    }
    report(
        &mut world,
        3 * SECOND,
        client(HELD),
        Some(8),
        &[(Kind::Fast, 3), (Kind::Timeout, 1), (Kind::Probe, 3)],
    );
    world.report(4 * SECOND, client(HELD), end_with(9));
    assert_eq!(kinds(&world, "curl"), [("fast", 3), ("timeout", 1), ("probe", 1), ("unknown", 4)]);
    assert_eq!((world.counts()[2], world.last_ended().conn.total_retrans()), (9, Some(9)));
}

#[test]
fn of_an_older_connection_the_retransmits_that_the_programs_saw_count() {
    let mut world = World::new();
    report(&mut world, 4, client(HELD), Some(40), &[(Kind::Fast, 3)]);
    report(&mut world, 5, client(HELD), Some(42), &[(Kind::Fast, 5)]);
    assert_eq!((world.counts()[2], world.row(1).total_retrans()), (5, Some(42)));
}

#[test]
fn syn_ack_retransmits_count_for_the_listener_only() {
    // A sweep may have seen the request.
    for swept in [false, true] {
        let mut world = World::new();
        world.report(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
        for (time_ns, count) in [(4, 1), (5, 2), (6, 3)] {
            report(&mut world, time_ns, listener(9, "0.0.0.0"), None, &[(Kind::SynAck, count)]);
        }
        if swept {
            let request = server(REQUEST);
            world.sweep(7, &[sighting(8, listener(9, "0.0.0.0"), Listen), sighting(8, request, SynRecv)]);
        }
        world.report(10, server(0), to(SynRecv, Established, 3));
        world.sweep(
            11,
            &[
                sighting(12, listener(9, "0.0.0.0"), Listen),
                Seen { total_retrans: 3, ..sighting(12, server(HELD), Established) },
            ],
        );
        assert_eq!(world.row(2).total_retrans(), Some(3));
        world.report(13, server(HELD), What::End { from: Established, error: ECONNRESET, total_retrans: 4 });
        assert_eq!(kinds(&world, "nginx"), [("syn_ack", 3)], "swept: {swept}");
        assert_eq!(kinds(&world, ""), [("unknown", 1)], "swept: {swept}");
        let group =
            world.tracker.groups().iter().find(|group| group.counts.retransmitted.total() > 0).unwrap();
        assert_eq!((group.key.role.name(), group.key.peer.to_string()), ("server", ":80".to_owned()));
    }
}

#[test]
fn retransmits_of_an_untracked_socket_count_once_for_no_process() {
    let mut world = World::with_limits(Limits { connections: 1, ..LIMITS });
    world.connect();
    let untracked = numbered(7, HELD);
    report(&mut world, 4, untracked, Some(12), &[(Kind::Fast, 2)]);
    report(&mut world, 5, untracked, Some(13), &[(Kind::Fast, 3)]);
    assert_eq!(kinds(&world, ""), [("fast", 3)]);
    // A place is free now.
    world.report(6, client(HELD), ended(Established, ECONNRESET));
    report(&mut world, 7, untracked, Some(15), &[(Kind::Fast, 5)]);
    assert_eq!(kinds(&world, ""), [("fast", 5)]);
    world.report(8, untracked, What::End { from: Established, error: 0, total_retrans: 15 });
    assert_eq!(world.counts()[2], 5);
}
