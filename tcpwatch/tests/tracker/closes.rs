//! Who closed first.

use crate::scenario::*;

/// include/uapi/asm-generic/errno-base.h
const EPIPE: u8 = 32;

#[test]
fn who_closed_first_follows_from_the_last_state_and_errno() {
    for (path, error, first) in [
        (&[FinWait1, FinWait2][..], 0, FirstClose::Local),
        (&[FinWait1, Closing], 0, FirstClose::Local),
        (&[FinWait1], ECONNRESET, FirstClose::Local),
        (&[FinWait1], ETIMEDOUT, FirstClose::Local),
        (&[CloseWait, LastAck], 0, FirstClose::Peer),
        (&[CloseWait], EPIPE, FirstClose::Peer),
        (&[CloseWait], 0, FirstClose::Peer),
        (&[], ECONNRESET, FirstClose::PeerReset),
        (&[], 0, FirstClose::LocalReset),
        (&[], ETIMEDOUT, FirstClose::Timer),
        (&[], EHOSTUNREACH, FirstClose::Timer),
        (&[], 103, FirstClose::Other),
    ] {
        for socket in [client(HELD | FIN), server(HELD | FIN)] {
            let mut world = World::new();
            world.connect();
            world.serve();
            let mut from = Established;
            for (time_ns, state) in (3..).zip(path) {
                world.report(time_ns, socket, to(from, *state, 0));
                from = *state;
            }
            world.report(9, socket, ended(from, error));
            assert_eq!(world.first_closes(), [(first, 1)], "{path:?}, errno {error}");
        }
    }
}

#[test]
fn a_lost_close_is_unknown_unless_the_state_shows_it() {
    for (reported, first) in [
        (None, FirstClose::Unknown),
        (Some(to(Established, CloseWait, 0)), FirstClose::Peer),
        (Some(to(Established, FinWait1, CURL)), FirstClose::Local),
    ] {
        let mut world = World::new();
        world.connect();
        if let Some(what) = reported {
            world.report(3, client(HELD), what);
        }
        world.sweep(9, &[]);
        assert_eq!(world.first_closes(), [(first, 1)], "{reported:?}");
    }
    let mut world = World::reported_by(ReportedFacts { errnos_missing: true, ..ReportedFacts::default() });
    world.connect();
    world.report(3, client(HELD), ended(Established, 0));
    assert_eq!(world.first_closes(), [(FirstClose::Unknown, 1)]);
}

#[test]
fn a_time_out_after_icmp_errors_is_caused_by_the_timer() {
    let mut world = World::new();
    world.connect();
    world.report(3, client(HELD), ended(Established, EHOSTUNREACH));
    assert_eq!(world.last_ended().cause, Cause::Timer);
    // A connect is ended by the ICMP error itself.
    world.report(4, client(HELD), to(Close, SynSent, CURL));
    world.report(5, client(HELD), ended(SynSent, EHOSTUNREACH));
    assert_eq!(world.last_ended().cause, Cause::Peer);
}

#[test]
fn a_connection_closed_in_repair_mode_is_taken_away() {
    let mut world = World::new();
    world.connect();
    world.report(3, client(HELD | UNSENT), ended(Established, 0));
    assert_eq!(world.first_closes(), [(FirstClose::Repair, 1)]);
    assert_eq!((world.counts()[1], world.last_ended().conn.reset().is_some()), (1, false));
}
