use tcpwatch::{events::frame::SenderLook, findings::Severity};
use tcpwatch_common::{OPTION_CORK, OPTION_NODELAY};

use crate::{THEN, Watched, evidence, scenario::*};

/// Curl's connection as a sweep at `THEN` finds it: small data waits behind one segment.
fn world(options: u16) -> World {
    let mut world = World::new();
    world.report_all(
        client(HELD),
        [(THEN - SECOND, to(Close, SynSent, CURL)), (THEN - SECOND, to(SynSent, Established, 0))],
    );
    let mut seen = held_sighting(THEN, client(HELD), Established, CURL);
    (seen.unsent, seen.unacknowledged, seen.options.flags) = (60, 1, options);
    world.sweep(THEN, &[seen]);
    world
}

/// A look every 2 s, `count` of them, at a connection that sends so many segments a second and is busy for so many
/// milliseconds of it. `held`: data waits at each look.
fn look(world: &mut World, count: u64, segments: u32, busy_ms: u64, held: bool) {
    for index in 0..count {
        let time_ns = THEN + index * 2 * SECOND;
        let look = SenderLook {
            time_ns,
            busy_us: index * 2 * busy_ms * 1000,
            data_segments: 2 * index as u32 * segments,
            retransmitted: 0,
            unsent_bytes: if held { 60 } else { 0 },
            unacknowledged_segments: u32::from(held),
            mss_bytes: 1448,
            peer_window_bytes: 65_535,
            min_rtt_us: Some(100),
        };
        world.tracker.note_look(1, Some(&look));
    }
}

#[test]
fn two_writes_a_request_that_wait_for_a_delayed_acknowledgement_are_named() {
    let mut world = world(0);
    // 24 requests a second of two segments, 41 ms each.
    look(&mut world, 10, 48, 984, true);
    let mut watched = Watched::from(THEN + 18 * SECOND);
    let finding = watched.until(&world, THEN + 20 * SECOND).only();
    assert_eq!((finding.id.to_string(), finding.severity), ("nagle_stall.1".to_owned(), Severity::Warning));
    assert!((evidence(finding, "stall_ms") - 41.0).abs() < 0.1, "{finding:#?}");
    assert!((evidence(finding, "stalls_per_minute") - 1440.0).abs() < 1.0);
    assert!((evidence(finding, "stalled_share") - 98.4).abs() < 0.1);
    assert_eq!((evidence(finding, "held") as u64, evidence(finding, "looks_held") as u64), (60, 10));
    // The connection ends.
    world.report(THEN + 20 * SECOND, client(HELD), to(Established, FinWait1, CURL));
    world.report(THEN + 20 * SECOND, client(ORPHAN | FIN), ended(FinWait1, ECONNRESET));
    assert_eq!(watched.until(&world, THEN + 32 * SECOND).rules(), [""; 0]);
}

#[test]
fn it_takes_two_looks_that_find_data_held_back_and_twenty_segments() {
    for (looks, segments, opens) in [(1, 48, false), (2, 48, true), (2, 9, false), (2, 10, true)] {
        let mut world = world(0);
        look(&mut world, looks, segments, u64::from(segments) * 41 / 2, true);
        let found = Watched::from(THEN).until(&world, THEN + 4 * SECOND).rules();
        assert_eq!(found.len(), usize::from(opens), "{looks} looks, {segments} segments");
    }
}

#[test]
fn a_rare_stall_is_only_info() {
    let mut world = world(0);
    // A segment a second, so a stall of 41 ms every other second.
    look(&mut world, 31, 1, 20, true);
    let mut watched = Watched::from(THEN + 58 * SECOND);
    assert_eq!(watched.until(&world, THEN + 60 * SECOND).only().severity, Severity::Info);
}

#[test]
fn it_is_over_when_nothing_waits_any_more() {
    let mut world = world(0);
    look(&mut world, 10, 48, 984, true);
    let mut watched = Watched::from(THEN + 18 * SECOND);
    watched.until(&world, THEN + 20 * SECOND).only();
    for index in 0..3 {
        let quick = SenderLook {
            time_ns: THEN + (20 + 2 * index) * SECOND,
            busy_us: 18 * 984 * 1000 + index * 1000,
            data_segments: 18 * 48 + 100 * index as u32,
            mss_bytes: 1448,
            min_rtt_us: Some(100),
            ..SenderLook::default()
        };
        world.tracker.note_look(1, Some(&quick));
    }
    assert_eq!(watched.until(&world, THEN + 36 * SECOND).rules(), [""; 0]);
}

#[test]
fn what_only_looks_like_it_stays_silent() {
    for (segments, busy_ms, held, options, what) in [
        (48, 984, true, OPTION_NODELAY, "TCP_NODELAY is on"),
        (48, 984, true, OPTION_CORK, "the application corks on purpose"),
        (48, 984, false, 0, "nothing waits: the peer takes its time"),
        (1000, 990, true, 0, "bulk data, whose last part waits for a moment"),
        (16, 992, true, 0, "62 ms a segment: no peer delays its acknowledgement for that or twice as long"),
    ] {
        let mut world = world(options);
        look(&mut world, 10, segments, busy_ms, held);
        let found = Watched::from(THEN + 18 * SECOND).until(&world, THEN + 20 * SECOND).rules();
        assert_eq!(found, [""; 0], "{what}");
    }
}

#[test]
fn stalls_of_lost_segments_are_no_nagle_stalls() {
    let mut world = world(0);
    look(&mut world, 5, 48, 984, true);
    let lossy = SenderLook {
        time_ns: THEN + 10 * SECOND,
        busy_us: 10 * 984 * 1000,
        data_segments: 10 * 48,
        retransmitted: 1,
        unsent_bytes: 60,
        unacknowledged_segments: 1,
        mss_bytes: 1448,
        peer_window_bytes: 65_535,
        min_rtt_us: Some(100),
    };
    world.tracker.note_look(1, Some(&lossy));
    assert_eq!(Watched::from(THEN + 10 * SECOND).until(&world, THEN + 12 * SECOND).rules(), [""; 0]);
}
