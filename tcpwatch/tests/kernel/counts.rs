//! Counts and durations in `/metrics`, exact to the last connection and segment.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tcpwatch::http::metrics::family::Collector;

use crate::{
    daemon::Daemon, eventually::eventually, metrics::Metrics, netns::Namespace, witness::witnessed,
    workload::Workload,
};

pub(crate) const OPENED: &str = "tcpwatch_connections_opened_total";
const CLOSED: &str = "tcpwatch_connections_closed_total";
const RETRANSMITS: &str = "tcpwatch_retransmits_total";

pub(crate) const ECHO_SERVER: &str = r"
listener = listen(*args)
say(port_of(listener))
while True:
    conn = listener.accept()[0]
    while data := conn.recv(4096):
        conn.send(data)
    conn.close()
";

pub(crate) const ECHO_CLIENT: &str = r#"
for _ in range(int(args[2])):
    conn = connect(args[0], args[1])
    conn.send(b"echo")
    assert conn.recv(4096) == b"echo"
    conn.close()
say("done")
order()
"#;

#[test]
fn a_clean_echo_workload_has_exact_counts_and_no_leak() {
    const CONNECTIONS: u64 = 2000;
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    for (addr, server_name, client_name) in
        [("127.0.0.1", "echo-server-4", "echo-client-4"), ("::1", "echo-server-6", "echo-client-6")]
    {
        let mut server = Workload::start(&namespace, server_name, ECHO_SERVER, &[addr]);
        let port = server.hear();
        let args = [addr, &port, &CONNECTIONS.to_string()];
        let mut client = Workload::start(&namespace, client_name, ECHO_CLIENT, &args);
        assert_eq!(client.hear(), "done");
        // The server may not have ended the last one yet.
        let server_side = [("process", server_name), ("role", "server"), ("peer", &format!(":{port}"))];
        let metrics = eventually("the server's last connection is closed", || {
            let metrics = daemon.metrics();
            match metrics.sum(CLOSED, &server_side) {
                Some(CONNECTIONS) => Ok(metrics),
                other => Err(format!("{other:?}")),
            }
        });
        let dialled = if addr.contains(':') { format!("[{addr}]:{port}") } else { format!("{addr}:{port}") };
        let client_side = [("process", client_name), ("role", "client"), ("peer", &dialled)];
        for (side, states) in [
            (server_side, &["ESTABLISHED", "CLOSE_WAIT", "LAST_ACK"][..]),
            (client_side, &["SYN_SENT", "ESTABLISHED", "FIN_WAIT1"]),
        ] {
            assert_eq!(metrics.sum(OPENED, &side), Some(CONNECTIONS), "{side:?}");
            assert_eq!(metrics.sum(CLOSED, &side), Some(CONNECTIONS), "{side:?}");
            for state in states {
                let in_state = [&side[..], &[("state", state)]].concat();
                assert_eq!(metrics.sum(durations(state), &in_state), Some(CONNECTIONS), "{in_state:?}");
            }
            // All of them are in this state.
            assert_eq!(metrics.sum(OPENED, &side[..1]), Some(CONNECTIONS), "{side:?}");
        }
        for pid in [server.pid(), client.pid()] {
            assert_eq!(daemon.leaks_of(pid), [] as [Value; 0]);
        }
        let rows = daemon.json(&format!("/connections?limit=10000&pid={}", server.pid()));
        assert_eq!(rows["total"], 1, "only the listener is left: {rows}");
    }
    let metrics = daemon.metrics();
    assert_eq!(metrics.sum("tcpwatch_records_lost_total", &[("cause", "ring_full")]), Some(0));
    assert_eq!(metrics.sum("tcpwatch_records_malformed_total", &[]), Some(0));
    assert_eq!(daemon.json("/leaks")["complete"], true);
}

/// Connects to a closed port: bound, so that nobody else takes it, but not listening.
pub(crate) const IS_REFUSED: &str = r#"
closed = socket.socket(socket.AF_INET6 if ":" in args[0] else socket.AF_INET, socket.SOCK_STREAM)
closed.bind((args[0], 0))
dialling = socket.socket(closed.family, socket.SOCK_STREAM)
assert dialling.connect_ex((args[0], port_of(closed))) == 111
say("refused")
order()
"#;

/// Where the times that a state lasted are counted.
fn durations(state: &str) -> &'static str {
    if state.starts_with("SYN") {
        "tcpwatch_handshake_duration_seconds_count"
    } else {
        "tcpwatch_state_duration_seconds_count"
    }
}

#[test]
fn a_refused_connect_has_a_duration_but_is_not_opened() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    for (addr, name) in [("127.0.0.1", "refused-4"), ("::1", "refused-6")] {
        let mut client = Workload::start(&namespace, name, IS_REFUSED, &[addr]);
        assert_eq!(client.hear(), "refused");
        // The sockets are still held, but are not connections.
        assert_eq!(daemon.connections_in(&namespace), [] as [Value; 0]);
        let metrics = daemon.metrics();
        let handshakes = durations("SYN_SENT");
        assert_eq!(metrics.sum(handshakes, &[("process", name), ("state", "SYN_SENT")]), Some(1));
        assert_eq!(metrics.sum(handshakes, &[("process", name)]), Some(1));
        assert_eq!(metrics.sum(durations("ESTABLISHED"), &[("process", name)]), Some(0));
        assert_eq!(metrics.sum(OPENED, &[("process", name)]), Some(0));
        assert_eq!(metrics.sum(CLOSED, &[("process", name)]), Some(0));
    }
}

const LOSSY_SERVER: &str = r#"
listener = listen(args[0])
lose(listener, DROP_ALL)
say(port_of(listener))
order()
lose_nothing(listener)
conn = listener.accept()[0]
lose(conn, DROP_SOME_DATA)
while data := conn.recv(65536):
    pass
lose_nothing(conn)
conn.close()
say("closed")
order()
"#;

const SENDER: &str = r#"
conn = socket.socket(socket.AF_INET6 if ":" in args[0] else socket.AF_INET, socket.SOCK_STREAM)
conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)
conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
say("dials")
conn.connect((args[0], int(args[1])))
for _ in range(100):
    conn.sendall(b"x" * 1000)
say("sent")
order()
conn.close()
say("closed")
order()
"#;

#[test]
fn retransmits_equal_the_kernels_own_count() {
    witnessed(|witness| retransmits_of_both_sides(&witness.start(&[])));
}

fn retransmits_of_both_sides(daemon: &Daemon) {
    for (addr, server_name, client_name) in
        [("127.0.0.1", "lossy-server-4", "sender-4"), ("::1", "lossy-server-6", "sender-6")]
    {
        let namespace = Namespace::new();
        let mut server = Workload::start(&namespace, server_name, LOSSY_SERVER, &[addr]);
        let port = server.hear();
        let mut client = Workload::start(&namespace, client_name, SENDER, &[addr, &port]);
        let counted = |metrics: &Metrics| metrics.sum(RETRANSMITS, &[("process", client_name)]).unwrap_or(0);
        assert_eq!(client.hear(), "dials");
        let lost_syns = eventually("the lost SYN is retransmitted", || match server.retransmitted() {
            0 => Err("0"),
            syns => Ok(syns),
        });
        server.order();
        assert_eq!(client.hear(), "sent");
        // Reported while the connection lives, not only at its end.
        let live = eventually("data are retransmitted and counted", || {
            let (kernel, ours) = (server.retransmitted(), counted(&daemon.metrics()));
            if kernel > lost_syns && ours >= kernel { Ok(ours) } else { Err(format!("{ours} of {kernel}")) }
        });
        assert!(live <= server.retransmitted());
        assert_eq!(client.ask(), "closed");
        assert_eq!(server.hear(), "closed");
        eventually("all retransmits are counted", || {
            let (kernel, ours) = (server.retransmitted(), counted(&daemon.metrics()));
            if kernel == ours { Ok(()) } else { Err(format!("kernel: {kernel}, counted: {ours}")) }
        });
        let metrics = daemon.metrics();
        assert_eq!(
            metrics.sum(RETRANSMITS, &[("process", server_name)]),
            Some(0),
            "nothing was lost its way"
        );
        assert_eq!(metrics.sum(OPENED, &[("process", client_name)]), Some(1));
    }
}

#[test]
fn state_counts_agree_everywhere() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut server = Workload::start(&namespace, "agree-server", ECHO_SERVER, &["127.0.0.1"]);
    let port = server.hear();
    let mut client = Workload::start(&namespace, "agree-client", ECHO_CLIENT, &["127.0.0.1", &port, "5"]);
    assert_eq!(client.hear(), "done");
    // Other tests open and close connections: one moment without changes must be found. Each request leaves a
    // TIME_WAIT, so that state is not compared.
    eventually("/status, /metrics and /connections agree", || {
        let status = daemon.json("/status");
        let metrics = daemon.metrics();
        let rows = daemon.json("/connections?limit=10000");
        let rows = rows["connections"].as_array().unwrap();
        let states = status["connections"]["states"].as_object().unwrap();
        for (state, count) in states.iter().filter(|(state, _)| *state != "TIME_WAIT") {
            let in_metrics = metrics.sum("tcpwatch_connections", &[("state", state)]);
            let in_rows = rows.iter().filter(|row| row["state"] == *state).count();
            let seen = json!([count, in_metrics, in_rows]);
            if seen != json!([count, count, count]) {
                return Err(format!("{state}: {seen}"));
            }
        }
        Ok(())
    });
    assert_eq!(server.sockets_in(6), 5, "the kernel's own count of TIME_WAIT");
    let rows = daemon.connections_in(&namespace);
    assert_eq!(rows.iter().filter(|row| row["state"] == "TIME_WAIT").count(), 5, "{rows:?}");
}

/// Renames the process to the bytes that its last argument spells, before it dials.
const RENAMED: &str = r#"
open("/proc/self/comm", "wb").write(bytes(map(int, args[1].split())))
"#;

#[test]
fn hostile_process_names_make_valid_and_distinct_series() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let names: [(&[u8], &str); 8] = [
        (b"ugly\\\"name\"\n", r#"ugly\\"name"\x0a"#),
        (b"\0", "~empty"),
        (b"~other", "~~other"),
        (b"~unknown", "~~unknown"),
        (b"~~other", "~~~other"),
        (b"a\",role=\"b", "a\",role=\"b"),
        (b"bad\xff", r"bad\xff"),
        (b"bad\xfe", r"bad\xfe"),
    ];
    let program = format!("{RENAMED}{IS_REFUSED}");
    let _clients = names.map(|(name, _)| {
        let bytes: Vec<_> = name.iter().map(u8::to_string).collect();
        let mut client = Workload::start(&namespace, "renamed", &program, &["127.0.0.1", &bytes.join(" ")]);
        assert_eq!(client.hear(), "refused");
        client
    });
    let metrics = daemon.metrics();
    for (name, shown) in names {
        let labels = [("process", shown), ("role", "client")];
        assert_eq!(metrics.sum("tcpwatch_connect_attempts_total", &labels), Some(1), "{name:?}");
    }
    let processes = daemon.json("/processes?limit=10000");
    let rows = processes["processes"].as_array().unwrap();
    for (_, shown) in names {
        assert_eq!(rows.iter().filter(|row| row["comm"] == shown).count(), 1, "{shown}: {rows:?}");
    }
}

/// A connection whose both ends it holds.
const IS_HELD: &str = r#"
listener = listen(args[0])
client = connect(args[0], port_of(listener))
server = listener.accept()[0]
say("connected")
order()
"#;

/// Each collector's families, with values.
#[test]
fn promtool_accepts_the_metrics() {
    let promtool = std::env::var("PROMTOOL").unwrap_or_else(|_| "promtool".to_owned());
    if Command::new(&promtool).arg("--version").output().is_err() {
        println!("SKIPPED promtool_accepts_the_metrics: no {promtool}");
        return;
    }
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut client = Workload::start(&namespace, "odd\\\"name\"\n", IS_HELD, &["127.0.0.1"]);
    assert_eq!(client.hear(), "connected");
    for collector in Collector::ALL {
        let metrics = eventually("a sweep saw the connection", || {
            // Asked for owners, it sweeps.
            daemon.json("/peers");
            let (status, metrics) = daemon.get(&format!("/metrics?collect[]={}", collector.name()));
            assert_eq!(status, 200, "{metrics}");
            let has_values = !metrics.is_empty() || collector == Collector::Nat;
            if has_values { Ok(metrics) } else { Err(format!("nothing of {collector:?}")) }
        });
        Metrics::parse(&metrics);
        let mut promtool = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        promtool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
        let said = promtool.wait_with_output().unwrap();
        let said_text = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
        assert_eq!((said.status.code(), &*said_text), (Some(0), ""), "{collector:?}");
    }
    let (_, metrics) = daemon.get("/metrics");
    assert!(metrics.contains(r#"process="odd\\\\\"name\"\\x0a""#), "{metrics}");
}
