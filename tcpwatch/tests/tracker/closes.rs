//! Who closed first.

use crate::scenario::*;

/// include/uapi/asm-generic/errno-base.h
const EPIPE: u8 = 32;

#[test]
fn whoever_closed_first_is_told_by_the_state_it_ended_from() {
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
                world.tell(time_ns, socket, to(from, *state, 0));
                from = *state;
            }
            world.tell(9, socket, ended(from, error));
            assert_eq!(world.first_closes(), [(first, 1)], "{path:?}, errno {error}");
        }
    }
}

#[test]
fn a_close_that_was_not_told_is_unknown_unless_its_state_says() {
    for (told, first) in [
        (None, FirstClose::Unknown),
        (Some(to(Established, CloseWait, 0)), FirstClose::Peer),
        (Some(to(Established, FinWait1, CURL)), FirstClose::Local),
    ] {
        let mut world = World::new();
        world.connect();
        if let Some(what) = told {
            world.tell(3, client(HELD), what);
        }
        world.sweep(9, &[]);
        assert_eq!(world.first_closes(), [(first, 1)], "{told:?}");
    }
    let mut world = World::reported_by(ReportedFacts { errnos_missing: true, ..ReportedFacts::default() });
    world.connect();
    world.tell(3, client(HELD), ended(Established, 0));
    assert_eq!(world.first_closes(), [(FirstClose::Unknown, 1)]);
}

#[test]
fn a_time_out_after_icmp_errors_is_the_timers() {
    let mut world = World::new();
    world.connect();
    world.tell(3, client(HELD), ended(Established, EHOSTUNREACH));
    assert_eq!(world.last_ended().cause, Cause::Timer);
    // Of a connect it is whoever answered so.
    world.tell(4, client(HELD), to(Close, SynSent, CURL));
    world.tell(5, client(HELD), ended(SynSent, EHOSTUNREACH));
    assert_eq!(world.last_ended().cause, Cause::Peer);
}
