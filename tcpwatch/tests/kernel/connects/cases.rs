//! Programs whose connects have each outcome that a connect can have.

/// Functions that the programs below share; `args[0]` is the address that they connect to.
pub(super) const TOOLS: &str = r#"
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
    """All local ports toward the listener that it returns."""
    listener = listen(args[0], 60000)
    set_ports(50000, 50001)
    return listener, [connect(args[0], 60000) for _ in range(2)]


def mapped(addr):
    return "::ffff:" + addr


# An address without a route.
NOWHERE = "2001:db8::1" if FAMILY == socket.AF_INET6 else "203.0.113.1"


def add_route(kind):
    assert os.system(f"ip -{6 if FAMILY == socket.AF_INET6 else 4} route add {kind} {NOWHERE}") == 0
"#;

/// A program, the errno that it saw, and the outcomes of its connects.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) program: &'static str,
    pub(super) errno: i32,
    pub(super) outcomes: &'static [(&'static str, u64)],
    pub(super) families: &'static [&'static str],
}

const BOTH: &[&str] = &["127.0.0.1", "::1"];
const V4: &[&str] = &["127.0.0.1"];

pub(super) const CASES: &[Case] = &[
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
    // Connects to itself: both SYNs are its own.
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
    // A second attempt of a socket that had a port before.
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
    // The application binds a port that is taken toward this destination.
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
    // An address of another family and a truncated one count as no attempt.
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

/// Cases with connects that fail before SYN_SENT, and the outcomes of these, where they are reported.
pub(super) const AT_ONCE: &[(Case, &[(&str, u64)])] = &[
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
    // For a v4-mapped address both hooked functions return the errno, which must count once.
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
    // Here only one of them returns it.
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
    // Refused first, and then without a route to the next destination.
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
