//! A sweep that does not end: answers do not wait for it, and say what they lack.

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

#[test]
fn answers_do_not_wait_for_a_sweep_that_does_not_end_and_say_that_they_lack_it() {
    const QUESTION: &str = "/connections?limit=1";
    let daemon = Daemon::start(&[]);
    let lacks = || errors_of(&daemon.json(QUESTION), "connections");
    let mut holder =
        Workload::start(&Namespace::new(), "holder", HOLDS, &[&thread_of(daemon.pid(), "sweeper")]);
    assert_eq!(holder.hear(), "held");
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
