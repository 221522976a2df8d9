use tcpwatch::findings::Severity;

use crate::{THEN, evidence, listening::Server};

const RULE: &str = "accept_queue_overflow";

#[test]
fn a_listener_that_does_not_accept_overflows_and_that_is_an_effect() {
    let mut server = Server::listens(THEN, 1);
    server.seconds(60);
    for _ in 0..10 {
        server.arrive();
    }
    server.seconds(4);
    let finding = server.watched.only();
    assert_eq!((finding.id.rule.name(), finding.severity), (RULE, Severity::Warning));
    let numbers = ["overflows_last_minute", "overflows", "waiting", "somaxconn"];
    assert_eq!(numbers.map(|name| evidence(finding, name) as u64), [8, 8, 2, 4096]);
    assert!(finding.latest.next_step.contains("the backlog"), "{}", finding.latest.next_step);
    server.seconds(10);
    let stories = server.watched.findings.stories();
    let told: Vec<_> = stories.iter().map(|(depth, one)| (*depth, one.id.rule.name())).collect();
    assert_eq!(told, [(0, "unaccepted_connections"), (1, RULE)]);
    assert_eq!(server.seconds(30).severity(RULE), Some(Severity::Critical));
}

#[test]
fn one_burst_is_an_info_and_is_over_a_minute_later() {
    let mut server = Server::listens(THEN, 10);
    server.seconds(60);
    for _ in 0..14 {
        server.arrive();
    }
    for _ in 0..11 {
        server.accept();
    }
    assert_eq!(server.seconds(4).severity(RULE), Some(Severity::Info));
    assert_eq!(server.seconds(52).severity(RULE), Some(Severity::Info));
    assert_eq!(server.seconds(14).severity(RULE), None);
}

#[test]
fn a_few_in_two_windows_of_three_are_a_warning() {
    let mut server = Server::listens(THEN, 10);
    server.seconds(60);
    for _ in 0..2 {
        for _ in 0..12 {
            server.arrive();
        }
        for _ in 0..11 {
            server.accept();
        }
        server.seconds(12);
    }
    assert_eq!(server.severity(RULE), Some(Severity::Warning));
}

#[test]
fn drops_that_are_no_overflows_are_silent() {
    let mut server = Server::listens(THEN, 10);
    server.seconds(60);
    server.drop_others(1000);
    assert_eq!(server.seconds(30).watched.rules(), [""; 0]);
}
