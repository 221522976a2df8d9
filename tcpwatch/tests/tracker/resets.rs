//! Resets: each counted once, under its reason and the owner of the connection that it ended.

use crate::scenario::*;

/// include/uapi/asm-generic/errno.h
const ECONNABORTED: u8 = 103;

#[test]
fn an_abortive_close_is_told_after_the_end_and_still_belongs_to_it() {
    for (told, reason) in [
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
        world.tell(3, told.socket, ended(Established, 0));
        world.tell_reset(told);
        assert_eq!(world.resets(4), [(reason, 1)]);
        let kept = world.last_ended().conn.reset().unwrap();
        assert_eq!((kept.reason, kept.discarded.unread_bytes), (reason, told.unread_bytes.into()));
        assert_eq!(world.discarded(), kept.discarded);
        assert_eq!(world.counts()[1], 1);
        world.assert_consistent();
    }
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
        world.tell_reset(reset(3, client(HELD), Established));
        assert_eq!(world.resets(3), [], "not before its end");
        world.tell(4, client(HELD), ended(Established, error));
        assert_eq!(world.resets(4), [(reason, 1)]);
    }
}

#[test]
fn a_received_reset_is_told_with_the_state_that_it_ended() {
    let mut world = World::new();
    world.tell(1, client(HELD), to(Close, SynSent, CURL));
    world.tell_reset(received_reset(2, client(HELD), SynSent));
    world.tell(2, client(HELD), ended(SynSent, ECONNREFUSED));
    assert_eq!(world.resets(2), [(ResetReason::Connecting, 1)]);

    let mut world = World::new();
    world.connect();
    world.tell_reset(ResetRecord {
        unsent: 5,
        unacknowledged: 3,
        ..received_reset(3, client(HELD), Established)
    });
    world.tell(3, client(HELD), ended(Established, ECONNRESET));
    assert_eq!(world.resets(3), [(ResetReason::Established, 1)]);
    let kept = world.last_ended().conn.reset().unwrap();
    assert_eq!((kept.discarded.unsent_bytes, kept.discarded.unacknowledged_bytes), (5, 3));
    assert_eq!(world.discarded(), kept.discarded);
}

#[test]
fn what_the_kernel_calls_received_and_answers_at_once_was_data_after_close() {
    for answered in [true, false] {
        let mut world = World::new();
        world.connect();
        world.tell_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
        world.tell_reset(received_reset(5, client(HELD), FinWait2));
        world.tell(6, client(HELD), ended(FinWait2, ECONNRESET));
        if answered {
            world.tell_reset(ResetRecord { answers: true, ..reset(7, client(HELD), Close) });
        }
        let reason = if answered { ResetReason::DataAfterClose } else { ResetReason::LocalClosed };
        assert_eq!(world.resets(SECOND), [(reason, 1)]);
        assert_eq!(world.resets(2 * SECOND), [(reason, 1)], "once");
        assert_eq!(world.last_ended().conn.reset().unwrap().reason, reason);
    }
}

#[test]
fn a_fin_under_way_is_no_byte_that_was_thrown_away() {
    for (unsent, unacknowledged, left) in [(0, 11, (0, 10)), (4, 3, (3, 3)), (0, 0, (0, 0))] {
        let mut world = World::new();
        world.connect();
        world.tell(3, client(HELD), to(Established, FinWait1, CURL));
        world.tell(4, client(HELD), ended(FinWait1, 0));
        world.tell_reset(ResetRecord { unsent, unacknowledged, ..reset(5, client(HELD), Close) });
        let kept = world.last_ended().conn.reset().unwrap();
        assert_eq!((kept.discarded.unsent_bytes, kept.discarded.unacknowledged_bytes), left);
        assert_eq!(world.discarded(), kept.discarded);
    }
}

#[test]
fn a_minisock_that_answers_with_a_reset_is_gone_with_it() {
    let mut world = World::new();
    world.connect();
    world.tell_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
    world.tell(5, client(ORPHAN), ended(FinWait2, 0));
    assert_eq!(world.state(1), Some(FinWait2));
    let Socket { netns, local, remote, .. } = client(0);
    let minisock = Socket::new(0, netns, local, remote, MINISOCK);
    world.tell_reset(ResetRecord { answers: true, ..reset(SECOND, minisock, FinWait2) });
    assert_eq!(world.state(1), None);
    assert_eq!(world.resets(SECOND), [(ResetReason::DataAfterClose, 1)]);
    assert_eq!(world.name(world.last_ended().conn.process), Some("curl"));
    world.assert_consistent();
}

#[test]
fn where_tcp_linger2_wants_no_minisock_there_is_none() {
    let mut world = World::new();
    world.connect();
    world.tell_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
    world.tell(5, client(ORPHAN), ended(FinWait2, 0));
    world.tell_reset(reset(6, client(ORPHAN), Close));
    assert_eq!(world.state(1), None);
    assert_eq!(world.resets(6), [(ResetReason::Disconnect, 1)]);
    world.assert_consistent();
}

#[test]
fn a_reset_that_ends_nothing_or_nothing_known_is_counted_all_the_same() {
    let mut world = World::new();
    world.connect();
    world.tell_reset(ResetRecord { answers: true, ..reset(3, client(HELD), SynSent) });
    assert_eq!(world.state(1), Some(Established), "the connection goes on");
    world.tell_reset(reset(4, server(HELD), Close));
    assert_eq!(world.resets(4), [(ResetReason::Disconnect, 1), (ResetReason::InvalidSegment, 1)]);
    world.assert_consistent();
}

#[test]
fn what_a_packet_filter_sent_is_not_counted_again_when_it_is_received() {
    let mut world = World::new();
    world.tell(1, client(HELD), to(Close, SynSent, CURL));
    world.tell_reset(ResetRecord { policy: true, ..received_reset(2, client(HELD), SynSent) });
    world.tell_reset(received_reset(3, client(HELD), SynSent));
    world.tell(3, client(HELD), ended(SynSent, ECONNREFUSED));
    assert_eq!(world.resets(4), [(ResetReason::PolicyReceived, 1)]);
}

#[test]
fn a_connection_whose_peer_a_packet_filter_refused_goes_on() {
    let mut world = World::new();
    world.connect();
    let sent = ResetRecord { policy: true, answers: true, ..reset(3, client(HELD), Established) };
    world.tell_reset(sent);
    world.tell_reset(sent);
    assert_eq!(world.resets(4), [(ResetReason::PolicySent, 2)]);
    assert_eq!((world.state(1), world.row(1).reset()), (Some(Established), None));
}

#[test]
fn of_a_socket_without_identity_it_is_only_counted() {
    let mut world = World::new();
    let Socket { netns, local, remote, .. } = client(HELD);
    let unknown = Socket::new(0, netns, local, remote, HELD);
    world.tell_reset(ResetRecord { policy: true, ..received_reset(2, unknown, Established) });
    assert_eq!((world.resets(3), world.find(0).is_none()), (vec![(ResetReason::PolicyReceived, 1)], true));
}
