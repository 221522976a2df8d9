//! A recorded run, played through the whole daemon without root and without a kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use serde_json::{Value, json};
use tcpwatch::{
    cli::{
        options::DEFAULT_LIMITS,
        replay::{Replayed, answer, play},
    },
    events::frame::{Coverage, Frame},
    findings::Settings,
    kernel::probes::Hooks,
    model::tracker::Limits,
    node::Node,
    recorder,
    tcp::state::TcpState,
};

#[path = "fixtures/mod.rs"]
mod fixture;
#[path = "kernel/metrics.rs"]
mod metrics;

use metrics::{Metrics, all_collectors};

async fn ask(replayed: Replayed, path: &str) -> String {
    let (status, body) = answer(replayed, path).await.unwrap();
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert_eq!(status, 200, "{path}: {body}");
    body
}

async fn json_of(replayed: Replayed, path: &str) -> Value {
    serde_json::from_str(&ask(replayed, path).await).unwrap()
}

#[test]
fn the_fixture_is_whole_and_small() {
    assert_eq!(fixture::played().unread_bytes, 0);
    assert!(std::fs::metadata(fixture::path()).unwrap().len() < 100 << 10);
}

#[tokio::test]
async fn leaks_are_named_worst_first() {
    let answer = json_of(fixture::played(), "/leaks?format=json").await;
    assert_eq!((&answer["node"], &answer["complete"]), (&json!("fixture"), &json!(true)));
    let leaks = answer["leaks"].as_array().unwrap();
    let mut named = Vec::new();
    for leak in leaks {
        let oldest = leak["oldest_seconds"].as_f64().unwrap();
        assert!((1.0..10.0).contains(&oldest), "{leak}");
        assert_eq!(leak["oldest_is_lower_bound"], false, "{leak}");
        assert!(leak["process"]["exe"].is_string() && leak["process"]["cgroup"].is_string(), "{leak}");
        let remote = &leak["remote"];
        let words = ["rule", "severity", "state", "role"].map(|key| leak[key].as_str().unwrap());
        named.push(format!(
            "{} {} {} x{} {} unread, remote {}:{}",
            words.join(" "),
            leak["process"]["comm"].as_str().unwrap(),
            leak["local"]["port"],
            leak["count"],
            leak["unread_bytes"],
            remote["addr"].as_str().unwrap(),
            remote["port"],
        ));
    }
    let severities: Vec<_> = leaks.iter().map(|leak| leak["severity"].as_str().unwrap()).collect();
    assert_eq!(severities, ["warning", "warning", "warning", "info", "info", "info", "info"]);
    // The one with a single connection knows its own port too; it changes with each recording.
    let dialling = leaks.iter().find(|leak| leak["count"] == 1).unwrap();
    let own_port = dialling["local"]["port"].as_u64().unwrap();
    named.sort();
    assert_eq!(
        named,
        [
            "close_wait_leak warning CLOSE_WAIT server holds-on 7300 x3 0 unread, remote 127.0.0.1:null",
            "close_wait_leak warning CLOSE_WAIT server leaky-4 7004 x3 15 unread, remote 127.0.0.1:null",
            "close_wait_leak warning CLOSE_WAIT server leaky-6 7006 x2 10 unread, remote ::1:null",
            "fin_wait2_pileup info FIN_WAIT2 client client-4 null x3 0 unread, remote 127.0.0.1:7004",
            "fin_wait2_pileup info FIN_WAIT2 client client-6 null x2 0 unread, remote ::1:7006",
            "fin_wait2_pileup info FIN_WAIT2 client half-closed null x3 0 unread, remote 127.0.0.1:7300",
            &format!(
                "lingering_syn_sent info SYN_SENT client hopeful {own_port} x1 0 unread, remote 127.0.0.1:7400"
            ),
        ]
    );
}

#[tokio::test]
async fn a_limit_is_reached_to_the_microsecond() {
    let leaky = |answer: &Value| {
        let leaks = answer["leaks"].as_array().unwrap();
        leaks.iter().find(|leak| leak["process"]["comm"] == "leaky-6").cloned()
    };
    let with_limit = async |limit: Duration| {
        let mut settings = Settings::default();
        settings.linger.set(TcpState::CloseWait, limit).unwrap();
        leaky(&json_of(play(recorder::open(&fixture::path()).unwrap(), settings), "/leaks?format=json").await)
    };
    let leak = leaky(&json_of(fixture::played(), "/leaks?format=json").await).unwrap();
    // Ages are cut to the microsecond below.
    let age = Duration::from_micros((leak["oldest_seconds"].as_f64().unwrap() * 1e6).round() as u64);
    assert_eq!(with_limit(age).await.unwrap()["count"], 1);
    assert_eq!(with_limit(age + Duration::from_micros(1)).await, None);
}

#[tokio::test]
async fn connections_have_owner_role_and_state() {
    let answer = json_of(fixture::played(), "/connections?format=json&limit=10000").await;
    assert_eq!(answer["total"], fixture::TOTAL);
    let mut counts = BTreeMap::<String, usize>::new();
    for row in answer["connections"].as_array().unwrap() {
        let words = [&row["process"]["comm"], &row["role"], &row["state"]].map(|word| word.as_str().unwrap());
        let older = if row["state_is_lower_bound"] == true { " for at least" } else { "" };
        *counts.entry(words.join(" ") + older).or_default() += 1;
        assert!(row["state_seconds"].as_f64() <= row["age_seconds"].as_f64(), "{row}");
    }
    let expected = [
        ("client-4 client FIN_WAIT2", 3),
        ("client-6 client FIN_WAIT2", 2),
        ("echo-client client TIME_WAIT", 20),
        ("echo-server listener LISTEN", 1),
        ("half-closed client FIN_WAIT2", 3),
        ("holds-on listener LISTEN", 1),
        ("holds-on server CLOSE_WAIT", 3),
        ("hopeful client SYN_SENT", 1),
        ("late-server listener LISTEN", 1),
        ("late-server server ESTABLISHED", 1),
        ("leaky-4 listener LISTEN", 1),
        ("leaky-4 server CLOSE_WAIT", 3),
        ("leaky-6 listener LISTEN", 1),
        ("leaky-6 server CLOSE_WAIT", 2),
        ("mute-server listener LISTEN", 1),
        ("old-client client ESTABLISHED for at least", 2),
        ("old-server listener LISTEN for at least", 1),
        ("old-server server ESTABLISHED for at least", 2),
        ("slow-dial client ESTABLISHED", 1),
    ];
    assert_eq!(counts, expected.map(|(row, count)| (row.to_owned(), count)).into());
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let metrics = Metrics::parse(&ask(fixture::played(), &all_collectors()).await);
    let of = |name: &str, process: &str| metrics.sum(name, &[("process", process)]).unwrap();
    let observed = |process: &str, state: &str| {
        let family = if state.starts_with("SYN") { "handshake" } else { "state" };
        let name = format!("tcpwatch_{family}_duration_seconds_count");
        metrics.sum(&name, &[("process", process), ("state", state)])
    };
    for (process, opened, closed, retransmits) in [
        ("old-server", 0, 0, 0),
        ("leaky-4", 3, 0, 0),
        ("leaky-6", 2, 0, 0),
        ("client-6", 2, 2, 0),
        ("echo-server", 20, 20, 0),
        ("echo-client", 20, 20, 0),
        ("refused", 0, 0, 0),
        ("slow-dial", 1, 0, 1),
        ("late-server", 1, 0, 0),
    ] {
        let counted = [
            of("tcpwatch_connections_opened_total", process),
            of("tcpwatch_connections_closed_total", process),
            of("tcpwatch_retransmits_total", process),
        ];
        assert_eq!(counted, [opened, closed, retransmits], "{process}");
    }
    assert!(of("tcpwatch_retransmits_total", "hopeful") > 0);
    assert_eq!(observed("echo-server", "ESTABLISHED"), Some(20));
    assert_eq!(observed("echo-client", "FIN_WAIT2"), Some(20));
    assert_eq!(observed("refused", "SYN_SENT"), Some(1));
    assert_eq!(observed("hopeful", "SYN_SENT"), Some(0), "it is still there");
    assert_eq!(observed("old-server", "ESTABLISHED"), Some(0), "its beginning was not seen");
    assert_eq!(metrics.sum("tcpwatch_records_malformed_total", &[]), Some(0));
    let lingering = |process| metrics.sum("tcpwatch_lingering_connections", &[("process", process)]);
    assert_eq!(lingering("leaky-4"), Some(3));
    assert_eq!(lingering("echo-server"), None);
    let in_tables = metrics.sum("tcpwatch_connections", &[]);
    assert_eq!(in_tables, Some(fixture::TOTAL as u64));
}

#[tokio::test]
async fn fin_wait2_is_not_left_when_the_kernel_shrinks_the_socket() {
    let metrics = Metrics::parse(&ask(fixture::played(), &all_collectors()).await);
    for process in ["client-4", "client-6", "half-closed"] {
        let labels = [("process", process), ("state", "FIN_WAIT2")];
        assert!(metrics.sum("tcpwatch_connections", &labels[1..]) > Some(0));
        let left = metrics.sum("tcpwatch_state_duration_seconds_count", &labels);
        assert_eq!(left.unwrap_or(0), 0, "{process}: all of them are in FIN_WAIT2 still");
    }
}

/// The fixture with a malformed record before its frame number `at`, counted from the end.
fn played_with_garbage(at: usize) -> Replayed {
    let mut frames: Vec<_> = recorder::open(&fixture::path()).unwrap().collect();
    frames.insert(frames.len() - at, Frame::Record(vec![0xff; 5].into()));
    played_from(DEFAULT_LIMITS, &frames)
}

/// Plays these frames to a node whose tables have these limits.
fn played_from(limits: Limits, frames: &[Frame]) -> Replayed {
    let Replayed { node, clock, .. } = fixture::played();
    let reported = recorder::open(&fixture::path()).unwrap().header.reported;
    let mut played = Node::new(node.identity, fixture::settings(), limits, Hooks::default(), reported);
    for frame in frames {
        played.ingest(frame);
    }
    Replayed { node: played, clock, unread_bytes: 0 }
}

#[tokio::test]
async fn a_malformed_record_is_made_up_for_by_the_next_sweep_and_remembered() {
    let frames = recorder::open(&fixture::path()).unwrap().count();
    for (at, complete) in [(frames, true), (frames / 2, true), (0, false)] {
        let leaks = json_of(played_with_garbage(at), "/leaks?format=json").await;
        assert_eq!(leaks["complete"], complete, "{at} frames from the end: {leaks}");
        assert_eq!(leaks["errors"].as_array().unwrap().len(), usize::from(!complete), "{leaks}");
        let text = ask(played_with_garbage(at), "/leaks").await;
        assert_eq!(text.contains("INCOMPLETE: connections: 1 malformed"), !complete, "{text}");
        let status = json_of(played_with_garbage(at), "/status?format=json").await;
        assert_eq!(status["records"]["malformed"], 1, "{status}");
    }
}

#[tokio::test]
async fn a_full_table_is_complete_again_when_a_sweep_finds_room_for_all() {
    let frames: Vec<_> = recorder::open(&fixture::path()).unwrap().collect();
    let small = Limits { connections: fixture::TOTAL / 2, ..DEFAULT_LIMITS };
    let full = || played_from(small, &frames);
    let leaks = json_of(full(), "/leaks?format=json").await;
    assert!(leaks["errors"].to_string().contains("found no room"), "{leaks}");
    // Every connection is over, says a sweep that finds none.
    let Replayed { mut node, clock, .. } = full();
    let untracked = node.tracker.untracked();
    let namespaces = node.tracker.table().iter().map(|conn| conn.netns).collect();
    node.ingest(&Frame::SweepBegin(clock.now_ns));
    node.ingest(&Frame::SweepEnd(Coverage { namespaces, all: true, ..Coverage::default() }));
    let empty = Replayed { node, clock, unread_bytes: 0 };
    let status = json_of(empty, "/status?format=json").await;
    assert_eq!((&status["complete"], &status["connections"]["total"]), (&json!(true), &json!(0)), "{status}");
    assert_eq!(status["connections"]["untracked"], untracked, "the counter remembers");
}

struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("tcpwatch-{name}-{}", std::process::id())))
    }

    /// Plays these bytes if they are a recording, and returns how many of them were left unread.
    fn play(&self, bytes: &[u8]) -> Option<usize> {
        std::fs::write(&self.0, bytes).unwrap();
        let recording = recorder::open(&self.0).ok()?;
        Some(play(recording, fixture::settings()).unread_bytes)
    }

    /// Plays these bytes if they are a recording, and requests every page.
    async fn play_and_ask(&self, bytes: &[u8]) {
        for path in ["/leaks", "/connections?limit=10000", "/metrics", "/status", "/readyz"] {
            std::fs::write(&self.0, bytes).unwrap();
            let Ok(recording) = recorder::open(&self.0) else { return };
            let (status, body) = answer(play(recording, fixture::settings()), path).await.unwrap();
            assert!(status == 200 || path == "/readyz", "{path}: {status} {body:?}");
        }
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The offset of each frame, and of the end. Frames follow the header's line: length (u32), kind (u8), payload.
fn frame_boundaries(bytes: &[u8]) -> Vec<usize> {
    let mut boundaries = vec![bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1];
    while let Some(length) = bytes.get(boundaries[boundaries.len() - 1]..).and_then(|rest| rest.first_chunk())
    {
        boundaries.push(boundaries[boundaries.len() - 1] + 5 + u32::from_le_bytes(*length) as usize);
    }
    boundaries
}

#[tokio::test]
async fn a_recording_cut_anywhere_plays_up_to_there() {
    let file = TempFile::new("cut");
    let bytes = std::fs::read(fixture::path()).unwrap();
    let boundaries = frame_boundaries(&bytes);
    assert_eq!(boundaries.last(), Some(&bytes.len()));
    assert!(boundaries.len() > 200, "{}", boundaries.len());
    for (index, frame) in boundaries.windows(2).enumerate() {
        let (begin, end) = (frame[0], frame[1]);
        for cut in [begin, begin + 1, begin + 4, begin + 5, end - 1] {
            if cut < end {
                assert_eq!(file.play(&bytes[..cut]), Some(cut - begin), "cut at {cut}");
            }
        }
        if index % 20 == 0 {
            file.play_and_ask(&bytes[..begin]).await;
        }
    }
    // In the header, where it is no recording yet.
    for cut in 0..boundaries[0] {
        assert_eq!(file.play(&bytes[..cut]), None, "cut at {cut}");
    }
}

/// xorshift64 with a fixed seed: the same flips each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

#[tokio::test]
async fn flipped_bits_cause_no_panic() {
    let file = TempFile::new("flipped");
    let bytes = std::fs::read(fixture::path()).unwrap();
    let mut random = Random(0x7463_7077_6174_6368);
    for round in 0..150 {
        let mut flipped = bytes.clone();
        for _ in 0..=round % 4 {
            flipped[random.below(bytes.len())] ^= 1 << random.below(8);
        }
        file.play_and_ask(&flipped).await;
    }
    // And each single bit of the header and of the first frames.
    for bit in 0..8 * 200 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        file.play(&flipped);
    }
}

/// The kind of the frames that carry a clock reading.
const TICK: u8 = 5;

#[tokio::test]
async fn any_clock_reading_is_accepted() {
    let file = TempFile::new("time");
    let bytes = std::fs::read(fixture::path()).unwrap();
    let boundaries = frame_boundaries(&bytes);
    let ticks: Vec<usize> =
        boundaries.iter().copied().filter(|at| bytes.get(at + 4) == Some(&TICK)).collect();
    let (header, frames) = bytes.split_at(boundaries[0]);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    header["wall_offset_ns"] = json!(u64::MAX);
    file.play_and_ask(&[header.to_string().as_bytes(), b"\n", frames].concat()).await;
    for tick in ticks {
        for time in [0, 1, u64::MAX / 2, u64::MAX - 1, u64::MAX] {
            let mut changed = bytes.clone();
            changed[tick + 5..tick + 13].copy_from_slice(&time.to_le_bytes());
            file.play_and_ask(&changed).await;
        }
    }
}

fn tcpwatch_replay(args: &[&str]) -> (Option<i32>, String, String) {
    let command = Command::new(env!("CARGO_BIN_EXE_tcpwatch")).arg("replay").args(args).output();
    let Output { status, stdout, stderr } = command.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn replay_answers_or_exits_with_the_right_code() {
    let fixture = fixture::path();
    let fixture = fixture.to_str().unwrap();
    let (code, out, _) = tcpwatch_replay(&[fixture, "/leaks?format=json", "--linger", "close-wait=1s"]);
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, answer["leaks"].as_array().unwrap().len()), (Some(0), 3));

    for (args, expected) in [
        (&[fixture, "/no-such-path"][..], 64),
        (&[fixture, "/connections?state=none"], 64),
        (&[fixture, "--linger", "established=1s"], 64),
        (&[], 64),
        (&["/no/such/file"], 66),
        (&[env!("CARGO_BIN_EXE_tcpwatch")], 66),
    ] {
        let (code, out, err) = tcpwatch_replay(args);
        assert_eq!(code, Some(expected), "{args:?}: {out}{err}");
        assert!(!err.contains("panicked") && !(out + &err).is_empty(), "{args:?}: {err}");
    }
}
