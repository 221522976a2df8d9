//! Threads of the daemon that do not get on: answers do not wait for them, and say what they lack.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::{
    daemon::{Daemon, errors_of},
    eventually::eventually,
    netns::Namespace,
    workload::Workload,
};

/// A process with a socket.
const LISTENS: &str = "
listener = listen('127.0.0.1')
say('listens')
order()
";

/// Stops one thread of another process, as ptrace(2) can, until it is told to let it go.
const HOLDS: &str = r#"
import ctypes
SEIZE, INTERRUPT, DETACH, ANY_THREAD = 0x4206, 0x4207, 17, 0x40000000
thread = int(args[0])
libc = ctypes.CDLL(None, use_errno=True)
def trace(request):
    if libc.ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
trace(SEIZE)
trace(INTERRUPT)
os.waitpid(thread, ANY_THREAD)
say("held")
order()
trace(DETACH)
say("let go")
order()
"#;

fn thread_of(pid: u32, name: &str) -> String {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|thread| thread.unwrap().path());
    let is_named = |path: &std::path::PathBuf| fs::read_to_string(path.join("comm")).unwrap().trim() == name;
    let found = threads.into_iter().find(is_named).unwrap();
    found.file_name().unwrap().to_str().unwrap().to_owned()
}

fn hold(namespace: &Namespace, daemon: &Daemon, thread: &str) -> Workload {
    let thread = thread_of(daemon.pid(), thread);
    let mut holder = Workload::start(namespace, "holder", HOLDS, &[&thread]);
    assert_eq!(holder.hear(), "held");
    holder
}

#[test]
fn answers_do_not_wait_for_a_slow_proc_and_say_how_many_processes_they_lack() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut holder = hold(&namespace, &daemon, "procfs");
    let mut newcomer = Workload::start(&namespace, "newcomer", LISTENS, &[]);
    assert_eq!(newcomer.hear(), "listens");
    // What is lacked, and whether the executable is known.
    let look = || {
        let answer = daemon.json("/connections?limit=10000&comm=newcomer");
        let row = answer["connections"].as_array().unwrap().first().cloned().unwrap_or_default();
        (errors_of(&answer, "process"), row["process"]["exe"].is_string(), answer.to_string())
    };
    let (lacked, _, answer) = eventually("the newcomer is known", || {
        let (lacked, is_read, answer) = look();
        if lacked.is_empty() { Err(answer) } else { Ok((lacked, is_read, answer)) }
    });
    assert!(lacked.len() == 1 && lacked[0].starts_with("/proc is slow: "), "{answer}");
    let began = Instant::now();
    let (_, is_read, answer) = look();
    assert!(!is_read && answer.contains("newcomer"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(1), "the next one waits no more");

    assert_eq!(holder.ask(), "let go");
    eventually("the newcomer is described", || match look() {
        (lacked, true, _) if lacked.is_empty() => Ok(()),
        (.., answer) => Err(answer),
    });
}

#[test]
fn answers_do_not_wait_for_a_sweep_that_does_not_end_and_say_that_they_lack_it() {
    const QUESTION: &str = "/connections?limit=1";
    let daemon = Daemon::start(&[]);
    let lacks = || errors_of(&daemon.json(QUESTION), "connections");
    let namespace = Namespace::new();
    let mut holder = hold(&namespace, &daemon, "sweeper");
    let lacked = eventually("an answer lacks the sweep", || {
        let lacked = lacks();
        if lacked.is_empty() { Err("it is complete") } else { Ok(lacked) }
    });
    assert!(lacked.len() == 1 && lacked[0].contains("has not ended within"), "{lacked:?}");
    let began = Instant::now();
    assert_eq!(lacks().len(), 1);
    assert!(began.elapsed() < Duration::from_secs(2), "the next one waits no more");

    assert_eq!(holder.ask(), "let go");
    eventually("answers are complete again", || {
        let lacked = lacks();
        if lacked.is_empty() { Ok(()) } else { Err(format!("{lacked:?}")) }
    });
    assert_eq!(daemon.log().matches("the sweep under way does not end").count(), 1, "{}", daemon.log());
}
