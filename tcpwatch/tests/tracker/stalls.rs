//! Head-of-line blocking and failed retransmits: each counts once, with the group of its connection.

use crate::scenario::*;
use tcpwatch::{
    events::decode::{Record, Retransmits, SocketRecord, What},
    tcp::{
        histogram::Histogram,
        stall::{Blocked, Recovery, Stalled},
    },
};

fn report(world: &mut World, time_ns: u64, retransmits: &Retransmits) {
    let what = What::Retransmit { state: Established, total: None };
    let record = SocketRecord { socket: client(HELD), time_ns, what, traffic: None };
    world.tracker.apply(&Record::Retransmit(record, Box::new(retransmits.clone())));
}

/// `count` stalls of 50 ms each, in the bucket of up to 100 ms.
fn blocked(count: u64, bytes: u64) -> Blocked {
    let durations = Histogram::of([0, 0, count, 0, 0, 0, 0, 0, 0], count * 50_000_000);
    Blocked { durations, bytes }
}

/// Number, seconds and bytes of the stalls in curl's group.
fn counted(world: &World, recovery: Recovery) -> (u64, f64, u64) {
    let of = world.tracker.groups().iter().filter(|group| group.key.process.as_deref() == Some("curl"));
    let stalls = of.filter_map(|group| group.counts.stalls.as_deref());
    stalls.map(|stalls| &stalls[recovery as usize]).fold((0, 0.0, 0), |(count, seconds, bytes), one| {
        (count + one.durations.count(), seconds + one.durations.sum_seconds(), bytes + one.bytes)
    })
}

#[test]
fn repeated_reports_count_once() {
    let mut world = World::new();
    world.connect();
    let mut retransmits = Retransmits { since_ns: 3, ..Retransmits::default() };
    retransmits.stalls[Recovery::Fast as usize] = blocked(2, 3000);
    retransmits.failures[0] = 1;
    report(&mut world, 4, &retransmits);
    report(&mut world, 5, &retransmits);
    retransmits.stalls[Recovery::Fast as usize] = blocked(3, 4000);
    retransmits.stalls[Recovery::Timeout as usize] = blocked(1, 0);
    retransmits.failures[0] = 3;
    report(&mut world, 6, &retransmits);
    // The programs lost their count and began anew.
    let mut anew = Retransmits { since_ns: 7, ..Retransmits::default() };
    anew.stalls[Recovery::Fast as usize] = blocked(1, 500);
    report(&mut world, 8, &anew);
    // The count before it, late.
    report(&mut world, 9, &retransmits);
    assert_eq!(counted(&world, Recovery::Fast), (4, 0.2, 4500));
    assert_eq!(counted(&world, Recovery::Timeout), (1, 0.05, 0));
    assert_eq!(counted(&world, Recovery::Probe), (0, 0.0, 0));
    let failures: u64 = world.tracker.groups().iter().map(|group| group.counts.failures[0]).sum();
    assert_eq!(failures, 3);
    let socket = world.row(1).retransmits.as_deref().unwrap();
    assert_eq!((socket.stalls[0].durations.count(), socket.failures[0]), (4, 3));
}

#[test]
fn a_connection_is_stalled_until_a_report_says_otherwise() {
    let mut world = World::new();
    world.connect();
    let stalled = Some(Stalled { since_ns: 3, recovery: Recovery::Timeout, bytes: 7 });
    let mut retransmits = Retransmits { since_ns: 3, stalled, ..Retransmits::default() };
    report(&mut world, 4, &retransmits);
    assert_eq!(world.row(1).stalled(), stalled);
    retransmits.stalled = None;
    report(&mut world, 5, &retransmits);
    assert_eq!(world.row(1).stalled(), None);
}
