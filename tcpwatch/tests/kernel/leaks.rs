//! Leaks: connections that stay too long in a state are reported, with the right owner, count and age; others are not.

use serde_json::{Value, json};

use crate::{
    daemon::Daemon,
    eventually::{eventually, monotonic},
    netns::Namespace,
    witness::witnessed,
    workload::Workload,
};

/// How far an age may be from the true one, in seconds.
const TOLERANCE_SECONDS: f64 = 0.2;

/// Accepts the given number of connections; closes them on order.
pub(crate) const NEVER_CLOSES: &str = r#"
listener = listen(args[0], *args[2:])
say(port_of(listener))
conns = [listener.accept()[0] for _ in range(int(args[1]))]
say("accepted")
order()
for conn in conns:
    conn.close()
say("closed")
order()
"#;

const CLOSES: &str = r#"
listener = listen(args[0])
say(port_of(listener))
conns = [listener.accept()[0] for _ in range(int(args[1]))]
for conn in conns:
    read_to_end(conn)
    conn.close()
say("closed")
order()
"#;

/// Opens the given number of connections to each port; on order, sends five bytes on each and closes it.
pub(crate) const SENDS_AND_CLOSES: &str = r#"
conns = [connect(args[0], port) for port in args[2:] for _ in range(int(args[1]))]
say("connected")
order()
before = time.monotonic()
for conn in conns:
    conn.send(b"12345")
    conn.close()
say(before, time.monotonic())
order()
"#;

#[test]
fn leaked_server_connections_are_named() {
    let daemon = Daemon::start(&["--linger", "close-wait=1s"]);
    for (addr, count) in [("127.0.0.1", 12), ("::1", 7)] {
        leaked_server_connections(&daemon, addr, count);
    }
}

fn leaked_server_connections(daemon: &Daemon, addr: &str, count: usize) {
    let namespace = Namespace::new();
    let opened = &count.to_string()[..];
    let mut server = Workload::start(&namespace, "never-closes", NEVER_CLOSES, &[addr, opened]);
    let mut control = Workload::start(&namespace, "closes", CLOSES, &[addr, opened]);
    let (port, control_port) = (server.hear(), control.hear());
    let ports = [addr, opened, &port, &control_port];
    let mut client = Workload::start(&namespace, "short-client", SENDS_AND_CLOSES, &ports);
    assert_eq!(client.hear(), "connected");
    assert_eq!(server.hear(), "accepted");
    assert_eq!(daemon.leaks_of(server.pid()), [] as [Value; 0]);
    client.order();
    let [closed_from, closed_until] = client.hear_numbers();
    assert_eq!(control.hear(), "closed");
    assert_eq!(server.sockets_in(8), count, "the kernel's own count of CLOSE_WAIT");

    let mut asked_before_the_limit = false;
    let (leak, asked, answered) = eventually("the leak is named", || {
        let asked = monotonic();
        let leaks = daemon.leaks_of(server.pid());
        let answered = monotonic();
        if answered < closed_from + 1.0 {
            asked_before_the_limit = true;
            assert_eq!(leaks, [] as [Value; 0], "named before its time");
        }
        match &leaks[..] {
            [leak] if leak["count"] == count => Ok((leak.clone(), asked, answered)),
            _ => Err(format!("{leaks:?}")),
        }
    });
    assert!(asked_before_the_limit, "the machine was too busy to ask within a second");

    let port: u16 = port.parse().unwrap();
    let exe = std::fs::read_link(format!("/proc/{}/exe", server.pid())).unwrap();
    assert_eq!(leak["rule"], "close_wait_leak");
    assert_eq!(leak["state"], "CLOSE_WAIT");
    assert_eq!(leak["role"], "server");
    assert_eq!(leak["process"]["comm"], "never-closes");
    assert_eq!(leak["process"]["exe"], exe.to_str().unwrap());
    assert!(leak["process"]["cgroup"].is_string(), "{leak}");
    assert_eq!(leak["local"], json!({"addr": addr, "port": port}));
    assert_eq!(leak["remote"], json!({"addr": addr, "port": null}));
    assert_eq!(leak["distinct_remote_addrs"], 1);
    assert_eq!(leak["unread_bytes"], 5 * count);
    assert_eq!(leak["oldest_is_lower_bound"], false);
    // The growth is unknown at first; a step is none.
    assert!(leak["growth_per_minute"].as_f64().is_none_or(|growth| growth == 0.0), "{leak}");
    // It entered CLOSE_WAIT while the client closed, and its age was taken between request and answer.
    let oldest = leak["oldest_seconds"].as_f64().unwrap();
    let truth = asked - closed_until - TOLERANCE_SECONDS..answered - closed_from + TOLERANCE_SECONDS;
    assert!(truth.contains(&oldest), "{oldest} is not in {truth:?}");
    assert_eq!(daemon.leaks_of(control.pid()), [] as [Value; 0], "the healthy server");
    assert_eq!(daemon.leaks_of(client.pid()), [] as [Value; 0], "the client");

    check_sides(daemon, &namespace, port, (&server, &client), count);

    assert_eq!(server.ask(), "closed");
    eventually("the leak is gone once the server closed", || match &daemon.leaks_of(server.pid())[..] {
        [] => Ok(()),
        leaks => Err(format!("{leaks:?}")),
    });
}

/// Asserts that each row of the leak names the process of its own side.
fn check_sides(
    daemon: &Daemon,
    namespace: &Namespace,
    port: u16,
    (server, client): (&Workload, &Workload),
    count: usize,
) {
    let rows = daemon.connections_in(namespace);
    let side = |end: &str, state: &str, role: &str, pid: u32| {
        let rows: Vec<&Value> =
            rows.iter().filter(|row| row[end]["port"] == port && row["state"] != "LISTEN").collect();
        assert_eq!(rows.len(), count, "{end} port {port}: {rows:?}");
        for row in rows {
            let seen = json!([row["state"], row["role"], row["process"]["pid"]]);
            assert_eq!(seen, json!([state, role, pid]), "{row}");
            assert_eq!(
                (&row["age_is_lower_bound"], &row["state_is_lower_bound"]),
                (&json!(false), &json!(false))
            );
        }
    };
    side("local", "CLOSE_WAIT", "server", server.pid());
    side("remote", "FIN_WAIT2", "client", client.pid());
}

/// Begins to connect.
pub(crate) const DIALS: &str = r#"
family = socket.AF_INET6 if ":" in args[0] else socket.AF_INET
sock = socket.socket(family, socket.SOCK_STREAM)
sock.setblocking(False)
before = time.monotonic()
sock.connect_ex((args[0], int(args[1])))
say(before, time.monotonic(), port_of(sock))
order()
sock.close()
say("closed")
order()
"#;

/// Drops all segments until ordered.
pub(crate) const ANSWERS_LATE: &str = r#"
listener = listen(*args)
lose(listener, DROP_ALL)
say(port_of(listener))
order()
lose_nothing(listener)
conn = listener.accept()[0]
say("accepted")
order()
"#;

#[test]
fn a_connect_that_nobody_answers_is_named() {
    let daemon = Daemon::start(&["--linger", "syn-sent=1s"]);
    for addr in ["127.0.0.1", "::1"] {
        let namespace = Namespace::new();
        let mut server = Workload::start(&namespace, "mute-server", ANSWERS_LATE, &[addr]);
        let port = server.hear();
        let mut client = Workload::start(&namespace, "hopeful-client", DIALS, &[addr, &port]);
        let [dialled_from, dialled_until, local_port] = client.hear_numbers();

        let (leak, asked, answered) = eventually("the connect is named", || {
            let asked = monotonic();
            let leaks = daemon.leaks_of(client.pid());
            let answered = monotonic();
            assert!(leaks.is_empty() || answered >= dialled_from + 1.0, "named before its time: {leaks:?}");
            // Its local port is known only after a sweep.
            let whole = leaks.first().filter(|leak| !leak["local"]["port"].is_null());
            whole.map(|leak| (leak.clone(), asked, answered)).ok_or("not named with both ports")
        });
        assert_eq!(leak["rule"], "lingering_syn_sent");
        assert_eq!(leak["state"], "SYN_SENT");
        assert_eq!(leak["role"], "client");
        assert_eq!(leak["process"]["comm"], "hopeful-client");
        assert_eq!(leak["count"], 1);
        assert_eq!(leak["oldest_is_lower_bound"], false);
        assert_eq!(leak["local"], json!({"addr": addr, "port": local_port as u16}));
        let port: u16 = port.parse().unwrap();
        assert_eq!(leak["remote"], json!({"addr": addr, "port": port}));
        let oldest = leak["oldest_seconds"].as_f64().unwrap();
        let truth = asked - dialled_until - TOLERANCE_SECONDS..answered - dialled_from + TOLERANCE_SECONDS;
        assert!(truth.contains(&oldest), "{oldest} is not in {truth:?}");
        assert_eq!(daemon.leaks_of(server.pid()), [] as [Value; 0], "the server knows of nothing");

        assert_eq!(client.ask(), "closed");
        eventually("the connect is gone once its socket is closed", || {
            let rows = daemon.connections_in(&namespace);
            let open: Vec<_> = rows.iter().filter(|row| row["state"] != "LISTEN").collect();
            if open.is_empty() { Ok(()) } else { Err(format!("{open:?}")) }
        });
    }
}

/// Ends its side as `args[0]` says: with shutdown(), close() or exit.
pub(crate) const ENDS: &str = r#"
conns = [connect(args[1], args[2]) for _ in range(3)]
for conn in conns:
    if args[0] == "shutdown":
        conn.shutdown(socket.SHUT_WR)
    if args[0] == "close":
        conn.close()
if args[0] == "exit":
    os._exit(0)
order()
"#;

#[test]
fn a_half_closed_client_is_named_even_when_it_is_gone() {
    // A delayed acknowledgement, by a timer, leads to FIN_WAIT2.
    witnessed(|witness| half_closed_clients_are_named(&witness.start(&["--linger", "fin-wait2=1s"])));
}

fn half_closed_clients_are_named(daemon: &Daemon) {
    for (addr, end) in
        [("127.0.0.1", "shutdown"), ("127.0.0.1", "close"), ("127.0.0.1", "exit"), ("::1", "close")]
    {
        let namespace = Namespace::new();
        let mut server = Workload::start(&namespace, "holds-on", NEVER_CLOSES, &[addr, "3"]);
        let port = server.hear();
        let client = Workload::start(&namespace, "half-closed", ENDS, &[end, addr, &port]);
        assert_eq!(server.hear(), "accepted");
        let leak = eventually("the client is named", || match &daemon.leaks_of(client.pid())[..] {
            [leak] if leak["count"] == 3 => Ok(leak.clone()),
            leaks => Err(format!("{addr} {end}: {leaks:?}")),
        });
        let port: u16 = port.parse().unwrap();
        assert_eq!(leak["rule"], "fin_wait2_pileup", "{end}");
        assert_eq!(leak["role"], "client", "{end}");
        assert_eq!(leak["process"]["comm"], "half-closed", "{end}");
        assert_eq!(leak["remote"], json!({"addr": addr, "port": port}), "{end}");
        assert_eq!(leak["oldest_is_lower_bound"], false, "{end}");
        let oldest = leak["oldest_seconds"].as_f64().unwrap();
        assert!((1.0..20.0).contains(&oldest), "{end}: {oldest}");
        assert_eq!(daemon.leaks_of(server.pid()), [] as [Value; 0], "{end}: CLOSE_WAIT is within its limit");
    }
}
