use tcpwatch::findings::Severity;

use crate::{
    THEN, evidence,
    listening::{LISTENER, Server},
    scenario::*,
};

const RULE: &str = "unaccepted_connections";

/// A server that has listened for a minute and holds one connection, which is all that it takes.
fn limited() -> Server {
    let mut server = Server::listens(THEN, 128);
    server.arrive();
    server.accept();
    server.seconds(60);
    server
}

#[test]
fn a_server_that_stops_to_accept_is_a_warning_within_seconds_and_critical_once_clients_give_up() {
    let mut server = limited();
    let mut opened_after = None;
    for second in 0..20 {
        if second % 2 == 0 {
            server.arrive();
        }
        server.second();
        if server.severity(RULE).is_some() && opened_after.is_none() {
            opened_after = Some(second + 1);
            assert_eq!(server.severity(RULE), Some(Severity::Warning));
        }
    }
    assert!(opened_after.is_some_and(|seconds| (6..=10).contains(&seconds)), "{opened_after:?}");
    let finding = server.watched.only();
    assert_eq!(finding.latest.subject.name(), "nginx");
    assert_eq!(finding.latest.ties.listener, Some(LISTENER));
    assert_eq!(["waiting", "accepted"].map(|name| evidence(finding, name) as u64), [9, 1]);
    assert!((evidence(finding, "oldest") - 19.0).abs() < 2.1, "{finding:#?}");
    assert!(finding.latest.summary.contains("accepts nothing on port 80"), "{}", finding.latest.summary);
    for index in 0..3 {
        server.give_up(index);
    }
    server.seconds(4);
    let finding = server.watched.only();
    assert_eq!((finding.severity, evidence(finding, "gave_up") as u64), (Severity::Critical, 3));
    assert_eq!(evidence(finding, "unread") as u64, 21);
}

#[test]
fn it_ends_within_ten_seconds_after_accepts_go_on() {
    let mut server = limited();
    server.arrive();
    server.arrive();
    assert_eq!(server.seconds(20).severity(RULE), Some(Severity::Warning));
    server.accept();
    server.accept();
    assert_eq!(server.seconds(10).severity(RULE), None);
}

#[test]
fn a_pause_of_three_seconds_each_minute_is_silent() {
    let mut server = limited();
    for second in 0..300 {
        server.arrive();
        if second % 60 >= 3 {
            while !server
                .world
                .tracker
                .table()
                .in_state(Established)
                .all(|conn| conn.accepted() == Some(true))
            {
                server.accept();
            }
        }
        server.second();
        assert_eq!(server.severity(RULE), None, "after {second} s");
    }
}

#[test]
fn a_busy_server_whose_queue_is_never_empty_and_moves_is_silent_until_connections_wait_for_long() {
    let mut server = limited();
    server.arrive();
    server.arrive();
    for _ in 0..60 {
        server.arrive();
        server.accept();
        server.second();
    }
    assert_eq!(server.severity(RULE), None);
    for _ in 0..60 {
        server.arrive();
        server.arrive();
        server.accept();
        server.second();
    }
    let finding = server.watched.only();
    assert_eq!(finding.severity, Severity::Warning);
    assert!(finding.latest.summary.contains("more slowly"), "{}", finding.latest.summary);
}

#[test]
fn a_program_that_has_just_begun_to_listen_is_no_alarm() {
    let mut server = Server::listens(THEN, 128);
    server.arrive();
    assert_eq!(server.seconds(25).severity(RULE), Some(Severity::Info));
    assert_eq!(server.seconds(10).severity(RULE), Some(Severity::Critical));
}
