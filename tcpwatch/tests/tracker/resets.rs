//! Resets: each counts once, by its reason, for the owner of the connection that it ended.

use tcpwatch_common::errno::ECONNABORTED;

use crate::scenario::*;

#[test]
fn a_reset_reported_after_the_end_belongs_to_the_connection() {
    for (record, reason) in [
        (
            ResetRecord { unread_bytes: 7, zero_linger: true, ..reset(4, client(HELD), Close) },
            ResetReason::UnreadData,
        ),
        (ResetRecord { zero_linger: true, ..reset(4, client(HELD), Close) }, ResetReason::ZeroLinger),
        (reset(4, client(HELD), Close), ResetReason::Disconnect),
        (reset(4, server(0), Close), ResetReason::ListenerClosed),
    ] {
        let mut world = World::new();
        world.connect();
        world.serve();
        world.report(3, record.socket, ended(Established, 0));
        world.report_reset(record);
        assert_eq!(world.resets(4), [(reason, 1)]);
        let kept = world.last_ended().conn.reset().unwrap();
        assert_eq!((kept.reason, kept.discarded.unread_bytes), (reason, record.unread_bytes.into()));
        assert_eq!(world.discarded(), kept.discarded);
        assert_eq!(world.counts()[1], 1);
        world.assert_consistent();
    }
}

#[test]
fn the_process_that_sends_a_reset_closed_the_connection() {
    // A child of the process that accepted it holds it, too, and exits last.
    let mut world = World::new();
    world.serve();
    world.report(3, server(HELD), What::Accept { state: Established, pid: Some(NGINX) });
    world.report(4, server(HELD), ended(Established, 0));
    world.report_reset(ResetRecord { unread_bytes: 4, pid: Some(WORKER), ..reset(4, server(HELD), Close) });
    let conn = world.last_ended().conn.clone();
    assert_eq!(world.names(&conn), [None, Some("worker"), Some("worker")]);
    assert_eq!((conn.process_seen(), conn.accepted()), (Some(ProcessSeen::Closer), Some(true)));
    // A listener's process ends before it accepts.
    let mut world = World::new();
    world.serve();
    world.report(4, server(0), ended(Established, 0));
    world.report_reset(ResetRecord { pid: Some(WORKER), ..reset(4, server(0), Close) });
    let conn = world.last_ended().conn.clone();
    assert_eq!(world.names(&conn), [None, Some("worker"), Some("worker")]);
    assert_eq!((conn.process_seen(), conn.accepted()), (Some(ProcessSeen::Closer), Some(false)));
}

#[test]
fn a_reset_before_the_end_gets_its_reason_from_the_errno() {
    for (error, reason) in [
        (ETIMEDOUT, ResetReason::TimedOut),
        (EHOSTUNREACH, ResetReason::TimedOut),
        (ECONNABORTED, ResetReason::Killed),
        (0, ResetReason::Other),
    ] {
        let mut world = World::new();
        world.connect();
        world.report_reset(reset(3, client(HELD), Established));
        assert_eq!(world.resets(3), [], "not before its end");
        world.report(4, client(HELD), ended(Established, error));
        assert_eq!(world.resets(4), [(reason, 1)]);
    }
}

#[test]
fn a_received_reset_has_its_reason_from_the_state_that_it_ended() {
    let mut world = World::new();
    world.report(1, client(HELD), to(Close, SynSent, CURL));
    world.report_reset(received_reset(2, client(HELD), SynSent));
    world.report(2, client(HELD), ended(SynSent, ECONNREFUSED));
    assert_eq!(world.resets(2), [(ResetReason::Connecting, 1)]);

    let mut world = World::new();
    world.connect();
    world.report_reset(ResetRecord {
        unsent: 5,
        unacknowledged: 3,
        ..received_reset(3, client(HELD), Established)
    });
    world.report(3, client(HELD), ended(Established, ECONNRESET));
    assert_eq!(world.resets(3), [(ResetReason::Established, 1)]);
    let kept = world.last_ended().conn.reset().unwrap();
    assert_eq!((kept.discarded.unsent_bytes, kept.discarded.unacknowledged_bytes), (5, 3));
    assert_eq!(world.discarded(), kept.discarded);
}

#[test]
fn a_received_reset_that_is_answered_at_once_is_data_after_close() {
    for answered in [true, false] {
        let mut world = World::new();
        world.connect();
        world
            .report_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
        world.report_reset(received_reset(5, client(HELD), FinWait2));
        world.report(6, client(HELD), ended(FinWait2, ECONNRESET));
        if answered {
            world.report_reset(ResetRecord { answers: true, ..reset(7, client(HELD), Close) });
        }
        let reason = if answered { ResetReason::DataAfterClose } else { ResetReason::LocalClosed };
        assert_eq!(world.resets(SECOND), [(reason, 1)]);
        assert_eq!(world.resets(2 * SECOND), [(reason, 1)], "once");
        assert_eq!(world.last_ended().conn.reset().unwrap().reason, reason);
    }
}

#[test]
fn a_fin_is_no_discarded_byte() {
    for (unsent, unacknowledged, left) in [(0, 11, (0, 10)), (4, 3, (3, 3)), (0, 0, (0, 0))] {
        let mut world = World::new();
        world.connect();
        world.report(3, client(HELD), to(Established, FinWait1, CURL));
        world.report(4, client(HELD), ended(FinWait1, 0));
        world.report_reset(ResetRecord { unsent, unacknowledged, ..reset(5, client(HELD), Close) });
        let kept = world.last_ended().conn.reset().unwrap();
        assert_eq!((kept.discarded.unsent_bytes, kept.discarded.unacknowledged_bytes), left);
        assert_eq!(world.discarded(), kept.discarded);
    }
}

#[test]
fn a_minisock_that_sends_a_reset_ends() {
    let mut world = World::new();
    world.connect();
    world.report_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
    world.report(5, client(ORPHAN), ended(FinWait2, 0));
    assert_eq!(world.state(1), Some(FinWait2));
    let Socket { netns, local, remote, .. } = client(0);
    let minisock = Socket::new(0, netns, local, remote, MINISOCK);
    world.report_reset(ResetRecord { answers: true, ..reset(SECOND, minisock, FinWait2) });
    assert_eq!(world.state(1), None);
    assert_eq!(world.resets(SECOND), [(ResetReason::DataAfterClose, 1)]);
    assert_eq!(world.name(world.last_ended().conn.process), Some("curl"));
    world.assert_consistent();
}

#[test]
fn a_negative_tcp_linger2_leaves_no_minisock() {
    let mut world = World::new();
    world.connect();
    world.report_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
    world.report(5, client(ORPHAN), ended(FinWait2, 0));
    world.report_reset(reset(6, client(ORPHAN), Close));
    assert_eq!(world.state(1), None);
    assert_eq!(world.resets(6), [(ResetReason::Disconnect, 1)]);
    world.assert_consistent();
}

#[test]
fn a_reset_that_ends_no_known_connection_counts() {
    let mut world = World::new();
    world.connect();
    world.report_reset(ResetRecord { answers: true, ..reset(3, client(HELD), SynSent) });
    assert_eq!(world.state(1), Some(Established), "the connection goes on");
    world.report_reset(reset(4, server(HELD), Close));
    assert_eq!(world.resets(4), [(ResetReason::Disconnect, 1), (ResetReason::InvalidSegment, 1)]);
    world.assert_consistent();
}

#[test]
fn a_packet_filters_reset_is_not_counted_again_when_received() {
    let mut world = World::new();
    world.report(1, client(HELD), to(Close, SynSent, CURL));
    world.report_reset(ResetRecord { policy: true, ..received_reset(2, client(HELD), SynSent) });
    world.report_reset(received_reset(3, client(HELD), SynSent));
    world.report(3, client(HELD), ended(SynSent, ECONNREFUSED));
    assert_eq!(world.resets(4), [(ResetReason::PolicyReceived, 1)]);
}

#[test]
fn a_packet_filters_reset_to_the_peer_spares_the_connection() {
    let mut world = World::new();
    world.connect();
    let sent = ResetRecord { policy: true, answers: true, ..reset(3, client(HELD), Established) };
    world.report_reset(sent);
    world.report_reset(sent);
    assert_eq!(world.resets(4), [(ResetReason::PolicySent, 2)]);
    assert_eq!((world.state(1), world.row(1).reset()), (Some(Established), None));
}

#[test]
fn a_reset_of_a_socket_without_identity_is_only_counted() {
    let mut world = World::new();
    let Socket { netns, local, remote, .. } = client(HELD);
    let unknown = Socket::new(0, netns, local, remote, HELD);
    world.report_reset(ResetRecord { policy: true, ..received_reset(2, unknown, Established) });
    assert_eq!((world.resets(3), world.find(0).is_none()), (vec![(ResetReason::PolicyReceived, 1)], true));
}

#[test]
fn what_came_before_a_received_reset_may_still_be_read() {
    let mut world = World::new();
    world.connect();
    world.report(3, client(HELD | FIN), to(Established, CloseWait, 137));
    world.report_reset(ResetRecord { unread_bytes: 137, ..received_reset(4, client(HELD), CloseWait) });
    world.report(4, client(HELD), ended(CloseWait, ECONNRESET));
    let conn = &world.last_ended().conn;
    assert_eq!((conn.unread_bytes, conn.reset().unwrap().discarded.unread_bytes), (0, 0));
}

#[test]
fn a_reset_for_data_after_the_close_is_the_peers_doing() {
    let mut world = World::new();
    world.connect();
    world.report(3, client(HELD), to(Established, FinWait1, CURL));
    world.report(4, client(ORPHAN), ended(FinWait1, 0));
    assert_eq!(world.last_ended().cause, Cause::Application);
    world.report_reset(ResetRecord { answers: true, ..reset(4, client(ORPHAN), Close) });
    assert_eq!(world.last_ended().cause, Cause::Peer);
}
