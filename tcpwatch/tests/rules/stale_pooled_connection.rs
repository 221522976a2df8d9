use tcpwatch::findings::Severity;

use crate::{THEN, Watched, evidence, meetings::Pooled, scenario::*};

/// A pool whose server closes after two seconds, and which uses connections each three to ten.
fn pooled(index: u16) -> Pooled {
    let closed_ns = THEN + u64::from(index) * 10 * SECOND;
    Pooled { port: 1000 + index, idle_ms: 2000, closed_ns, delay_ms: 1500, bytes: 100 }
}

#[test]
fn connections_used_long_after_their_close_are_a_warning_from_the_second_on() {
    let mut world = World::new();
    let mut watched = Watched::from(THEN);
    pooled(0).client_meets_close(&mut world);
    assert_eq!(watched.until(&world, THEN + 8 * SECOND).only().severity, Severity::Info);
    for index in 1..6 {
        // Of a client that has shown not to watch, the soonest use is stale, too.
        let delay_ms = if index == 2 { 900 } else { 1500 };
        Pooled { delay_ms, ..pooled(index) }.client_meets_close(&mut world);
        watched.until(&world, pooled(index).closed_ns + 5 * SECOND);
    }
    let finding = watched.only();
    assert_eq!((finding.severity, finding.latest.count), (Severity::Warning, 6));
    assert_eq!(finding.id.to_string(), "stale_pooled_connection.1");
    assert_eq!(finding.latest.subject.name(), "curl");
    for (name, value) in
        [("server_idle_seconds", 2.0), ("advised_idle", 1.6), ("median_delay", 1.5), ("shortest_delay", 0.9)]
    {
        assert!((evidence(finding, name) - value).abs() < 0.01, "{name}: {finding:#?}");
    }
    watched.until(&world, THEN + 15 * MINUTE).only();
    assert_eq!(watched.until(&world, THEN + 17 * MINUTE).rules(), [""; 0]);
}

#[test]
fn the_servers_end_of_a_client_elsewhere_is_no_alarm() {
    let mut world = World::new();
    world.report(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    for index in 0..5 {
        pooled(index).server_gets_data(&mut world);
    }
    let then_ns = pooled(4).closed_ns;
    let mut watched = Watched::from(then_ns);
    let finding = watched.until(&world, then_ns + 5 * SECOND).only();
    assert_eq!((finding.id.rule.name(), finding.severity), ("stale_pooled_connection", Severity::Info));
}

#[test]
fn a_pool_that_asks_first_or_that_closes_without_a_word_is_no_alarm() {
    let mut world = World::new();
    for index in 0..5 {
        let ping = Pooled { bytes: 5, ..pooled(index) };
        ping.client_meets_close(&mut world);
        let again = Pooled { port: 2000 + index, closed_ns: THEN + 1000 * MINUTE, ..ping };
        let dialled_ns = ping.closed_ns + (ping.delay_ms + 10) * 1_000_000;
        world.report(dialled_ns, again.client(), to(Close, SynSent, CURL));
        // Closed unused, at last.
        Pooled { port: 3000 + index, delay_ms: 60_000, ..pooled(index) }.client_closes(&mut world, false);
    }
    let then_ns = pooled(4).closed_ns;
    let finding = Watched::from(then_ns).until(&world, then_ns + 5 * SECOND).only().clone();
    assert_eq!(finding.severity, Severity::Info);
    assert_eq!(evidence(&finding, "validation_queries") as u64, 5);
}

#[test]
fn connections_that_a_restart_closed_are_no_alarm_and_no_time_out() {
    let mut world = World::new();
    for index in 0..20 {
        Pooled { idle_ms: 2000 + 700 * u32::from(index), closed_ns: THEN, ..pooled(index) }
            .client_meets_close(&mut world);
    }
    let finding = Watched::from(THEN).until(&world, THEN + 5 * SECOND).only().clone();
    assert_eq!((finding.severity, finding.latest.count), (Severity::Info, 20));
    assert!(!finding.latest.evidence.iter().any(|one| one.name == "advised_idle"), "{finding:#?}");
    assert!(finding.latest.summary.contains("restarts"), "{}", finding.latest.summary);
}
