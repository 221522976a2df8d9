//! What becomes of connects, made to happen with real sockets, beside the errno that the application saw.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    counts::OPENED, daemon::Daemon, eventually::eventually, metrics::Metrics, netns::Namespace,
    workload::Workload,
};

const ATTEMPTS: &str = "tcpwatch_connect_attempts_total";
const CONNECTS: &str = "tcpwatch_connects_total";
const DURATIONS: &str = "tcpwatch_connect_duration_seconds_count";
const OUTCOMES: [&str; 9] =
    ["established", "refused", "timed_out", "unreachable", "reset", "no_port", "aborted", "other", "unknown"];

/// What the programs below share: `args[0]` is the address that they dial.
const TOOLS: &str = r#"
import select
FAMILY = socket.AF_INET6 if ":" in args[0] else socket.AF_INET


def new():
    return socket.socket(FAMILY, socket.SOCK_STREAM)


def closed_port():
    """Bound, so that nobody else takes it, but not listening."""
    closed = new()
    closed.bind((args[0], 0))
    return closed


def silent(addr=args[0]):
    """Listens, but no segment reaches it."""
    listener = listen(addr)
    lose(listener, DROP_ALL)
    return listener


def start(port, addr=args[0]):
    dialling = socket.socket(socket.AF_INET6 if ":" in addr else socket.AF_INET, socket.SOCK_STREAM)
    dialling.setblocking(False)
    assert dialling.connect_ex((addr, port)) == 115
    return dialling


def result(dialling):
    poll = select.poll()
    poll.register(dialling, select.POLLOUT)
    assert poll.poll(15000)
    return dialling.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


class Wire:
    """Sees the SYN that goes to the silent listener and answers in its place."""

    def __init__(self, listener):
        self.tcp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        self.icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.port = port_of(listener)

    def hear_syn(self):
        while True:
            packet = self.tcp.recv(65536)
            source, target, seq = struct.unpack("!HHI", packet[20:28])
            if target == self.port and packet[33] == 0x02:
                self.packet, self.source, self.seq = packet, source, seq
                return

    def send_icmp(self, kind, code):
        body = b"\0" * 4 + self.packet[:28]
        sum = checksum(struct.pack("!BBH", kind, code, 0) + body)
        self.icmp.sendto(struct.pack("!BBH", kind, code, sum) + body, (args[0], 0))

    def send(self, flags, seq, ack):
        header = lambda sum: struct.pack(
            "!HHIIBBHHH", self.port, self.source, seq, ack, 5 << 4, flags, 65535, sum, 0
        )
        ends = socket.inet_aton(args[0]) * 2
        sum = checksum(ends + struct.pack("!BBH", 0, 6, 20) + header(0))
        self.tcp.sendto(header(sum), (args[0], 0))


def set_ports(low, high):
    open("/proc/sys/net/ipv4/ip_local_port_range", "w").write(f"{low} {high}")


def use_up_ports():
    """Of those toward the listener that it gives."""
    listener = listen(args[0], 60000)
    set_ports(50000, 50001)
    return listener, [connect(args[0], 60000) for _ in range(2)]


def mapped(addr):
    return "::ffff:" + addr


# Where no route leads to.
NOWHERE = "2001:db8::1" if FAMILY == socket.AF_INET6 else "203.0.113.1"


def add_route(kind):
    assert os.system(f"ip -{6 if FAMILY == socket.AF_INET6 else 4} route add {kind} {NOWHERE}") == 0
"#;

/// A program, the errno that it says it saw, and what became of its connects.
struct Case {
    name: &'static str,
    program: &'static str,
    errno: i32,
    outcomes: &'static [(&'static str, u64)],
    families: &'static [&'static str],
}

const BOTH: &[&str] = &["127.0.0.1", "::1"];
const V4: &[&str] = &["127.0.0.1"];

const CASES: &[Case] = &[
    Case {
        name: "refused",
        program: r"
closed = closed_port()
dialling = new()
say(dialling.connect_ex((args[0], port_of(closed))))
",
        errno: 111,
        outcomes: &[("refused", 1)],
        families: BOTH,
    },
    Case {
        name: "polled",
        program: r"
closed = closed_port()
dialling = start(port_of(closed))
say(result(dialling))
",
        errno: 111,
        outcomes: &[("refused", 1)],
        families: BOTH,
    },
    Case {
        name: "timed-out",
        program: r"
listener = silent()
dialling = new()
dialling.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
say(dialling.connect_ex((args[0], port_of(listener))))
",
        errno: 110,
        outcomes: &[("timed_out", 1)],
        families: BOTH,
    },
    Case {
        name: "no-host",
        program: r"
wire = Wire(listener := silent())
dialling = start(port_of(listener))
wire.hear_syn()
wire.send_icmp(3, 1)
say(result(dialling))
",
        errno: 113,
        outcomes: &[("unreachable", 1)],
        families: V4,
    },
    Case {
        name: "no-net",
        program: r"
wire = Wire(listener := silent())
dialling = start(port_of(listener))
wire.hear_syn()
wire.send_icmp(3, 0)
say(result(dialling))
",
        errno: 101,
        outcomes: &[("unreachable", 1)],
        families: V4,
    },
    Case {
        name: "no-protocol",
        program: r"
wire = Wire(listener := silent())
dialling = start(port_of(listener))
wire.hear_syn()
wire.send_icmp(3, 2)
say(result(dialling))
",
        errno: 92,
        outcomes: &[("unreachable", 1)],
        families: V4,
    },
    Case {
        name: "icmp-port",
        program: r"
wire = Wire(listener := silent())
dialling = start(port_of(listener))
wire.hear_syn()
wire.send_icmp(3, 3)
say(result(dialling))
",
        errno: 111,
        outcomes: &[("refused", 1)],
        families: V4,
    },
    // The SYN crosses one of the peer, whose reset comes before the handshake is complete.
    Case {
        name: "reset",
        program: r"
wire = Wire(listener := silent())
dialling = start(port_of(listener))
wire.hear_syn()
wire.send(0x02, 1000, 0)
wire.send(0x04, 1001, 0)
say(result(dialling))
",
        errno: 104,
        outcomes: &[("reset", 1)],
        families: V4,
    },
    // To itself: both SYNs are its own.
    Case {
        name: "crossed",
        program: r"
dialling = new()
dialling.bind((args[0], 0))
say(dialling.connect_ex((args[0], port_of(dialling))))
",
        errno: 0,
        outcomes: &[("established", 1)],
        families: BOTH,
    },
    Case {
        name: "no-port",
        program: r"
listener = listen(args[0], 60000)
set_ports(50000, 50001)
held = [connect(args[0], 60000) for _ in range(2)]
dialling = new()
say(dialling.connect_ex((args[0], 60000)))
",
        errno: 99,
        outcomes: &[("established", 2), ("no_port", 1)],
        families: BOTH,
    },
    // Tried again on a socket that had a port before.
    Case {
        name: "no-port-2",
        program: r"
listener, closed = listen(args[0], 60000), closed_port()
dialling = new()
assert dialling.connect_ex((args[0], port_of(closed))) == 111
set_ports(50000, 50001)
held = [connect(args[0], 60000) for _ in range(2)]
say(dialling.connect_ex((args[0], 60000)))
",
        errno: 99,
        outcomes: &[("established", 2), ("refused", 1), ("no_port", 1)],
        families: BOTH,
    },
    // The port that the application itself wants is taken toward this destination.
    Case {
        name: "port-taken",
        program: r"
listener = listen(args[0])
sockets = [new(), new()]
for one in sockets:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((args[0], 50123))
sockets[0].connect((args[0], port_of(listener)))
say(sockets[1].connect_ex((args[0], port_of(listener))))
",
        errno: 99,
        outcomes: &[("established", 1), ("no_port", 1)],
        families: BOTH,
    },
    Case {
        name: "given-up",
        program: r"
listener = silent()
start(port_of(listener)).close()
say(0)
",
        errno: 0,
        outcomes: &[("aborted", 1)],
        families: BOTH,
    },
    Case {
        name: "linger-0",
        program: r"
listener = silent()
dialling = start(port_of(listener))
linger_0(dialling)
dialling.close()
say(0)
",
        errno: 0,
        outcomes: &[("aborted", 1)],
        families: V4,
    },
    // connect() returns when its time is up; the attempt goes on until the socket is closed.
    Case {
        name: "sndtimeo",
        program: r#"
listener = silent()
dialling = new()
dialling.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 200000))
errno = dialling.connect_ex((args[0], port_of(listener)))
dialling.close()
say(errno)
"#,
        errno: 115,
        outcomes: &[("aborted", 1)],
        families: V4,
    },
    // Both families at once; the one that answers wins.
    Case {
        name: "eyeballs",
        program: r#"
six, four = silent("::1"), listen("127.0.0.1")
dialling = [start(port_of(six), "::1"), start(port_of(four), "127.0.0.1")]
errno = result(dialling[1])
dialling[0].close()
say(errno)
"#,
        errno: 0,
        outcomes: &[("established", 1), ("aborted", 1)],
        families: V4,
    },
    Case {
        name: "short",
        program: r"
listener = listen(args[0])
for _ in range(100):
    connect(args[0], port_of(listener)).close()
say(0)
",
        errno: 0,
        outcomes: &[("established", 100)],
        families: BOTH,
    },
    Case {
        name: "no-ports",
        program: r"
used = use_up_ports()
assert {new().connect_ex((args[0], 60000)) for _ in range(200)} == {99}
say(99)
",
        errno: 99,
        outcomes: &[("established", 2), ("no_port", 200)],
        families: BOTH,
    },
    Case {
        name: "mapped",
        program: r"
listener = listen(args[0])
dialling = socket.socket(socket.AF_INET6)
say(dialling.connect_ex((mapped(args[0]), port_of(listener))))
",
        errno: 0,
        outcomes: &[("established", 1)],
        families: V4,
    },
    Case {
        name: "m-no-port",
        program: r"
used = use_up_ports()
say(socket.socket(socket.AF_INET6).connect_ex((mapped(args[0]), 60000)))
",
        errno: 99,
        outcomes: &[("established", 2), ("no_port", 1)],
        families: V4,
    },
    // An address of another family, and one that is cut short, are no destination.
    Case {
        name: "no-address",
        program: r"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for family, length, errno in ((socket.AF_UNIX, 28, 97), (FAMILY, 8, 22)):
    uaddr = ctypes.create_string_buffer(struct.pack('H', family), 28)
    dialling = new()
    assert libc.connect(dialling.fileno(), uaddr, length) == -1
    assert ctypes.get_errno() == errno
say(0)
",
        errno: 0,
        outcomes: &[],
        families: BOTH,
    },
];

/// With what becomes of connects before SYN_SENT, where that is told.
const AT_ONCE: &[(Case, &[(&str, u64)])] = &[
    (
        Case {
            name: "no-route",
            program: r"
say(new().connect_ex((NOWHERE, 80)))
",
            errno: 101,
            outcomes: &[],
            families: BOTH,
        },
        &[("unreachable", 1)],
    ),
    (
        Case {
            name: "no-routes",
            program: r"
for _ in range(200):
    with new() as dialling:
        assert dialling.connect_ex((NOWHERE, 80)) == 101
say(101)
",
            errno: 101,
            outcomes: &[],
            families: BOTH,
        },
        &[("unreachable", 200)],
    ),
    (
        Case {
            name: "prohibit",
            program: r#"
add_route("prohibit")
say(new().connect_ex((NOWHERE, 80)))
"#,
            errno: 13,
            outcomes: &[],
            families: BOTH,
        },
        &[("unreachable", 1)],
    ),
    (
        Case {
            name: "unreachable",
            program: r#"
add_route("unreachable")
dialling = new()
dialling.setblocking(False)
say(dialling.connect_ex((NOWHERE, 80)))
"#,
            errno: 113,
            outcomes: &[],
            families: BOTH,
        },
        &[("unreachable", 1)],
    ),
    (
        Case {
            name: "blackhole",
            program: r#"
add_route("blackhole")
say(new().connect_ex((NOWHERE, 80)))
"#,
            errno: 22,
            outcomes: &[],
            families: BOTH,
        },
        &[("other", 1)],
    ),
    // To a v4-mapped address both functions return it.
    (
        Case {
            name: "m-no-route",
            program: r"
say(socket.socket(socket.AF_INET6).connect_ex((mapped(NOWHERE), 80)))
",
            errno: 101,
            outcomes: &[],
            families: V4,
        },
        &[("unreachable", 1)],
    ),
    // And here only one.
    (
        Case {
            name: "m-only-v6",
            program: r"
dialling = socket.socket(socket.AF_INET6)
dialling.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
say(dialling.connect_ex((mapped(args[0]), 80)))
",
            errno: 101,
            outcomes: &[],
            families: V4,
        },
        &[("unreachable", 1)],
    ),
    (
        Case {
            name: "fast-open",
            program: r#"
say(errno_of(lambda: new().sendto(b"early", socket.MSG_FASTOPEN, (NOWHERE, 80))))
"#,
            errno: 101,
            outcomes: &[],
            families: BOTH,
        },
        &[("unreachable", 1)],
    ),
    // One socket that fails before SYN_SENT, after it, and before it again.
    (
        Case {
            name: "by-turns",
            program: r"
used = use_up_ports()
dialling = new()
for addr, port, errno in ((NOWHERE, 80, 101), (args[0], 60000, 99)) * 2 + ((NOWHERE, 80, 101),) * 2:
    assert dialling.connect_ex((addr, port)) == errno
say(101)
",
            errno: 101,
            outcomes: &[("established", 2), ("no_port", 2)],
            families: BOTH,
        },
        &[("unreachable", 4)],
    ),
    (
        Case {
            name: "m-by-turns",
            program: r"
used = use_up_ports()
dialling = socket.socket(socket.AF_INET6)
for addr, port, errno in ((args[0], 60000, 99), (NOWHERE, 80, 101)) * 2:
    assert dialling.connect_ex((mapped(addr), port)) == errno
say(101)
",
            errno: 101,
            outcomes: &[("established", 2), ("no_port", 2)],
            families: V4,
        },
        &[("unreachable", 2)],
    ),
    // Refused, and then there is no way to where it tries next.
    (
        Case {
            name: "refused-1st",
            program: r"
closed = closed_port()
dialling = new()
assert dialling.connect_ex((args[0], port_of(closed))) == 111
say(dialling.connect_ex((NOWHERE, 80)))
",
            errno: 101,
            outcomes: &[("refused", 1)],
            families: BOTH,
        },
        &[("unreachable", 1)],
    ),
    (
        Case {
            name: "retried",
            program: r"
listener = listen(args[0])
dialling = new()
assert dialling.connect_ex((NOWHERE, 80)) == 101
say(dialling.connect_ex((args[0], port_of(listener))))
",
            errno: 0,
            outcomes: &[("established", 1)],
            families: BOTH,
        },
        &[("unreachable", 1)],
    ),
];

/// Whether errnos are told by the hook of state changes that serves.
fn errors_are_told(daemon: &Daemon) -> bool {
    !daemon.hook("state").starts_with("tracepoint ")
}

fn outcomes_of(metrics: &Metrics, labels: &[(&str, &str)]) -> BTreeMap<&'static str, u64> {
    let count = |outcome| metrics.sum(CONNECTS, &[labels, &[("outcome", outcome)]].concat());
    let all = OUTCOMES.into_iter().filter_map(|outcome| Some((outcome, count(outcome)?)));
    all.filter(|(_, count)| *count > 0).collect()
}

#[test]
fn what_becomes_of_a_connect_is_what_the_application_sees() {
    are_told(CASES.iter().map(|case| (case, &[][..])));
}

#[test]
fn what_fails_before_syn_sent_is_told_once_where_it_can_be_told() {
    are_told(AT_ONCE.iter().map(|(case, at_once)| (case, *at_once)));
}

/// Each with what is told where connects that fail at once are.
fn are_told(cases: impl Iterator<Item = (&'static Case, &'static [(&'static str, u64)])>) {
    let daemon = Daemon::start(&[]);
    let (told, at_once_is_told) = (errors_are_told(&daemon), daemon.serves("connect"));
    for (case, at_once, addr) in
        cases.flat_map(|(case, at_once)| case.families.iter().map(move |addr| (case, at_once, addr)))
    {
        let namespace = Namespace::new();
        let comm = format!("c.{}-{}", case.name, if addr.contains(':') { 6 } else { 4 });
        let comm = comm.as_str();
        let program = format!("{TOOLS}\n{}\norder()\n", case.program);
        let mut client = Workload::start(&namespace, comm, &program, &[addr]);
        assert_eq!(client.hear(), case.errno.to_string(), "{comm}: the application's errno");

        let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
        for (outcome, count) in case.outcomes {
            // Without errnos and types only a missing port shows.
            let bound = matches!(case.name, "port-taken" | "no-port-2");
            let shows = told || *outcome == "established" || (*outcome == "no_port" && !bound);
            *expected.entry(if shows { outcome } else { "unknown" }).or_default() += count;
        }
        for (outcome, count) in at_once.iter().filter(|_| at_once_is_told) {
            *expected.entry(outcome).or_default() += count;
        }
        let attempts: u64 = expected.values().sum();
        let metrics = eventually("its connects are counted", || {
            let metrics = daemon.metrics();
            let found = outcomes_of(&metrics, &[("process", comm)]);
            if found == expected { Ok(metrics) } else { Err(format!("{comm}: {found:?}")) }
        });
        let sum = |name: &str| metrics.sum(name, &[("process", comm), ("role", "client")]).unwrap_or(0);
        let established = expected.get("established").copied().unwrap_or(0);
        assert_eq!(sum(ATTEMPTS), attempts, "{comm}");
        // Of a simultaneous open no time is told.
        let timed = if case.name == "crossed" { 0 } else { established };
        assert_eq!((sum(OPENED), sum(DURATIONS)), (established, timed), "{comm}");

        // The same of each, with whoever made it.
        let mut rows = daemon.json(&format!("/history?limit=0&process={}", client.pid()))["connections"]
            .as_array()
            .unwrap()
            .clone();
        for row in
            daemon.json(&format!("/connections?limit=0&role=client&pid={}", client.pid()))["connections"]
                .as_array()
                .unwrap()
        {
            rows.push(daemon.detail(row));
        }
        // Before it entered the namespace it was a fork of this process, and may have been the last holder of another
        // test's socket. Where namespaces are not known they are 0.
        let is_here = |row: &&Value| row["netns"] == namespace.inode || row["netns"] == 0;
        let mut shown: BTreeMap<&str, u64> = BTreeMap::new();
        for row in rows.iter().filter(is_here).filter(|row| row["role"] == "client") {
            assert_eq!(row["opener"]["pid"], client.pid(), "{comm}: {row}");
            let began = row["state"] != "CLOSE";
            assert_eq!(row["connect"]["seconds"].is_number(), began, "{comm}: {row}");
            if !began {
                assert_eq!(
                    (row["life"].as_array().unwrap().len(), &row["remote"]["port"]),
                    (1, &json!(80)),
                    "{row}"
                );
                assert!(row["error"] != 0 && row["process"]["pid"] == client.pid(), "{comm}: {row}");
            }
            *shown.entry(row["connect"]["outcome"].as_str().unwrap()).or_default() += 1;
        }
        assert_eq!(shown, expected, "{comm}: {rows:?}");
        if case.name == "timed-out" && told {
            let [row] = &rows.iter().filter(|row| row["role"] == "client").collect::<Vec<_>>()[..] else {
                panic!("{rows:?}");
            };
            let (repeated, error) = (&row["connect"]["syn_retransmits"], &row["error"]);
            assert_eq!((repeated, error), (&json!(client.retransmitted()), &json!(110)), "{row}");
            assert!(client.retransmitted() > 0 && row["connect"]["seconds"].as_f64().unwrap() > 1.0, "{row}");
        }
    }
    // Over everything that the machine did meanwhile.
    eventually("all attempts are over or under way", || {
        let metrics = daemon.metrics();
        let waiting = daemon.json("/connections?limit=0&state=SYN_SENT")["total"].as_u64().unwrap();
        let over: u64 = outcomes_of(&metrics, &[]).values().sum();
        let attempts = metrics.sum(ATTEMPTS, &[]).unwrap_or(0);
        if attempts == over + waiting { Ok(()) } else { Err(format!("{attempts} = {over} + {waiting}")) }
    });
    assert_eq!(daemon.metrics().sum("tcpwatch_records_lost_total", &[("cause", "ring_full")]), Some(0));
}

const WAITS: &str = r#"
listener = listen(args[0])
lose(listener, DROP_ALL)
dialling = socket.socket(listener.family, socket.SOCK_STREAM)
dialling.setblocking(False)
assert dialling.connect_ex((args[0], port_of(listener))) == 115
say(port_of(listener))
order()
lose_nothing(listener)
dialling.setblocking(True)
accepted = listener.accept()[0]
say("accepted")
order()
dialling.close()
say("closed")
order()
"#;

#[test]
fn a_connect_under_way_and_its_repeated_syns_are_told() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut client = Workload::start(&namespace, "dials-slowly", WAITS, &["127.0.0.1"]);
    let port = client.hear();
    let rows = daemon.json(&format!("/connections?state=SYN_SENT&remote_port={port}&pid={}", client.pid()));
    let id = rows["connections"][0]["id"].as_str().expect("the connect under way").to_owned();
    let of_it = |metrics: &Metrics| outcomes_of(metrics, &[("process", "dials-slowly")]);
    eventually("a SYN is repeated", || {
        let detail = daemon.json(&format!("/connections/{id}"));
        assert_eq!((&detail["connect"]["outcome"], &detail["first_close"]), (&Value::Null, &Value::Null));
        let repeated = detail["connect"]["syn_retransmits"].as_u64().unwrap();
        if repeated > 0 { Ok(()) } else { Err(detail.to_string()) }
    });
    let metrics = daemon.metrics();
    assert_eq!((metrics.sum(ATTEMPTS, &[("process", "dials-slowly")]), of_it(&metrics).len()), (Some(1), 0));
    assert_eq!(client.ask(), "accepted");
    let detail = daemon.json(&format!("/connections/{id}"));
    assert_eq!(detail["connect"]["outcome"], "established", "{detail}");
    assert!(detail["connect"]["syn_retransmits"].as_u64().unwrap() > 0, "{detail}");
    assert!(detail["connect"]["seconds"].as_f64().unwrap() > 0.5, "{detail}");
    // A peer that is closed at last, however long it was idle, is no failed connect.
    assert_eq!(client.ask(), "closed");
    assert_eq!(of_it(&daemon.metrics()), BTreeMap::from([("established", 1)]));
}

#[test]
fn processes_and_peers_sum_up_what_connections_and_metrics_say() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut waits = Workload::start(&namespace, "sums", WAITS, &["127.0.0.1"]);
    let port = waits.hear();
    assert_eq!(waits.ask(), "accepted");
    let mut refused = Workload::start(&namespace, "sums", crate::counts::IS_REFUSED, &["127.0.0.1"]);
    assert_eq!(refused.hear(), "refused");

    let answer = daemon.json("/processes?comm=sums");
    let row = &answer["processes"][0];
    assert_eq!((&answer["total"], &row["comm"]), (&json!(1), &json!("sums")));
    assert_eq!(row["connections"]["roles"], json!({"client": 1, "listener": 1, "server": 1}), "{row}");
    assert_eq!(row["connections"]["states"], json!({"ESTABLISHED": 2, "LISTEN": 1}), "{row}");
    assert_eq!((&row["opened"], &row["closed"], &row["connect_attempts"]), (&json!(2), &json!(0), &json!(2)));
    assert_eq!((&row["connects"]["established"], &row["running"]), (&json!(1), &json!(1)), "{row}");
    let failed = if errors_are_told(&daemon) { "refused" } else { "unknown" };
    assert_eq!(row["connects"][failed], 1, "{row}");
    assert_eq!(row["instances"][0]["pid"], waits.pid(), "only this one has connections: {row}");

    let answer = daemon.json("/peers?comm=sums&sort=name&limit=0");
    let peer = |role: &str, peer: &str| {
        let mut rows = answer["peers"].as_array().unwrap().iter();
        rows.find(|row| row["role"] == role && row["peer"] == peer).unwrap_or_else(|| panic!("{answer}"))
    };
    for row in [peer("client", &format!("127.0.0.1:{port}")), peer("server", &format!(":{port}"))] {
        assert_eq!((&row["processes"], &row["opened"]), (&json!(["sums"]), &json!(1)), "{row}");
        assert_eq!(row["connections"]["states"], json!({"ESTABLISHED": 1}), "{row}");
    }
    assert_eq!(answer["total"], 3, "and whoever refused: {answer}");
}
