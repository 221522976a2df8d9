use tcpwatch::findings::Severity;

use crate::{THEN, Watched, evidence, meetings::Pooled, scenario::*};

fn pooled(index: u16) -> Pooled {
    let closed_ns = THEN + u64::from(index) * 10 * SECOND;
    Pooled { port: 1000 + index, idle_ms: 5000, closed_ns, delay_ms: 20, bytes: 300 }
}

fn serve(world: &mut World) {
    world.report(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
}

#[test]
fn two_requests_that_meet_a_close_are_a_warning_that_ends_a_quarter_of_an_hour_after() {
    let mut world = World::new();
    let mut watched = Watched::from(THEN);
    pooled(0).client_meets_close(&mut world);
    assert_eq!(watched.until(&world, THEN + 5 * SECOND).only().severity, Severity::Info);
    pooled(1).client_has_sent(&mut world);
    let finding = watched.until(&world, THEN + 15 * SECOND).only();
    assert_eq!((finding.severity, finding.latest.count), (Severity::Warning, 2));
    assert_eq!(finding.id.to_string(), "keepalive_race.1");
    assert_eq!(finding.latest.subject.peer.to_string(), "10.0.0.2:80");
    assert!((evidence(finding, "server_idle_seconds") - 5.0).abs() < 0.01);
    assert!((evidence(finding, "longest_delay") - 0.02).abs() < 0.001);
    assert_eq!(evidence(finding, "lost") as u64, 600);
    watched.until(&world, THEN + 14 * MINUTE).only();
    assert_eq!(watched.until(&world, THEN + 16 * MINUTE).rules(), [""; 0]);
}

#[test]
fn both_ends_are_one_request_of_the_server() {
    let mut world = World::new();
    serve(&mut world);
    let mut watched = Watched::from(THEN);
    for index in 0..6 {
        pooled(index).client_meets_close(&mut world);
        pooled(index).server_gets_data(&mut world);
        watched.until(&world, pooled(index).closed_ns + 5 * SECOND);
    }
    let finding = watched.only();
    assert_eq!((finding.severity, finding.latest.count), (Severity::Warning, 6));
    assert_eq!((finding.latest.subject.name(), finding.latest.members[0].pid), ("nginx", NGINX));
    assert_eq!(evidence(finding, "closes_with_that_idle") as u64, 6);
    assert_eq!(evidence(finding, "lost") as u64, 1800);
    assert!(finding.latest.summary.contains("6 requests of curl"), "{}", finding.latest.summary);
}

#[test]
fn one_request_whose_idle_time_is_the_servers_time_out_is_a_warning() {
    let mut world = World::new();
    for index in 0..5 {
        pooled(index).client_closes(&mut world, true);
    }
    pooled(6).client_meets_close(&mut world);
    let finding = Watched::from(THEN + MINUTE).until(&world, THEN + 65 * SECOND).only().clone();
    assert_eq!(finding.severity, Severity::Warning);
    // The farewell before each close does not hide how long the connection had been idle.
    assert!((evidence(&finding, "server_idle_seconds") - 5.0).abs() < 0.01, "{finding:#?}");
}

#[test]
fn ten_requests_are_critical() {
    let mut world = World::new();
    for index in 0..10 {
        pooled(index).client_meets_close(&mut world);
    }
    let last_ns = pooled(9).closed_ns;
    assert_eq!(
        Watched::from(last_ns).until(&world, last_ns + 5 * SECOND).only().severity,
        Severity::Critical
    );
}

#[test]
fn a_client_that_watches_its_connections_races_even_where_it_was_late() {
    let mut world = World::new();
    for index in 0..5 {
        pooled(index).client_closes(&mut world, false);
    }
    for index in 6..8 {
        Pooled { delay_ms: 3000, ..pooled(index) }.client_meets_close(&mut world);
    }
    let then_ns = pooled(7).closed_ns;
    assert_eq!(Watched::from(then_ns).until(&world, then_ns + 8 * SECOND).rules(), ["keepalive_race"]);
}

#[test]
fn connections_in_use_and_a_server_that_closed_all_at_once_are_no_alarm() {
    let mut world = World::new();
    for index in 0..5 {
        Pooled { idle_ms: 50, ..pooled(index) }.client_meets_close(&mut world);
    }
    let then_ns = pooled(4).closed_ns;
    let finding = Watched::from(then_ns).until(&world, then_ns + 5 * SECOND).only().clone();
    assert_eq!((finding.severity, evidence(&finding, "in_use") as u64), (Severity::Info, 5));
    let mut world = World::new();
    for index in 0..5 {
        Pooled { idle_ms: 1000 << index, closed_ns: THEN, ..pooled(index) }.client_meets_close(&mut world);
    }
    assert_eq!(Watched::from(THEN).until(&world, THEN + 5 * SECOND).only().severity, Severity::Info);
}

#[test]
fn healthy_closes_are_silent() {
    let mut world = World::new();
    for index in 0..10 {
        // The server closes, and the client at once.
        pooled(index).client_closes(&mut world, false);
        // The client closes first.
        Pooled { port: 2000 + index, ..pooled(index) }.client_closes_first(&mut world);
        // A farewell into a closed connection, and no new one.
        Pooled { port: 3000 + index, bytes: 24, ..pooled(index) }.client_meets_close(&mut world);
    }
    assert_eq!(Watched::from(THEN).until(&world, THEN + 2 * MINUTE).rules(), [""; 0]);
}
