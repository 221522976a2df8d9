//! The processor time that records and answers cost the daemon, without a kernel: synthetic records in, nothing out.
//!
//! Run with `cargo bench -p tcpwatch`. `cargo xtask bench` measures the BPF programs and the whole daemon.
#![allow(clippy::unwrap_used, reason = "benches")]

use std::{
    cell::LazyCell,
    hint::black_box,
    net::Ipv4Addr,
    num::NonZeroU16,
    time::{Instant, UNIX_EPOCH},
};

use axum::{
    body::{Body, to_bytes},
    http::Request,
};
use bytemuck::{Zeroable as _, bytes_of, cast};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tcpwatch::{
    events::{
        decode,
        frame::{Frame, ReportedFacts},
    },
    findings::Settings,
    http::{Api, router},
    kernel::{
        probes::Hooks,
        transport::inbox::{Inbox, Queued},
    },
    model::{
        series::{SAMPLE_INTERVAL, Series},
        tracker::Limits,
    },
    node::{Node, NodeIdentity, Question},
    tcp::{ticks::TickRate, time::Clock},
};
use tcpwatch_common::{
    FLAG_FIN_RECEIVED as FIN, FLAG_HELD as HELD, FLAG_ORPHAN as ORPHAN, FLAG_PASSIVE as PASSIVE, KIND_TASK,
    KIND_TRANSITION, KIND_TRANSITION_WITH_TRAFFIC, QueueSlot, SocketEvent, TaskEvent,
    state::{CLOSE, CLOSE_WAIT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK, LISTEN, SYN_RECV, SYN_SENT},
};
use tokio::sync::mpsc;
use tower::ServiceExt as _;

const CLIENT: u32 = 100;
const SERVER: u32 = 200;
const PORT: u16 = 80;
/// Records of both ends of one connection, from connect to close.
const RECORDS: usize = 9;
/// Nanoseconds between two connections: 2,000 a second, so that 120,000 are in TIME_WAIT.
const INTERVAL_NS: u64 = 500_000;
const TIME_WAITS: u64 = 120_000;
/// Connections a second.
const TICK: u64 = 2_000;

fn node(limits: Limits) -> Node {
    let identity = NodeIdentity {
        node: "bench".to_owned(),
        kernel: "6.1.0".to_owned(),
        started_ns: 0,
        wall_offset_ns: 0,
        tick_rate: TickRate(NonZeroU16::MIN),
    };
    let mut node =
        Node::new(identity, Settings::default(), limits, Hooks::default(), ReportedFacts::default());
    node.waiting_for = None;
    for (tgid, comm) in [(CLIENT, *b"client\0\0\0\0\0\0\0\0\0\0"), (SERVER, *b"server\0\0\0\0\0\0\0\0\0\0")] {
        let task = TaskEvent { kind: KIND_TASK, tgid, start_ns: tgid.into(), comm, ..TaskEvent::zeroed() };
        node.record(bytes_of(&task));
    }
    node
}

fn v4(address: u32) -> [u8; 16] {
    Ipv4Addr::from(address).to_ipv6_mapped().octets()
}

/// One end of connection `number` to a server's `port`.
fn end(number: u64, port: u16, client: bool) -> SocketEvent {
    let (address, sport) = (0x7f00_0001 + (number / 50_000) as u32, 10_000 + (number % 50_000) as u16);
    let (local, remote) = ((v4(address), sport), (v4(0x7f00_0001), port));
    let (local, remote) = if client { (local, remote) } else { (remote, local) };
    SocketEvent {
        kind: KIND_TRANSITION,
        netns: 1,
        cookie: 1000 + number * 2 + u64::from(client),
        saddr: local.0,
        sport: local.1,
        daddr: remote.0,
        dport: remote.1,
        ..SocketEvent::zeroed()
    }
}

fn step(
    end: SocketEvent,
    time_ns: u64,
    (old_state, new_state): (u8, u8),
    flags: u8,
    value: u32,
) -> SocketEvent {
    let passive = if end.dport == PORT { 0 } else { PASSIVE };
    let event = SocketEvent { time_ns, old_state, new_state, flags: flags | passive, value, ..end };
    if old_state == ESTABLISHED || new_state == CLOSE { with_traffic(event) } else { event }
}

/// 64 bytes each way.
fn with_traffic(mut event: SocketEvent) -> SocketEvent {
    event.kind = KIND_TRANSITION_WITH_TRAFFIC;
    for address in [&mut event.saddr, &mut event.daddr] {
        address[..8].copy_from_slice(&64_u64.to_ne_bytes());
    }
    event
}

/// The records of a connection from connect to close, both sides, in the kernel's order.
fn connection(number: u64, began_ns: u64) -> [SocketEvent; RECORDS] {
    let (client, server) = (end(number, PORT, true), end(number, PORT, false));
    let at = |step: u64| began_ns + step * 2_000;
    [
        step(client, at(0), (CLOSE, SYN_SENT), HELD, CLIENT),
        step(server, at(1), (SYN_RECV, ESTABLISHED), 0, 0),
        step(client, at(2), (SYN_SENT, ESTABLISHED), HELD, 0),
        step(client, at(3), (ESTABLISHED, FIN_WAIT1), ORPHAN, CLIENT),
        step(server, at(4), (ESTABLISHED, CLOSE_WAIT), HELD | FIN, 0),
        step(client, at(5), (FIN_WAIT1, FIN_WAIT2), ORPHAN, 0),
        step(server, at(6), (CLOSE_WAIT, LAST_ACK), ORPHAN | FIN, SERVER),
        step(client, at(7), (FIN_WAIT2, CLOSE), ORPHAN | FIN, 0),
        step(server, at(8), (LAST_ACK, CLOSE), ORPHAN | FIN, 0),
    ]
}

fn listener() -> SocketEvent {
    let listener = SocketEvent { sport: PORT, saddr: v4(0), cookie: 1, ..end(0, PORT, true) };
    let listener = SocketEvent { daddr: v4(0), dport: 0, ..listener };
    step(listener, 1, (CLOSE, LISTEN), HELD | PASSIVE, SERVER)
}

/// Connections one after the other, each from connect to close, on a node that has had a minute of them.
struct Churn {
    node: Node,
    made: u64,
    applied: u64,
}

impl Churn {
    fn new() -> Self {
        let mut node = node(Limits { connections: 1_000_000, ended: 10_000, label_sets: 1000 });
        node.record(bytes_of(&listener()));
        let mut churn = Self { node, made: 0, applied: 0 };
        for _ in 0..TIME_WAITS {
            let connection = churn.next();
            churn.apply(&connection);
        }
        churn
    }

    fn next(&mut self) -> [SocketEvent; RECORDS] {
        self.made += 1;
        connection(self.made, self.made * INTERVAL_NS)
    }

    fn apply(&mut self, connection: &[SocketEvent]) {
        for record in connection {
            self.node.record(bytes_of(record));
        }
        self.applied += 1;
        if self.applied.is_multiple_of(TICK) {
            self.node.ingest(&Frame::Tick(self.applied * INTERVAL_NS));
        }
    }
}

fn records(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("record");
    group.throughput(Throughput::Elements(1));
    let event = connection(1, 1)[2];
    group.bench_function("decode", |bench| bench.iter(|| decode::record(black_box(bytes_of(&event)))));
    group.finish();
}

fn connections(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("connection");
    group.throughput(Throughput::Elements(1));
    let mut queues = Two::of((0..TIME_WAITS).flat_map(|number| connection(number, number * INTERVAL_NS)));
    let (mut inbox, mut until_ns) = (Inbox::default(), 0);
    group.bench_function("order", |bench| {
        bench.iter(|| {
            until_ns += INTERVAL_NS;
            if until_ns > TIME_WAITS * INTERVAL_NS {
                (queues.next, until_ns) = ([0; 2], 0);
            }
            inbox.take(&mut queues, until_ns, |record| {
                black_box(record);
            });
        });
    });
    let mut churn = LazyCell::new(Churn::new);
    group.bench_function("table", |bench| {
        bench.iter_custom(|count| {
            let connections: Vec<_> = (0..count).map(|_| churn.next()).collect();
            let began = Instant::now();
            for connection in &connections {
                churn.apply(connection);
            }
            began.elapsed()
        });
    });
    group.finish();
}

/// The queues of two processors, one of which runs the client's side and one the server's.
struct Two {
    slots: [Vec<QueueSlot>; 2],
    next: [usize; 2],
}

impl Two {
    fn of(events: impl Iterator<Item = SocketEvent>) -> Self {
        let (client, server): (Vec<_>, Vec<_>) = events.partition(|event| event.dport == PORT);
        let slots = [client, server].map(|events| events.into_iter().map(cast).collect());
        Self { slots, next: [0; 2] }
    }
}

impl Queued for Two {
    fn count(&self) -> usize {
        self.slots.len()
    }

    fn next_time(&self, queue: usize) -> Option<u64> {
        self.slots[queue].get(self.next[queue]).map(|slot| slot[1])
    }

    fn take(&mut self, queue: usize, each: impl FnOnce(&QueueSlot)) {
        each(&self.slots[queue][self.next[queue]]);
        self.next[queue] += 1;
    }
}

/// A million live connections, of which ten thousand linger in CLOSE_WAIT.
fn million() -> Node {
    const PAIRS: u64 = 500_000;
    const LINGERING: u64 = 10_000;
    let mut node = node(Limits { connections: 2_000_000, ended: 10_000, label_sets: 1000 });
    node.record(bytes_of(&listener()));
    for number in 0..PAIRS {
        let connection = connection(number, number);
        let steps = if number < LINGERING { 5 } else { 3 };
        for record in &connection[..steps] {
            node.record(bytes_of(record));
        }
    }
    node
}

/// A node with `label_sets` sets of process, role and peer, and counts in each.
fn all_label_sets(label_sets: usize) -> Node {
    let limits = Limits { connections: 1_000_000, ended: 10_000, label_sets };
    let mut node = node(limits);
    for number in 0..2 * limits.label_sets as u64 {
        for record in connection(number, number * INTERVAL_NS) {
            // A server's port of its own makes each connection its own peer.
            let (sport, dport) = (record.sport, record.dport);
            let own = |port| if port == PORT { 1000 + number as u16 } else { port };
            node.record(bytes_of(&SocketEvent { sport: own(sport), dport: own(dport), ..record }));
        }
    }
    node
}

/// With every collector but `nat`.
const ALL_METRICS: &str = "/metrics?collect[]=summary&collect[]=daemon&collect[]=connects&collect[]=closes\
                           &collect[]=resets&collect[]=retransmits&collect[]=stalls&collect[]=answers\
                           &collect[]=states&collect[]=sockets&collect[]=transfer";

fn answers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("answer");
    group.sample_size(20);
    let clock = Clock { now_ns: 600_000_000_000, wall: UNIX_EPOCH };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let questions = [
        ("leaks of a million, ten thousand lingering", million as fn() -> Node, "/leaks"),
        ("connections of a million", million, "/connections"),
        ("processes of a million", million, "/processes"),
        ("peers of a million", million, "/peers"),
        ("metrics of 200 label sets", || all_label_sets(200), "/metrics"),
        ("metrics of a thousand label sets", || all_label_sets(1000), "/metrics"),
        ("all metrics of 200 label sets", || all_label_sets(200), ALL_METRICS),
        ("all metrics of a thousand label sets", || all_label_sets(1000), ALL_METRICS),
    ];
    for (name, node, path) in questions {
        // Made only when the bench runs.
        let server = LazyCell::new(|| {
            let node = node();
            let (sender, mut asked) = mpsc::channel::<Question>(1);
            runtime.spawn(async move {
                while let Some(question) = asked.recv().await {
                    (question.ask)(&node, clock);
                }
            });
            router(Api::new(sender))
        });
        group.bench_function(name, |bench| {
            bench.iter(|| {
                runtime.block_on(async {
                    let request = Request::get(path).body(Body::empty()).unwrap();
                    let response = server.clone().oneshot(request).await.unwrap();
                    assert!(response.status().is_success());
                    to_bytes(response.into_body(), usize::MAX).await.unwrap()
                })
            });
        });
    }
    group.finish();
}

/// A million connections of ten thousand programs, each to a server of its own.
fn ten_thousand_programs() -> Node {
    const PROGRAMS: u64 = 10_000;
    let mut node = node(Limits { connections: 2_000_000, ended: 10_000, label_sets: PROGRAMS as usize });
    for program in 0..PROGRAMS as u32 {
        let mut comm = [0; 16];
        comm[..6].copy_from_slice(format!("p{program:05}").as_bytes());
        let tgid = 1000 + program;
        let task = TaskEvent { kind: KIND_TASK, tgid, start_ns: 1, comm, ..TaskEvent::zeroed() };
        node.record(bytes_of(&task));
    }
    for number in 0..1_000_000 {
        let client = end(number, 1000 + (number % PROGRAMS) as u16, true);
        for record in [
            step(client, number, (CLOSE, SYN_SENT), HELD, 1000 + (number % PROGRAMS) as u32),
            step(client, number + 1, (SYN_SENT, ESTABLISHED), HELD, 0),
        ] {
            node.record(bytes_of(&record));
        }
    }
    node
}

/// What the series cost the owner of the state each ten seconds.
fn samples(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sample");
    group.sample_size(20);
    for (name, node) in [
        ("a million connections", million as fn() -> Node),
        ("a million connections of ten thousand programs", ten_thousand_programs),
    ] {
        let mut state = LazyCell::new(|| (node(), Series::default(), 0));
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let (node, series, now_ns) = &mut *state;
                *now_ns += SAMPLE_INTERVAL.as_nanos() as u64;
                series.sample(node.tracker.tally(), *now_ns);
            });
        });
    }
    group.finish();
}

/// All rules once: a million connections of which ten thousand linger, and ten thousand sets of process, role and peer. They
/// run every two seconds.
fn findings(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rules");
    group.sample_size(20);
    for (name, mut node) in [("million", million()), ("sets", all_label_sets(10_000))] {
        let mut now_ns = 600_000_000_000;
        group.bench_function(name, |bench| {
            bench.iter(|| {
                now_ns += 2_000_000_000;
                let Node { findings, tracker, settings, .. } = &mut node;
                black_box(findings.evaluate(tracker, &settings.thresholds, now_ns))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, records, connections, answers, samples, findings);
criterion_main!(benches);
