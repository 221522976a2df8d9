//! Answers as people see them, over states that never change: each text is compared with the committed one beside this file,
//! and is harmless on a terminal of 100 columns.
//!
//! `cargo xtask docs` writes them anew: it runs these tests with `TCPWATCH_WRITE_DOCUMENTS=1`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "../scenario/mod.rs"]
mod scenario;

use std::{
    num::NonZeroU16,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use axum::{
    body::{Body, to_bytes},
    http::Request,
};
use scenario::*;
use serde_json::Value;
use tcpwatch::{
    events::frame::{Frame, LostRecords},
    findings::Settings,
    http::{Api, router},
    kernel::probes::Hooks,
    node::{Node, NodeIdentity, Question},
    tcp::time::Clock,
};
use tokio::sync::mpsc;
use tower::ServiceExt as _;

/// CLOCK_MONOTONIC at which every run begins: 2026-11-30 00:00:00Z.
const BEGIN: u64 = 100_000 * SECOND;
const BEGIN_UNIX: u64 = 1_795_996_800;
const ORDERS: u32 = 300;

/// A node whose time goes on.
struct Run {
    node: Node,
    now_ns: u64,
    cookie: u64,
    /// Cookies of the connections that a server leaks.
    leaked: Vec<u64>,
}

impl Run {
    /// Before the first sweep.
    fn begin() -> Self {
        let identity = NodeIdentity {
            node: "node-7".to_owned(),
            kernel: "6.12.0".to_owned(),
            started_ns: BEGIN,
            wall_offset_ns: BEGIN_UNIX * SECOND - BEGIN,
            tick_rate: TickRate(NonZeroU16::new(1000).unwrap()),
        };
        let reported = ReportedFacts::default();
        let node = Node::new(identity, Settings::default(), LIMITS, Hooks::default(), reported);
        let mut run = Self { node, now_ns: BEGIN, cookie: 100, leaked: Vec::new() };
        for (pid, comm) in [(CURL, "curl"), (NGINX, "nginx"), (ORDERS, "orders-api")] {
            run.learn(process(pid, comm));
        }
        run
    }

    /// A complete sweep has seen that there is nothing.
    fn swept() -> Self {
        let mut run = Self::begin();
        run.node.ingest(&Frame::SweepBegin(run.now_ns));
        let existing = Some([(NETNS, 1)].into_iter().collect());
        run.node.ingest(&Frame::SweepEnd(Coverage { all: true, existing, ..covering(&[NETNS]) }));
        run
    }

    fn learn(&mut self, task: TaskRecord) {
        self.node.tracker.apply(&Record::Task(task));
    }

    fn report(&mut self, socket: Socket, what: What) {
        let record = SocketRecord { socket, time_ns: self.now_ns, what, traffic: None };
        self.node.tracker.apply(&Record::Socket(record));
    }

    /// Time goes on.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now_ns += SECOND;
            self.node.ingest(&Frame::Tick(self.now_ns));
        }
    }

    /// One end of a new connection to or from this node.
    fn socket(&mut self, local: Endpoint, remote: Endpoint, flags: u8) -> Socket {
        self.cookie += 1;
        Socket::new(self.cookie, NETNS, local, remote, flags)
    }

    fn port(&self) -> u16 {
        32_768 + (self.cookie % 28_000) as u16
    }

    /// A client's, to a server elsewhere.
    fn connect(&mut self, pid: u32) -> Socket {
        let local = end("10.0.0.7", self.port());
        let socket = self.socket(local, end("10.20.0.9", 9092), HELD);
        self.report(socket, to(Close, SynSent, pid));
        self.report(socket, to(SynSent, Established, 0));
        socket
    }

    fn close(&mut self, socket: Socket, pid: u32) {
        let with = |flags| Socket::new(socket.cookie, NETNS, socket.local, socket.remote, flags);
        self.report(with(ORPHAN), to(Established, FinWait1, pid));
        self.report(with(ORPHAN), to(FinWait1, FinWait2, 0));
        self.report(with(ORPHAN | FIN), ended(FinWait2, 0));
    }

    fn refused(&mut self, pid: u32) {
        let local = end("10.0.0.7", self.port());
        let socket = self.socket(local, end("10.96.12.7", 6379), HELD);
        self.report(socket, to(Close, SynSent, pid));
        self.report(socket, ended(SynSent, ECONNREFUSED));
    }

    /// A client elsewhere connects and closes; the server accepts, and does nothing more.
    fn leak(&mut self, pid: u32) {
        let remote = end("10.9.0.1", self.port() + 1);
        let socket = self.socket(end("10.0.0.7", 8080), remote, PASSIVE | HELD);
        self.report(socket, to(SynRecv, Established, 0));
        self.report(socket, What::Accept { state: Established, pid: Some(pid) });
        self.report(socket, to(Established, CloseWait, 182));
        self.leaked.push(socket.cookie);
    }

    async fn get(self, path: &str, accept: &str) -> String {
        let clock = Clock {
            now_ns: self.now_ns,
            wall: UNIX_EPOCH + Duration::from_secs(BEGIN_UNIX) + Duration::from_nanos(self.now_ns - BEGIN),
        };
        let (sender, mut questions) = mpsc::channel::<Question>(1);
        tokio::spawn(async move {
            while let Some(question) = questions.recv().await {
                (question.ask)(&self.node, clock);
            }
        });
        let request = Request::get(path).header("Accept", accept).body(Body::empty()).unwrap();
        let response = router(Api::of_recording(sender)).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    }

    async fn json(self, path: &str) -> Value {
        serde_json::from_str(&self.get(path, "application/json").await).unwrap()
    }

    /// Compares the text with the committed one.
    async fn shows(self, path: &str, name: &str) -> String {
        let text = self.get(path, "*/*").await;
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{name}: {line}");
            assert!(!line.chars().any(char::is_control), "{name}: {line:?}");
        }
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/answers").join(format!("{name}.txt"));
        if std::env::var_os("TCPWATCH_WRITE_DOCUMENTS").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(text, committed, "{name}: write it anew with `cargo xtask docs`");
        text
    }
}

/// Two hours of ordinary use, in which another service was down for a minute.
fn healthy() -> Run {
    let mut run = Run::swept();
    for _ in 0..20 {
        run.connect(ORDERS);
    }
    for round in 0..720 {
        run.pass(5);
        let short = run.connect(CURL);
        run.pass(5);
        run.close(short, CURL);
        if (360..366).contains(&round) {
            (0..7).for_each(|_| run.refused(ORDERS));
        }
    }
    run
}

/// A server that does not close what its clients closed, for the last ten minutes.
fn leaking() -> Run {
    let mut run = Run::swept();
    for _ in 0..20 {
        run.connect(CURL);
    }
    run.pass(1800);
    for _ in 0..120 {
        run.leak(ORDERS);
        run.pass(5);
    }
    run
}

#[tokio::test]
async fn overview_of_a_healthy_node() {
    let text = healthy().shows("/", "overview_healthy").await;
    assert!(text.starts_with("node-7  OK: nothing wrong now"), "{text}");
}

#[tokio::test]
async fn overview_of_a_leak() {
    let text = leaking().shows("/", "overview_leak").await;
    assert!(text.starts_with("node-7  1 CRITICAL since 00:30"), "{text}");
    assert!(text.contains("<- growing, 12.0 a minute"), "{text}");
}

#[tokio::test]
async fn overview_before_the_first_sweep_claims_nothing() {
    let mut run = Run::begin();
    run.pass(3);
    let text = run.shows("/", "overview_starting").await;
    assert!(!text.contains("OK") && text.contains("INCOMPLETE"), "{text}");
}

#[tokio::test]
async fn overview_after_a_finding_says_when_it_was_over() {
    let mut run = leaking();
    for cookie in run.leaked.clone() {
        let remote = end("10.9.0.1", 32_768 + cookie as u16);
        let socket = Socket::new(cookie, NETNS, end("10.0.0.7", 8080), remote, PASSIVE | ORPHAN | FIN);
        run.report(socket, to(CloseWait, LastAck, ORDERS));
        run.report(socket, ended(LastAck, 0));
    }
    run.pass(1200);
    let text = run.shows("/", "overview_over").await;
    assert!(text.contains("OK: nothing wrong now; 1 finding in the last 6 h, over since 00:40"), "{text}");
}

#[tokio::test]
async fn overview_after_a_loss_says_so() {
    let mut run = Run::swept();
    run.connect(CURL);
    run.pass(120);
    run.node.ingest(&Frame::Lost(LostRecords { ring_full: 5, run_skipped: 1 }));
    run.shows("/", "overview_incomplete").await;
}

#[tokio::test]
async fn overview_with_hostile_names() {
    let mut run = Run::swept();
    let pid = 400;
    run.learn(process(pid, "\n\x1b[31mOK: x"));
    run.pass(60);
    for _ in 0..40 {
        run.leak(pid);
        run.refused(pid);
        run.pass(5);
    }
    run.shows("/", "overview_hostile").await;
}

#[tokio::test]
async fn overview_in_json_has_the_same_numbers() {
    let json = leaking().json("/").await;
    assert_eq!((&json["verdict"], &json["open"]), (&"1 CRITICAL".into(), &1.into()));
    assert_eq!(json["findings"][0]["rule"], "close_wait_leak");
    let close_wait = json["figures"].as_array().unwrap().iter().find(|row| row["name"] == "CLOSE_WAIT");
    let close_wait = close_wait.unwrap();
    assert_eq!((&close_wait["now"], &close_wait["quarter_ago"]), (&120.0.into(), &0.0.into()));
    assert_eq!((&close_wait["worst"], &close_wait["worst_of"]), (&120.into(), &"orders-api".into()));
    assert_eq!(close_wait["growth_per_minute"], 12.0);
}

#[tokio::test]
async fn series_of_all_and_of_one_workload() {
    leaking().shows("/series", "series").await;
    leaking().shows("/series?comm=orders-api&since=2m", "series_of_one").await;
    let json = leaking().json("/series?comm=orders-api&step=1m").await;
    let (times, series) = (json["times"].as_array().unwrap(), json["series"].as_array().unwrap());
    let [only] = &series[..] else { panic!("{json}") };
    let close_wait = &only["measures"]["CLOSE_WAIT"];
    let values = close_wait["values"].as_array().unwrap();
    assert_eq!((values.len(), close_wait["unit"].as_str()), (times.len(), Some("connections")));
    assert_eq!((&values[0], values.last().unwrap()), (&Value::Null, &119.into()));
    assert_eq!(json["step_seconds"], 60);
}
