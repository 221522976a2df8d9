//! Outcomes of connects with real sockets, compared with the errno that the application saw.

mod cases;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use self::cases::{AT_ONCE, CASES, Case, TOOLS};
use crate::{
    counts::OPENED, daemon::Daemon, eventually::eventually, metrics::Metrics, netns::Namespace,
    witness::witnessed, workload::Workload,
};

const ATTEMPTS: &str = "tcpwatch_connect_attempts_total";
const CONNECTS: &str = "tcpwatch_connects_total";
const DURATIONS: &str = "tcpwatch_connect_duration_seconds_count";
const OUTCOMES: [&str; 9] =
    ["established", "refused", "timed_out", "unreachable", "reset", "no_port", "aborted", "other", "unknown"];

/// Whether the hook that serves state changes reports errnos.
fn errnos_are_reported(daemon: &Daemon) -> bool {
    !daemon.hook("state").starts_with("tracepoint ")
}

fn outcomes_of(metrics: &Metrics, labels: &[(&str, &str)]) -> BTreeMap<&'static str, u64> {
    let count = |outcome| metrics.sum(CONNECTS, &[labels, &[("outcome", outcome)]].concat());
    let all = OUTCOMES.into_iter().filter_map(|outcome| Some((outcome, count(outcome)?)));
    all.filter(|(_, count)| *count > 0).collect()
}

#[test]
fn the_outcome_of_a_connect_is_what_the_application_sees() {
    witnessed(|witness| assert_outcomes(&witness.start(&[]), CASES.iter().map(|case| (case, &[][..]))));
}

#[test]
fn a_connect_that_fails_before_syn_sent_is_reported_once() {
    assert_outcomes(&Daemon::start(&[]), AT_ONCE.iter().map(|(case, at_once)| (case, *at_once)));
}

/// Runs each case. Its second part is the outcomes to add where connects that fail at once are reported.
fn assert_outcomes(
    daemon: &Daemon,
    cases: impl Iterator<Item = (&'static Case, &'static [(&'static str, u64)])>,
) {
    let (reported, at_once_is_reported) = (errnos_are_reported(daemon), daemon.serves("connect"));
    for (case, at_once, addr) in
        cases.flat_map(|(case, at_once)| case.families.iter().map(move |addr| (case, at_once, addr)))
    {
        let namespace = Namespace::new();
        let comm = format!("c.{}-{}", case.name, if addr.contains(':') { 6 } else { 4 });
        let comm = comm.as_str();
        let program = format!("{TOOLS}\n{}\norder()\n", case.program);
        let mut client = Workload::start(&namespace, comm, &program, &[addr]);
        assert_eq!(client.hear(), case.errno.to_string(), "{comm}: the application's errno");

        let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
        for (outcome, count) in case.outcomes {
            // Without errnos and types only a missing port is recognised.
            let bound = matches!(case.name, "port-taken" | "no-port-2");
            let shows = reported || *outcome == "established" || (*outcome == "no_port" && !bound);
            *expected.entry(if shows { outcome } else { "unknown" }).or_default() += count;
        }
        for (outcome, count) in at_once.iter().filter(|_| at_once_is_reported) {
            *expected.entry(outcome).or_default() += count;
        }
        let attempts: u64 = expected.values().sum();
        let metrics = eventually("its connects are counted", || {
            let metrics = daemon.metrics();
            let found = outcomes_of(&metrics, &[("process", comm)]);
            if found == expected { Ok(metrics) } else { Err(format!("{comm}: {found:?}")) }
        });
        let sum = |name: &str| metrics.sum(name, &[("process", comm), ("role", "client")]).unwrap_or(0);
        let established = expected.get("established").copied().unwrap_or(0);
        assert_eq!(sum(ATTEMPTS), attempts, "{comm}");
        // The duration of a simultaneous open is not counted.
        let timed = if case.name == "crossed" { 0 } else { established };
        assert_eq!((sum(OPENED), sum(DURATIONS)), (established, timed), "{comm}");

        // Each connection shows the same, with the process that made it.
        let mut rows = daemon.json(&format!("/history?limit=10000&pid={}", client.pid()))["connections"]
            .as_array()
            .unwrap()
            .clone();
        for row in
            daemon.json(&format!("/connections?limit=10000&role=client&pid={}", client.pid()))["connections"]
                .as_array()
                .unwrap()
        {
            rows.push(daemon.detail(row));
        }
        // The program began as a fork of this process, outside the namespace, and may have been the last holder of
        // another test's socket. Where namespaces are not known they are 0.
        let is_here = |row: &&Value| row["netns"] == namespace.inode || row["netns"] == 0;
        let mut shown: BTreeMap<&str, u64> = BTreeMap::new();
        for row in rows.iter().filter(is_here).filter(|row| row["role"] == "client") {
            assert_eq!(row["opener"]["pid"], client.pid(), "{comm}: {row}");
            let began = row["state"] != "CLOSE";
            assert_eq!(row["connect"]["duration_seconds"].is_number(), began, "{comm}: {row}");
            if !began {
                assert_eq!(
                    (row["life"].as_array().unwrap().len(), &row["remote"]["port"]),
                    (1, &json!(80)),
                    "{row}"
                );
                assert!(row["errno"].is_string() && row["process"]["pid"] == client.pid(), "{comm}: {row}");
            }
            *shown.entry(row["connect"]["outcome"].as_str().unwrap()).or_default() += 1;
        }
        assert_eq!(shown, expected, "{comm}: {rows:?}");
        if case.name == "timed-out" && reported {
            let [row] = &rows.iter().filter(|row| row["role"] == "client").collect::<Vec<_>>()[..] else {
                panic!("{rows:?}");
            };
            let (repeated, error) = (&row["connect"]["syn_retransmits"], &row["errno"]);
            assert_eq!((repeated, error), (&json!(client.retransmitted()), &json!("ETIMEDOUT")), "{row}");
            assert!(
                client.retransmitted() > 0 && row["connect"]["duration_seconds"].as_f64().unwrap() > 1.0,
                "{row}"
            );
        }
    }
    // Over everything that the machine did in the meantime.
    eventually("all attempts are over or under way", || {
        let metrics = daemon.metrics();
        let waiting = daemon.json("/connections?limit=10000&state=SYN_SENT")["total"].as_u64().unwrap();
        let over: u64 = outcomes_of(&metrics, &[]).values().sum();
        let attempts = metrics.sum(ATTEMPTS, &[]).unwrap_or(0);
        if attempts == over + waiting { Ok(()) } else { Err(format!("{attempts} = {over} + {waiting}")) }
    });
    assert_eq!(daemon.metrics().sum("tcpwatch_records_lost_total", &[("cause", "ring_full")]), Some(0));
}

const WAITS: &str = r#"
listener = listen(args[0])
lose(listener, DROP_ALL)
dialling = socket.socket(listener.family, socket.SOCK_STREAM)
dialling.setblocking(False)
assert dialling.connect_ex((args[0], port_of(listener))) == 115
say(port_of(listener))
order()
lose_nothing(listener)
dialling.setblocking(True)
accepted = listener.accept()[0]
say("accepted")
order()
dialling.close()
say("closed")
order()
"#;

#[test]
fn a_connect_under_way_shows_its_repeated_syns() {
    witnessed(|witness| a_connect_under_way(&witness.start(&[])));
}

fn a_connect_under_way(daemon: &Daemon) {
    let namespace = Namespace::new();
    let mut client = Workload::start(&namespace, "dials-slowly", WAITS, &["127.0.0.1"]);
    let port = client.hear();
    let rows = daemon.json(&format!("/connections?state=SYN_SENT&remote_port={port}&pid={}", client.pid()));
    let id = rows["connections"][0]["id"].as_str().expect("the connect under way").to_owned();
    let of_it = |metrics: &Metrics| outcomes_of(metrics, &[("process", "dials-slowly")]);
    eventually("a SYN is repeated", || {
        let detail = daemon.json(&format!("/connections/{id}"));
        assert_eq!((&detail["connect"]["outcome"], &detail["first_close"]), (&Value::Null, &Value::Null));
        let repeated = detail["connect"]["syn_retransmits"].as_u64().unwrap();
        if repeated > 0 { Ok(()) } else { Err(detail.to_string()) }
    });
    let metrics = daemon.metrics();
    assert_eq!((metrics.sum(ATTEMPTS, &[("process", "dials-slowly")]), of_it(&metrics).len()), (Some(1), 0));
    assert_eq!(client.ask(), "accepted");
    let detail = daemon.json(&format!("/connections/{id}"));
    assert_eq!(detail["connect"]["outcome"], "established", "{detail}");
    assert!(detail["connect"]["syn_retransmits"].as_u64().unwrap() > 0, "{detail}");
    assert!(detail["connect"]["duration_seconds"].as_f64().unwrap() > 0.5, "{detail}");
    // Closing the connection later does not make it a failed connect.
    assert_eq!(client.ask(), "closed");
    assert_eq!(of_it(&daemon.metrics()), BTreeMap::from([("established", 1)]));
}

#[test]
fn processes_and_peers_have_the_sums_of_connections_and_metrics() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut waits = Workload::start(&namespace, "sums", WAITS, &["127.0.0.1"]);
    let port = waits.hear();
    assert_eq!(waits.ask(), "accepted");
    let mut refused = Workload::start(&namespace, "sums", crate::counts::IS_REFUSED, &["127.0.0.1"]);
    assert_eq!(refused.hear(), "refused");

    let answer = daemon.json("/processes?comm=sums");
    let row = &answer["processes"][0];
    assert_eq!((&answer["total"], &row["comm"]), (&json!(1), &json!("sums")));
    assert_eq!(row["connections"]["roles"], json!({"client": 1, "listener": 1, "server": 1}), "{row}");
    assert_eq!(row["connections"]["states"], json!({"ESTABLISHED": 2, "LISTEN": 1}), "{row}");
    assert_eq!((&row["opened"], &row["closed"], &row["connect_attempts"]), (&json!(2), &json!(0), &json!(2)));
    assert_eq!((&row["connects"]["established"], &row["running"]), (&json!(1), &json!(1)), "{row}");
    let failed = if errnos_are_reported(&daemon) { "refused" } else { "unknown" };
    assert_eq!(row["connects"][failed], 1, "{row}");
    let took = daemon.metrics().exact("tcpwatch_connect_duration_seconds_sum", &[("process", "sums")]);
    assert_eq!(row["connect_durations"], json!({"count": 1, "mean_seconds": took}), "{row}");
    assert_eq!(row["instances"][0]["pid"], waits.pid(), "only this one has connections: {row}");

    let answer = daemon.json("/peers?comm=sums&sort=name&limit=10000");
    let port: u16 = port.parse().unwrap();
    let peer = |role: &str, peer: Value| {
        let mut rows = answer["peers"].as_array().unwrap().iter();
        rows.find(|row| row["role"] == role && row["peer"] == peer).unwrap_or_else(|| panic!("{answer}"))
    };
    for row in [
        peer("client", json!({"addr": "127.0.0.1", "port": port})),
        peer("server", json!({"addr": null, "port": port})),
    ] {
        assert_eq!((&row["comms"], &row["opened"]), (&json!(["sums"]), &json!(1)), "{row}");
        assert_eq!(row["connections"]["states"], json!({"ESTABLISHED": 1}), "{row}");
    }
    assert_eq!(answer["total"], 3, "and the one of the refused connect: {answer}");
}
