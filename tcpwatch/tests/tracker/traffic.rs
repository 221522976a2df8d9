//! The data that connections carried.

use crate::scenario::*;
use tcpwatch::{
    events::decode::{Record, TrafficRecord},
    model::groups::Counts,
};

/// Sent and received, over all groups.
fn sum(world: &World, of: fn(&Counts) -> Traffic) -> (u64, u64) {
    let all = world.tracker.groups().iter().map(|group| of(&group.counts));
    all.fold((0, 0), |(sent, received), one| (sent + one.sent_bytes, received + one.received_bytes))
}

fn counted(world: &World) -> (u64, u64) {
    sum(world, |counts| counts.traffic)
}

/// Of it, after the first close.
fn after_close(world: &World) -> (u64, u64) {
    sum(world, |counts| counts.after_close)
}

fn traffic(sent_bytes: u64, received_bytes: u64) -> Traffic {
    Traffic { sent_bytes, received_bytes }
}

fn look_at(time_ns: u64, traffic: Traffic) -> Seen {
    Seen { traffic, ..look_held(time_ns, client(HELD), Established, CURL) }
}

#[test]
fn each_byte_counts_once_however_often_it_is_told() {
    let mut world = World::new();
    world.connect();
    world.sweep(10, &[look_at(11, traffic(100, 1000)), look_at(12, traffic(100, 1500))]);
    assert_eq!(counted(&world), (100, 1500));
    world.tell_with(13, client(HELD), to(Established, FinWait1, CURL), (120, 1600));
    world.tell(14, client(ORPHAN), to(FinWait1, FinWait2, 0));
    world.tell_with(15, client(ORPHAN | FIN), ended(FinWait2, 0), (120, 1600));
    assert_eq!(counted(&world), (120, 1600));
    assert_eq!(world.counts_of("curl")[0], 1);
    assert_eq!(world.row(1).traffic(), Some(traffic(120, 1600)));
}

#[test]
fn of_an_older_connection_only_what_is_new_counts() {
    let mut world = World::new();
    world.sweep(10, &[look_at(11, traffic(5000, 6000))]);
    assert_eq!((counted(&world), world.row(1).traffic()), ((0, 0), Some(traffic(5000, 6000))));
    world.tell_with(13, client(HELD), ended(Established, ECONNRESET), (5001, 6002));
    assert_eq!((counted(&world), world.last_ended().conn.traffic()), ((1, 2), Some(traffic(5001, 6002))));
}

#[test]
fn a_look_that_is_older_than_what_was_told_takes_nothing_back() {
    let mut world = World::new();
    world.connect();
    world.tracker.begin_sweep(10);
    world.tell_with(13, client(HELD), to(Established, CloseWait, 0), (10, 20));
    world.finish_sweep(&[look_at(11, traffic(5, 20))]);
    assert_eq!((counted(&world), world.row(1).traffic()), ((10, 20), Some(traffic(10, 20))));
}

#[test]
fn what_comes_after_the_first_close_is_told_of_the_side_that_closed() {
    // This side first: what it still receives.
    let mut world = World::new();
    world.connect();
    world.tell_with(3, client(HELD), to(Established, FinWait1, CURL), (10, 20));
    world.tell(4, client(HELD), to(FinWait1, FinWait2, 0));
    assert_eq!(world.row(1).after_close_bytes(), Some(0));
    world.tell_with(5, client(ORPHAN | FIN), ended(FinWait2, 0), (10, 320));
    assert_eq!((world.row(1).after_close_bytes(), after_close(&world)), (Some(300), (0, 300)));
    // The peer first: what this side still sends, also as far as a sweep saw it.
    let mut world = World::new();
    world.connect();
    world.tell_with(3, client(HELD), to(Established, CloseWait, 0), (10, 20));
    world.sweep(4, &[Seen { traffic: traffic(15, 20), ..look_held(5, client(HELD), CloseWait, CURL) }]);
    assert_eq!(world.row(1).after_close_bytes(), Some(5));
    world.tell(6, client(ORPHAN), to(CloseWait, LastAck, CURL));
    world.tell_with(7, client(ORPHAN), ended(LastAck, 0), (17, 20));
    assert_eq!((world.last_ended().conn.after_close_bytes(), after_close(&world)), (Some(7), (7, 0)));
}

#[test]
fn where_it_was_not_told_at_the_first_close_nothing_is_said_of_after_it() {
    let mut world = World::new();
    world.connect();
    world.tell(3, client(HELD), to(Established, CloseWait, 0));
    world.tell_with(4, client(ORPHAN), ended(LastAck, 0), (17, 20));
    assert_eq!((world.last_ended().conn.after_close_bytes(), counted(&world)), (None, (17, 20)));
}

#[test]
fn a_record_of_its_own_serves_as_one_with_the_change_of_state() {
    let mut world = World::new();
    world.connect();
    let told = |time_ns, traffic| Record::Traffic(TrafficRecord { cookie: 1, time_ns, traffic });
    world.tracker.apply(&told(3, traffic(10, 20)));
    world.tell(3, client(HELD), to(Established, CloseWait, 0));
    assert_eq!((world.row(1).after_close_bytes(), counted(&world)), (Some(0), (10, 20)));
    world.tracker.apply(&told(4, traffic(11, 20)));
    world.tell(4, client(ORPHAN), ended(LastAck, 0));
    assert_eq!((world.last_ended().conn.after_close_bytes(), counted(&world)), (Some(1), (11, 20)));
    world.tracker.apply(&told(5, traffic(99, 99)));
    assert_eq!(counted(&world), (11, 20), "of a connection that is not known");
}
