use tcpwatch::{
    events::decode::{Kind, Retransmits},
    findings::Severity,
    tcp::stall::{Recovery, Stalled},
};

use crate::{THEN, Watched, evidence, scenario::*};

const MILLIS: u64 = 1_000_000;
const EAGAIN: usize = 0;
const ENOMEM: usize = 1;
const EBUSY: usize = 2;
const EHOSTUNREACH: usize = 6;

/// Connections of curl whose segments of `THEN` are lost.
fn connected(world: &mut World, count: u16) -> Vec<Failing> {
    let one = |cookie| {
        let socket = numbered(cookie, HELD);
        let before =
            [(THEN - SECOND, to(Close, SynSent, CURL)), (THEN - SECOND, to(SynSent, Established, 0))];
        world.report_all(socket, before);
        let stalled = Some(Stalled { since_ns: THEN, recovery: Recovery::Timeout, bytes: 1000 });
        Failing { socket, counts: Retransmits { since_ns: THEN, stalled, ..Retransmits::default() } }
    };
    (100..100 + count).map(one).collect()
}

struct Failing {
    socket: Socket,
    counts: Retransmits,
}

impl Failing {
    fn report(&self, world: &mut World, time_ns: u64) {
        let what = What::Retransmit { state: Established, total: None };
        let record = SocketRecord { socket: self.socket, time_ns, what, traffic: None };
        world.tracker.apply(&Record::Retransmit(record, Box::new(self.counts.clone())));
    }

    /// Attempts fail after 0.2 s, and each time after twice as long.
    fn fail(&mut self, world: &mut World, errno: usize, attempts: u32) {
        for attempt in 0..attempts {
            self.counts.failures[errno] += 1;
            self.report(world, THEN + 200 * MILLIS * ((2 << attempt) - 1));
        }
    }

    fn leave(&mut self, world: &mut World, time_ns: u64) {
        self.counts.segments[Kind::Timeout as usize] += 1;
        self.counts.stalled = None;
        self.report(world, time_ns);
    }
}

#[test]
fn two_failed_attempts_and_a_second_open_it_and_a_segment_that_leaves_ends_it() {
    let mut world = World::new();
    let mut all = connected(&mut world, 1);
    all[0].fail(&mut world, EHOSTUNREACH, 1);
    assert_eq!(Watched::from(THEN).until(&world, THEN + SECOND).rules(), [""; 0]);
    all[0].fail(&mut world, EHOSTUNREACH, 3);
    let mut watched = Watched::from(THEN);
    let finding = watched.until(&world, THEN + 3 * SECOND).only();
    assert_eq!(
        (finding.id.to_string(), finding.severity),
        ("retransmit_failed.1".to_owned(), Severity::Warning)
    );
    assert_eq!((finding.latest.since_ns, finding.latest.count), (THEN, 1));
    assert_eq!((evidence(finding, "EHOSTUNREACH") as u64, evidence(finding, "waiting") as u64), (4, 1000));
    assert!(evidence(finding, "frozen_for") >= 1.0);
    assert!(finding.latest.next_step.contains("ip route get"));
    all[0].leave(&mut world, THEN + 4 * SECOND);
    assert_eq!(watched.until(&world, THEN + 13 * SECOND).rules(), [""; 0]);
}

#[test]
fn it_is_critical_where_ten_connections_are_frozen_or_one_for_fifteen_seconds() {
    let mut world = World::new();
    for one in &mut connected(&mut world, 10) {
        one.fail(&mut world, EHOSTUNREACH, 3);
    }
    assert_eq!(Watched::from(THEN).until(&world, THEN + 3 * SECOND).only().severity, Severity::Critical);
    let mut world = World::new();
    connected(&mut world, 1)[0].fail(&mut world, EHOSTUNREACH, 6);
    let mut watched = Watched::from(THEN + 10 * SECOND);
    assert_eq!(watched.until(&world, THEN + 14 * SECOND).only().severity, Severity::Warning);
    assert_eq!(watched.until(&world, THEN + 19 * SECOND).only().severity, Severity::Critical);
}

#[test]
fn three_connections_that_fail_at_once_need_no_second_attempt() {
    for (count, opens) in [(2, false), (3, true)] {
        let mut world = World::new();
        for one in &mut connected(&mut world, count) {
            one.fail(&mut world, EHOSTUNREACH, 1);
        }
        let found = Watched::from(THEN).until(&world, THEN + 2 * SECOND).rules();
        assert_eq!(found.len(), usize::from(opens), "{count}");
    }
}

#[test]
fn what_is_still_in_a_queue_of_this_machine_is_on_its_way() {
    let mut world = World::new();
    for one in &mut connected(&mut world, 32) {
        one.fail(&mut world, EBUSY, 4);
    }
    assert_eq!(Watched::from(THEN).until(&world, THEN + 6 * SECOND).rules(), [""; 0]);
}

#[test]
fn a_window_that_the_peer_shrank_may_stay_so_for_ten_seconds() {
    let mut world = World::new();
    connected(&mut world, 1)[0].fail(&mut world, EAGAIN, 6);
    let mut watched = Watched::from(THEN);
    assert_eq!(watched.until(&world, THEN + 9 * SECOND).rules(), [""; 0]);
    let finding = watched.until(&world, THEN + 12 * SECOND).only();
    assert!(finding.latest.summary.contains("EAGAIN"), "{}", finding.latest.summary);
}

#[test]
fn a_moment_without_memory_is_no_alarm() {
    let mut world = World::new();
    connected(&mut world, 1)[0].fail(&mut world, ENOMEM, 2);
    assert_eq!(Watched::from(THEN).until(&world, THEN + 2 * SECOND).only().severity, Severity::Info);
}

#[test]
fn attempts_that_do_not_come_any_more_were_not_needed() {
    let mut world = World::new();
    connected(&mut world, 1)[0].fail(&mut world, EHOSTUNREACH, 2);
    let mut watched = Watched::from(THEN);
    assert_eq!(watched.until(&world, THEN + 2 * SECOND).rules(), ["retransmit_failed"]);
    assert_eq!(watched.until(&world, THEN + 12 * SECOND).rules(), [""; 0]);
}

#[test]
fn it_is_the_cause_of_a_connection_that_stands_still() {
    let mut world = World::new();
    let mut all = connected(&mut world, 1);
    all[0].counts.segments[Kind::Timeout as usize] += 1;
    all[0].report(&mut world, THEN + 100 * MILLIS);
    all[0].fail(&mut world, EHOSTUNREACH, 4);
    let mut watched = Watched::from(THEN);
    watched.until(&world, THEN + 4 * SECOND);
    let stories: Vec<_> =
        watched.findings.stories().into_iter().map(|(depth, one)| (depth, one.id.rule.name())).collect();
    assert_eq!(stories, [(0, "retransmit_failed"), (1, "hol_blocking")]);
}
