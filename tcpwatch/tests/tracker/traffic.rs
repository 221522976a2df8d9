//! The data that connections carried.

use crate::scenario::*;
use tcpwatch::{
    events::decode::{Record, TrafficRecord},
    model::groups::Counts,
};

/// Bytes sent and received, over all groups.
fn sum(world: &World, of: fn(&Counts) -> Traffic) -> (u64, u64) {
    let all = world.tracker.groups().iter().map(|group| of(&group.counts));
    all.fold((0, 0), |(sent, received), one| (sent + one.sent_bytes, received + one.received_bytes))
}

fn counted(world: &World) -> (u64, u64) {
    sum(world, |counts| counts.traffic)
}

/// The part of it after the first close.
fn after_close(world: &World) -> (u64, u64) {
    sum(world, |counts| counts.after_close)
}

fn traffic(sent_bytes: u64, received_bytes: u64) -> Traffic {
    Traffic { sent_bytes, received_bytes }
}

fn sighting_with(time_ns: u64, traffic: Traffic) -> Seen {
    Seen { traffic, ..held_sighting(time_ns, client(HELD), Established, CURL) }
}

#[test]
fn each_byte_counts_once_however_often_it_is_reported() {
    let mut world = World::new();
    world.connect();
    world.sweep(10, &[sighting_with(11, traffic(100, 1000)), sighting_with(12, traffic(100, 1500))]);
    assert_eq!(counted(&world), (100, 1500));
    world.report_with_traffic(13, client(HELD), to(Established, FinWait1, CURL), (120, 1600));
    world.report(14, client(ORPHAN), to(FinWait1, FinWait2, 0));
    world.report_with_traffic(15, client(ORPHAN | FIN), ended(FinWait2, 0), (120, 1600));
    assert_eq!(counted(&world), (120, 1600));
    assert_eq!(world.counts_of("curl")[0], 1);
    assert_eq!(world.row(1).traffic(), Some(traffic(120, 1600)));
}

#[test]
fn bytes_before_the_first_sighting_do_not_count() {
    let mut world = World::new();
    world.sweep(10, &[sighting_with(11, traffic(5000, 6000))]);
    assert_eq!((counted(&world), world.row(1).traffic()), ((0, 0), Some(traffic(5000, 6000))));
    world.report_with_traffic(13, client(HELD), ended(Established, ECONNRESET), (5001, 6002));
    assert_eq!((counted(&world), world.last_ended().conn.traffic()), ((1, 2), Some(traffic(5001, 6002))));
}

#[test]
fn a_sighting_older_than_the_last_report_takes_no_bytes_back() {
    let mut world = World::new();
    world.connect();
    world.tracker.begin_sweep(10);
    world.report_with_traffic(13, client(HELD), to(Established, CloseWait, 0), (10, 20));
    world.finish_sweep(&[sighting_with(11, traffic(5, 20))]);
    assert_eq!((counted(&world), world.row(1).traffic()), ((10, 20), Some(traffic(10, 20))));
}

#[test]
fn bytes_after_the_first_close_count_in_the_direction_still_open() {
    // This side closes first: counted is what it still receives.
    let mut world = World::new();
    world.connect();
    world.report_with_traffic(3, client(HELD), to(Established, FinWait1, CURL), (10, 20));
    world.report(4, client(HELD), to(FinWait1, FinWait2, 0));
    assert_eq!(world.row(1).after_close_bytes(), Some(0));
    world.report_with_traffic(5, client(ORPHAN | FIN), ended(FinWait2, 0), (10, 320));
    assert_eq!((world.row(1).after_close_bytes(), after_close(&world)), (Some(300), (0, 300)));
    // The peer closes first: counted is what this side still sends, a sweep's share of it included.
    let mut world = World::new();
    world.connect();
    world.report_with_traffic(3, client(HELD), to(Established, CloseWait, 0), (10, 20));
    world.sweep(4, &[Seen { traffic: traffic(15, 20), ..held_sighting(5, client(HELD), CloseWait, CURL) }]);
    assert_eq!(world.row(1).after_close_bytes(), Some(5));
    world.report(6, client(ORPHAN), to(CloseWait, LastAck, CURL));
    world.report_with_traffic(7, client(ORPHAN), ended(LastAck, 0), (17, 20));
    assert_eq!((world.last_ended().conn.after_close_bytes(), after_close(&world)), (Some(7), (7, 0)));
}

#[test]
fn without_traffic_at_the_first_close_the_bytes_after_it_are_unknown() {
    let mut world = World::new();
    world.connect();
    world.report(3, client(HELD), to(Established, CloseWait, 0));
    world.report_with_traffic(4, client(ORPHAN), ended(LastAck, 0), (17, 20));
    assert_eq!((world.last_ended().conn.after_close_bytes(), counted(&world)), (None, (17, 20)));
}

#[test]
fn a_separate_traffic_record_belongs_to_the_transition_that_follows() {
    let mut world = World::new();
    world.connect();
    let record = |time_ns, traffic| Record::Traffic(TrafficRecord { cookie: 1, time_ns, traffic });
    world.tracker.apply(&record(3, traffic(10, 20)));
    world.report(3, client(HELD), to(Established, CloseWait, 0));
    assert_eq!((world.row(1).after_close_bytes(), counted(&world)), (Some(0), (10, 20)));
    world.tracker.apply(&record(4, traffic(11, 20)));
    world.report(4, client(ORPHAN), ended(LastAck, 0));
    assert_eq!((world.last_ended().conn.after_close_bytes(), counted(&world)), (Some(1), (11, 20)));
    world.tracker.apply(&record(5, traffic(99, 99)));
    assert_eq!(counted(&world), (11, 20), "a record of an unknown connection");
}
