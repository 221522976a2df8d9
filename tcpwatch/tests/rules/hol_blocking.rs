use tcpwatch::{
    events::decode::{Kind, Retransmits},
    findings::Severity,
    tcp::{
        histogram::{Histogram, Stalling},
        stall::{Blocked, Recovery, Stalled},
    },
};

use crate::{THEN, Watched, evidence, scenario::*};

const MILLIS: u64 = 1_000_000;

/// The counts of a socket's programs, as they report them again and again.
struct Counted {
    socket: Socket,
    counts: Retransmits,
}

impl Counted {
    /// A connection of curl that is established at `THEN`.
    fn of(world: &mut World, socket: Socket) -> Self {
        world.report_all(socket, [(THEN, to(Close, SynSent, CURL)), (THEN, to(SynSent, Established, 0))]);
        Self { socket, counts: Retransmits { since_ns: THEN, ..Retransmits::default() } }
    }

    fn report(&self, world: &mut World, time_ns: u64) {
        let what = What::Retransmit { state: Established, total: None };
        let record = SocketRecord { socket: self.socket, time_ns, what, traffic: None };
        world.tracker.apply(&Record::Retransmit(record, Box::new(self.counts.clone())));
    }

    /// A segment is lost and delivered again that much later.
    fn stall(&mut self, world: &mut World, ended_ns: u64, took_ns: u64, recovery: Recovery) {
        let mut durations = Histogram::<Stalling>::default();
        durations.observe(took_ns);
        let all = &mut self.counts.stalls[recovery as usize];
        let mut buckets = [0; 9];
        for (sum, (one, other)) in
            buckets.iter_mut().zip(all.durations.buckets().iter().zip(durations.buckets()))
        {
            *sum = one + other;
        }
        let sum_ns = all.durations.sum_ns() + took_ns;
        *all = Blocked { durations: Histogram::of(buckets, sum_ns), bytes: all.bytes + 100 };
        self.counts.segments[Kind::Timeout as usize] += 1;
        self.report(world, ended_ns);
    }

    /// It stands still since then.
    fn stand_still(&mut self, world: &mut World, since_ns: u64) {
        self.counts.stalled = Some(Stalled { since_ns, recovery: Recovery::Timeout, bytes: 4 });
        for after in [200, 600, 1400] {
            self.counts.segments[Kind::Timeout as usize] += 1;
            self.report(world, since_ns + after * MILLIS);
        }
    }

    /// Sightings that say how much of the time between them it was busy, and its least round trip.
    fn see(&self, world: &mut World, at: [u64; 2], busy_ms: u32, min_rtt_ns: u64) {
        for (time_ns, busy_ms) in at.into_iter().zip([0, busy_ms]) {
            let seen = Seen {
                sending_jiffies: [busy_ms, 0, 0],
                min_rtt_ns: Some(min_rtt_ns),
                ..held_sighting(time_ns, self.socket, Established, CURL)
            };
            world.sweep(time_ns, &[seen]);
        }
    }
}

/// `count` stalls of that length, the first that long after `THEN`, one every 10 s.
fn stalls(world: &mut World, counted: &mut Counted, count: u64, took_ns: u64, recovery: Recovery) {
    for index in 0..count {
        counted.stall(world, THEN + 20 * SECOND + index * 10 * SECOND, took_ns, recovery);
    }
}

#[test]
fn the_third_time_out_in_a_minute_opens_it_with_the_share_of_the_time() {
    let mut world = World::new();
    let mut one = Counted::of(&mut world, client(HELD));
    stalls(&mut world, &mut one, 2, 400 * MILLIS, Recovery::Timeout);
    assert_eq!(Watched::from(THEN).until(&world, THEN + 31 * SECOND).rules(), [""; 0]);
    one.stall(&mut world, THEN + 40 * SECOND, 400 * MILLIS, Recovery::Timeout);
    let mut watched = Watched::from(THEN + 39 * SECOND);
    let finding = watched.until(&world, THEN + 40 * SECOND).only();
    // 1.2 of 40 s.
    assert_eq!((finding.id.to_string(), finding.severity), ("hol_blocking.1".to_owned(), Severity::Info));
    assert!((evidence(finding, "stalled_share") - 3.0).abs() < 0.1, "{finding:#?}");
    assert_eq!(evidence(finding, "by_timeout") as u64, 3);
    assert!((evidence(finding, "longest") - 0.4).abs() < 0.001);
    assert_eq!(finding.latest.since_ns, THEN + 20 * SECOND - 400 * MILLIS);
}

#[test]
fn a_connection_that_is_rarely_busy_is_judged_by_its_busy_time() {
    let mut world = World::new();
    let mut one = Counted::of(&mut world, client(HELD));
    stalls(&mut world, &mut one, 3, 400 * MILLIS, Recovery::Timeout);
    one.see(&mut world, [THEN + 30 * SECOND, THEN + 40 * SECOND], 500, 10 * MILLIS);
    let mut watched = Watched::from(THEN + 39 * SECOND);
    let finding = watched.until(&world, THEN + 41 * SECOND).only();
    // 1.2 s of the twentieth part of 41 s.
    assert!((evidence(finding, "stalled_share") - 58.5).abs() < 2.0, "{finding:#?}");
    assert_eq!(finding.severity, Severity::Warning);
    assert!((evidence(finding, "excess_over_round_trip") - 0.39).abs() < 0.001);
}

#[test]
fn it_ends_when_no_more_stalls_come() {
    let mut world = World::new();
    let mut one = Counted::of(&mut world, client(HELD));
    for index in 0..20 {
        one.stall(&mut world, THEN + 20 * SECOND + index * SECOND, 300 * MILLIS, Recovery::Timeout);
    }
    let mut watched = Watched::from(THEN + 38 * SECOND);
    assert_eq!(watched.until(&world, THEN + 40 * SECOND).only().severity, Severity::Warning);
    assert_eq!(watched.until(&world, THEN + 56 * SECOND).rules(), [""; 0]);
}

#[test]
fn a_connection_that_stands_still_is_named_before_it_goes_on_and_no_longer() {
    let mut world = World::new();
    let mut one = Counted::of(&mut world, client(HELD));
    one.stand_still(&mut world, THEN + 10 * SECOND);
    let mut watched = Watched::from(THEN + 10 * SECOND);
    let finding = watched.until(&world, THEN + 15 * SECOND).only();
    assert_eq!((finding.severity, finding.latest.since_ns), (Severity::Warning, THEN + 10 * SECOND));
    assert_eq!(evidence(finding, "standing_still_now") as u64, 1);
    assert_eq!(watched.until(&world, THEN + 24 * SECOND).only().severity, Severity::Critical);
    one.counts.stalled = None;
    one.stall(&mut world, THEN + 24 * SECOND, 14 * SECOND, Recovery::Timeout);
    assert_eq!(watched.until(&world, THEN + 34 * SECOND).rules(), [""; 0]);
}

#[test]
fn fast_recoveries_count_only_where_they_take_longer_than_two_round_trips_and_the_time_out() {
    for (took_ms, rtt_ms, opens) in
        [(299, 100, false), (300, 100, true), (299, 40, true), (900, 300, true), (899, 300, false)]
    {
        let mut world = World::new();
        let mut one = Counted::of(&mut world, client(HELD));
        one.stand_still(&mut world, THEN + SECOND);
        one.counts.stalled = None;
        one.see(&mut world, [THEN + 2 * SECOND, THEN + 12 * SECOND], 10_000, rtt_ms * MILLIS);
        stalls(&mut world, &mut one, 4, took_ms * MILLIS, Recovery::Fast);
        let found = Watched::from(THEN + 49 * SECOND).until(&world, THEN + 51 * SECOND).rules();
        assert_eq!(found.len(), usize::from(opens), "{took_ms} ms at {rtt_ms} ms");
    }
}

#[test]
fn bulk_data_with_quick_recoveries_is_healthy() {
    let mut world = World::new();
    let mut one = Counted::of(&mut world, client(HELD));
    for index in 0..500 {
        one.stall(&mut world, THEN + index * 100 * MILLIS, 20 * MILLIS, Recovery::Fast);
    }
    assert_eq!(Watched::from(THEN + 40 * SECOND).until(&world, THEN + 51 * SECOND).rules(), [""; 0]);
}

#[test]
fn a_pause_of_the_machine_is_one_moment_however_many_connections_it_stops() {
    let mut world = World::new();
    for cookie in 100..110 {
        let mut one = Counted::of(&mut world, numbered(cookie, HELD));
        one.stall(
            &mut world,
            THEN + 20 * SECOND,
            3 * SECOND + u64::from(cookie) * MILLIS / 10,
            Recovery::Timeout,
        );
    }
    assert_eq!(Watched::from(THEN + 19 * SECOND).until(&world, THEN + 30 * SECOND).rules(), [""; 0]);
}

#[test]
fn segments_that_overtake_each_other_are_no_loss() {
    let mut world = World::new();
    let mut one = Counted::of(&mut world, client(HELD));
    for index in 0..10 {
        one.counts.duplicates += 1;
        one.stall(&mut world, THEN + 20 * SECOND + index * SECOND, 400 * MILLIS, Recovery::Timeout);
    }
    let mut watched = Watched::from(THEN + 28 * SECOND);
    let finding = watched.until(&world, THEN + 30 * SECOND).only();
    assert_eq!(finding.severity, Severity::Info);
    assert!(finding.latest.summary.contains("another order"), "{}", finding.latest.summary);
}

/// Connections that nginx accepted.
fn served(world: &mut World, count: u16) -> Vec<Counted> {
    world.report(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    let accepted = |cookie: u16| {
        let remote = end(&format!("10.0.0.{cookie}"), 40_000);
        let socket = Socket::new(cookie.into(), NETNS, end("10.0.1.1", 80), remote, PASSIVE | HELD);
        world.report(THEN, socket, to(SynRecv, Established, 0));
        world.report(THEN, socket, What::Accept { state: Established, pid: Some(NGINX) });
        Counted { socket, counts: Retransmits { since_ns: THEN, ..Retransmits::default() } }
    };
    let all: Vec<Counted> = (100..100 + count).map(accepted).collect();
    let seen: Vec<Seen> =
        all.iter().map(|one| held_sighting(THEN + SECOND, one.socket, Established, NGINX)).collect();
    world.sweep(THEN + SECOND, &seen);
    all
}

#[test]
fn a_few_of_a_servers_clients_have_bad_networks_and_all_of_them_do_not() {
    for (stalled, severity) in [(3, Severity::Info), (10, Severity::Warning)] {
        let mut world = World::new();
        for one in served(&mut world, 10).iter_mut().take(stalled) {
            for index in 0..4 {
                let ended_ns = THEN + (20 + 5 * index) * SECOND + u64::from(one.socket.remote.port) * MILLIS;
                one.stall(&mut world, ended_ns, 3 * SECOND, Recovery::Timeout);
            }
        }
        // The first ones end 40 s after 20 s.
        let mut watched = Watched::from(THEN + 75 * SECOND);
        assert_eq!(watched.until(&world, THEN + 77 * SECOND).only().severity, severity, "{stalled}");
    }
}

#[test]
fn a_client_that_went_away_is_no_fault_of_the_server() {
    let mut world = World::new();
    let mut all = served(&mut world, 1);
    all[0].stand_still(&mut world, THEN + 10 * SECOND);
    let mut watched = Watched::from(THEN + 10 * SECOND);
    assert_eq!(watched.until(&world, THEN + 40 * SECOND).only().severity, Severity::Info);
    // The kernel gives up.
    world.report(THEN + 40 * SECOND, all[0].socket, ended(Established, ETIMEDOUT));
    assert_eq!(watched.until(&world, THEN + 50 * SECOND).rules(), [""; 0]);
}
