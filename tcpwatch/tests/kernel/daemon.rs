//! A running tcpwatch, and requests to it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    eventually::eventually,
    metrics::{Metrics, all_collectors},
    netns::Namespace,
};

pub(crate) const TCPWATCH: &str = env!("CARGO_BIN_EXE_tcpwatch");
const HOOKS: &str = "TCPWATCH_HOOK";

/// The program, without the options that it would take from the environment of the tests.
pub(crate) fn tcpwatch(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name == "RUST_LOG" || name.to_string_lossy().starts_with("TCPWATCH_") {
            command.env_remove(name);
        }
    }
    command
}

/// Why `what` is missing in an answer, or `null`.
pub(crate) fn errors_of(answer: &Value, what: &str) -> Vec<String> {
    let errors = answer["errors"].as_array().unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(answer["complete"], errors.is_empty(), "{answer}");
    let whys = errors.iter().filter(|error| error["what"] == what).map(|error| error["why"].as_str());
    whys.map(|why| why.unwrap().to_owned()).collect()
}

/// A running daemon. Stopped when dropped; it must then exit with 0.
pub(crate) struct Daemon {
    child: Child,
    ended: bool,
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<String>>,
    log_reader: Option<JoinHandle<()>>,
    /// What it recorded, kept where a test fails.
    recording: Option<PathBuf>,
}

impl Daemon {
    /// Starts a daemon on a free port, which records what comes in, and waits until it is ready.
    pub(crate) fn start(options: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if options.contains(&"--record") {
            return Self::start_by(tcpwatch(TCPWATCH), options);
        }
        let name =
            format!("tcpwatch-test-{}-{}.rec", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let recording = std::env::temp_dir().join(name);
        let record = ["--record", recording.to_str().unwrap()];
        let mut daemon = Self::start_by(tcpwatch(TCPWATCH), &[options, &record].concat());
        daemon.recording = Some(recording);
        daemon
    }

    /// The same with a command that becomes the program.
    pub(crate) fn start_by(mut command: Command, options: &[&str]) -> Self {
        let mut child = command
            .args(["run", "--listen", "127.0.0.1:0"])
            // Each daemon counts the connections of all tests that run at the same time.
            .env("TCPWATCH_MAX_LABEL_SETS", "1000")
            // Forced hooks: the same tests prove each of them.
            .envs(std::env::var(HOOKS).map(|hooks| (HOOKS, hooks)))
            .args(options)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let output = BufReader::new(child.stderr.take().unwrap());
        let written = Arc::clone(&log);
        let log_reader = thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                written.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let log_reader = Some(log_reader);
        let mut daemon = Self { child, ended: false, address, log, log_reader, recording: None };
        daemon.address = eventually("the daemon says its address", || {
            let log = daemon.log();
            let found = log.split_once("curl http://").and_then(|(_, rest)| rest.split_once("/leaks"));
            found.map(|(address, _)| address.parse().unwrap()).ok_or(log)
        });
        eventually("the daemon is ready", || match daemon.get("/readyz") {
            (200, _) => Ok(()),
            (status, body) => Err(format!("{status} {body}")),
        });
        daemon
    }

    /// Status and body of the answer to a GET.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).expect("the daemon to listen");
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer in time");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a status line"), body.to_owned())
    }

    pub(crate) fn json(&self, path: &str) -> Value {
        let mark = if path.contains('?') { '&' } else { '?' };
        let (status, body) = self.get(&format!("{path}{mark}format=json"));
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Waits until a sweep has begun and ended: where no program reports accepts, owners are known from then on.
    pub(crate) fn sweep(&self) {
        let done = || self.metrics().sum("tcpwatch_sweeps_total", &[]).unwrap();
        let before = done();
        // One may have been under way.
        eventually("two sweeps", || {
            self.get("/connections?limit=1");
            if done() >= before + 2 { Ok(()) } else { Err(done()) }
        });
    }

    /// `/connections/ID` of a row of `/connections`.
    pub(crate) fn detail(&self, row: &Value) -> Value {
        self.json(&format!("/connections/{}", row["id"].as_str().unwrap()))
    }

    /// The hook that serves a signal, from `/status`.
    pub(crate) fn hook(&self, signal: &str) -> String {
        self.signal_status(signal)["hook"].as_str().unwrap().to_owned()
    }

    /// Whether a hook serves the signal.
    pub(crate) fn serves(&self, signal: &str) -> bool {
        self.signal_status(signal)["hook"].is_string()
    }

    /// The signal's entry in `/status`.
    pub(crate) fn signal_status(&self, signal: &str) -> Value {
        let status = self.json("/status");
        let found = status["signals"].as_array().unwrap().iter().find(|one| one["key"] == signal);
        found.unwrap().clone()
    }

    /// All families but those of connection tracking.
    pub(crate) fn metrics(&self) -> Metrics {
        self.metrics_at(&all_collectors())
    }

    pub(crate) fn metrics_at(&self, path: &str) -> Metrics {
        let (status, body) = self.get(path);
        assert_eq!(status, 200, "{body}");
        Metrics::parse(&body)
    }

    /// The leaks of a process, from `/leaks`.
    pub(crate) fn leaks_of(&self, pid: u32) -> Vec<Value> {
        let answer = self.json("/leaks");
        let leaks = answer["leaks"].as_array().unwrap().iter();
        leaks.filter(|leak| leak["process"]["pid"] == pid).cloned().collect()
    }

    /// All rows of `/connections` in a network namespace.
    pub(crate) fn connections_in(&self, namespace: &Namespace) -> Vec<Value> {
        self.connections_of(namespace.inode)
    }

    /// The same for a namespace given by its inode.
    pub(crate) fn connections_of(&self, netns: u64) -> Vec<Value> {
        let answer = self.json("/connections?limit=10000");
        let rows = answer["connections"].as_array().unwrap().iter();
        rows.filter(|row| row["netns"] == netns).cloned().collect()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends the signal and waits for the end.
    pub(crate) fn end(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        let status = eventually("the daemon ends", || self.child.try_wait().unwrap().ok_or("it runs on"));
        self.ended = true;
        // The reader ends when the pipe is closed.
        self.log_reader.take().unwrap().join().unwrap();
        status
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            // Asked to end it writes what it has recorded; it may hang or be stopped.
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let deadline = Instant::now() + Duration::from_secs(2);
            while self.child.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(20));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
            eprintln!("the daemon's log:\n{}", self.log());
            if let Some(recording) = &self.recording {
                eprintln!("its recording, for `tcpwatch replay`: {}", recording.display());
            }
            return;
        }
        if let Some(recording) = &self.recording {
            let _ = std::fs::remove_file(recording);
        }
        if !self.ended {
            let status = self.end(Signal::TERM);
            assert!(status.success(), "{status}:\n{}", self.log());
            assert!(!self.log().contains("panicked"), "{}", self.log());
        }
    }
}
