//! How long clients waited for answers, by the ticks that sweeps find. 1000 ticks a second.

use crate::scenario::*;

const NOW: u64 = 1000 * SECOND;
const MS: u64 = 1_000_000;

/// A sighting at `now_ns`; data was last sent and last received at these times.
fn seen(now_ns: u64, socket: Socket, sent_ns: u64, received_ns: u64) -> Seen {
    Seen {
        jiffies: jiffies(now_ns),
        sent_jiffies: jiffies(sent_ns) as u32,
        data_received_jiffies: jiffies(received_ns) as u32,
        received_jiffies: jiffies(received_ns) as u32,
        data_sent: true,
        traffic: Traffic { sent_bytes: 100, received_bytes: 100 },
        rtt_ns: Some(100_000),
        ..held_sighting(now_ns, socket, Established, if socket == server(HELD) { NGINX } else { CURL })
    }
}

/// Number and total seconds of the sampled answers, and the number of sampled round trips.
fn sampled(world: &World) -> (u64, f64, u64) {
    let answers = world.tracker.groups().iter().filter_map(|group| group.counts.answers.as_deref());
    answers.fold((0, 0.0, 0), |sum, one| {
        (sum.0 + one.seconds.count(), sum.1 + one.seconds.sum_seconds(), sum.2 + one.round_trips.count())
    })
}

fn world() -> World {
    let mut world = World::new();
    world.connect();
    world.serve();
    world.sweep(NOW, &[seen(NOW, client(HELD), NOW - 9 * SECOND, NOW - 8 * SECOND)]);
    assert_eq!(sampled(&world), (0, 0.0, 0), "an answer before the first sweep may be of any age");
    world
}

#[test]
fn each_answer_counts_once() {
    let mut world = world();
    // Asked before the previous sweep, answered after it.
    let (asked, answered) = (NOW - 200 * MS, NOW + 100 * MS);
    for now_ns in [NOW + 2 * SECOND, NOW + 3 * SECOND] {
        world.sweep(now_ns, &[seen(now_ns, client(HELD), asked, answered)]);
    }
    assert_eq!(sampled(&world), (1, 0.3, 1));
}

#[test]
fn clients_that_wait_or_sent_nothing_and_servers_are_not_sampled() {
    let (before, after, now) = (NOW + SECOND, NOW + SECOND + 300 * MS, NOW + 2 * SECOND);
    for (why, seen) in [
        ("it waits", seen(now, client(HELD), after, before)),
        (
            "it has asked again within the tick",
            Seen {
                received_jiffies: jiffies(after + 40 * MS) as u32,
                ..seen(now, client(HELD), after, after)
            },
        ),
        (
            "it has asked again and waits",
            Seen { unacknowledged: 1, ..seen(now, client(HELD), before, after) },
        ),
        ("it sent nothing", Seen { data_sent: false, ..seen(now, client(HELD), before, after) }),
        ("it serves", seen(now, server(HELD), before, after)),
    ] {
        let mut world = world();
        world.sweep(now, &[seen]);
        assert_eq!(sampled(&world), (0, 0.0, 0), "{why}");
    }
}

#[test]
fn an_answer_within_one_tick_counts_as_zero_seconds() {
    let mut world = world();
    let (answered, now) = (NOW + SECOND, NOW + 2 * SECOND);
    world.sweep(now, &[seen(now, client(HELD), answered, answered)]);
    assert_eq!(sampled(&world), (1, 0.0, 1));
}
