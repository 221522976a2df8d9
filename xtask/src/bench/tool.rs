//! The measured tools: tcpwatch, and tools that do a part of what it does.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::machine;
use crate::namespace::Namespace;

/// One tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    Tcpwatch,
    Tcpstates,
    Tcplife,
    BpftraceStates,
    BpftraceLife,
    Ss,
}

/// A bpftrace program that prints a line for each change of state: ten for the two sockets of a connection.
const STATES: &str = "tracepoint:sock:inet_sock_set_state { printf(\"%llu %d %s %p %d %d %d %d\\n\", nsecs, pid, comm, \
                      args->skaddr, args->oldstate, args->newstate, args->sport, args->dport); }";
/// A bpftrace program that prints a line for each socket, at its end.
const LIFE: &str = "tracepoint:sock:inet_sock_set_state { if (args->oldstate == 7) { @birth[args->skaddr] = nsecs; \
                    @pid[args->skaddr] = pid; } if (args->newstate == 7) { printf(\"%d %d %d %llu\\n\", \
                    @pid[args->skaddr], args->sport, args->dport, nsecs - @birth[args->skaddr]); \
                    delete(@birth[args->skaddr]); delete(@pid[args->skaddr]); } }";

impl Tool {
    pub(crate) const PEERS: [Self; 5] =
        [Self::Tcpstates, Self::Tcplife, Self::BpftraceStates, Self::BpftraceLife, Self::Ss];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcpwatch => "tcpwatch",
            Self::Tcpstates => "libbpf-tools tcpstates",
            Self::Tcplife => "libbpf-tools tcplife",
            Self::BpftraceStates => "bpftrace, states",
            Self::BpftraceLife => "bpftrace, life",
            Self::Ss => "ss -tanp each second",
        }
    }

    /// Lines that it prints for one connection of the load, if nothing is lost; `None` where their number means
    /// nothing.
    pub(crate) fn lines_per_connection(self) -> Option<u64> {
        match self {
            Self::Tcpwatch | Self::Ss => None,
            Self::Tcpstates | Self::BpftraceStates => Some(10),
            Self::Tcplife | Self::BpftraceLife => Some(2),
        }
    }

    /// `inside`: the namespace of the load, for the one tool that must run there too.
    fn command(self, tcpwatch: &Path, inside: &Namespace) -> Command {
        match self {
            Self::Tcpwatch => {
                let mut command = Command::new(tcpwatch);
                command.args(["run", "--listen", "127.0.0.1:0", "--max-connections", "1200000"]);
                command
            }
            Self::Tcpstates => with_tracefs("tcpstates"),
            Self::Tcplife => with_tracefs("tcplife"),
            Self::BpftraceStates => bpftrace(STATES),
            Self::BpftraceLife => bpftrace(LIFE),
            Self::Ss => {
                let mut command = inside.command("sh");
                command.args(["-c", "while sleep 1; do ss -tanpH; done"]);
                command
            }
        }
    }
}

fn bpftrace(program: &str) -> Command {
    let mut command = with_tracefs("bpftrace");
    command.args(["-e", program]);
    command
}

/// These tools look for tracefs where most machines mount it. Where it is not mounted, it is mounted for them alone.
fn with_tracefs(program: &str) -> Command {
    const MOUNT: &str =
        "test -d /sys/kernel/tracing/events || mount -t tracefs tracefs /sys/kernel/tracing; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", MOUNT, "sh", program]);
    command
}

/// A running tool; stopped when dropped.
pub(crate) struct Running {
    child: Child,
    tool: Tool,
    printed: PathBuf,
    /// The address of tcpwatch's HTTP server.
    address: Option<String>,
    /// One connection for all requests: one for each would leave TIME_WAITs, which tcpwatch follows at a cost.
    agent: ureq::Agent,
}

/// How long a tool may take to load its programs.
const START_LIMIT: Duration = Duration::from_secs(60);

impl Running {
    /// Starts the tool and waits until it is ready. Its output goes to a file in `folder`.
    pub(crate) fn start(tool: Tool, tcpwatch: &Path, inside: &Namespace, folder: &Path) -> Result<Self> {
        let mut command = tool.command(tcpwatch, inside);
        let printed = folder.join("printed");
        let file = File::create(&printed).with_context(|| format!("creating {}", printed.display()))?;
        command.stdin(Stdio::null()).stdout(file).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("starting {}", tool.name()))?;
        // A connection is kept alive only if the whole answer is read, also of an error.
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut running = Self { child, tool, printed, address: None, agent };
        running.wait_until_it_watches()?;
        Ok(running)
    }

    fn wait_until_it_watches(&mut self) -> Result<()> {
        let mut log = BufReader::new(self.child.stderr.take().context("a tool without stderr")?);
        let until = Instant::now() + START_LIMIT;
        if self.tool == Tool::Tcpwatch {
            let mut said = String::new();
            while self.address.is_none() {
                let mut line = String::new();
                ensure!(log.read_line(&mut line)? > 0, "tcpwatch ended: {said}");
                self.address =
                    line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).map(str::to_owned);
                said += &line;
            }
            while self.get("/readyz").is_err() {
                ensure!(Instant::now() < until, "tcpwatch is not ready after {} s", START_LIMIT.as_secs());
                thread::sleep(Duration::from_millis(5));
            }
        } else if self.tool != Tool::Ss {
            // They print nothing before the first connection: their loaded programs show that they are ready.
            while machine::bpf_time(self.child.id())?.is_empty() {
                if let Some(status) = self.child.try_wait()? {
                    let mut said = String::new();
                    log.read_to_string(&mut said)?;
                    bail!("{} ended, {status}: {}", self.tool.name(), said.trim());
                }
                ensure!(Instant::now() < until, "{} has loaded nothing", self.tool.name());
                thread::sleep(Duration::from_millis(20));
            }
            thread::sleep(Duration::from_millis(500));
        }
        // An unread pipe would block the tool.
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Ok(())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its processor time so far. For a tool that starts other processes: theirs, once they have ended.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        if self.tool != Tool::Ss {
            return machine::cpu_seconds(self.pid());
        }
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).context("the tool is gone")?;
        // After the name, which may hold anything: state is field 3, cutime 16, cstime 17 (proc(5)).
        let after = stat.rsplit(')').next().unwrap_or("");
        let fields = after.split_whitespace().skip(11).take(4).map_while(|ticks| ticks.parse::<f64>().ok());
        Ok(fields.sum::<f64>() / machine::TICKS_PER_SECOND)
    }

    /// The answer of tcpwatch; an error for any status other than 200.
    pub(crate) fn get(&self, path: &str) -> Result<String> {
        let address = self.address.as_deref().context("only tcpwatch answers")?;
        let mut response = self.agent.get(format!("http://{address}{path}")).call()?;
        let answer = response
            .body_mut()
            .with_config()
            .limit(u64::MAX)
            .read_to_string()
            .context("reading an answer")?;
        ensure!(response.status() == 200, "{path}: {}: {}", response.status(), answer.trim());
        Ok(answer)
    }

    /// The sum of a metric of tcpwatch over its labels.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        self.metric_of(name, "")
    }

    /// The sum of a metric over the label sets that contain `part`.
    pub(crate) fn metric_of(&self, name: &str, part: &str) -> Result<f64> {
        let text = self.get("/metrics")?;
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])) && line.contains(part)
        });
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).with_context(|| format!("sending {signal}"))
    }

    /// Stops the tool, and returns the number of lines that it printed.
    pub(crate) fn stop(mut self) -> Result<u64> {
        self.end();
        let file = File::open(&self.printed).context("reading what a tool printed")?;
        Ok(BufReader::new(file).split(b'\n').count() as u64)
    }

    fn end(&mut self) {
        // SIGINT first, so that the tool prints what it still holds.
        if self.signal(Signal::SIGINT).is_ok() {
            let until = Instant::now() + Duration::from_secs(10);
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
                thread::sleep(Duration::from_millis(20));
            }
        }
        // The process may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}
