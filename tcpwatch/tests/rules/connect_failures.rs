use tcpwatch::findings::Severity;

use crate::{THEN, Watched, evidence, scenario::*};

const TENTH: u64 = SECOND / 10;

/// A connect of curl to that address and port.
struct Dial {
    cookie: u16,
    to: (&'static str, u16),
    at_ns: u64,
}

impl Dial {
    fn socket(&self) -> Socket {
        let local = if self.to.0.contains(':') { "::1" } else { "10.0.0.1" };
        Socket::new(self.cookie.into(), NETNS, end(local, self.cookie), end(self.to.0, self.to.1), HELD)
    }

    fn ends(&self, world: &mut World, after_ns: u64, error: u8, total_retrans: u32) {
        world.report(self.at_ns, self.socket(), to(Close, SynSent, CURL));
        let what = What::End { from: SynSent, error, total_retrans };
        world.report(self.at_ns + after_ns, self.socket(), what);
    }

    fn refused(&self, world: &mut World) {
        self.ends(world, 1, ECONNREFUSED, 0);
    }

    fn succeeds(&self, world: &mut World) {
        world.report(self.at_ns, self.socket(), to(Close, SynSent, CURL));
        world.report(self.at_ns + 1, self.socket(), to(SynSent, Established, 0));
    }
}

fn dial(index: u16, interval_ns: u64) -> Dial {
    Dial { cookie: 1000 + index, to: ("10.0.0.2", 80), at_ns: THEN + u64::from(index) * interval_ns }
}

#[test]
fn a_closed_port_is_named_ten_seconds_after_and_a_warning_when_nothing_ever_succeeded() {
    let mut world = World::new();
    for index in 0..20 {
        dial(index, TENTH).refused(&mut world);
    }
    let mut watched = Watched::from(THEN);
    assert_eq!(watched.until(&world, THEN + 9 * SECOND).rules(), [""; 0]);
    assert_eq!(watched.until(&world, THEN + 14 * SECOND).only().severity, Severity::Info);
    let finding = watched.until(&world, THEN + 35 * SECOND).only();
    assert_eq!((finding.severity, finding.latest.count), (Severity::Warning, 20));
    assert_eq!(finding.latest.since_ns, THEN + 1);
    assert_eq!((evidence(finding, "attempts") as u64, evidence(finding, "failed_percent") as u64), (20, 100));
    assert_eq!(finding.latest.subject.peer.to_string(), "10.0.0.2:80");
    assert_eq!(watched.until(&world, THEN + 3 * MINUTE).rules(), [""; 0]);
}

#[test]
fn one_dead_backend_of_four_flaps() {
    let mut world = World::new();
    let mut watched = Watched::from(THEN);
    for index in 0..24 {
        let dial = dial(index, 3 * SECOND / 2);
        if index % 4 == 0 {
            dial.refused(&mut world);
        } else {
            dial.succeeds(&mut world);
        }
        watched.until(&world, dial.at_ns + SECOND);
    }
    let finding = watched.only();
    assert_eq!((finding.severity, finding.latest.count), (Severity::Warning, 6));
    assert_eq!((evidence(finding, "attempts") as u64, evidence(finding, "failed_percent") as u64), (24, 25));
    assert!(finding.latest.summary.contains("now refuses"), "{}", finding.latest.summary);
    for index in 24..40 {
        let dial = dial(index, 3 * SECOND / 2);
        dial.succeeds(&mut world);
        watched.until(&world, dial.at_ns + SECOND);
    }
    assert_eq!(watched.until(&world, THEN + 80 * SECOND).rules(), [""; 0]);
}

#[test]
fn an_outage_of_what_worked_is_critical() {
    let mut world = World::new();
    dial(0, 5 * SECOND).succeeds(&mut world);
    for index in 1..14 {
        dial(index, 5 * SECOND).refused(&mut world);
    }
    let then_ns = THEN + 70 * SECOND;
    let finding = Watched::from(then_ns).until(&world, then_ns + 2 * SECOND).only().clone();
    assert_eq!(finding.severity, Severity::Critical);
}

#[test]
fn a_client_that_gives_up_has_a_time_out_and_one_that_cancels_at_once_tells_nothing() {
    let mut world = World::new();
    for index in 0..6 {
        dial(index, 8 * SECOND).ends(&mut world, 2 * SECOND, 0, 1);
    }
    let then_ns = THEN + 42 * SECOND;
    let finding = Watched::from(then_ns).until(&world, then_ns + 2 * SECOND).only().clone();
    assert_eq!((finding.severity, evidence(&finding, "gave_up") as u64), (Severity::Warning, 6));
    assert!((evidence(&finding, "client_timeout_seconds") - 2.0).abs() < 0.1);
    let mut world = World::new();
    for index in 0..100 {
        dial(index, TENTH).ends(&mut world, TENTH / 2, 0, 0);
    }
    assert_eq!(Watched::from(THEN).until(&world, THEN + MINUTE).rules(), [""; 0]);
}

#[test]
fn one_that_seldom_tries_is_named_by_its_streak() {
    let mut world = World::new();
    let mut watched = Watched::from(THEN);
    for index in 0..3 {
        assert_eq!(watched.rules(), [""; 0]);
        dial(index, 4 * MINUTE).ends(&mut world, 3 * SECOND, ETIMEDOUT, 6);
        watched.until(&world, THEN + u64::from(index) * 4 * MINUTE + 5 * SECOND);
    }
    assert_eq!(watched.only().severity, Severity::Warning);
    watched.until(&world, THEN + 12 * MINUTE);
    watched.only();
}

#[test]
fn a_restart_is_silent() {
    let mut world = World::new();
    for index in 0..20 {
        let dial = dial(index, 4 * TENTH);
        if (5..10).contains(&index) { dial.refused(&mut world) } else { dial.succeeds(&mut world) }
    }
    assert_eq!(Watched::from(THEN).until(&world, THEN + 2 * MINUTE).rules(), [""; 0]);
}

#[test]
fn an_address_that_another_one_makes_good_is_silent() {
    let mut world = World::new();
    world.report(0, listener(9, "127.0.0.1"), to(Close, Listen, NGINX));
    for index in 0..40 {
        let at_ns = THEN + u64::from(index) * SECOND;
        Dial { cookie: 1000 + index, to: ("::1", 80), at_ns }.refused(&mut world);
        Dial { cookie: 2000 + index, to: ("127.0.0.1", 80), at_ns: at_ns + TENTH }.succeeds(&mut world);
    }
    assert_eq!(Watched::from(THEN).until(&world, THEN + MINUTE).rules(), [""; 0]);
}

#[test]
fn a_server_that_listens_on_another_address_only_is_named() {
    let mut world = World::new();
    world.report(0, listener(9, "127.0.0.1"), to(Close, Listen, NGINX));
    for index in 0..40 {
        let at_ns = THEN + u64::from(index) * SECOND;
        Dial { cookie: 1000 + index, to: ("::1", 80), at_ns }.refused(&mut world);
    }
    let then_ns = THEN + 40 * SECOND;
    let finding = Watched::from(then_ns).until(&world, then_ns + 2 * SECOND).only().clone();
    assert_eq!(evidence(&finding, "local_listeners") as u64, 0);
    assert!(finding.latest.next_step.contains("only on 127.0.0.1"), "{}", finding.latest.next_step);
}
