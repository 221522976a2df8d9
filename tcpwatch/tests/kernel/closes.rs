//! Who closed first, with real sockets, compared with what both applications saw.

use serde_json::{Value, json};

use crate::{
    daemon::Daemon, eventually::eventually, netns::Namespace, witness::witnessed, workload::Workload,
};

const CLOSED: &str = "tcpwatch_connections_closed_by_first_total";

/// Both ends of one connection, in one process.
const ENDS: &str = r"
listener = listen(args[0])
client = connect(args[0], port_of(listener))
";

/// A program, the errno that it saw, and who closed first from the view of each side.
struct Case {
    name: &'static str,
    program: &'static str,
    errno: i32,
    client: &'static str,
    server: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "client-fin",
        program: r#"
server = listener.accept()[0]
client.close()
assert server.recv(1) == b""
server.close()
say(0)
"#,
        errno: 0,
        client: "local",
        server: "peer",
    },
    Case {
        name: "server-fin",
        program: r#"
server = listener.accept()[0]
server.close()
assert client.recv(1) == b""
client.close()
say(0)
"#,
        errno: 0,
        client: "peer",
        server: "local",
    },
    Case {
        name: "half-close",
        program: r#"
server = listener.accept()[0]
client.shutdown(socket.SHUT_WR)
assert server.recv(1) == b""
server.send(b"answer")
server.close()
assert client.recv(100) == b"answer" and client.recv(1) == b""
client.close()
say(0)
"#,
        errno: 0,
        client: "local",
        server: "peer",
    },
    Case {
        name: "linger-0",
        program: r"
server = listener.accept()[0]
linger_0(client)
client.close()
say(errno_of(lambda: server.recv(1)))
server.close()
",
        errno: 104,
        client: "local_reset",
        server: "peer_reset",
    },
    Case {
        name: "unread",
        program: r#"
server = listener.accept()[0]
client.send(b"never read")
while server.recv(1, socket.MSG_PEEK) == b"":
    pass
server.close()
say(errno_of(lambda: client.recv(1)))
client.close()
"#,
        errno: 104,
        client: "peer_reset",
        server: "local_reset",
    },
    Case {
        name: "unaccepted",
        program: r"
listener.close()
say(errno_of(lambda: client.recv(1)))
client.close()
",
        errno: 104,
        client: "peer_reset",
        server: "local_reset",
    },
    // The reset comes after the peer's FIN, which was first.
    Case {
        name: "reset-last",
        program: r#"
server = listener.accept()[0]
server.close()
assert client.recv(1) == b""
linger_0(client)
client.close()
say(0)
"#,
        errno: 0,
        client: "peer",
        server: "local",
    },
    Case {
        name: "timed-out",
        program: r#"
server = listener.accept()[0]
lose(server, DROP_ALL)
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
client.send(b"lost")
say(errno_of(lambda: client.recv(1)))
client.close()
lose_nothing(server)
server.close()
"#,
        errno: 110,
        client: "timer",
        server: "local",
    },
];

#[test]
fn who_closed_first_is_known_on_both_sides() {
    witnessed(|witness| who_closed_first(&witness.start(&[])));
}

fn who_closed_first(daemon: &Daemon) {
    let errnos_are_reported = !daemon.hook("state").starts_with("tracepoint ");
    for (case, addr) in CASES.iter().flat_map(|case| ["127.0.0.1", "::1"].map(|addr| (case, addr))) {
        let namespace = Namespace::new();
        let comm = format!("e.{}-{}", case.name, if addr.contains(':') { 6 } else { 4 });
        let comm = comm.as_str();
        let program = format!("{ENDS}\n{}\norder()\n", case.program);
        let before = servers_in(daemon, &namespace);
        let mut ends = Workload::start(&namespace, comm, &program, &[addr]);
        assert_eq!(ends.hear(), case.errno.to_string(), "{comm}: the application's errno");
        for (role, first) in [("client", case.client), ("server", case.server)] {
            // Without errnos only a FIN is recognised.
            let first =
                if errnos_are_reported || matches!(first, "local" | "peer") { first } else { "unknown" };
            // A server's end that was over before a sweep saw who held it counts without a process.
            if role == "server" && daemon.hook("accept").starts_with("inferred ") {
                let of = eventually("the server's end is closed", || {
                    let now = servers_in(daemon, &namespace);
                    let mut new = now.iter().filter(|row| before.iter().all(|old| old["id"] != row["id"]));
                    new.find(|row| row["first_close"].is_string()).cloned().ok_or("no")
                });
                assert_eq!(of["first_close"], first, "{comm} {role}: {of}");
                continue;
            }
            let of_role = [("process", comm), ("role", role)];
            let by = [&of_role[..], &[("first", first)]].concat();
            let metrics = eventually("the close is counted", || {
                let metrics = daemon.metrics();
                match metrics.sum(CLOSED, &of_role) {
                    Some(1) => Ok(metrics),
                    other => Err(format!("{comm} {role}: {other:?}")),
                }
            });
            assert_eq!(metrics.sum(CLOSED, &by), Some(1), "{comm} {role}: not {first}");
        }
    }
}

/// `/connections/ID` of the servers' ends in a namespace, or in one that had its inode number before.
fn servers_in(daemon: &Daemon, namespace: &Namespace) -> Vec<Value> {
    let lists =
        ["/connections", "/history"].map(|path| daemon.json(&format!("{path}?limit=10000&role=server")));
    let rows = lists.iter().flat_map(|list| list["connections"].as_array().unwrap());
    rows.filter(|row| row["netns"] == namespace.inode).map(|row| daemon.detail(row)).collect()
}

const IDLE: &str = r#"
listener = listen("127.0.0.1")
before = time.monotonic()
client = connect("127.0.0.1", port_of(listener))
connected = time.monotonic()
server = listener.accept()[0]
say("connected")
order()
closing = time.monotonic()
server.close()
closed = time.monotonic()
say(closing - connected, closed - before, port_of(client))
order()
"#;

#[test]
fn first_close_and_established_seconds_are_the_applications() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut ends = Workload::start(&namespace, "idle", IDLE, &[]);
    assert_eq!(ends.hear(), "connected");
    let rows = daemon.json(&format!("/connections?pid={}", ends.pid()));
    for row in rows["connections"].as_array().unwrap().iter().filter(|row| row["role"] != "listener") {
        let detail = daemon.detail(row);
        assert_eq!(detail["first_close"], Value::Null, "{detail}");
        assert!(detail["established_seconds"].is_number(), "{detail}");
    }
    ends.order();
    let [at_least, at_most, client_port] = ends.hear_numbers();
    let rows = daemon.json(&format!("/connections?pid={}", ends.pid()));
    let mut seen = Vec::new();
    for row in rows["connections"].as_array().unwrap().iter().filter(|row| row["role"] != "listener") {
        let detail = daemon.detail(row);
        let established = detail["established_seconds"].as_f64().unwrap();
        // The daemon's times are exact to the microsecond.
        let fits = (at_least - 1e-3..=at_most + 1e-3).contains(&established);
        assert!(fits, "{established} s, {at_least} to {at_most} s by the application");
        let is_client = detail["local"]["port"].as_f64() == Some(client_port);
        seen.push((is_client, detail["first_close"].clone()));
    }
    seen.sort_by_key(|(is_client, _)| *is_client);
    assert_eq!(seen, [(false, json!("local")), (true, json!("peer"))]);
}
