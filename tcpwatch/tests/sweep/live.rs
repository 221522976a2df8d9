//! Sums over live connections, by group. 1000 ticks a second.

use std::collections::BTreeMap;

use tcpwatch::model::live::Live;
use tcpwatch_common::{OPTION_KEEPALIVE, OPTION_NODELAY, OPTION_USER_TIMEOUT};

use crate::scenario::*;

const NOW: u64 = 1000 * SECOND;

/// A sighting through a descriptor of this process; 30 ms busy, 20 ms of them limited by the peer's window.
fn seen(now_ns: u64, socket: Socket, pid: u32) -> Seen {
    Seen {
        jiffies: jiffies(now_ns),
        rtt_ns: Some(4_000_000),
        sending_jiffies: [10, 20, 0],
        out_of_order: 7,
        delivery_rate: 5_000,
        window_probes: 2,
        options: SocketOptions {
            linger_jiffies: 7000,
            user_timeout_ms: 1500,
            keepalive_time_jiffies: 60_000,
            keepalive_intvl_jiffies: 5000,
            keepalive_probes: 9,
            flags: OPTION_KEEPALIVE | OPTION_NODELAY | OPTION_USER_TIMEOUT,
        },
        send_buffer: 87_040,
        receive_buffer: 131_072,
        min_rtt_ns: Some(3_000_000),
        rtt_variation_ns: 2_000_000,
        ..held_sighting(now_ns, socket, Established, pid)
    }
}

fn live(world: &World, comm: &str) -> Live {
    let mut sum = Live::default();
    for group in world.tracker.groups().iter().filter(|group| group.key.process.as_deref() == Some(comm)) {
        sum.add(&group.counts.live);
    }
    sum
}

fn world() -> World {
    let mut world = World::new();
    world.connect();
    world.serve();
    world
}

#[test]
fn a_connection_with_several_holders_counts_once_in_each_sweep() {
    let mut world = world();
    for now_ns in [NOW, NOW + 2 * SECOND] {
        let held = seen(now_ns, client(HELD), CURL);
        let inherited = Seen { holder: Some((process(WORKER, "worker"), 3)), ..held.clone() };
        let unheld = Seen { holder: None, ..held.clone() };
        world.sweep(now_ns, &[unheld, held, inherited]);
        let live = live(&world, "curl");
        assert_eq!((live.connections, live.out_of_order_packets), (1, 7));
        let on: Vec<_> = live.options().filter(|(_, count)| *count > 0).collect();
        assert_eq!(on, [("keepalive", 1), ("nodelay", 1), ("user_timeout", 1)]);
        let values: Vec<_> =
            live.option_values().map(|(name, range)| (name, range.least, range.most)).collect();
        let keepalive = [("idle_seconds", 60.0), ("interval_seconds", 5.0), ("probes", 9.0)];
        let names = keepalive.map(|(name, value)| (format!("keepalive_{name}"), value, value));
        let expected = names.iter().map(|(name, least, most)| (name.as_str(), *least, *most));
        assert_eq!(values, expected.chain([("user_timeout_seconds", 1.5, 1.5)]).collect::<Vec<_>>());
        assert_eq!((live.send_buffer_bytes, live.receive_buffer_bytes), (87_040, 131_072));
        assert_eq!(live.by_congestion, BTreeMap::from([("cubic".into(), 1)]));
        assert_eq!((live.delivery_rate, live.window_probes), (5_000, 2));
        let seconds = [live.busy_seconds(), live.limited_seconds(1), live.limited_seconds(2)];
        let times = [live.round_trips, live.least_round_trips, live.variations];
        let times = times.map(|times| times.spread().unwrap().mean_seconds);
        let milliseconds = seconds.iter().chain(&times).map(|seconds| (seconds * 1e3).round() as u32);
        assert_eq!(milliseconds.collect::<Vec<_>>(), [30, 20, 0, 4, 3, 2]);
    }
    assert_eq!(live(&world, "worker"), Live::default());
}

#[test]
fn a_connection_that_a_sweep_misses_leaves_the_sums() {
    let mut world = world();
    world.sweep(NOW, &[seen(NOW, client(HELD), CURL), seen(NOW, server(HELD), NGINX)]);
    assert_eq!(["curl", "nginx"].map(|comm| live(&world, comm).connections), [1, 1]);
    let now_ns = NOW + 2 * SECOND;
    world.sweep(now_ns, &[seen(now_ns, server(HELD), NGINX)]);
    assert_eq!(["curl", "nginx"].map(|comm| live(&world, comm).connections), [0, 1]);
}
