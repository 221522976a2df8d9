use tcpwatch::findings::Severity;

use crate::{THEN, Watched, evidence, scenario::*};

/// Connections that a worker accepted from clients which close at these times.
fn closed_by_clients(world: &mut World, at: &[u64]) {
    world.report(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    for (cookie, time_ns) in (100..).zip(at) {
        let socket = one(cookie, HELD);
        world.report(time_ns - MINUTE, socket, to(SynRecv, Established, 0));
        world.report(time_ns - MINUTE, socket, What::Accept { state: Established, pid: Some(WORKER) });
        world.report(*time_ns, socket, to(Established, CloseWait, 10));
    }
}

fn one(cookie: u16, flags: u8) -> Socket {
    Socket::new(cookie.into(), NETNS, end("10.0.0.2", 80), end("10.0.0.1", cookie), PASSIVE | flags)
}

fn close(world: &mut World, time_ns: u64, cookies: std::ops::Range<u16>) {
    for cookie in cookies {
        world.report(time_ns, one(cookie, HELD), to(CloseWait, LastAck, WORKER));
        world.report(time_ns, one(cookie, ORPHAN | FIN), ended(LastAck, 0));
    }
}

#[test]
fn three_stuck_connections_are_a_warning_half_a_minute_after_the_third() {
    let mut world = World::new();
    closed_by_clients(&mut world, &[THEN, THEN + 5 * SECOND, THEN + 10 * SECOND]);
    let mut watched = Watched::from(THEN + 20 * SECOND);
    assert_eq!(watched.until(&world, THEN + 29 * SECOND).rules(), [""; 0]);
    watched.until(&world, THEN + 39 * SECOND);
    assert_eq!(watched.only().severity, Severity::Info);
    let finding = watched.until(&world, THEN + 45 * SECOND).only();
    assert_eq!((finding.severity, finding.latest.count), (Severity::Warning, 3));
    assert_eq!((finding.id.to_string(), finding.latest.since_ns), ("close_wait_leak.1".to_owned(), THEN));
    assert_eq!((evidence(finding, "stuck") as u64, evidence(finding, "unread") as u64), (3, 30));
    assert_eq!(finding.latest.subject.name(), "worker");
    assert_eq!(finding.latest.members.iter().map(|one| one.pid).collect::<Vec<_>>(), [WORKER]);
}

#[test]
fn it_ends_soon_after_the_connections_are_closed_and_goes_on_under_its_id() {
    let mut world = World::new();
    closed_by_clients(&mut world, &[THEN; 4]);
    let mut watched = Watched::from(THEN);
    watched.until(&world, THEN + MINUTE).only();
    close(&mut world, THEN + MINUTE, 100..104);
    watched.until(&world, THEN + MINUTE + 15 * SECOND);
    assert_eq!(watched.rules(), [""; 0]);
    let ended = watched.findings.ended().next().unwrap();
    assert!(ended.ended_ns.is_some_and(|at| at <= THEN + MINUTE + 15 * SECOND), "{ended:?}");
    // The same once more.
    for cookie in 200..204 {
        let socket = one(cookie, HELD);
        world.report(THEN + MINUTE, socket, to(SynRecv, Established, 0));
        world.report(THEN + MINUTE, socket, What::Accept { state: Established, pid: Some(WORKER) });
        world.report(THEN + MINUTE, socket, to(Established, CloseWait, 0));
    }
    let again = watched.until(&world, THEN + 2 * MINUTE).only();
    assert_eq!((again.id.number, again.reopened, again.ended_ns), (1, 1, None));
}

#[test]
fn ten_that_grow_or_a_hundred_are_critical() {
    let mut world = World::new();
    closed_by_clients(&mut world, &[THEN; 100]);
    assert_eq!(Watched::from(THEN).until(&world, THEN + MINUTE).only().severity, Severity::Critical);
    // One more each 5 s.
    let mut world = World::new();
    let at: Vec<u64> = (0..40).map(|index| THEN + index * 5 * SECOND).collect();
    let mut watched = Watched::from(THEN);
    for upto in 1..=at.len() {
        let mut now = World::new();
        closed_by_clients(&mut now, &at[..upto]);
        world = now;
        watched.until(&world, at[upto - 1] + 5 * SECOND);
    }
    let finding = watched.only();
    assert_eq!(finding.severity, Severity::Critical, "{finding:#?}");
    assert!((evidence(finding, "growth") - 12.0).abs() < 1.2, "{finding:#?}");
    let _ = world;
}

#[test]
fn what_nobody_has_accepted_is_not_its_subject() {
    let mut world = World::new();
    world.report(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    for cookie in 100..150 {
        world.report(THEN, one(cookie, 0), to(SynRecv, Established, 0));
        world.report(THEN, one(cookie, 0), to(Established, CloseWait, 0));
    }
    assert_eq!(Watched::from(THEN).until(&world, THEN + 5 * MINUTE).rules(), [""; 0]);
}

#[test]
fn backends_that_serve_one_client_each_may_work_for_minutes() {
    let mut world = World::new();
    world.report(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    for cookie in 100..103 {
        world.learn(process(1000 + u32::from(cookie), "postgres"));
        let socket = one(cookie, HELD);
        world.report(THEN, socket, to(SynRecv, Established, 0));
        let accept = What::Accept { state: Established, pid: Some(1000 + u32::from(cookie)) };
        world.report(THEN, socket, accept);
        world.report(THEN, socket, to(Established, CloseWait, 0));
    }
    let mut watched = Watched::from(THEN);
    assert_eq!(watched.until(&world, THEN + 14 * MINUTE).only().severity, Severity::Info);
    assert_eq!(watched.until(&world, THEN + 16 * MINUTE).only().severity, Severity::Warning);
}
