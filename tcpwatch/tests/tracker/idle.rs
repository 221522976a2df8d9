//! How long a connection had been idle when a side closed it.

use crate::scenario::*;
use tcpwatch::{
    events::decode::{IdleRecord, Record},
    model::{groups::Closer, table::Idle},
};

/// ReportedFacts of the client's socket just before it changes its state. 1000 ticks a second.
fn tell_idle(world: &mut World, time_ns: u64) {
    let told = IdleRecord { cookie: 1, time_ns, sent_ticks: 5000, received_ticks: 4000 };
    world.tracker.apply(&Record::Idle(told));
}

/// By who closed.
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
fn it_counts_by_who_closed_and_stays_with_the_connection() {
    for (next, expected) in [(FinWait1, [(1, 4.0), (0, 0.0)]), (CloseWait, [(0, 0.0), (1, 4.0)])] {
        let mut world = World::new();
        world.connect();
        tell_idle(&mut world, 3);
        world.tell(3, client(HELD), to(Established, next, CURL));
        assert_eq!(counted(&world), expected);
        let idle = Idle { sending_ns: 5 * SECOND, receiving_ns: 4 * SECOND };
        assert_eq!(world.row(1).idle(), Some(idle));
    }
}

#[test]
fn of_a_reset_it_is_only_told() {
    let mut world = World::new();
    world.connect();
    tell_idle(&mut world, 3);
    world.tell(3, client(HELD), ended(Established, ECONNRESET));
    assert_eq!(counted(&world), [(0, 0.0); 2]);
    assert!(world.last_ended().conn.idle().is_some());
}

#[test]
fn of_a_connection_that_is_not_known_nothing_is_said() {
    let mut world = World::new();
    tell_idle(&mut world, 3);
    world.tell(3, client(HELD), to(Established, FinWait1, CURL));
    assert_eq!(world.row(1).idle(), None);
    assert_eq!(counted(&world), [(0, 0.0); 2]);
}
