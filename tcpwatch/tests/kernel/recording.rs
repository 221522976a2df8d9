//! A recorded run gives, when replayed, the answers of the run itself. A run like this is also the fixture of the tests
//! without a kernel: `tests/fixtures/record.sh` writes it.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tcpwatch::{
    events::{
        decode::{self, IdleRecord, InterfaceRecord, Record, TrafficRecord},
        frame::Frame,
        seen::{self, ListOwner, SeenList},
    },
    recorder::{self, Recorder},
};
use tcpwatch_common::SeenSocket;

use crate::{
    counts::{ECHO_CLIENT, ECHO_SERVER, IS_REFUSED},
    daemon::{Daemon, TCPWATCH, tcpwatch},
    eventually::eventually,
    leaks::{ANSWERS_LATE, DIALS, ENDS, NEVER_CLOSES, SENDS_AND_CLOSES},
    netns::Namespace,
    workload::Workload,
};

const LIMITS: [&str; 2] = ["--linger", "close-wait=1s,fin-wait2=1s,syn-sent=1s"];

struct TempFile(PathBuf);

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// One connection of each kind; tests/replay.rs expects these numbers.
fn run_workload(namespace: &Namespace, before: Vec<Workload>) -> Vec<Workload> {
    let mut all = before;
    let mut start = |comm: &str, program: &str, args: &[&str]| {
        let mut one = Workload::start(namespace, comm, program, args);
        let said = one.hear();
        all.push(one);
        (all.len() - 1, said)
    };
    let servers: Vec<usize> = [
        start("leaky-4", NEVER_CLOSES, &["127.0.0.1", "3", "7004"]),
        start("leaky-6", NEVER_CLOSES, &["::1", "2", "7006"]),
        start("holds-on", NEVER_CLOSES, &["127.0.0.1", "3", "7300"]),
    ]
    .map(|(index, _)| index)
    .into();
    let clients = [
        start("client-4", SENDS_AND_CLOSES, &["127.0.0.1", "3", "7004"]).0,
        start("client-6", SENDS_AND_CLOSES, &["::1", "2", "7006"]).0,
    ];
    start("echo-server", ECHO_SERVER, &["127.0.0.1", "7100"]);
    start("echo-client", ECHO_CLIENT, &["127.0.0.1", "7100", "20"]);
    start("refused", IS_REFUSED, &["::1"]);
    let (late, _) = start("late-server", ANSWERS_LATE, &["::1", "7200"]);
    start("slow-dial", DIALS, &["::1", "7200"]);
    start("mute-server", ANSWERS_LATE, &["127.0.0.1", "7400"]);
    start("hopeful", DIALS, &["127.0.0.1", "7400"]);
    // Its first SYN was lost, the next one is not.
    assert_eq!(all[late].ask(), "accepted");
    let half_closed = Workload::start(namespace, "half-closed", ENDS, &["close", "127.0.0.1", "7300"]);
    all.push(half_closed);
    for server in servers {
        assert_eq!(all[server].hear(), "accepted");
    }
    for client in clients {
        all[client].ask();
    }
    all
}

#[test]
fn a_replayed_run_gives_the_answers_of_the_live_run() {
    let file = TempFile(std::env::temp_dir().join(format!("tcpwatch-run-{}", std::process::id())));
    let path = file.0.to_str().unwrap();
    let namespace = Namespace::new();
    let mut old_server = Workload::start(&namespace, "old-server", NEVER_CLOSES, &["127.0.0.1", "2", "7500"]);
    old_server.hear();
    let mut old_client =
        Workload::start(&namespace, "old-client", SENDS_AND_CLOSES, &["127.0.0.1", "2", "7500"]);
    assert_eq!((old_server.hear(), old_client.hear()), ("accepted".into(), "connected".into()));

    let mut daemon = Daemon::start(&[&LIMITS[..], &["--record", path]].concat());
    let workload = run_workload(&namespace, vec![old_server, old_client]);
    // From /metrics, as each request of /leaks adds a sweep to the recording.
    for (process, count) in [
        ("leaky-4", 3),
        ("leaky-6", 2),
        ("holds-on", 3),
        ("client-4", 3),
        ("client-6", 2),
        ("half-closed", 3),
        ("hopeful", 1),
    ] {
        eventually("what lingers is counted", || {
            let lingering = daemon.metrics().sum("tcpwatch_lingering_connections", &[("process", process)]);
            if lingering == Some(count) { Ok(()) } else { Err(format!("{process}: {lingering:?}")) }
        });
    }
    let pids: HashSet<u32> = workload.iter().map(Workload::pid).collect();
    let live = Said::all(&namespace, &pids, |path| daemon.json(path));
    assert!(daemon.end(rustix::process::Signal::TERM).success(), "{}", daemon.log());

    let played = Said::all(&namespace, &pids, |question| {
        let question = format!("{question}{}format=json", if question.contains('?') { '&' } else { '?' });
        let answer = tcpwatch(TCPWATCH).args(["replay", path, &question]).args(LIMITS).output().unwrap();
        assert!(answer.status.success(), "{question}: {}", String::from_utf8_lossy(&answer.stderr));
        serde_json::from_slice(&answer.stdout).unwrap()
    });
    assert_eq!(only_in(&live, &played), [] as [&str; 0], "said only when it ran");
    assert_eq!(only_in(&played, &live), [] as [&str; 0], "said only when played");
    assert_eq!(live.leaks.len(), 7, "{:?}", live.leaks);

    if let Some(fixture) = std::env::var_os("TCPWATCH_FIXTURE") {
        write_fixture(&file.0, Path::new(&fixture), namespace.inode, &pids);
    }
}

/// The answers about these processes and this namespace, without ages and prose.
struct Said {
    leaks: Vec<String>,
    rows: Vec<String>,
}

impl Said {
    fn all(namespace: &Namespace, pids: &HashSet<u32>, ask: impl Fn(&str) -> Value) -> Self {
        let of = |answer: &Value, list: &str, ours: &dyn Fn(&Value) -> bool, apart: &[&str]| {
            let found = answer[list].as_array().unwrap().iter().filter(|one| ours(one)).cloned();
            let mut found: Vec<String> = found.map(|one| without(one, apart).to_string()).collect();
            found.sort();
            found
        };
        let pid_is_ours =
            |leak: &Value| leak["process"]["pid"].as_u64().is_some_and(|pid| pids.contains(&(pid as u32)));
        let leaks = of(
            &ask("/leaks"),
            "leaks",
            &pid_is_ours,
            &["oldest_seconds", "growth_per_minute", "summary", "next_step"],
        );
        let netns_is_ours = |row: &Value| row["netns"] == namespace.inode;
        let mut rows = ask("/connections?limit=10000");
        // Sums of the latest sweep: another sweep may have come between this answer and the recording's end.
        for row in rows["connections"].as_array_mut().unwrap() {
            for key in ["accepted", "queue", "queue_limit", "overflows"] {
                row.as_object_mut().unwrap().remove(key);
            }
        }
        let rows = of(&rows, "connections", &netns_is_ours, &["age_seconds", "state_seconds"]);
        Self { leaks, rows }
    }
}

fn only_in<'a>(one: &'a Said, other: &Said) -> Vec<&'a str> {
    let elsewhere = |line: &&String| other.leaks.contains(line) || other.rows.contains(line);
    one.leaks.iter().chain(&one.rows).filter(|line| !elsewhere(line)).map(String::as_str).collect()
}

fn without(mut object: Value, keys: &[&str]) -> Value {
    for key in keys {
        object.as_object_mut().unwrap().remove(*key).unwrap_or_else(|| panic!("no {key}: {object}"));
    }
    object
}

/// Writes the recording without the sockets and processes of the rest of this machine.
fn write_fixture(recorded: &Path, fixture: &Path, netns: u64, pids: &HashSet<u32>) {
    let recording = recorder::open(recorded).unwrap();
    let header = tcpwatch::events::recording::Header { node: "fixture".to_owned(), ..recording.header };
    let mut recorder = Recorder::create(fixture, &header, u64::MAX).unwrap();
    let mut cookies = HashSet::new();
    for frame in recorder::open(recorded).unwrap() {
        let frame = match frame {
            Frame::Record(bytes) => {
                let ours = match decode::record(&bytes).unwrap() {
                    Record::Socket(record) | Record::Retransmit(record, _) => {
                        let ours = u64::from(record.socket.netns) == netns;
                        if ours {
                            cookies.insert(record.socket.cookie);
                        }
                        ours
                    }
                    Record::Reset(record) => u64::from(record.socket.netns) == netns,
                    Record::Idle(IdleRecord { cookie, .. })
                    | Record::Traffic(TrafficRecord { cookie, .. })
                    | Record::Interface(InterfaceRecord { cookie, .. }) => cookies.contains(&cookie),
                    Record::Task(task) => pids.contains(&task.pid),
                };
                ours.then_some(Frame::Record(bytes))
            }
            Frame::Seen(records) => {
                let sockets = records.chunks(size_of::<SeenSocket>());
                let ours = sockets.filter(|socket| {
                    if seen::is_list(socket) {
                        let SeenList { of, cookies: of_list, .. } = seen::decode_list(socket).unwrap();
                        return match of {
                            ListOwner::Listener { cookie, .. } => cookies.contains(&cookie),
                            ListOwner::Holder(_) => of_list.iter().any(|cookie| cookies.contains(cookie)),
                        };
                    }
                    let socket = seen::decode(socket).unwrap().socket;
                    let ours = u64::from(socket.netns) == netns;
                    if ours {
                        cookies.insert(socket.cookie);
                    }
                    ours
                });
                Some(Frame::Seen(ours.flatten().copied().collect::<Vec<u8>>().into()))
            }
            Frame::SweepEnd(mut coverage) => {
                coverage.namespaces.retain(|inode| u64::from(*inode) == netns);
                coverage
                    .existing
                    .iter_mut()
                    .for_each(|all| all.retain(|inode, _| u64::from(*inode) == netns));
                Some(Frame::SweepEnd(coverage))
            }
            Frame::Process(mut process) => {
                process.details.cgroup = Some("/system.slice/fixture.service".to_owned());
                pids.contains(&process.identity.pid).then_some(Frame::Process(process))
            }
            Frame::Interfaces(read) => (u64::from(read.netns) == netns).then_some(Frame::Interfaces(read)),
            other => Some(other),
        };
        if let Some(frame) = frame {
            recorder.write(&frame).unwrap();
        }
    }
    recorder.finish().unwrap();
}

/// A file system with little room, at a directory of its own.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tcpwatch-small-disk-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let mut mount = std::process::Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=512k", "tcpwatch-test"]).arg(&path).status();
        assert!(mounted.unwrap().success());
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_recording_that_finds_no_room_ends_with_a_whole_frame_and_the_daemon_goes_on() {
    let disk = SmallDisk::new();
    let (full, limited) = (disk.0.join("full"), TempFile(std::env::temp_dir().join("tcpwatch-limited")));
    for (path, options, said) in [
        (&full, &[][..], "No space left"),
        (&limited.0, &["--record-max-size", "100KiB"], "--record-max-size"),
    ] {
        let daemon = Daemon::start(&[&["--record", path.to_str().unwrap()], options].concat());
        eventually("the recording has stopped", || {
            // Each question adds a sweep.
            daemon.get("/connections?limit=1");
            let log = daemon.log();
            if log.contains("recording stopped; watching goes on") { Ok(()) } else { Err(log) }
        });
        assert!(daemon.log().contains(said), "{}", daemon.log());
        assert_eq!(daemon.json("/connections?limit=1")["complete"], true);
        let mut played = recorder::open(path).unwrap();
        // What did not fit as a whole is not there: a first sweep may be larger than all the room.
        let frames = played.by_ref().count();
        assert_eq!(played.remaining(), 0, "behind {frames} frames");
    }
}
