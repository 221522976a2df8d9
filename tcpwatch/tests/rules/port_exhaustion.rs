use tcpwatch::{events::frame::NamespaceSettings, findings::Severity};

use crate::{THEN, Watched, evidence, scenario::*};

const RULE: &str = "port_exhaustion";
const MANY: Limits = Limits { connections: 10_000, ended: 1000, label_sets: 100 };

fn world(ports: u16) -> World {
    let mut world = World::with_limits(MANY);
    world.tracker.set_namespace(&NamespaceSettings {
        netns: NETNS,
        local_ports: Some((40_000, 39_999 + ports)),
        ..NamespaceSettings::default()
    });
    world
}

fn socket(port: u16, source: &str, server: &str, flags: u8) -> Socket {
    let cookie =
        u64::from(port) + u64::from(server.len() as u32) * 100_000 + source.len() as u64 * 10_000_000;
    Socket::new(cookie, NETNS, end(source, port), end(server, 9092), flags)
}

fn open(world: &mut World, ports: std::ops::Range<u16>, source: &str, server: &str) {
    for port in ports {
        let one = socket(port, source, server, HELD);
        world.report(THEN, one, to(Close, SynSent, WORKER));
        world.report(THEN, one, to(SynSent, Established, 0));
    }
}

fn fail(world: &mut World, time_ns: u64, pid: u32) {
    let socket = |flags| Socket::new(7, NETNS, end("0.0.0.0", 0), end("10.0.0.2", 9092), flags);
    world.report(time_ns, socket(HELD), to(Close, SynSent, pid));
    world.report(time_ns, socket(HELD | UNSENT), ended(SynSent, 0));
}

fn severity(world: &World) -> Option<Severity> {
    let mut watched = Watched::from(THEN);
    watched.until(world, THEN + 4 * SECOND);
    watched.find(RULE).map(|finding| finding.severity)
}

#[test]
fn a_connect_that_finds_no_port_while_all_are_taken_is_critical_and_names_who_has_them() {
    let mut world = world(20);
    open(&mut world, 40_000..40_020, "10.0.0.1", "10.0.0.2");
    fail(&mut world, THEN + SECOND, CURL);
    let mut watched = Watched::from(THEN);
    let finding = watched.until(&world, THEN + 4 * SECOND).of(RULE);
    assert_eq!((finding.id.rule.name(), finding.severity), (RULE, Severity::Critical));
    assert_eq!(finding.latest.subject.name(), "worker");
    let numbers = ["ports_in_use", "ports_available", "failed_last_minute", "established"];
    assert_eq!(numbers.map(|name| evidence(finding, name) as u64), [20, 20, 1, 20]);
    assert_eq!(watched.until(&world, THEN + 7 * MINUTE).find(RULE).map(|one| one.severity), None);
}

#[test]
fn a_small_range_that_is_half_full_is_silent_and_a_large_one_is_as_full_as_it_is() {
    let mut small = world(20);
    open(&mut small, 40_000..40_012, "10.0.0.1", "10.0.0.2");
    assert_eq!(severity(&small), None);
    for (used, expected) in [
        (450, None),
        (500, Some(Severity::Info)),
        (800, Some(Severity::Warning)),
        (950, Some(Severity::Critical)),
    ] {
        let mut world = world(1000);
        open(&mut world, 40_000..40_000 + used, "10.0.0.1", "10.0.0.2");
        assert_eq!(severity(&world), expected, "{used} of 1000");
    }
}

#[test]
fn connects_that_fail_beside_free_ports_are_no_exhaustion() {
    let mut world = world(1000);
    open(&mut world, 40_000..40_200, "10.0.0.1", "10.0.0.2");
    fail(&mut world, THEN + SECOND, WORKER);
    let mut watched = Watched::from(THEN);
    let finding = watched.until(&world, THEN + 4 * SECOND).of(RULE);
    assert_eq!(finding.severity, Severity::Warning);
    assert!(finding.latest.summary.contains("although 800 are free"), "{}", finding.latest.summary);
}

#[test]
fn each_source_has_its_own_ports_and_other_servers_theirs() {
    let mut world = world(1000);
    open(&mut world, 40_000..40_400, "10.0.0.1", "10.0.0.2");
    open(&mut world, 40_000..40_400, "10.0.0.11", "10.0.0.2");
    open(&mut world, 40_400..40_800, "10.0.0.1", "10.0.0.33");
    assert_eq!(severity(&world), None);
}
