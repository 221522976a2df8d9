use tcpwatch::findings::Severity;

use crate::{THEN, Watched, evidence, scenario::*};

/// A connection that the worker accepted, and how it ends.
struct Abort {
    index: u16,
    every_ns: u64,
}

impl Abort {
    fn at_ns(&self) -> u64 {
        THEN + u64::from(self.index) * self.every_ns
    }

    fn socket(&self, flags: u8) -> Socket {
        let cookie = 1000 + self.index;
        Socket::new(cookie.into(), NETNS, end("10.0.0.2", 80), end("10.0.0.1", cookie), PASSIVE | flags)
    }

    fn opens(&self, world: &mut World) {
        let began_ns = self.at_ns() - SECOND;
        world.report(began_ns, self.socket(0), to(SynRecv, Established, 0));
        world.report(began_ns, self.socket(HELD), What::Accept { state: Established, pid: Some(WORKER) });
    }

    /// The kernel ends the connection, then sends the reset.
    fn aborts(&self, world: &mut World, reset: ResetRecord) {
        self.opens(world);
        world.report(self.at_ns(), self.socket(ORPHAN), ended(Established, 0));
        let reset =
            ResetRecord { socket: self.socket(ORPHAN), time_ns: self.at_ns(), pid: Some(WORKER), ..reset };
        world.report_reset(reset);
    }

    fn closes(&self, world: &mut World) {
        self.opens(world);
        world.report(self.at_ns(), self.socket(HELD), to(Established, CloseWait, 0));
        world.report(self.at_ns(), self.socket(HELD), to(CloseWait, LastAck, WORKER));
        world.report(self.at_ns(), self.socket(ORPHAN), ended(LastAck, 0));
    }
}

fn abort(index: u16) -> Abort {
    Abort { index, every_ns: SECOND }
}

fn sent() -> ResetRecord {
    reset(0, server(ORPHAN), Close)
}

fn unread(unread_bytes: u32) -> ResetRecord {
    ResetRecord { unread_bytes, ..sent() }
}

fn linger(unsent: u32) -> ResetRecord {
    ResetRecord { zero_linger: true, unsent, ..sent() }
}

#[test]
fn five_lossy_closes_within_a_minute_are_a_warning_that_ends_when_they_do() {
    let mut world = World::new();
    let mut watched = Watched::from(THEN);
    for index in 0..12 {
        abort(index).aborts(&mut world, unread(10_000));
        watched.until(&world, abort(index).at_ns() + SECOND / 2);
        let expected = if index < 4 { vec![] } else { vec!["abortive_close"] };
        watched.until(&world, abort(index).at_ns() + SECOND);
        assert!(watched.rules().len() <= expected.len(), "{index}");
    }
    let finding = watched.until(&world, THEN + 15 * SECOND).only();
    assert_eq!((finding.severity, finding.latest.count), (Severity::Warning, 12));
    assert_eq!((finding.latest.subject.name(), finding.latest.members[0].pid), ("worker", WORKER));
    assert_eq!(finding.latest.subject.peer.to_string(), ":80");
    assert_eq!((evidence(finding, "unread") as u64, evidence(finding, "unread_data") as u64), (120_000, 12));
    assert_eq!(watched.until(&world, THEN + 2 * MINUTE).rules(), [""; 0]);
}

#[test]
fn one_close_that_throws_much_away_is_a_warning_and_of_an_exit_it_is_none() {
    let mut world = World::new();
    abort(0).aborts(&mut world, linger(65_536));
    let finding = Watched::from(THEN).until(&world, THEN + 5 * SECOND).only().clone();
    assert_eq!((finding.severity, evidence(&finding, "unsent") as u64), (Severity::Warning, 65_536));
    let mut world = World::new();
    for index in 0..10 {
        abort(index).aborts(&mut world, ResetRecord { exiting: true, ..linger(100_000) });
    }
    let finding = Watched::from(THEN + 9 * SECOND).until(&world, THEN + 12 * SECOND).only().clone();
    assert_eq!((finding.severity, evidence(&finding, "process_exited") as u64), (Severity::Info, 10));
}

#[test]
fn what_loses_nothing_is_no_alarm() {
    for (what, reset) in [("a health check", linger(0)), ("an unread close_notify", unread(31))] {
        let mut world = World::new();
        for index in 0..20 {
            abort(index).aborts(&mut world, reset);
        }
        let finding = Watched::from(THEN + 19 * SECOND).until(&world, THEN + 22 * SECOND).only().clone();
        assert_eq!((finding.severity, evidence(&finding, "harmless") as u64), (Severity::Info, 20), "{what}");
        let mut world = World::new();
        for index in 0..4 {
            abort(index).aborts(&mut world, reset);
        }
        assert_eq!(Watched::from(THEN).until(&world, THEN + MINUTE).rules(), [""; 0], "{what}");
    }
}

#[test]
fn a_small_share_of_the_closes_is_no_habit() {
    let mut world = World::new();
    abort(0).aborts(&mut world, unread(10_000));
    for index in 1..600 {
        let one = Abort { index, every_ns: SECOND / 20 };
        if index % 100 == 0 { one.aborts(&mut world, unread(10_000)) } else { one.closes(&mut world) }
    }
    let then_ns = THEN + 30 * SECOND;
    let finding = Watched::from(then_ns).until(&world, then_ns + 3 * SECOND).only().clone();
    assert_eq!((finding.severity, evidence(&finding, "lossy") as u64), (Severity::Info, 6));
}
