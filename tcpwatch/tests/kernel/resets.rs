//! Resets with real sockets: their reasons, the data that they threw away, and their number, which is the kernel's.

use serde_json::{Value, json};

use crate::{
    daemon::Daemon,
    eventually::eventually,
    netns::{Namespace, needs},
    retransmits::{ADDRESS, joined},
    witness::witnessed,
    workload::Workload,
};

const RESETS: &str = "tcpwatch_resets_by_reason_total";
const DISCARDED: &str = "tcpwatch_reset_discarded_bytes_total";
const WITHOUT_CONNECTION: &str = "tcpwatch_resets_without_connection_total";

/// Both ends of one connection, in one process.
const ENDS: &str = r#"
import ctypes

class Listener:
    def __init__(self):
        self.sock = listen(args[0])

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def accept(self):
        conn, peer = self.sock.accept()
        say("accepted")
        order()
        return conn, peer


listener = Listener()
client = connect(args[0], port_of(listener))


def wait_for_data(conn):
    conn.recv(1, socket.MSG_PEEK)


def disconnect(conn):
    assert ctypes.CDLL(None).connect(conn.fileno(), ctypes.create_string_buffer(28), 28) == 0
"#;

/// A program, the errno that it saw, and the reset with which each side's connection ended.
struct Case {
    name: &'static str,
    program: &'static str,
    errno: i32,
    client: fn() -> Value,
    server: fn() -> Value,
}

const NONE: fn() -> Value = || Value::Null;
const RECEIVED: fn() -> Value = || json!({ "direction": "received", "reason": "established" });

const CASES: &[Case] = &[
    Case {
        name: "unread",
        program: r#"
server = listener.accept()[0]
client.send(b"never read")
wait_for_data(server)
server.close()
say(errno_of(lambda: client.recv(1)))
client.close()
"#,
        errno: 104,
        client: RECEIVED,
        server: || json!({ "direction": "sent", "reason": "unread_data", "unread_bytes": 10, "process_exited": false }),
    },
    Case {
        name: "exited",
        program: r#"
client.send(b"never read")
child = os.fork()
if not child:
    server = listener.accept()[0]
    wait_for_data(server)
    os._exit(0)
os.waitpid(child, 0)
say(errno_of(lambda: client.recv(1)))
client.close()
"#,
        errno: 104,
        client: RECEIVED,
        server: || json!({ "direction": "sent", "reason": "unread_data", "unread_bytes": 10, "process_exited": true }),
    },
    Case {
        name: "linger",
        program: r"
server = listener.accept()[0]
linger_0(client)
client.close()
say(errno_of(lambda: server.recv(1)))
server.close()
",
        errno: 104,
        client: || json!({ "direction": "sent", "reason": "zero_linger", "unread_bytes": 0, "unsent_bytes": 0 }),
        server: RECEIVED,
    },
    // Data is in flight and never acknowledged.
    Case {
        name: "in-flight",
        program: r#"
server = listener.accept()[0]
lose(server, DROP_ALL)
client.send(b"x" * 1000)
linger_0(client)
client.close()
lose_nothing(server)
say(0)
"#,
        errno: 0,
        client: || json!({ "direction": "sent", "reason": "zero_linger", "unacknowledged_bytes": 1000 }),
        server: NONE,
    },
    Case {
        name: "disconnect",
        program: r"
server = listener.accept()[0]
disconnect(client)
say(errno_of(lambda: server.recv(1)))
server.close()
client.close()
",
        errno: 104,
        client: || json!({ "direction": "sent", "reason": "disconnect" }),
        server: RECEIVED,
    },
    Case {
        name: "unaccepted",
        program: r"
listener.close()
say(errno_of(lambda: client.recv(1)))
client.close()
",
        errno: 104,
        client: RECEIVED,
        server: || json!({ "direction": "sent", "reason": "listener_closed" }),
    },
    Case {
        name: "too-late",
        program: r#"
server = listener.accept()[0]
server.shutdown(socket.SHUT_RDWR)
assert client.recv(1) == b""
client.send(b"late")
time.sleep(0.1)
say(errno_of(lambda: client.send(b"later")))
client.close()
server.close()
"#,
        errno: 32,
        client: || json!({ "direction": "received", "reason": "peer_closed", "unacknowledged_bytes": 4 }),
        server: || json!({ "direction": "sent", "reason": "data_after_close" }),
    },
    Case {
        name: "half-closed",
        program: r#"
server = listener.accept()[0]
client.shutdown(socket.SHUT_WR)
assert server.recv(1) == b""
linger_0(server)
server.close()
say(errno_of(lambda: client.recv(1)))
client.close()
"#,
        errno: 104,
        client: || json!({ "direction": "received", "reason": "local_closed", "unacknowledged_bytes": 0 }),
        server: || json!({ "direction": "sent", "reason": "zero_linger" }),
    },
    Case {
        name: "keep-alive",
        program: r"
server = listener.accept()[0]
for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 1)):
    client.setsockopt(socket.IPPROTO_TCP, option, value)
client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
lose(client, DROP_ALL)
seen = errno_of(lambda: client.recv(1))
assert errno_of(lambda: server.recv(1)) == 104
say(seen)
client.close()
server.close()
",
        errno: 110,
        client: || json!({ "direction": "sent", "reason": "timed_out" }),
        server: RECEIVED,
    },
    Case {
        name: "killed",
        program: r#"
server = listener.accept()[0]
end = "sport = %d and dport = %d" % (port_of(client), port_of(server))
assert os.system("ss --kill --tcp --no-header '%s' >/dev/null" % end) == 0
seen = errno_of(lambda: client.recv(1))
assert errno_of(lambda: server.recv(1)) == 104
say(seen)
client.close()
server.close()
"#,
        errno: 103,
        client: || json!({ "direction": "sent", "reason": "killed" }),
        server: RECEIVED,
    },
];

/// Whether each member of `expected` is in `shown`.
fn says(shown: &Value, expected: &Value) -> bool {
    match expected.as_object() {
        Some(members) => members.iter().all(|(name, value)| shown[name] == *value),
        None => shown == expected,
    }
}

/// Asserts that the process's sums are those of its connections.
fn what_was_discarded_is_summed(daemon: &Daemon, comm: &str) {
    let ended = daemon.json(&format!("/history?comm={comm}"));
    let resets = || ended["connections"].as_array().unwrap().iter().map(|row| &row["reset"]);
    let answer = daemon.json(&format!("/processes?comm={comm}"));
    let metrics = daemon.metrics();
    for data in ["unread", "unsent", "unacknowledged"] {
        let key = format!("{data}_bytes");
        let expected: u64 = resets().filter_map(|reset| reset[&key].as_u64()).sum();
        assert_eq!(answer["processes"][0]["reset_discarded"][&key], expected, "{comm}: {key}");
        let total = metrics.sum(DISCARDED, &[("process", comm), ("data", data)]);
        assert_eq!(total, Some(expected), "{comm}: {key}");
    }
}

#[test]
fn each_reset_has_its_reason_and_none_is_missing() {
    witnessed(|witness| {
        let daemon = witness.start(&[]);
        for case in CASES {
            for addr in ["127.0.0.1", "::1"] {
                has_its_reason(&daemon, case, addr);
            }
        }
    });
}

fn has_its_reason(daemon: &Daemon, case: &Case, addr: &str) {
    let closes_are_told = !daemon.hook("close").starts_with("inferred");
    let namespace = Namespace::new();
    let comm = format!("r.{}-{}", case.name, if addr.contains(':') { 6 } else { 4 });
    let comm = comm.as_str();
    let program = format!("{ENDS}\n{}\norder()\n", case.program);
    let mut ends = Workload::start(&namespace, comm, &program, &[addr]);
    let mut said = ends.hear();
    if said == "accepted" {
        // Where no hook reports accepts, a sweep has to find the owner before the connection ends.
        eventually(&format!("{comm}: the server's owner is known"), || {
            let rows = daemon.connections_in(&namespace);
            let row = rows.iter().find(|row| row["role"] == "server");
            row.filter(|row| row["process_seen"] == "holder").map(|_| ()).ok_or(format!("{rows:?}"))
        });
        said = ends.ask();
    }
    assert_eq!(said, case.errno.to_string(), "{comm}: the application's errno");
    for (role, expected) in [("client", (case.client)()), ("server", (case.server)())] {
        if expected.is_null() {
            continue;
        }
        let row = eventually(&format!("{comm}: the {role}'s connection ends with {expected}"), || {
            let ended = daemon.json(&format!("/history?comm={comm}"));
            let row = ended["connections"].as_array().unwrap().iter().find(|row| row["role"] == role);
            let row = row.filter(|row| says(&row["reset"], &expected)).cloned();
            row.ok_or_else(|| format!("{}; {ended}", kernel_resets(&ends)))
        });
        let reason = expected["reason"].as_str().unwrap();
        let labels = [("process", comm), ("role", role), ("reason", reason)];
        eventually(&format!("{comm}: the {role}'s reset is counted"), || {
            match daemon.metrics().sum(RESETS, &labels) {
                Some(1) => Ok(()),
                other => Err(format!("{labels:?}: {other:?}; {}", kernel_resets(&ends))),
            }
        });
        if closes_are_told && ["unread_data", "zero_linger"].contains(&reason) {
            assert_eq!(row["closer"]["comm"], comm, "{row}");
        }
    }
    let sent = [("process", comm), ("direction", "sent")];
    assert_eq!(daemon.metrics().sum(RESETS, &sent), ends.kernel_count("OutRsts"), "{comm}");
    what_was_discarded_is_summed(daemon, comm);
}

/// What the kernel counts of them, in a test's namespace.
fn kernel_resets(ends: &Workload) -> String {
    let counts = ["OutRsts", "EstabResets", "TCPAbortOnTimeout", "TCPAbortOnClose", "TCPAbortOnData"];
    format!("kernel: {:?}", counts.map(|name| (name, ends.kernel_count(name).unwrap_or(0))))
}

/// The server's reset is lost, so its client goes on. The client's next segment finds a listener, or no socket.
const HALF_OPEN: &str = r#"
listener = listen("127.0.0.1")
client = connect("127.0.0.1", port_of(listener))
server = listener.accept()[0]
lose(client, DROP_ALL)
linger_0(server)
server.close()
if args[0] == "no_socket":
    listener.close()
lose_nothing(client)
client.send(b"to nobody")
say(errno_of(lambda: client.recv(1)))
order()
"#;

fn assert_counted_without_connection(reason: &str) {
    let namespace = Namespace::new();
    let daemon = Daemon::start(&[]);
    let count = || daemon.metrics().sum(WITHOUT_CONNECTION, &[("reason", reason)]).unwrap();
    let before = count();
    let mut ends = Workload::start(&namespace, reason, HALF_OPEN, &[reason]);
    assert_eq!(ends.hear(), "104");
    // Other processes of this machine may cause some too.
    eventually("the reset is counted", || match count() {
        now if now > before => Ok(()),
        now => Err(format!("{before} before, {now} now")),
    });
    let labels = |direction| [("process", reason), ("direction", direction)];
    let metrics = daemon.metrics();
    assert_eq!(metrics.sum(RESETS, &labels("received")), Some(1));
    assert_eq!(metrics.sum(RESETS, &labels("sent")), Some(1));
    assert_eq!(ends.kernel_count("OutRsts"), Some(2));
}

#[test]
fn a_reset_by_a_listener_counts_without_connection() {
    assert_counted_without_connection("listener");
}

#[test]
fn a_reset_for_lack_of_a_socket_counts_without_connection() {
    assert_counted_without_connection("no_socket");
}

const LATE: &str = r#"
listener = listen("127.0.0.1")
client = connect("127.0.0.1", port_of(listener))
server = listener.accept()[0]
server.close()
assert client.recv(1) == b""
say("closed")
order()
client.send(b"late")
time.sleep(0.1)
say(errno_of(lambda: client.send(b"later")))
order()
"#;

#[test]
fn a_reset_by_an_orphan_in_fin_wait2_names_its_owner() {
    let namespace = Namespace::new();
    let daemon = Daemon::start(&[]);
    let mut ends = Workload::start(&namespace, "late", LATE, &[]);
    assert_eq!(ends.hear(), "closed");
    eventually("the orphan is known", || {
        let rows = daemon.connections_in(&namespace);
        let orphan = rows.iter().find(|row| row["state"] == "FIN_WAIT2");
        orphan.map(|row| assert_eq!(row["process"]["comm"], "late")).ok_or(format!("{rows:?}"))
    });
    assert_eq!(ends.ask(), "32");
    let labels = [("process", "late"), ("role", "server"), ("reason", "data_after_close")];
    assert_eq!(daemon.metrics().sum(RESETS, &labels), Some(1));
    let ended = daemon.json("/history?comm=late");
    let ended = ended["connections"].as_array().unwrap();
    let server = ended.iter().find(|row| row["role"] == "server").unwrap();
    assert_eq!(server["reset"]["reason"], "data_after_close", "{server}");
    assert_eq!(server["first_close"], "local", "{server}");
}

/// Connects, sends on order, and says the errno of each.
const REFUSED: &str = r#"
family = socket.AF_INET6 if ":" in args[0] else socket.AF_INET
listener = listen(args[0])
say(port_of(listener))
order()
client = socket.socket(family, socket.SOCK_STREAM)
errno = client.connect_ex((args[0], port_of(listener)))
say(errno)
if not errno:
    server = listener.accept()[0]
    order()
    client.send(b"data")
    say(errno_of(lambda: client.recv(1)))
order()
"#;

/// A packet filter's refusal: where it takes place, whether after the connection is established, and the errnos that
/// the application sees.
struct Refusal {
    comm: &'static str,
    addr: &'static str,
    hook: &'static str,
    established: bool,
    errnos: &'static [&'static str],
    /// Whether the reset is reported for the client, where a packet filter's resets are reported. Otherwise it counts
    /// without a connection: an incoming segment has no socket yet when the filter refuses it.
    reported: bool,
    /// The reason of the client's received reset where it is not `policy`.
    otherwise: &'static str,
}

const REFUSALS: [Refusal; 5] = [
    Refusal {
        comm: "refuse-syn-out",
        addr: "127.0.0.1",
        hook: "output",
        established: false,
        errnos: &["111"],
        reported: true,
        otherwise: "connecting",
    },
    Refusal {
        comm: "refuse-syn-6",
        addr: "::1",
        hook: "output",
        established: false,
        errnos: &["111"],
        reported: true,
        otherwise: "connecting",
    },
    Refusal {
        comm: "refuse-out",
        addr: "127.0.0.1",
        hook: "output",
        established: true,
        errnos: &["0", "104"],
        reported: true,
        otherwise: "established",
    },
    Refusal {
        comm: "refuse-in",
        addr: "127.0.0.1",
        hook: "input",
        established: true,
        errnos: &["0", "104"],
        reported: false,
        otherwise: "established",
    },
    Refusal {
        comm: "refuse-syn-in",
        addr: "127.0.0.1",
        hook: "input",
        established: false,
        errnos: &["111"],
        reported: false,
        otherwise: "connecting",
    },
];

#[test]
fn a_packet_filters_reset_has_the_reason_policy() {
    needs("nft", "nftables");
    let daemon = Daemon::start(&[]);
    let is_reported = daemon.hook("policy_reset").starts_with("kprobe ");
    let without = || daemon.metrics().sum(WITHOUT_CONNECTION, &[("reason", "policy")]).unwrap();
    for Refusal { comm, addr, hook, established, errnos, reported, otherwise } in &REFUSALS {
        let namespace = Namespace::new();
        namespace.run(&["nft", "add table inet refusing"]);
        let chain = format!("add chain inet refusing {hook} {{ type filter hook {hook} priority 0; }}");
        namespace.run(&["nft", &chain]);
        let mut ends = Workload::start(&namespace, comm, REFUSED, &[addr]);
        let rule = format!("add rule inet refusing {hook} tcp dport {} reject with tcp reset", ends.hear());
        let before = without();
        for (step, errno) in errnos.iter().enumerate() {
            if (step == 1) == *established {
                namespace.run(&["nft", &rule]);
            }
            assert_eq!(&ends.ask(), errno, "{comm}: the application's errno");
        }
        let reason = if is_reported && *reported { "policy" } else { otherwise };
        eventually("the reset is counted", || {
            let of_client = [("process", *comm), ("role", "client"), ("direction", "received")];
            let metrics = daemon.metrics();
            let those = metrics.sum(RESETS, &[&of_client[..], &[("reason", reason)]].concat());
            match (metrics.sum(RESETS, &of_client), those) {
                (Some(1), Some(1)) => Ok(()),
                other => Err(format!("{comm}: {other:?} are {reason}")),
            }
        });
        if is_reported && !reported {
            eventually("it is counted without a connection", || match without() {
                now if now > before => Ok(()),
                now => Err(format!("{before} before, {now} now")),
            });
        }
    }
}

/// Accepts one connection and waits.
const TAKES: &str = r"
listener = listen(args[0])
say(port_of(listener))
server = listener.accept()[0]
order()
";

const SENDS: &str = r#"
client = connect(args[0], args[1])
say("connected")
order()
client.send(b"data")
say(errno_of(lambda: client.recv(1)))
order()
"#;

#[test]
fn a_packet_filters_reset_belongs_to_the_socket_it_answers_for() {
    let daemon = Daemon::start(&[]);
    let is_reported = daemon.hook("policy_reset").starts_with("kprobe ");
    let (there, here) = joined();
    let mut server = Workload::start(&here, "filtered-server", TAKES, &[ADDRESS]);
    let port = server.hear();
    let mut client = Workload::start(&there, "filtered-client", SENDS, &[ADDRESS, &port]);
    assert_eq!(client.hear(), "connected");
    here.run(&["nft", "add table inet refusing"]);
    here.run(&["nft", "add chain inet refusing input { type filter hook input priority 0; }"]);
    here.run(&["nft", &format!("add rule inet refusing input tcp dport {port} reject with tcp reset")]);
    assert_eq!(client.ask(), "104");
    let count = |process, reason| daemon.metrics().sum(RESETS, &[("process", process), ("reason", reason)]);
    eventually("both sides are counted", || {
        let shown = [count("filtered-server", "policy"), count("filtered-client", "established")];
        if shown == [Some(u64::from(is_reported)), Some(1)] { Ok(()) } else { Err(format!("{shown:?}")) }
    });
    let rows = daemon.connections_in(&here);
    assert!(rows.iter().any(|row| row["state"] == "ESTABLISHED"), "it knows nothing of it: {rows:?}");
}
