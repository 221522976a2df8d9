//! Network namespaces to which no process's main thread leads: the daemon looks into them all the same, or says into which
//! it did not.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    daemon::{Daemon, errors_of},
    eventually::eventually,
    netns::{Namespace, kernel},
    rights::{Copy, User::Root},
    workload::Workload,
};

/// Threads, namespaces, and sockets of every kind in them: held, un-accepted, orphaned and in TIME_WAIT.
const NAMESPACES: &str = r#"
import ctypes, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)
FILES, NEWNS, NEWNET = 0x400, 0x20000, 0x40000000
def must(result):
    assert result == 0, os.strerror(ctypes.get_errno())
def own():
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)
def enter(namespace):
    must(libc.setns(namespace, NEWNET))
def new_namespace():
    must(libc.unshare(NEWNET))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return os.stat("/proc/thread-self/ns/net").st_ino
def in_thread(run):
    threading.Thread(target=run).start()
def sockets():
    listener = listen("127.0.0.1")
    def pair():
        return connect("127.0.0.1", port_of(listener)), listener.accept()[0]
    (over, ended), (orphan, half) = pair(), pair()
    ended.close()
    read_to_end(over)
    over.close()
    orphan.close()
    return [listener, half, connect("127.0.0.1", port_of(listener))]
def close(sockets):
    for one in sockets:
        one.close()
def stay(inode):
    say(inode)
    order()
    os._exit(0)
home = own()
"#;

const UNHELD: [&str; 3] = ["ESTABLISHED", "FIN_WAIT2", "TIME_WAIT"];
const HELD: [&str; 3] = ["CLOSE_WAIT", "ESTABLISHED", "LISTEN"];

/// What leads to a namespace.
struct Case {
    name: &'static str,
    program: &'static str,
    /// What exists in the namespace, with and without a holder.
    held: &'static [&'static str],
    unheld: &'static [&'static str],
    /// The first kernel on which the namespace can be entered for certain.
    since: (u32, u32),
}

const CASES: &[Case] = &[
    Case {
        name: "socket",
        program: "inode = new_namespace(); kept = sockets(); enter(home); stay(inode)",
        held: &HELD,
        unheld: &UNHELD,
        since: (5, 6),
    },
    Case {
        name: "thread-unshared",
        program: "
def run():
    inode = new_namespace(); kept = sockets(); stay(inode)
in_thread(run)",
        held: &HELD,
        unheld: &UNHELD,
        since: (5, 6),
    },
    Case {
        name: "thread-entered",
        program: "
inode = new_namespace(); namespace = own(); kept = sockets(); enter(home)
def run():
    enter(namespace); os.close(namespace); stay(inode)
in_thread(run)",
        held: &HELD,
        unheld: &UNHELD,
        since: (5, 6),
    },
    Case {
        name: "main-ended",
        program: "
inode = new_namespace(); kept = sockets()
in_thread(lambda: (time.sleep(.2), stay(inode)))
libc.syscall(60, 0)",
        held: &HELD,
        unheld: &UNHELD,
        since: (5, 6),
    },
    // Of a thread that is elsewhere itself.
    Case {
        name: "own-descriptors",
        program: "
def run():
    must(libc.unshare(FILES)); inode = new_namespace(); kept = sockets(); enter(home); stay(inode)
in_thread(run)",
        held: &HELD,
        unheld: &UNHELD,
        since: (6, 9),
    },
    Case {
        name: "descriptor",
        program: "inode = new_namespace(); namespace = own(); close(sockets()); enter(home); stay(inode)",
        held: &[],
        unheld: &["TIME_WAIT", "TIME_WAIT"],
        since: (5, 6),
    },
    Case {
        name: "mount",
        program: r#"
must(libc.unshare(NEWNS))
for command in ("mount --make-rprivate /", "mount -t tmpfs tcpwatch-test /mnt", "touch '/mnt/a name'"):
    subprocess.run(command, shell=True, check=True)
inode = new_namespace(); close(sockets())
subprocess.run("mount --bind /proc/self/ns/net '/mnt/a name'", shell=True, check=True)
enter(home); stay(inode)"#,
        held: &[],
        unheld: &["TIME_WAIT", "TIME_WAIT"],
        since: (5, 6),
    },
    // The socket's only reference is a message that nobody has received.
    Case {
        name: "in-flight",
        program: "
inode = new_namespace(); kept = sockets(); enter(home)
sender, receiver = socket.socketpair(socket.AF_UNIX)
socket.send_fds(sender, [b'x'], [one.fileno() for one in kept])
close(kept); stay(inode)",
        held: &[],
        unheld: &["CLOSE_WAIT", "ESTABLISHED", "ESTABLISHED", "FIN_WAIT2", "LISTEN", "TIME_WAIT"],
        since: (6, 18),
    },
];

impl Case {
    fn start(&self, home: &Namespace) -> (Workload, u64) {
        let program = format!("{NAMESPACES}{}", self.program);
        let mut workload = Workload::start(home, self.name, &program, &[]);
        let inode = workload.hear().parse().unwrap();
        (workload, inode)
    }

    fn all(&self) -> Vec<&'static str> {
        let mut all = [self.held, self.unheld].concat();
        all.sort_unstable();
        all
    }
}

fn states(rows: &[Value]) -> Vec<&str> {
    let mut states: Vec<_> = rows.iter().map(|row| row["state"].as_str().unwrap()).collect();
    states.sort_unstable();
    states
}

/// Why the daemon did not look into the namespace.
fn problem_with(daemon: &Daemon, inode: u64) -> Option<String> {
    let problems = errors_of(&daemon.json("/connections?limit=1"), "connections");
    let named = |problem: &String| {
        problem.contains("cannot enter network namespace") && problem.contains(&inode.to_string())
    };
    problems.into_iter().find(named)
}

/// Threads of the daemon in another network namespace than it was started in.
fn away(daemon: &Daemon) -> usize {
    let process = format!("/proc/{}", daemon.pid());
    let home = std::fs::read_link(format!("{process}/ns/net")).unwrap();
    let threads = std::fs::read_dir(format!("{process}/task")).unwrap().flatten();
    threads
        .filter(|thread| std::fs::read_link(thread.path().join("ns/net")).is_ok_and(|is| is != home))
        .count()
}

#[test]
fn a_namespace_without_a_process_is_looked_into_or_named() {
    let before = Daemon::start(&[]);
    let home = Namespace::new();
    let mut places: Vec<_> = CASES.iter().map(|case| (case, case.start(&home))).collect();
    let middle = Daemon::start(&[]);
    for (case, (_, inode)) in &places {
        for (daemon, which) in [(&before, "before"), (&middle, "middle")] {
            let what = format!("{} {which}", case.name);
            let rows = daemon.connections_of(*inode);
            let problem = problem_with(daemon, *inode);
            assert!(problem.is_none() || kernel() < case.since, "{what}: {problem:?}");
            if problem.is_none() {
                assert_eq!(states(&rows), case.all(), "{what}: {rows:#?}");
            } else if which == "middle" {
                assert_eq!(states(&rows), case.held, "{what}: {rows:#?}");
            }
            for row in
                rows.iter().filter(|row| ["CLOSE_WAIT", "ESTABLISHED"].iter().any(|is| row["state"] == *is))
            {
                let detail = daemon.detail(row);
                let why = errors_of(&detail, "transfer");
                assert_eq!(detail["transfer"].is_null(), problem.is_some(), "{what}: {detail}");
                assert_eq!(why.is_empty(), problem.is_none(), "{what}: {why:?}");
            }
        }
    }
    for daemon in [&before, &middle] {
        eventually("no thread of the daemon stays", || match away(daemon) {
            0 => Ok(()),
            threads => Err(threads),
        });
    }
    // The namespaces end with what led to them.
    for (_, (workload, _)) in &mut places {
        workload.order();
    }
    for (case, (_, inode)) in &places {
        for daemon in [&before, &middle] {
            eventually(&format!("nothing outlives its namespace: {}", case.name), || {
                let rows = daemon.connections_of(*inode);
                if rows.is_empty() { Ok(()) } else { Err(format!("{rows:#?}")) }
            });
        }
    }
}

#[test]
fn without_sys_ptrace_what_only_a_socket_leads_to_is_looked_into_or_named() {
    let home = Namespace::new();
    let (_workload, inode) = CASES[0].start(&home);
    let daemon = Daemon::start_by(Copy::new().with(Root, &["bpf", "perfmon", "sys_admin"]), &[]);
    let rows = daemon.connections_of(inode);
    match problem_with(&daemon, inode) {
        None => assert_eq!(states(&rows), CASES[0].all(), "{rows:#?}"),
        Some(problem) => {
            assert!(problem.contains("CAP_SYS_PTRACE is missing"), "{problem}");
            assert_eq!(states(&rows), HELD, "{rows:#?}");
        }
    }
}

/// A process whose main thread ends, and which only then has connections.
const WITHOUT_MAIN: &str = r#"
def run():
    time.sleep(.2)
    inode = os.stat("/proc/thread-self/ns/net").st_ino
    must(libc.unshare(FILES))
    kept.extend(sockets())
    idle.extend(socket.socket() for _ in range(3))
    stay(inode)
kept, idle = sockets(), [socket.socket() for _ in range(6)]
in_thread(run)
in_thread(lambda: time.sleep(1000))
libc.syscall(60, 0)
"#;

#[test]
fn a_process_is_known_by_the_threads_that_outlive_its_main_thread() {
    let before = Daemon::start(&["--linger", "close=1s"]);
    let home = Namespace::new();
    let mut workload = Workload::start(&home, "main-ended", &format!("{NAMESPACES}{WITHOUT_MAIN}"), &[]);
    workload.hear();
    let pid = workload.pid();
    let middle = Daemon::start(&["--linger", "close=1s"]);
    assert!(std::fs::read_link(format!("/proc/{pid}/exe")).is_err(), "its main thread has ended");
    let exe = std::fs::canonicalize("/usr/bin/python3").unwrap();
    let cgroup = own_cgroup();
    for daemon in [&before, &middle] {
        let rows = daemon.connections_in(&home);
        let mut expected = [HELD, HELD, UNHELD, UNHELD].concat();
        expected.sort_unstable();
        assert_eq!(states(&rows), expected, "{rows:#?}");
        for row in rows.iter().filter(|row| row["process"]["pid"] == pid) {
            assert_eq!(row["process"]["exe"], exe.to_str().unwrap(), "{row}");
            assert_eq!(row["process"]["cgroup"], cgroup, "{row}");
        }
        assert!(rows.iter().filter(|row| row["process"]["pid"] == pid).count() >= 6, "{rows:#?}");
        eventually("sockets that never connected are counted once", || {
            let leaks = daemon.leaks_of(pid);
            let of_rule: Vec<_> = leaks.iter().filter(|leak| leak["rule"] == "socket_fd_leak").collect();
            match of_rule[..] {
                [leak] if leak["count"] == 9 => Ok(()),
                _ => Err(format!("{of_rule:?}")),
            }
        });
    }
}

/// The cgroup of this test, and of what it starts.
fn own_cgroup() -> String {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.max_by_key(|path| (*path != "/", path.len())).unwrap().to_owned()
}

/// Connections that all end at once, while nobody reads their records.
const KILLED: &str = r#"
inode = new_namespace()
listener = listen("127.0.0.1")
held = [(connect("127.0.0.1", port_of(listener)), listener.accept()[0]) for _ in range(400)]
half = [connect("127.0.0.1", port_of(listener)) for _ in range(3)]
# Their SYN-ACKs are lost, so requests stay.
for _ in range(2):
    lost = socket.socket()
    lose(lost, DROP_ALL)
    lost.setblocking(False)
    lost.connect_ex(("127.0.0.1", port_of(listener)))
    half.append(lost)
say(inode)
order()
"#;

#[test]
fn nothing_outlives_its_namespace_whatever_was_lost() {
    let daemon = Daemon::start(&["--ring-size", "4KiB", "--linger", "close-wait=1s"]);
    let home = Namespace::new();
    let mut workload = Workload::start(&home, "killed", &format!("{NAMESPACES}{KILLED}"), &[]);
    let inode: u64 = workload.hear().parse().unwrap();
    eventually("a sweep finds the requests", || {
        let rows = daemon.connections_of(inode);
        let requests = states(&rows).iter().filter(|state| **state == "SYN_RECV").count();
        if requests >= 2 && rows.len() > 800 { Ok(()) } else { Err(format!("{requests} of {}", rows.len())) }
    });

    daemon.signal(Signal::STOP);
    kill_process(Pid::from_raw(workload.pid().cast_signed()).unwrap(), Signal::KILL).unwrap();
    drop(workload);
    daemon.signal(Signal::CONT);

    eventually("the loss is reported", || {
        let lost = daemon.metrics().sum("tcpwatch_records_lost_total", &[("cause", "ring_full")]);
        if lost > Some(0) { Ok(()) } else { Err(format!("{lost:?}")) }
    });
    eventually("nothing is left", || {
        let rows = daemon.connections_of(inode);
        let leaks = daemon.json("/leaks");
        let of_it =
            leaks["leaks"].as_array().unwrap().iter().filter(|leak| leak["process"]["comm"] == "killed");
        if rows.is_empty() && of_it.count() == 0 {
            Ok(())
        } else {
            Err(format!("{} rows, {leaks}", rows.len()))
        }
    });
    eventually("answers are complete again", || {
        let problems = errors_of(&daemon.json("/leaks"), "connections");
        if problems.is_empty() { Ok(()) } else { Err(format!("{problems:?}")) }
    });
}
