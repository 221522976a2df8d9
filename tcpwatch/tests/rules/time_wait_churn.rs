use tcpwatch::{events::frame::NamespaceSettings, findings::Severity};

use crate::{THEN, Watched, evidence, scenario::*};

const RULE: &str = "time_wait_churn";

const MANY: Limits = Limits { connections: 100_000, ended: 1000, label_sets: 1000 };

fn world(ports: (u16, u16), tw_reuse: u32) -> World {
    let mut world = World::with_limits(MANY);
    world.tracker.set_namespace(&NamespaceSettings {
        netns: NETNS,
        local_ports: Some(ports),
        tw_reuse: Some(tw_reuse),
        ..NamespaceSettings::default()
    });
    world
}

/// A connection of 100 ms that the client, or the server, closes first.
fn request(world: &mut World, time_ns: u64, number: u64, server: &str, local_first: bool) {
    let port = 10_000 + (number % 50_000) as u16;
    let socket = |flags| Socket::new(number + 1, NETNS, end("10.0.0.1", port), end(server, 80), flags);
    world.report(time_ns, socket(HELD), to(Close, SynSent, WORKER));
    world.report(time_ns + 1, socket(HELD), to(SynSent, Established, 0));
    let closed_ns = time_ns + SECOND / 10;
    if local_first {
        world.report(closed_ns, socket(HELD), to(Established, FinWait1, WORKER));
        world.report(closed_ns + 1, socket(ORPHAN), to(FinWait1, FinWait2, 0));
        world.report(closed_ns + 2, socket(ORPHAN | FIN), ended(FinWait2, 0));
    } else {
        world.report(closed_ns, socket(HELD), to(Established, CloseWait, 0));
        world.report(closed_ns + 1, socket(HELD), to(CloseWait, LastAck, WORKER));
        world.report(closed_ns + 2, socket(ORPHAN), ended(LastAck, 0));
    }
}

/// So many requests a second for so long, to these servers in turn.
fn run(world: &mut World, seconds: u64, rate: u64, servers: u64, local_first: bool) -> Watched {
    let mut watched = Watched::from(THEN);
    for second in 0..seconds {
        let now_ns = THEN + second * SECOND;
        for one in 0..rate {
            let number = second * rate + one;
            let server = format!("10.0.1.{}", number % servers);
            request(world, now_ns + one * SECOND / rate, number, &server, local_first);
        }
        world.tracker.expire(now_ns);
        watched.until(world, now_ns + SECOND);
    }
    watched
}

#[test]
fn a_connection_for_each_request_is_an_info_and_a_warning_when_it_takes_many_ports() {
    let mut world = world((32_768, 60_999), 0);
    let watched = run(&mut world, 70, 5, 1, true);
    let finding = watched.of(RULE);
    assert_eq!((finding.id.rule.name(), finding.severity), (RULE, Severity::Info));
    let rate = evidence(finding, "connections_per_second");
    assert!((rate - 5.0).abs() < 0.5, "{rate}");
    assert_eq!(evidence(finding, "needed") as u64, 1);

    let mut world = self::world((40_000, 44_999), 2);
    let watched = run(&mut world, 50, 40, 1, true);
    let finding = watched.of(RULE);
    assert_eq!(finding.severity, Severity::Warning);
    let rate = evidence(finding, "connections_per_second");
    assert!((rate - 40.0).abs() < 4.0, "{rate}");
    assert_eq!(evidence(finding, "ports_available") as u64, 5000);
}

#[test]
fn ports_that_come_back_after_a_second_are_not_scarce() {
    let mut world = world((40_000, 44_999), 1);
    assert_eq!(run(&mut world, 50, 40, 1, true).of(RULE).severity, Severity::Info);
}

#[test]
fn who_closes_second_and_who_talks_to_many_servers_is_silent() {
    let mut world = world((40_000, 44_999), 0);
    assert_eq!(run(&mut world, 70, 40, 1, false).find(RULE).map(|one| one.severity), None);
    let mut world = self::world((32_768, 60_999), 0);
    assert_eq!(run(&mut world, 70, 60, 30, true).find(RULE).map(|one| one.severity), None);
}
