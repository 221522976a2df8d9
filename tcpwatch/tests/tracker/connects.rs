//! Connects: each attempt counts once, for the process that made it, with the right outcome.

use tcpwatch::model::groups::{Group, Role};
use tcpwatch_common::errno::{ECONNABORTED, EINVAL};

use crate::scenario::*;

fn fails(socket: Socket, error: u8) -> Outcome {
    let mut world = World::new();
    world.report(1, client(HELD), to(Close, SynSent, CURL));
    assert_eq!((world.attempts(), world.connects()), (1, vec![]), "no outcome yet");
    world.report(SECOND, socket, ended(SynSent, error));
    world.assert_consistent();
    assert_eq!((world.counts_of("curl"), world.attempts()), ([0, 0, 0], 1));
    let outcome = world.last_ended().conn.connect.expect("an outcome");
    assert_eq!(world.connects(), [(outcome, 1)]);
    outcome
}

#[test]
fn a_failed_connect_is_classified_by_errno_and_whether_a_syn_was_sent() {
    for (error, outcome) in [
        (ECONNREFUSED, Outcome::Refused),
        (ETIMEDOUT, Outcome::TimedOut),
        (EHOSTUNREACH, Outcome::Unreachable),
        (ENETUNREACH, Outcome::Unreachable),
        (EACCES, Outcome::Unreachable),
        (ECONNRESET, Outcome::Reset),
        (ECONNABORTED, Outcome::Other),
        (0, Outcome::Aborted),
    ] {
        assert_eq!(fails(client(HELD), error), outcome, "errno {error}");
    }
    // bind() chose its port before connect().
    assert_eq!(fails(client(HELD | UNSENT), 0), Outcome::NoPort);
    let without_port = Socket::new(1, NETNS, end("10.0.0.1", 0), end("10.0.0.2", 80), HELD);
    assert_eq!(fails(without_port, 0), Outcome::NoPort);
}

#[test]
fn without_errnos_only_no_port_is_known() {
    for (port, outcome) in [(40_000, Outcome::Unknown), (0, Outcome::NoPort)] {
        let mut world =
            World::reported_by(ReportedFacts { errnos_missing: true, ..ReportedFacts::default() });
        let socket = Socket::new(1, NETNS, end("10.0.0.1", port), end("10.0.0.2", 80), HELD);
        world.report_all(socket, [(1, to(Close, SynSent, CURL)), (2, ended(SynSent, 0))]);
        assert_eq!(world.connects(), [(outcome, 1)]);
    }
}

#[test]
fn a_successful_connect_counts_as_established_however_it_ends() {
    for error in [0, ECONNRESET, ETIMEDOUT, EHOSTUNREACH] {
        let mut world = World::new();
        world.connect();
        world.report(3, client(HELD), ended(Established, error));
        assert_eq!(
            (world.connects(), world.attempts()),
            (vec![(Outcome::Established, 1)], 1),
            "errno {error}"
        );
        assert_eq!(world.last_ended().conn.connect, Some(Outcome::Established));
    }
    // A pooled connection, idle for hours, closed by its owner.
    let mut world = World::new();
    world.connect();
    world.report(100 * MINUTE, client(HELD), to(Established, FinWait1, CURL));
    world.report(100 * MINUTE + 1, client(ORPHAN), to(FinWait1, FinWait2, 0));
    world.report(100 * MINUTE + 2, client(ORPHAN | FIN), ended(FinWait2, 0));
    world.tracker.expire(200 * MINUTE);
    assert_eq!((world.connects(), world.attempts()), (vec![(Outcome::Established, 1)], 1));
}

#[test]
fn a_simultaneous_open_is_one_attempt_with_one_outcome() {
    let opening = [(1, to(Close, SynSent, CURL)), (2, to(SynSent, SynRecv, 0))];
    for (last, outcome) in [
        (to(SynRecv, Established, 0), Outcome::Established),
        (ended(SynRecv, ECONNRESET), Outcome::Reset),
        (ended(SynRecv, ETIMEDOUT), Outcome::TimedOut),
        // UNSENT is reported for SYN_SENT only.
        (ended(SynRecv, 0), Outcome::Aborted),
    ] {
        let mut world = World::new();
        world.report_all(client(HELD), opening);
        assert_eq!((world.attempts(), world.connects()), (1, vec![]));
        world.report(3, client(HELD), last);
        assert_eq!((world.attempts(), world.connects()), (1, vec![(outcome, 1)]), "{last:?}");
        world.assert_consistent();
    }
}

#[test]
fn a_passive_open_is_no_connect() {
    let mut world = World::new();
    world.serve();
    world.report(3, server(HELD), ended(Established, ECONNRESET));
    assert_eq!((world.connects(), world.attempts()), (vec![], 0));
    assert_eq!(world.last_ended().conn.connect, None);
}

#[test]
fn a_socket_that_tries_again_is_another_attempt() {
    let mut world = World::new();
    for round in 0..3 {
        let time_ns = 10 * round;
        world.report(time_ns + 1, client(HELD), to(Close, SynSent, CURL));
        world.report(time_ns + 2, client(HELD), ended(SynSent, ECONNREFUSED));
    }
    world.connect();
    assert_eq!(world.connects(), [(Outcome::Established, 1), (Outcome::Refused, 3)]);
    assert_eq!(world.attempts(), 4);
}

#[test]
fn a_socket_that_listened_before_it_connects_is_a_client() {
    let mut world = World::new();
    let socket = client(HELD | PASSIVE);
    world.report_all(socket, [(1, to(Close, SynSent, CURL)), (2, ended(SynSent, ECONNREFUSED))]);
    assert_eq!(world.connects(), [(Outcome::Refused, 1)]);
    assert_eq!(world.last_ended().conn.role.name(), "client");
}

#[test]
fn a_failed_connect_counts_for_the_process_that_connected() {
    let mut world = World::new();
    // Two at once, answered in the other order.
    world.report(1, numbered(1, HELD), to(Close, SynSent, CURL));
    world.report(2, numbered(2, HELD), to(Close, SynSent, WORKER));
    world.report(3, numbered(2, HELD), ended(SynSent, ETIMEDOUT));
    world.report(4, numbered(1, HELD), ended(SynSent, ECONNREFUSED));
    let of = |name: &str| {
        let group = world.tracker.groups().iter().find(|group| group.key.process.as_deref() == Some(name));
        let counts = &group.expect("a group").counts;
        [counts.connects[Outcome::Refused as usize], counts.connects[Outcome::TimedOut as usize]]
    };
    assert_eq!((of("curl"), of("worker")), ([1, 0], [0, 1]));
}

#[test]
fn an_attempt_from_before_the_start_counts_when_it_ends() {
    for (last, outcome) in [
        (to(SynSent, Established, 0), Outcome::Established),
        (ended(SynSent, ECONNREFUSED), Outcome::Refused),
    ] {
        for swept in [false, true] {
            let mut world = World::new();
            if swept {
                world.sweep(1, &[held_sighting(2, client(HELD), SynSent, CURL)]);
                assert_eq!((world.attempts(), world.connects()), (0, vec![]));
            }
            world.report(3, client(HELD), last);
            assert_eq!((world.attempts(), world.connects()), (1, vec![(outcome, 1)]), "{last:?}");
        }
    }
}

#[test]
fn a_connect_with_a_lost_end_is_unknown_unless_later_records_show_it() {
    // A sweep finds it gone.
    let mut world = World::new();
    world.report(1, client(HELD), to(Close, SynSent, CURL));
    world.sweep(5, &[]);
    assert_eq!(world.connects(), [(Outcome::Unknown, 1)]);
    // The socket lives again.
    let mut world = World::new();
    world.report(1, client(HELD), to(Close, SynSent, CURL));
    world.report(2, client(HELD), to(Close, SynSent, CURL));
    assert_eq!((world.connects(), world.attempts()), (vec![(Outcome::Unknown, 1)], 2));
    // It was established, as its end or a sweep shows.
    let mut world = World::new();
    world.report(1, client(HELD), to(Close, SynSent, CURL));
    world.report(3, client(HELD), ended(CloseWait, ECONNRESET));
    assert_eq!(world.connects(), [(Outcome::Established, 1)]);
    let mut world = World::new();
    world.report(1, client(HELD), to(Close, SynSent, CURL));
    world.sweep(5, &[held_sighting(SECOND, client(HELD), Established, CURL)]);
    assert_eq!(world.connects(), [(Outcome::Established, 1)]);
}

#[test]
fn durations_are_kept_of_all_connects_and_of_successful_ones() {
    let mut world = World::new();
    world.report_all(
        numbered(1, HELD),
        [(0, to(Close, SynSent, CURL)), (SECOND, to(SynSent, Established, 0))],
    );
    world.report_all(
        numbered(2, HELD),
        [(0, to(Close, SynSent, CURL)), (3 * SECOND, ended(SynSent, ECONNREFUSED))],
    );
    assert_eq!(world.observed(SynSent), (2, 4.0));
    let group = world.tracker.groups().iter().find(|group| group.counts.attempts == 2).expect("one group");
    let successes = group.counts.connected.as_ref().expect("a histogram");
    assert_eq!((successes.count(), successes.sum_seconds()), (1, 1.0));
}

#[test]
fn repeated_syns_are_counted_apart_from_later_retransmits() {
    let retransmit = |state, total| What::Retransmit { state, total: Some(total) };
    let mut world = World::new();
    world.report_all(
        client(HELD),
        [
            (1, to(Close, SynSent, CURL)),
            (2, retransmit(SynSent, 1)),
            (3, retransmit(SynSent, 2)),
            (4, to(SynSent, Established, 0)),
            (5, retransmit(Established, 7)),
        ],
    );
    assert_eq!((world.row(1).syn_retransmits(), world.row(1).total_retrans()), (Some(2), Some(7)));
    // The records of the SYNs were lost.
    let mut world = World::new();
    world.report(1, client(HELD), to(Close, SynSent, CURL));
    world.report(9, client(HELD), What::End { from: SynSent, error: ETIMEDOUT, total_retrans: 6 });
    assert_eq!(world.last_ended().conn.syn_retransmits(), Some(6));
}

/// connect() returned this errno at once.
fn failed(error: u8) -> What {
    What::ConnectFailed { pid: Some(CURL), error }
}

#[test]
fn a_connect_that_fails_before_syn_sent_counts_and_is_kept_as_ended() {
    for (error, outcome) in [
        (ENETUNREACH, Outcome::Unreachable),
        (EHOSTUNREACH, Outcome::Unreachable),
        (EACCES, Outcome::Unreachable),
        // The errno of a blackhole route.
        (EINVAL, Outcome::Other),
    ] {
        let mut world = World::new();
        world.report(5, client(HELD), failed(error));
        world.assert_consistent();
        assert_eq!((world.attempts(), world.connects()), (1, vec![(outcome, 1)]), "errno {error}");
        assert_eq!((world.counts_of("curl"), world.tracker.table().len()), ([0, 0, 0], 0));
        assert_eq!(world.observed(SynSent), (0, 0.0));
        let Ended { conn, ended_ns, cause } = world.last_ended();
        assert_eq!((conn.error, conn.connect, *cause), (error, Some(outcome), Cause::Application));
        assert_eq!((conn.state(), conn.opened_ns(), *ended_ns), (Close, 5, 5));
        assert_eq!(world.names(conn), [Some("curl"), Some("curl"), None]);
        assert_eq!(conn.role.name(), "client");
    }
}

#[test]
fn a_socket_may_fail_before_and_after_syn_sent_and_then_connect() {
    let mut world = World::new();
    for round in 0..3 {
        let time_ns = 10 * round;
        world.report(time_ns, client(HELD), failed(ENETUNREACH));
        world.report(time_ns + 1, client(HELD), to(Close, SynSent, CURL));
        world.report(time_ns + 2, client(HELD | UNSENT), ended(SynSent, 0));
    }
    world.report(40, client(HELD), failed(ENETUNREACH));
    world.report(41, client(HELD), to(Close, SynSent, CURL));
    world.report(42, client(HELD), to(SynSent, Established, 0));
    world.assert_consistent();
    let expected = [(Outcome::Established, 1), (Outcome::Unreachable, 4), (Outcome::NoPort, 3)];
    assert_eq!((world.connects(), world.attempts()), (expected.to_vec(), 8));
    assert_eq!((world.state(1), world.tracker.ended().len()), (Some(Established), 7));
}

#[test]
fn a_connect_that_fails_at_once_ends_the_sockets_older_connection() {
    let mut world = World::new();
    world.connect();
    // Its end was lost.
    world.report(9, client(HELD), failed(ENETUNREACH));
    world.assert_consistent();
    assert_eq!(world.connects(), [(Outcome::Established, 1), (Outcome::Unreachable, 1)]);
    assert_eq!((world.attempts(), world.find(1).is_none(), world.tracker.ended().len()), (2, true, 2));
}

#[test]
fn a_connect_that_fails_at_once_counts_in_a_full_table_and_without_a_process() {
    let mut world = World::with_limits(Limits { connections: 1, ended: 0, ..LIMITS });
    world.connect();
    // A socket that listened before, of an unknown process.
    let socket = numbered(2, HELD | PASSIVE);
    world.report(9, socket, What::ConnectFailed { pid: None, error: ENETUNREACH });
    world.assert_consistent();
    assert_eq!((world.attempts(), world.state(1), world.tracker.untracked()), (2, Some(Established), 0));
    let is_nobodys = |group: &&Group| group.key.process.is_none() && group.key.role == Role::Client;
    let nobodys = world.tracker.groups().iter().find(is_nobodys).unwrap();
    assert_eq!(nobodys.counts.connects[Outcome::Unreachable as usize], 1);
}

#[test]
fn a_connect_that_waits_for_its_first_data_lasts_from_the_syn_on() {
    // 3 ms from the SYN to its acknowledgement.
    for (established_ns, handshake_us, seconds) in [
        (1 + 1_003_000_000, 3000, 0.003),
        // The SYN was repeated.
        (1 + 1_003_000_000, 0, 1.003),
        // The application lost the processor for a moment.
        (1 + 4_000_000, 3000, 0.004),
    ] {
        let mut world = World::new();
        world.report(1, client(HELD), to(Close, SynSent, CURL));
        world.report(established_ns, client(HELD), to(SynSent, Established, handshake_us));
        let (count, sum) = world.observed(SynSent);
        assert_eq!((count, (sum * 1e6).round()), (1, (seconds * 1e6_f64).round()));
        assert_eq!(world.connects(), [(Outcome::Established, 1)]);
    }
}

#[test]
fn what_repair_mode_restores_is_no_connect() {
    let mut world = World::new();
    world
        .report_all(client(HELD | UNSENT), [(1, to(Close, SynSent, CURL)), (2, to(SynSent, Established, 0))]);
    assert_eq!((world.attempts(), world.connects()), (0, vec![]));
    assert_eq!((world.state(1), world.row(1).role.name()), (Some(Established), "unknown"));
    world.assert_consistent();
}
