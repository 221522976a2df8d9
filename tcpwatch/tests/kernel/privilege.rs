//! The capabilities that are not always needed: what a daemon finds with some of them only.

use std::process::Command;

use serde_json::Value;

use crate::{
    daemon::{Daemon, errors_of},
    eventually::eventually,
    netns::{Namespace, opens_by_cookie},
    rights::{
        ALL, Copy, NOBODY, SOMEBODY_ELSE,
        User::{self, Nobody, Root},
        as_user,
    },
    workload::{Workload, python_args},
};

/// Sockets with and without a holder; then one connection ends, and one passes to another process.
const SOCKETS: &str = r"
listener = listen(args[0])
def pair():
    return connect(args[0], port_of(listener)), listener.accept()[0]
def close(first, second):
    # Only after the other has closed, so that no orphan waits for its FIN.
    first.shutdown(socket.SHUT_WR)
    read_to_end(second)
    second.close()
    read_to_end(first)
    first.close()
kept, over, half = pair(), pair(), pair()
close(*over)
half[0].close()
waiting = connect(args[0], port_of(listener))
say(port_of(listener))
order()
close(*kept)
gone, parent = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(parent)
    os.read(gone, 1)
    os._exit(0)
waiting.close()
say(pid)
order()
";

/// Its address. At 127.0.0.1 of the machine's own namespace an earlier test's daemon may have had the same port, with
/// connections that are still in TIME_WAIT.
const ADDR: &str = "127.0.0.9";

/// Both ends of `half` but the orphan, of `kept`, and the client's end of `waiting`.
const HELD: [&str; 5] = ["CLOSE_WAIT", "ESTABLISHED", "ESTABLISHED", "ESTABLISHED", "LISTEN"];
/// The server's end of `waiting`, which nobody accepted, the orphan of `half`, and `over`.
const UNHELD: [&str; 3] = ["ESTABLISHED", "FIN_WAIT2", "TIME_WAIT"];

/// A process that is older than the daemon, in some network namespace.
struct Place {
    workload: Workload,
    port: u16,
    netns: u64,
}

impl Place {
    /// Starts the process. `enter`: a command that enters the namespace and executes its arguments there.
    fn new(enter: &[&str]) -> Self {
        Self::of(&as_user(SOMEBODY_ELSE), enter)
    }

    /// Starts the process as another user: `user` is a command that executes its arguments as that user.
    fn of(user: &[String], enter: &[&str]) -> Self {
        let words: Vec<String> =
            enter.iter().map(|&word| word.to_owned()).chain(user.iter().cloned()).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("/usr/bin/python3").args(python_args("place", SOCKETS, &[ADDR]));
        let mut workload = Workload::spawn(&mut command).expect("setpriv, nsenter and unshare (util-linux)");
        let port = workload.hear().parse().unwrap();
        let link = std::fs::read_link(format!("/proc/{}/ns/net", workload.pid())).unwrap();
        let inode = link.to_str().unwrap().trim_start_matches("net:[").trim_end_matches(']');
        Self { netns: inode.parse().unwrap(), workload, port }
    }

    fn rows(&self, daemon: &Daemon) -> Vec<Value> {
        let mut rows = daemon.connections_of(self.netns);
        rows.retain(|row| {
            ["local", "remote"].iter().any(|end| row[end]["addr"] == ADDR && row[end]["port"] == self.port)
        });
        rows.sort_by_key(|row| row["state"].to_string());
        rows
    }

    /// Asserts what the daemon knows of the sockets that are older than it.
    fn assert_found(&self, daemon: &Daemon, unheld: bool, exe: bool) {
        let rows = self.rows(daemon);
        let states: Vec<_> = rows.iter().map(|row| row["state"].as_str().unwrap()).collect();
        let mut expected = HELD.to_vec();
        if unheld {
            expected.extend(UNHELD);
        }
        expected.sort_unstable();
        assert_eq!(states, expected, "{rows:#?}");
        for row in
            rows.iter().filter(|row| !["FIN_WAIT2", "TIME_WAIT"].contains(&row["state"].as_str().unwrap()))
        {
            let process = &row["process"];
            assert_eq!(
                (&process["pid"], &process["comm"]),
                (&self.workload.pid().into(), &"place".into()),
                "{row}"
            );
            assert!(process["cgroup"].is_string(), "{row}");
            assert_eq!(process["exe"].is_string(), exe, "{row}");
        }
    }

    /// Asserts that what happens from now on is known in any case, and that no later sweep forgets it.
    fn assert_followed(&mut self, daemon: &Daemon) {
        let child: u64 = self.workload.ask().parse().unwrap();
        let id = eventually("a sweep finds the new holder, and what was closed is listed", || {
            let rows = self.rows(daemon);
            let is =
                |row: &&Value, state: &str, pid: u64| row["state"] == state && row["process"]["pid"] == pid;
            let handed_on = rows.iter().any(|row| is(&row, "ESTABLISHED", child));
            match rows.iter().find(|row| is(row, "TIME_WAIT", self.workload.pid().into())) {
                Some(row) if handed_on => Ok(row["id"].as_str().unwrap().to_owned()),
                _ => Err(format!("{rows:#?}")),
            }
        });
        let life = daemon.json(&format!("/connections/{id}"));
        assert_eq!(life["closer"]["pid"], self.workload.pid(), "{life}");
    }
}

const OWN: &[&str] = &["env"];
const NAMELESS: &[&str] = &["unshare", "--net", "sh", "-ec", "ip link set lo up\nexec \"$@\"", "sh"];

/// Asserts what a daemon with these capabilities, and the two that it always needs, knows of older sockets.
fn assert_finds(
    user: User,
    capabilities: &[&str],
    unheld_in_named: bool,
    unheld_in_nameless: bool,
    exe: bool,
) {
    let namespace = Namespace::new();
    let enter_named = format!("--net={}", namespace.path());
    let mut own = Place::new(OWN);
    let mut named = Place::new(&["nsenter", &enter_named]);
    let mut nameless = Place::new(NAMELESS);
    let copy = Copy::new();
    let daemon = Daemon::start_by(copy.with(user, &[&["bpf", "perfmon"], capabilities].concat()), &[]);
    own.assert_found(&daemon, true, exe);
    named.assert_found(&daemon, unheld_in_named, exe);
    nameless.assert_found(&daemon, unheld_in_nameless, exe);
    for place in [&mut own, &mut named, &mut nameless] {
        place.assert_followed(&daemon);
    }
    let problems = errors_of(&daemon.json("/status"), "connections").concat();
    let (enters, finds) = (capabilities.contains(&"sys_admin"), capabilities.contains(&"sys_ptrace"));
    let missing = !finds && !opens_by_cookie();
    for (problem, is) in [
        ("cannot enter network namespace", !enters || missing),
        ("CAP_SYS_ADMIN is missing", !enters),
        ("CAP_SYS_PTRACE is missing", enters && missing),
    ] {
        assert_eq!(problems.contains(problem), is, "{problems}");
    }
}

#[test]
fn with_the_least_capabilities_other_namespaces_show_held_sockets_only() {
    for user in [Root, Nobody] {
        assert_finds(user, &[], false, false, false);
    }
}

#[test]
fn sys_admin_alone_enters_namespaces_that_have_a_name() {
    for user in [Root, Nobody] {
        assert_finds(user, &["sys_admin"], true, opens_by_cookie(), false);
    }
}

#[test]
fn sys_ptrace_alone_finds_executables_and_enters_no_namespace() {
    for user in [Root, Nobody] {
        assert_finds(user, &["sys_ptrace"], false, false, true);
    }
}

#[test]
fn sys_admin_and_sys_ptrace_find_everything() {
    for user in [Root, Nobody] {
        assert_finds(user, &["sys_admin", "sys_ptrace"], true, true, true);
    }
}

#[test]
fn without_sys_ptrace_executables_of_the_own_user_are_known() {
    let copy = Copy::new();
    for (user, owner, exe) in
        [(Root, &as_user(0)[..], true), (Root, &[], false), (Nobody, &as_user(NOBODY), true)]
    {
        let place = Place::of(owner, OWN);
        let daemon = Daemon::start_by(copy.with(user, &["bpf", "perfmon"]), &[]);
        place.assert_found(&daemon, true, exe);
    }
}

/// A script that moves a namespace's only name to Docker's folder, which only root may read.
fn named_by_docker(namespace: &Namespace) -> String {
    format!(
        "exec 9< {}\nmount -t tmpfs -o mode=755 tcpwatch-test /run\nmkdir -p /run/docker/netns\n\
         chmod 700 /run/docker\n: > /run/docker/netns/box\nmount --bind /proc/self/fd/9 /run/docker/netns/box\n\
         exec 9<&-",
        namespace.path()
    )
}

#[test]
fn only_other_users_than_root_need_dac_read_search_for_dockers_namespaces() {
    const MOST: [&str; 4] = ["bpf", "perfmon", "sys_admin", "sys_ptrace"];
    let copy = Copy::new();
    for (user, capabilities, found) in
        [(Root, &MOST[..], true), (Nobody, &MOST, opens_by_cookie()), (Nobody, &ALL, true)]
    {
        let namespace = Namespace::new();
        // Its process ends at once.
        drop(Place::new(&["nsenter", &format!("--net={}", namespace.path())]));
        let daemon = Daemon::start_by(copy.behind(&named_by_docker(&namespace), user, capabilities), &[]);
        let rows = daemon.connections_in(&namespace);
        assert_eq!(
            rows.iter().any(|row| row["state"] == "TIME_WAIT"),
            found,
            "{user:?} {capabilities:?} {rows:#?}"
        );
        let problems = errors_of(&daemon.json("/status"), "connections").concat();
        assert_eq!(problems.contains("/run/docker/netns"), !found, "{user:?} {capabilities:?} {problems}");
    }
}
