//! What answers add to the memory of a daemon that knows a million connections, each to another destination.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{fs, net::Ipv4Addr, num::NonZeroU16, time::UNIX_EPOCH};

use axum::{
    body::{Body, HttpBody as _},
    http::Request,
};
use bytemuck::{Zeroable as _, bytes_of};
use tcpwatch::{
    events::frame::{Frame, ReportedFacts},
    findings::Settings,
    http::{Api, router},
    kernel::probes::Hooks,
    model::tracker::Limits,
    node::{Node, NodeIdentity, Question},
    tcp::{ticks::TickRate, time::Clock},
};
use tcpwatch_common::{
    FLAG_HELD as HELD, KIND_TASK, KIND_TRANSITION, SocketEvent, TaskEvent,
    state::{CLOSE, CLOSE_WAIT, ESTABLISHED, SYN_SENT},
};
use tokio::{runtime::Builder, sync::mpsc};
use tower::ServiceExt as _;

const CONNECTIONS: u32 = 1_000_000;
/// Every so many have been closed by their peer: they are named by /leaks.
const CLOSED_BY_PEER: u32 = 50;
const PROCESS: u32 = 100;
const SECOND: u64 = 1_000_000_000;
/// Of a stream so much is read.
const ENOUGH_BYTES: usize = 64 << 20;
/// What any answer may add.
const MAX_ADDED_KIB: u64 = 32 * 1024;

fn node() -> Node {
    let identity = NodeIdentity {
        node: "test".to_owned(),
        kernel: "6.1.0".to_owned(),
        started: UNIX_EPOCH,
        wall_offset_ns: 0,
        tick_rate: TickRate(NonZeroU16::MIN),
    };
    let limits = Limits { connections: CONNECTIONS as usize, ended: 10_000, label_sets: 200 };
    let mut node =
        Node::new(identity, Settings::default(), limits, Hooks::default(), ReportedFacts::default());
    node.waiting_for = None;
    let comm = *b"client\0\0\0\0\0\0\0\0\0\0";
    let task = TaskEvent { kind: KIND_TASK, tgid: PROCESS, start_ns: 1, comm, ..TaskEvent::zeroed() };
    node.record(bytes_of(&task));
    for number in 0..CONNECTIONS {
        let v4 = |address: u32| Ipv4Addr::from(address).to_ipv6_mapped().octets();
        let socket = SocketEvent {
            kind: KIND_TRANSITION,
            netns: 1,
            cookie: 1000 + u64::from(number),
            saddr: v4(0x0a00_0001),
            sport: 10_000 + (number % 50_000) as u16,
            daddr: v4(0x0b00_0000 + number),
            dport: 443,
            flags: HELD,
            value: PROCESS,
            ..SocketEvent::zeroed()
        };
        let ends = [(CLOSE, SYN_SENT), (SYN_SENT, ESTABLISHED), (ESTABLISHED, CLOSE_WAIT)];
        let steps = if number % CLOSED_BY_PEER == 0 { 3 } else { 2 };
        for (step, (old_state, new_state)) in (1..).zip(&ends[..steps]) {
            let time_ns = u64::from(number) * 1000 + step * 100;
            let event = SocketEvent { time_ns, old_state: *old_state, new_state: *new_state, ..socket };
            node.record(bytes_of(&event));
        }
    }
    node.ingest(&Frame::Tick(100 * SECOND));
    node
}

fn of_status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn no_answer_about_a_million_connections_adds_more_than_32_mib() {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let node = node();
    assert_eq!(node.tracker.table().len(), CONNECTIONS as usize);
    let clock = Clock { now_ns: 100 * SECOND, wall: UNIX_EPOCH };
    let (sender, mut questions) = mpsc::channel::<Question>(1);
    runtime.spawn(async move {
        while let Some(question) = questions.recv().await {
            (question.ask)(&node, clock);
        }
    });
    let router = router(Api::of_recording(sender));
    let mut too_much = Vec::new();
    for path in [
        "/",
        "/status",
        "/metrics",
        "/findings?format=json",
        "/connections?limit=10000",
        "/connections?limit=10000&format=json",
        "/connections?limit=10000&format=json&sort=stalled&state=ESTABLISHED",
        "/connections?format=ndjson&limit=10000",
        "/connections?format=ndjson",
        "/history?limit=10000&format=json",
        "/processes?limit=10000&format=json",
        "/peers?limit=10000&format=json",
        "/ports?limit=10000&format=json",
        "/ports?format=ndjson",
        "/nat?limit=10000&format=json",
        // Last, as what the allocator keeps of them is not seen as more memory by the others.
        "/leaks",
        "/leaks?format=json",
    ] {
        // The kernel's peak begins anew (proc(5)).
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = of_status("VmRSS");
        let (mut bytes, mut most) = (0, 0);
        runtime.block_on(async {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert!(response.status().is_success(), "{path}: {}", response.status());
            let mut body = response.into_body();
            // As a client that reads all: nothing is kept.
            while bytes < ENOUGH_BYTES
                && let Some(frame) =
                    std::future::poll_fn(|context| std::pin::Pin::new(&mut body).poll_frame(context)).await
            {
                let data = frame.unwrap().into_data().unwrap_or_default();
                (bytes, most) = (bytes + data.len(), most.max(data.len()));
            }
        });
        let added = of_status("VmHWM").saturating_sub(before);
        println!("{path}: {bytes} bytes, {most} at once, {added} KiB more memory");
        if added > MAX_ADDED_KIB {
            too_much.push((path, added));
        }
    }
    assert!(too_much.is_empty(), "{too_much:?}");
}
