//! What `/metrics` answers: valid, without a series twice, small unless more is asked for, and as the table of families
//! says. Without a kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "kernel/metrics.rs"]
mod exposition;
mod scenario;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, UNIX_EPOCH},
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    http::{HeaderMap, Request, StatusCode, header},
};
use bytemuck::Zeroable as _;
use tcpwatch::{
    cli::options::DEFAULT_LIMITS,
    events::{
        comm::{Comm, is_visible},
        decode,
    },
    findings::Settings,
    http::{
        Api,
        metrics::{
            FAMILIES, OwnMetrics,
            family::{Collector, Kind, LabelValues, Value},
        },
        router,
    },
    kernel::probes::Hooks,
    node::{Node, NodeIdentity, Question},
    tcp::{ticks::TickRate, time::Clock},
};
use tcpwatch_common::{KIND_TASK, TaskEvent};
use tokio::sync::mpsc;
use tower::ServiceExt as _;

use crate::{
    exposition::{Metrics, all_collectors},
    scenario::*,
};

/// The sizes that docs/metrics.md states for a default scrape.
const SERIES_OF_A_CLIENT: usize = 11;
const SERIES_OF_A_SERVER: usize = 8;
const SERIES_OF_THE_NODE: usize = 100;

fn node(tracker: Tracker) -> Node {
    let identity = NodeIdentity {
        node: "test".into(),
        kernel: "6.1 \"odd\\".into(),
        started_ns: 0,
        wall_offset_ns: 0,
        tick_rate: TickRate(std::num::NonZeroU16::MIN),
    };
    let settings = Settings::default();
    let mut node = Node::new(identity, settings, LIMITS, Hooks::default(), ReportedFacts::default());
    node.sweeps.ended_ns = Some(SECOND);
    node.tracker = tracker;
    node
}

struct Server(Router);

impl Server {
    fn of(node: Node) -> Self {
        let (sender, mut questions) = mpsc::channel::<Question>(8);
        let clock = Clock { now_ns: 3600 * SECOND, wall: UNIX_EPOCH + Duration::from_secs(3600) };
        tokio::spawn(async move {
            while let Some(question) = questions.recv().await {
                (question.ask)(&node, clock);
            }
        });
        Self(router(Api::new(sender)))
    }

    async fn request(&self, path: &str, accept_encoding: &str) -> (StatusCode, HeaderMap, Bytes) {
        let request = Request::get(path).header(header::ACCEPT_ENCODING, accept_encoding);
        let response = self.0.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts.status, parts.headers, to_bytes(body, usize::MAX).await.unwrap())
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let (status, _, body) = self.request(path, "identity").await;
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn metrics(&self, path: &str) -> Metrics {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        Metrics::parse(&body)
    }
}

/// Opens a connection of the process, which is its only one and so its only label set.
fn client_of(world: &mut World, pid: u32, comm: &str) {
    world.learn(process(pid, comm));
    let cookie = u16::try_from(pid).unwrap();
    world
        .report_all(numbered(cookie, HELD), [(1, to(Close, SynSent, pid)), (2, to(SynSent, Established, 0))]);
}

/// Half the label sets are of clients, half of servers; each has been counted and swept.
fn world_of_sets(sets: u16) -> World {
    let mut world = World::with_limits(Limits { connections: 10_000, ..DEFAULT_LIMITS });
    let mut seen = Vec::new();
    for number in 0..sets / 2 {
        let (client_end, server_end) = (end("10.0.0.1", 40_000), end("10.0.0.2", 1000 + number));
        let client = Socket::new(u64::from(number) * 2 + 1, NETNS, client_end, server_end, HELD);
        let server = Socket::new(u64::from(number) * 2 + 2, NETNS, server_end, client_end, PASSIVE | HELD);
        world.report_all(client, [(1, to(Close, SynSent, CURL)), (2, to(SynSent, Established, 0))]);
        world.report(2, server, to(SynRecv, Established, 0));
        seen.push(held_sighting(SECOND, client, Established, CURL));
        seen.push(held_sighting(SECOND, server, Established, NGINX));
    }
    world.sweep(SECOND, &seen);
    world
}

/// Series by the labels `process`, `role` and `peer`; those of the node under an empty key.
fn by_set(metrics: &Metrics) -> BTreeMap<Vec<&str>, usize> {
    let mut counts = BTreeMap::new();
    for (_, labels) in metrics.series() {
        let key: Vec<_> = ["process", "role", "peer"]
            .iter()
            .filter_map(|label| labels.get(*label))
            .map(String::as_str)
            .collect();
        *counts.entry(key).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn the_default_is_about_a_dozen_series_a_set() {
    let server = Server::of(node(world_of_sets(200).tracker));
    let metrics = server.metrics("/metrics").await;
    let counts = by_set(&metrics);
    assert_eq!(counts.len(), 202, "200 sets, ~other and the node");
    for (set, count) in &counts {
        match set[..] {
            [] => assert!(*count <= SERIES_OF_THE_NODE, "{count} series of the node"),
            [_, "client", _] => assert_eq!(*count, SERIES_OF_A_CLIENT, "{set:?}"),
            [_, "server", _] => assert_eq!(*count, SERIES_OF_A_SERVER, "{set:?}"),
            // Of either.
            ref other => assert!(*count <= SERIES_OF_A_CLIENT, "{other:?}: {count}"),
        }
    }
}

#[tokio::test]
async fn what_the_text_weighs_is_as_the_document_says() {
    let server = Server::of(node(world_of_sets(200).tracker));
    let (_, _, plain) = server.request("/metrics", "identity").await;
    let (_, headers, packed) = server.request("/metrics", "gzip").await;
    assert_eq!(headers[header::CONTENT_ENCODING], "gzip");
    assert!(packed.starts_with(&[0x1f, 0x8b]));
    println!("200 sets: {} bytes, {} with gzip", plain.len(), packed.len());
    assert!((120 << 10..190 << 10).contains(&plain.len()), "{} bytes", plain.len());
    assert!(packed.len() < 16 << 10, "{} bytes", packed.len());
}

/// What differs in the text differs in the labels; what reads the same counts together.
#[tokio::test]
async fn hostile_names_make_no_series_twice() {
    let mut world = World::new();
    let names = [
        "",
        "~other",
        "~unknown",
        "~~other",
        "~",
        "a\"b\\c\nd",
        "a\",role=\"x",
        "{}",
        "same",
        "same",
        "le=\"1\"",
        "\u{fffd}",
    ];
    for (number, name) in names.iter().enumerate() {
        client_of(&mut world, 1000 + u32::try_from(number).unwrap(), name);
    }
    // An owner that is not known, and a side that is not known.
    world.report(2, numbered(2000, HELD), to(SynSent, Established, 0));
    world.report(
        2,
        Socket::new(2001, NETNS, end("10.0.0.1", 1), end("10.0.0.2", 2), 0),
        to(Established, CloseWait, 0),
    );
    let server = Server::of(node(world.tracker));
    let metrics = server.metrics(&all_collectors()).await;
    let opened = |process: &str| metrics.sum("tcpwatch_connections_opened_total", &[("process", process)]);
    for (process, expected) in [
        ("~empty", Some(1)),
        ("~~other", Some(1)),
        ("~~unknown", Some(1)),
        ("~~~other", Some(1)),
        ("~~", Some(1)),
        ("a\"b\\\\c\\x0ad", Some(1)),
        ("same", Some(2)),
        ("\u{fffd}", Some(1)),
        ("~other", Some(0)),
    ] {
        assert_eq!(opened(process), expected, "{process:?}");
    }
    assert!(opened("~unknown").is_some());
}

/// Names that are likely to be mixed up: of few bytes, of what the text is made of, and of any bytes.
fn any_name(random: &mut Random) -> [u8; 16] {
    let bytes: &[u8] = random.pick(&[
        &b"ab"[..],
        &b"~-\\x0f \n\"{}=,"[..],
        &b"\xff\xc3\xa9\xe2\x80\xae\xc2\x9b\x1b[m"[..],
        &b""[..],
    ]);
    let mut name = [0; 16];
    for byte in name.iter_mut().take(random.below(16) as usize) {
        *byte = if bytes.is_empty() { random.next() as u8 } else { random.pick(bytes) };
    }
    name
}

/// As the kernel compares them: up to the first NUL.
fn kernels_name(name: &[u8; 16]) -> Vec<u8> {
    name.split(|byte| *byte == 0).next().unwrap().to_vec()
}

#[tokio::test]
async fn every_name_has_one_text_of_its_own_which_labels_json_text_and_filters_share() {
    let mut random = Random(19);
    let mut names: BTreeSet<[u8; 16]> = (0..600).map(|_| any_name(&mut random)).collect();
    for fixed in ["", "~empty", "~other", "~unknown", "-", " ", "~~empty", "\\x2d"] {
        names.insert(std::array::from_fn(|at| fixed.as_bytes().get(at).copied().unwrap_or(0)));
    }
    let mut world = World::with_limits(Limits { connections: 10_000, label_sets: 10_000, ended: 0 });
    let (mut texts, mut distinct) = (BTreeMap::new(), BTreeSet::new());
    for (pid, comm) in (1000..).zip(&names) {
        let start_ns = u64::from(pid);
        let event = TaskEvent { kind: KIND_TASK, tgid: pid, start_ns, comm: *comm, ..TaskEvent::zeroed() };
        let Ok(Record::Task(task)) = decode::record(bytemuck::bytes_of(&event)) else { panic!() };
        let text = task.comm.text().into_owned();
        assert_eq!(Comm::from_text(&text), task.comm, "{text}");
        assert!(
            !["", "-", "~other", "~unknown"].contains(&&*text) && text.chars().all(is_visible),
            "{text:?}"
        );
        world.learn(task);
        let socket = numbered(u16::try_from(pid).unwrap(), HELD);
        world.report_all(socket, [(1, to(Close, SynSent, pid)), (2, to(SynSent, Established, 0))]);
        *texts.entry(text).or_insert(0) += 1;
        distinct.insert(kernels_name(comm));
    }
    assert_eq!(texts.len(), distinct.len(), "two names have one text");
    let server = Server::of(node(world.tracker));
    let metrics = server.metrics(&all_collectors()).await;
    let (_, json) = server.get("/processes?format=json&limit=10000").await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let shown: BTreeSet<_> =
        json["processes"].as_array().unwrap().iter().map(|row| row["comm"].as_str()).collect();
    assert_eq!(shown, texts.keys().map(|text| Some(text.as_str())).collect());
    let (_, table) = server.get("/processes?limit=10000").await;
    let rows = table.lines().skip(1).take_while(|line| !line.is_empty());
    let cells: BTreeSet<_> = rows.filter_map(|line| line.split("  ").next()).collect();
    assert_eq!(cells, texts.keys().map(String::as_str).collect());
    for (text, count) in &texts {
        let opened = metrics.sum("tcpwatch_connections_opened_total", &[("process", text)]);
        assert_eq!(opened, Some(*count), "{text}");
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("comm", text).finish();
        for (path, list) in [("/processes", "processes"), ("/connections", "connections")] {
            let (_, answer) = server.get(&format!("{path}?format=json&limit=10000&{query}")).await;
            let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
            let expected = if list == "processes" { 1 } else { *count };
            assert_eq!(answer["total"], expected, "{path}?{query}");
            for row in answer[list].as_array().unwrap() {
                let comm = if list == "processes" { &row["comm"] } else { &row["process"]["comm"] };
                assert_eq!(comm, text);
            }
        }
    }
}

/// Established at 2 s, and gone when a sweep looks at 30 s.
#[tokio::test]
async fn an_end_that_nobody_saw_makes_an_upper_bound_and_neither_end_no_duration() {
    for begins_unseen in [false, true] {
        let mut world = World::new();
        let socket = client(HELD);
        if begins_unseen {
            world.sweep(2 * SECOND, &[held_sighting(2 * SECOND, socket, Established, CURL)]);
        } else {
            world.report_all(
                socket,
                [(SECOND, to(Close, SynSent, CURL)), (2 * SECOND, to(SynSent, Established, 0))],
            );
        }
        world.sweep(30 * SECOND, &[]);
        let server = Server::of(node(world.tracker));
        let (_, json) = server.get("/history?format=json").await;
        let row = &serde_json::from_str::<serde_json::Value>(&json).unwrap()["connections"][0];
        let step =
            row["life"].as_array().unwrap().iter().find(|step| step["state"] == "ESTABLISHED").unwrap();
        assert_eq!(row["ended_at_is_upper_bound"], true, "{row}");
        for (of, what) in [(row, "established"), (step, "duration")] {
            let [seconds, lower, upper] = ["seconds", "is_lower_bound", "is_upper_bound"]
                .map(|end| of[format!("{what}_{end}")].clone());
            if begins_unseen {
                assert_eq!((seconds.is_null(), lower, upper), (true, false.into(), false.into()), "{row}");
            } else {
                assert_eq!((seconds, lower, upper), (28.0.into(), false.into(), true.into()), "{row}");
            }
        }
        let (_, text) = server.get("/history").await;
        let lived = text.lines().nth(1).unwrap().split_whitespace().nth(2);
        assert_eq!(lived, Some(if begins_unseen { "-" } else { "<29.0s" }), "{text}");
    }
}

#[tokio::test]
async fn counters_of_a_set_are_zero_from_its_first_moment() {
    let mut world = World::new();
    world.report(1, client(HELD), to(Close, SynSent, CURL));
    world.serve();
    let server = Server::of(node(world.tracker));
    let metrics = server.metrics(&all_collectors()).await;
    for family in FAMILIES.iter().filter(|family| family.is_of_groups() && family.kind != Kind::Gauge) {
        if family.collector.is_none() {
            continue;
        }
        let name = match family.kind {
            Kind::Histogram => format!("{}_count", family.name),
            _ => family.name.to_owned(),
        };
        let of_the_client: BTreeSet<Vec<&str>> = metrics
            .series()
            .filter(|(series, labels)| *series == name && labels["role"] == "client")
            .map(|(_, labels)| family.labels.iter().map(|label| labels[label.name].as_str()).collect())
            .collect();
        let values = family.labels.iter().map(|label| match label.values {
            LabelValues::Fixed(values) => values.len(),
            LabelValues::Open(_) => panic!("{}: a counter with an open label", family.name),
        });
        // Each reason of a reset has one direction or two.
        let expected =
            if family.name == "tcpwatch_resets_by_reason_total" { 15 } else { values.product::<usize>() };
        assert_eq!(of_the_client.len(), expected, "{name}");
    }
    assert_eq!(metrics.sum("tcpwatch_connects_total", &[("role", "server")]), None, "a server dials nobody");
}

/// Nothing but what the table says, in types and in labels.
#[tokio::test]
async fn what_is_scraped_is_in_the_table() {
    let server = Server::of(node(world_of_sets(20).tracker));
    server.get("/unknown").await;
    for collector in Collector::ALL {
        let (_, text) = server.get(&format!("/metrics?collect[]={}", collector.name())).await;
        let metrics = Metrics::parse(&text);
        let rows: BTreeMap<_, _> = FAMILIES
            .iter()
            .filter(|family| family.collector == Some(collector))
            .map(|family| (family.name, family))
            .collect();
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            assert_eq!(rows.get(name).map(|row| row.kind.name()), Some(kind), "{name}");
        }
        for (series, labels) in metrics.series() {
            let mut suffixes = ["", "_bucket", "_sum", "_count"].iter();
            let row = suffixes.find_map(|suffix| rows.get(series.strip_suffix(suffix)?));
            let row = row.unwrap_or_else(|| panic!("{series} is not of {}", collector.name()));
            for (label, value) in labels {
                let Some(known) = row.labels.iter().find(|known| known.name == label) else {
                    let of_sets = row.is_of_groups() && ["process", "role", "peer"].contains(&label.as_str());
                    assert!(of_sets || label == "le", "{series}: {label}");
                    continue;
                };
                if let LabelValues::Fixed(values) = known.values {
                    assert!(values.contains(&value.as_str()), "{series}: {label}=\"{value}\"");
                }
            }
        }
    }
}

/// The registry's families have rows, and their rows families.
#[test]
fn what_is_registered_is_in_the_table() {
    let own = OwnMetrics::default();
    own.observe("/", Duration::from_millis(1));
    let registered: BTreeMap<_, _> =
        own.families().iter().map(|family| (family.name().to_owned(), family.help().to_owned())).collect();
    let rows = FAMILIES.iter().filter(|family| matches!(family.value, Value::Registered));
    let rows: BTreeMap<_, _> = rows.map(|row| (row.name.to_owned(), row.help.to_owned())).collect();
    assert_eq!(registered, rows);
}

#[test]
fn names_are_as_prometheus_wants_them() {
    let mut names = BTreeSet::new();
    for family in FAMILIES.iter().filter(|family| family.collector.is_some()) {
        assert!(names.insert(family.name), "{} stands twice", family.name);
        assert_eq!(family.kind == Kind::Counter, family.name.ends_with("_total"), "{}", family.name);
        assert!(family.kind != Kind::Histogram || family.name.ends_with("_seconds"), "{}", family.name);
        assert!(family.help.ends_with('.'), "{}: {}", family.name, family.help);
        for word in ["of these", "those of the same", "in the same way", "Of it,", "as above"] {
            assert!(!family.help.contains(word), "{}: {}", family.name, family.help);
        }
    }
}

#[tokio::test]
async fn an_unknown_collector_is_refused_and_the_known_ones_are_named() {
    let server = Server::of(node(World::new().tracker));
    for query in ["collect[]=cpu", "exclude[]=cpu"] {
        let (status, body) = server.get(&format!("/metrics?{query}")).await;
        assert_eq!(status, 400, "{query}");
        for collector in Collector::ALL {
            assert!(body.contains(collector.name()), "{body}");
        }
    }
    let (status, _) = server.get("/metrics?collect[]=states&exclude[]=daemon").await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn requests_are_timed_by_endpoint() {
    let server = Server::of(node(World::new().tracker));
    for path in ["/status", "/status?format=json", "/connections/1-2", "/nowhere"] {
        server.get(path).await;
    }
    let metrics = server.metrics("/metrics").await;
    let requests = |path| metrics.sum("tcpwatch_http_request_duration_seconds_count", &[("path", path)]);
    assert_eq!(
        ["/status", "/connections/{id}", "other", "/leaks"].map(requests),
        [Some(2), Some(1), Some(1), None]
    );
}
