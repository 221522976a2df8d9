//! How long a connection had been idle when a side closed it.

use crate::scenario::*;
use tcpwatch::{
    events::decode::{IdleRecord, Record},
    model::{groups::Closer, table::Idle},
};

/// Reports the idle time of the client's socket, just before it changes its state. 1000 ticks a second.
fn report_idle(world: &mut World, time_ns: u64) {
    let record = IdleRecord { cookie: 1, time_ns, sent_ticks: 5000, received_ticks: 4000 };
    world.tracker.apply(&Record::Idle(record));
}

/// Number and seconds of the idle times, by closer.
fn counted(world: &World) -> [(u64, f64); Closer::ALL.len()] {
    let mut counted = [(0, 0.0); Closer::ALL.len()];
    for group in world.tracker.groups().iter() {
        for (sum, idle) in counted.iter_mut().zip(&group.counts.idle) {
            let idle = idle.as_deref().map_or((0, 0.0), |idle| (idle.count(), idle.sum_seconds()));
            *sum = (sum.0 + idle.0, sum.1 + idle.1);
        }
    }
    counted
}

#[test]
fn idle_time_counts_by_closer_and_stays_with_the_connection() {
    for (next, expected) in [(FinWait1, [(1, 4.0), (0, 0.0)]), (CloseWait, [(0, 0.0), (1, 4.0)])] {
        let mut world = World::new();
        world.connect();
        report_idle(&mut world, 3);
        world.report(3, client(HELD), to(Established, next, CURL));
        assert_eq!(counted(&world), expected);
        let idle = Idle { sending_ns: 5 * SECOND, receiving_ns: 4 * SECOND };
        assert_eq!(world.row(1).idle(), Some(idle));
    }
}

#[test]
fn a_farewell_does_not_hide_how_long_the_side_that_closes_had_waited() {
    let idle = |sending_ms: u64, receiving_ms: u64| Idle {
        sending_ns: sending_ms * 1_000_000,
        receiving_ns: receiving_ms * 1_000_000,
    };
    for (closer, idle, before_ms, what) in [
        (Closer::Peer, idle(60_000, 1), 60_000, "the peer's farewell"),
        (Closer::Local, idle(1, 60_000), 60_000, "the own farewell"),
        (Closer::Peer, idle(1, 60_000), 1, "a request that nobody answered"),
        (Closer::Local, idle(60_000, 1), 1, "a request, and closed at once"),
        (Closer::Peer, idle(7000, 5000), 5000, "an answer that took two seconds"),
        (Closer::Local, idle(5000, 7000), 5000, "the same at the server"),
    ] {
        assert_eq!(idle.before_close(closer), before_ms * 1_000_000, "{what}");
    }
}

#[test]
fn idle_time_before_a_reset_is_kept_and_not_counted() {
    let mut world = World::new();
    world.connect();
    report_idle(&mut world, 3);
    world.report(3, client(HELD), ended(Established, ECONNRESET));
    assert_eq!(counted(&world), [(0, 0.0); 2]);
    assert!(world.last_ended().conn.idle().is_some());
}

#[test]
fn idle_time_of_an_unknown_connection_is_dropped() {
    let mut world = World::new();
    report_idle(&mut world, 3);
    world.report(3, client(HELD), to(Established, FinWait1, CURL));
    assert_eq!(world.row(1).idle(), None);
    assert_eq!(counted(&world), [(0, 0.0); 2]);
}
