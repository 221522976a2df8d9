//! What the kernel did while a test ran, by its own trace events, beside how often it ran tcpwatch's programs for it.
//!
//! A kernel may leave programs out. One of our machines (6.18, changed: it also refuses kprobes) runs none while a thread of
//! process 1 has the processor, not even for a timer that interrupts that thread, and counts no miss: of 37,370
//! retransmits the programs missed 158, which were all that interrupted process 1. tcpwatch cannot report what happens
//! then, so a test that meets it proves nothing, neither that tcpwatch is right nor that it is wrong.
//!
//! A test fails unless the kernel itself says that it was so: at each tracepoint as many runs are missing as there were
//! events while one process had the processor, and a socket of the test is among those. Then the test runs once more.

use std::{
    any::Any,
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    process::{Child, ChildStdout, Command, Stdio},
    rc::Rc,
    time::Instant,
};

use serde_json::Value;

use crate::{daemon::Daemon, eventually::DEADLINE, netns};

/// Runs of a test, should the kernel hide something in each of them.
const RUNS: usize = 4;

/// As the kernel names them; with what tcpwatch hears of retransmits, resets and state changes.
const TRACEPOINTS: [&str; 6] = [
    "inet_sock_set_state",
    "tcp_retransmit_skb",
    "tcp_retransmit_synack",
    "tcp_cong_state_set",
    "tcp_send_reset",
    "tcp_receive_reset",
];

/// Traces in a mount namespace of its own, so that nothing is left mounted here, and removes its instance at the end.
const TRACER: &str = r#"
# Whoever interrupts the tests interrupts this too, before it has cleaned up.
trap '' INT
[ -d /sys/kernel/tracing/instances ] || mount -t tracefs tracefs /sys/kernel/tracing || exit
instance=/sys/kernel/tracing/instances/tcpwatch-test-$$
mkdir $instance || exit
cd $instance
echo mono >trace_clock
echo 4096 >buffer_size_kb
for tracepoint in "$@"; do
    for enable in events/*/$tracepoint/enable; do
        [ -e $enable ] && echo 1 >$enable
    done
done
echo ready
while read -r order; do
    case $order in
    clear) echo >trace ;;
    show) cat trace ;;
    esac
    echo done
done
cd /
rmdir $instance
"#;

/// Runs `test`, and once more each time that it fails and the kernel is shown to have hidden something of it.
pub(crate) fn witnessed(test: impl Fn(&Witness)) {
    for _ in 0..RUNS {
        let witness = Witness::default();
        netns::MADE.take();
        let Err(failure) = catch_unwind(AssertUnwindSafe(|| test(&witness))) else { return };
        match witness.hidden() {
            Ok(hidden) => eprintln!(
                "proves nothing ({}): the kernel ran no program for what interrupted one process, of\n{}",
                said(failure.as_ref()),
                hidden.join("\n")
            ),
            Err(none) => {
                eprintln!("the kernel hid nothing of this test: {none}");
                resume_unwind(failure);
            }
        }
    }
    panic!("the kernel hid something in each of {RUNS} runs");
}

fn said(failure: &(dyn Any + Send)) -> &str {
    let text = failure.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| failure.downcast_ref::<&str>().copied()).unwrap_or("it failed")
}

#[derive(Default)]
pub(crate) struct Witness {
    watched: RefCell<Option<Watched>>,
}

struct Watched {
    /// Outlives the test, to be asked.
    daemon: Rc<Daemon>,
    /// `None` where the kernel does not trace.
    trace: Option<Trace>,
    /// How often the programs had run when the trace began, by tracepoint.
    before: BTreeMap<String, u64>,
    /// While it is open the kernel counts the runs of programs. Linux 5.8 and later.
    _counting: Option<OwnedFd>,
}

impl Witness {
    /// The daemon that the test is about.
    pub(crate) fn start(&self, options: &[&str]) -> Rc<Daemon> {
        let counting = aya::sys::enable_stats(aya::sys::Stats::RunTime).ok();
        let mut trace = counting.is_some().then(Trace::start).flatten();
        let daemon = Rc::new(Daemon::start(options));
        let mut before = BTreeMap::new();
        if let Some(begun) = &mut trace {
            match between_events(&daemon, || begun.ask("clear")) {
                Some((runs, _)) => before = runs,
                None => trace = None,
            }
        }
        *self.watched.borrow_mut() =
            Some(Watched { daemon: Rc::clone(&daemon), trace, before, _counting: counting });
        daemon
    }

    /// The events of the test's sockets that the kernel hid from the programs.
    ///
    /// # Errors
    /// There are none, or it cannot be known.
    fn hidden(&self) -> Result<Vec<String>, String> {
        let mut watched = self.watched.borrow_mut();
        let Watched { daemon, trace, before, .. } = watched.as_mut().ok_or("no daemon was started")?;
        let trace = trace.as_mut().ok_or("it does not trace, or does not count the runs of programs")?;
        let (mut runs, lines) =
            between_events(daemon, || trace.ask("show")).ok_or("there is no moment without events")?;
        for (name, before) in &*before {
            *runs.get_mut(name).ok_or("a program is gone")? -= before;
        }
        let events: Vec<_> = lines.iter().filter_map(|line| Event::parse(line)).collect();
        let sockets = sockets(daemon, &netns::MADE.take());
        let found = unseen(&events, &runs, process_of);
        let mine: Vec<_> = found.iter().filter(|event| sockets.contains(&event.ports)).collect();
        if mine.is_empty() {
            return Err(format!("{} events, runs of programs: {runs:?}, hidden: {found:?}", events.len()));
        }
        Ok(mine.into_iter().map(|event| event.line.to_owned()).collect())
    }
}

/// What `look` finds while no program runs, and how often each had run then; `None` if there are always some that run.
fn between_events<T>(daemon: &Daemon, mut look: impl FnMut() -> T) -> Option<(BTreeMap<String, u64>, T)> {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        let before = runs_of(daemon.pid());
        let found = look();
        if runs_of(daemon.pid()) == before {
            return Some((before, found));
        }
    }
    None
}

/// How often a process's programs ran, by the raw tracepoint that they are attached to. Several of one tracepoint run
/// equally often.
fn runs_of(pid: u32) -> BTreeMap<String, u64> {
    let folder = format!("/proc/{pid}/fdinfo");
    let (mut runs, mut tracepoints) = (BTreeMap::new(), Vec::new());
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let Ok(info) = fs::read_to_string(entry.path()) else { continue };
        let field = |name: &str| {
            let values = info.lines().filter_map(|line| line.split_once(':'));
            values.clone().find(|(key, _)| *key == name).map(|(_, value)| value.trim().to_owned())
        };
        let Some(program) = field("prog_id") else { continue };
        if let Some(count) = field("run_cnt") {
            runs.insert(program, count.parse::<u64>().unwrap());
        } else if let Some(name) = field("tp_name") {
            tracepoints.push((name, program));
        }
    }
    tracepoints.into_iter().filter_map(|(name, program)| Some((name, *runs.get(&program)?))).collect()
}

/// The ports of both ends of each connection that the daemon knows in these namespaces.
fn sockets(daemon: &Daemon, namespaces: &[u64]) -> BTreeSet<[u64; 2]> {
    let rows = ["/connections?limit=10000", "/history?limit=10000"]
        .map(|path| daemon.json(path)["connections"].take());
    let rows = rows.iter().filter_map(Value::as_array).flatten();
    let here = rows.filter(|row| row["netns"].as_u64().is_some_and(|inode| namespaces.contains(&inode)));
    here.map(|row| in_order(["local", "remote"].map(|end| row[end]["port"].as_u64().unwrap_or(0)))).collect()
}

fn in_order(mut ports: [u64; 2]) -> [u64; 2] {
    ports.sort_unstable();
    ports
}

/// The process of a thread.
fn process_of(thread: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    process.and_then(|pid| pid.trim().parse().ok()).unwrap_or(thread)
}

/// The events that no program ran for, where they are all that one process was interrupted by, and no others. Where
/// several processes had equally many, those of each.
fn unseen<'a>(
    events: &'a [Event<'a>],
    runs: &BTreeMap<String, u64>,
    process_of: impl Fn(u32) -> u32,
) -> Vec<&'a Event<'a>> {
    let count = |events: &[&Event<'_>], name: &str| {
        events.iter().filter(|event| event.tracepoint == name).count() as u64
    };
    let all: Vec<_> = events.iter().filter(|event| runs.contains_key(event.tracepoint)).collect();
    let mut processes: BTreeMap<u32, Vec<&Event<'_>>> = BTreeMap::new();
    for event in &all {
        processes.entry(process_of(event.thread)).or_default().push(event);
    }
    let explains =
        |those: &[&Event<'_>]| runs.iter().all(|(name, runs)| count(&all, name) == runs + count(those, name));
    processes.into_values().filter(|those| explains(those)).flatten().collect()
}

#[derive(Debug)]
struct Event<'a> {
    tracepoint: &'a str,
    /// What had the processor.
    thread: u32,
    /// Of both ends, the lower one first.
    ports: [u64; 2],
    line: &'a str,
}

impl<'a> Event<'a> {
    /// `COMM-PID [CPU] FLAGS TIME: TRACEPOINT: NAME=VALUE...`
    fn parse(line: &'a str) -> Option<Self> {
        let (context, rest) = line.split_once("] ")?;
        let thread = context.rsplit_once('[')?.0.trim().rsplit_once('-')?.1.parse().ok()?;
        let (_, event) = rest.split_once(": ")?;
        let (tracepoint, fields) = event.split_once(": ")?;
        let port = |names: [&str; 2]| {
            let values = fields.split_whitespace().filter_map(|field| field.split_once('='));
            let found = values.clone().find(|(name, _)| names.contains(name))?.1;
            found.rsplit(':').next()?.parse().ok()
        };
        let ports = in_order([port(["sport", "src"])?, port(["dport", "dest"])?]);
        Some(Self { tracepoint, thread, ports, line: line.trim() })
    }
}

struct Trace {
    tracer: Child,
    output: BufReader<ChildStdout>,
}

impl Trace {
    /// `None` where the kernel does not trace.
    fn start() -> Option<Self> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", TRACER, "tracer"]).args(TRACEPOINTS);
        let mut tracer =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let mut output = BufReader::new(tracer.stdout.take()?);
        let mut said = String::new();
        output.read_line(&mut said).ok()?;
        let trace = Self { tracer, output };
        (said == "ready\n").then_some(trace)
    }

    fn ask(&mut self, order: &str) -> Vec<String> {
        writeln!(self.tracer.stdin.as_mut().unwrap(), "{order}").unwrap();
        let lines = self.output.by_ref().lines().map(Result::unwrap);
        lines.take_while(|line| line != "done").collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        drop(self.tracer.stdin.take());
        let _ = self.tracer.wait();
    }
}

#[test]
fn what_no_program_ran_for_is_found_where_one_process_explains_it() {
    let lines = [
        "          <idle>-0       [000] ..s2.  1846.1: tcp_retransmit_skb: family=AF_INET sport=5000 dport=80 err=0",
        "     tokio worker-75      [000] .Ns1.  1848.2: tcp_send_reset: skbaddr=0 src=127.0.0.1:5000 dest=127.0.0.1:80",
        " r.keep-alive-4-11329   [001] .....  1848.3: tcp_send_reset: skbaddr=0 src=[::1]:5001 dest=[::1]:80 state=1",
        "             x-76      [001] ..s1.  1848.4: tcp_retransmit_skb: family=AF_INET sport=80 dport=5002 err=0",
        "# tracer: nop",
    ];
    let events: Vec<_> = lines.iter().filter_map(|line| Event::parse(line)).collect();
    let ports: Vec<_> = events.iter().map(|event| (event.thread, event.ports)).collect();
    assert_eq!(ports, [(0, [80, 5000]), (75, [80, 5000]), (11329, [80, 5001]), (76, [80, 5002])]);
    let hidden = |retransmits: u64, resets: u64| {
        let runs = [("tcp_retransmit_skb", retransmits), ("tcp_send_reset", resets)];
        let runs = runs.map(|(name, count)| (name.to_owned(), count)).into();
        let found = unseen(&events, &runs, |thread| if thread / 10 == 7 { 1 } else { thread });
        found.iter().map(|event| event.thread).collect::<Vec<_>>()
    };
    assert_eq!(hidden(1, 1), [75, 76]);
    assert_eq!(hidden(2, 1), [11329]);
    assert_eq!(hidden(2, 2), [0; 0], "the programs saw all");
    assert_eq!(hidden(0, 0), [0; 0], "no process had all of these");
}
