//! Owners: the process that opened, accepted or holds a connection, never one that happened to run.

use std::path::Path;

use serde_json::{Value, json};

use crate::{daemon::Daemon, eventually::eventually, netns::Namespace, workload::Workload};

/// The server of `CLIENT`: says its port, accepts the given number of connections and holds them.
const SERVER: &str = r#"
listener = listen(args[0])
say(port_of(listener))
conns = [listener.accept()[0] for _ in range(int(args[1]))]
say("accepted")
order()
"#;

const CLIENT: &str = r#"
conns = [connect(args[0], args[1]) for _ in range(int(args[2]))]
say("connected")
order()
conns[0].send(b"12345")
conns[0].close()
say("closed one")
order()
"#;

/// State, role, pid and `state_is_lower_bound` of each row, sorted.
fn seen(rows: &[Value]) -> Vec<String> {
    let row = |row: &Value| {
        let pid = &row["process"]["pid"];
        format!("{} {} {pid} {}", row["state"], row["role"], row["state_is_lower_bound"]).replace('"', "")
    };
    let mut seen: Vec<String> = rows.iter().map(row).collect();
    seen.sort();
    seen
}

#[test]
fn sockets_older_than_the_daemon_are_found_with_their_owners() {
    for addr in ["127.0.0.1", "::1"] {
        let namespace = Namespace::new();
        let mut server = Workload::start(&namespace, "old-server", SERVER, &[addr, "3"]);
        let port = server.hear();
        let mut client = Workload::start(&namespace, "old-client", CLIENT, &[addr, &port, "3"]);
        assert_eq!((client.hear(), server.hear()), ("connected".into(), "accepted".into()));
        assert_eq!(client.ask(), "closed one");
        assert_eq!(server.sockets_in(8), 1, "CLOSE_WAIT, before the daemon starts");

        let daemon = Daemon::start(&["--linger", "close-wait=1s"]);
        let (server_pid, client_pid) = (server.pid(), client.pid());
        let rows = daemon.connections_in(&namespace);
        let held: Vec<Value> = rows.iter().filter(|row| row["state"] != "FIN_WAIT2").cloned().collect();
        assert_eq!(
            seen(&held),
            [
                format!("CLOSE_WAIT server {server_pid} true"),
                format!("ESTABLISHED client {client_pid} true"),
                format!("ESTABLISHED client {client_pid} true"),
                format!("ESTABLISHED server {server_pid} true"),
                format!("ESTABLISHED server {server_pid} true"),
                format!("LISTEN listener {server_pid} true"),
            ]
        );
        let listener = held.iter().find(|row| row["role"] == "listener").unwrap();
        assert_eq!(listener["local"], json!({"addr": addr, "port": port.parse::<u16>().unwrap()}));
        assert_eq!(listener["process"]["comm"], "old-server");

        let leak = eventually("the old leak is named", || {
            daemon.leaks_of(server_pid).first().cloned().ok_or("nothing named")
        });
        let named = json!([leak["rule"], leak["count"], leak["oldest_is_lower_bound"], leak["unread_bytes"]]);
        assert_eq!(named, json!(["close_wait_leak", 1, true, 5]));
    }
}

#[test]
fn a_listener_belongs_to_its_process_until_it_closes() {
    const LISTENS: &str = r#"
listener = listen("::")
say(port_of(listener))
order()
listener.close()
say("closed")
order()
"#;
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut server = Workload::start(&namespace, "listens", LISTENS, &[]);
    let port: u16 = server.hear().parse().unwrap();
    let rows = daemon.connections_in(&namespace);
    assert_eq!(seen(&rows), [format!("LISTEN listener {} false", server.pid())]);
    assert_eq!(rows[0]["local"], json!({"addr": "::", "port": port}));
    assert_eq!(server.ask(), "closed");
    assert_eq!(daemon.connections_in(&namespace), [] as [Value; 0]);
}

#[test]
fn an_unaccepted_connection_belongs_to_the_listener() {
    const NEVER_ACCEPTS: &str = "listener = listen(args[0])\nsay(port_of(listener))\norder()";
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut server = Workload::start(&namespace, "never-accepts", NEVER_ACCEPTS, &["127.0.0.1"]);
    let port = server.hear();
    let mut client = Workload::start(&namespace, "waits", CLIENT, &["127.0.0.1", &port, "2"]);
    assert_eq!(client.hear(), "connected");
    let (server_pid, client_pid) = (server.pid(), client.pid());
    let expected = [
        format!("ESTABLISHED client {client_pid} false"),
        format!("ESTABLISHED client {client_pid} false"),
        format!("ESTABLISHED server {server_pid} false"),
        format!("ESTABLISHED server {server_pid} false"),
        format!("LISTEN listener {server_pid} false"),
    ];
    // Accept queues are found by sweeps, not for each request.
    eventually("the listener's process is named", || {
        let rows = seen(&daemon.connections_in(&namespace));
        if rows == expected { Ok(()) } else { Err(format!("{rows:?}")) }
    });
}

/// Each worker accepts three connections, sends its pid to them, and holds them.
const PREFORK: &str = r#"
listener = listen(args[0])
workers = []
for _ in range(2):
    gone, parent = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(parent)
        conns = [listener.accept()[0] for _ in range(3)]
        for conn in conns:
            conn.send(str(os.getpid()).encode())
        os.read(gone, 1)
        os._exit(0)
    os.close(gone)
    workers.append((pid, parent))
say(port_of(listener))
order()
for pid, parent in workers:
    os.close(parent)
for pid, parent in workers:
    os.waitpid(pid, 0)
say("workers ended")
order()
"#;

/// Says the own port of each connection and the pid that answered.
const ASKS_WHO: &str = r"
conns = [connect(*args) for _ in range(6)]
say(*[word for conn in conns for word in (port_of(conn), conn.recv(100).decode())])
order()
";

#[test]
fn a_prefork_servers_connection_belongs_to_the_accepting_worker() {
    let daemon = Daemon::start(&[]);
    for addr in ["127.0.0.1", "::1"] {
        let namespace = Namespace::new();
        let mut server = Workload::start(&namespace, "prefork", PREFORK, &[addr]);
        let port = server.hear();
        let mut client = Workload::start(&namespace, "asks-who", ASKS_WHO, &[addr, &port]);
        let answered: [f64; 12] = client.hear_numbers();
        // Holders are found by sweeps, not for each request.
        let rows = eventually("the workers are named", || {
            let rows = daemon.connections_in(&namespace);
            let owner = |port: u16| {
                let row = rows.iter().find(|row| row["remote"]["port"] == port && row["role"] == "server");
                row.and_then(|row| row["process"]["pid"].as_u64())
            };
            let wrong = answered.chunks(2).find(|pair| owner(pair[0] as u16) != Some(pair[1] as u64));
            // Some hooks for state changes leave listeners to the sweeps.
            let listens = rows.iter().any(|row| row["role"] == "listener");
            if wrong.is_none() && listens { Ok(rows) } else { Err(format!("{wrong:?} in {rows:?}")) }
        });
        let mut workers: Vec<u32> = answered.chunks(2).map(|pair| pair[1] as u32).collect();
        workers.sort_unstable();
        workers.dedup();
        assert_eq!(workers.len(), 2);
        assert!(!workers.contains(&server.pid()));
        let listener = rows.iter().find(|row| row["role"] == "listener").unwrap();
        assert_eq!(listener["process"]["pid"], server.pid(), "the process that called listen()");
        assert_eq!(server.ask(), "workers ended");
    }
}

/// Four processes listen on one port: one inherited its listener from this process, which connects now, two share an
/// address, one has every address. On order each says which clients it accepts.
const LISTENERS: &str = r#"
def member(addr):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((addr, PORT))
    sock.listen(64)
    sock.setblocking(False)
    return sock

def fork(listener):
    go, tell = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        own = listener() if callable(listener) else listener
        os.write(tell[1], b"listens")
        os.read(go[0], 1)
        ports, held = [], []
        try:
            while True:
                conn, peer = own.accept()
                held.append(conn)
                ports.append(str(peer[1]))
        except BlockingIOError:
            pass
        os.write(tell[1], " ".join(ports).encode() or b"none")
        time.sleep(600)
    os.read(tell[0], 100)
    return pid, go[1], tell[0]

PORT = 8123
inherited = member("127.0.0.3")
members = [fork(inherited)]
inherited.close()
members += [fork(lambda: member("127.0.0.2")) for _ in range(2)]
members.append(fork(lambda: member("0.0.0.0")))
conns = [connect(addr, PORT) for addr in ("127.0.0.1", "127.0.0.2", "127.0.0.3") for _ in range(8)]
say("connected")
order()
for pid, go, tell in members:
    os.write(go, b"1")
    say(pid, os.read(tell, 10000).decode())
order()
for pid, _, _ in members:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
say("killed")
order()
"#;

fn servers(rows: &[Value]) -> Vec<&Value> {
    rows.iter().filter(|row| row["role"] == "server").collect()
}

#[test]
fn an_unaccepted_connection_belongs_to_the_listener_whose_queue_has_it() {
    for started_before in [true, false] {
        let before = started_before.then(|| Daemon::start(&[]));
        let namespace = Namespace::new();
        let mut workload = Workload::start(&namespace, "listeners", LISTENERS, &[]);
        assert_eq!(workload.hear(), "connected");
        let daemon = before.unwrap_or_else(|| Daemon::start(&[]));
        let rows = eventually("every connection has a listener's process", || {
            let rows = daemon.connections_in(&namespace);
            let named = servers(&rows).iter().filter(|row| row["process"].is_object()).count();
            if named == 24 { Ok(rows) } else { Err(format!("{named}: {rows:#?}")) }
        });
        let mut named: Vec<(u64, u64)> = Vec::new();
        for row in servers(&rows) {
            assert_eq!(
                (&row["accepted"], &row["process_seen"]),
                (&json!(false), &json!("listener")),
                "{row}"
            );
            named.push((row["remote"]["port"].as_u64().unwrap(), row["process"]["pid"].as_u64().unwrap()));
        }
        named.sort_unstable();
        workload.order();
        let mut accepted = Vec::new();
        for _ in 0..4 {
            let line = workload.hear();
            let (pid, ports) = line.split_once(' ').unwrap();
            let ports = ports.split(' ').filter_map(|port| port.parse::<u64>().ok());
            accepted.extend(ports.map(|port| (port, pid.parse::<u64>().unwrap())));
        }
        accepted.sort_unstable();
        assert_eq!(named, accepted);
        // Whoever accepted holds them now.
        eventually("they are held", || {
            let rows = daemon.connections_in(&namespace);
            let holder = |row: &&Value| row["accepted"] == true && row["process_seen"] == "holder";
            match servers(&rows).into_iter().find(|row| !holder(row)) {
                None => Ok(()),
                Some(row) => Err(row.to_string()),
            }
        });
        assert_eq!(workload.ask(), "killed");
    }
}

/// The parent listens, leaves the listener to two children of which one accepts, and connects and resets itself.
const GIVES_UP: &str = r#"
listener = listen("127.0.0.1")
port = port_of(listener)
workers = []
for works in (False, True):
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        held = [listener.accept()[0] for _ in range(5)] if works else []
        os.write(tell, b"1")
        time.sleep(600)
    workers.append((pid, told))
listener.close()
conns = [connect("127.0.0.1", port) for _ in range(5)]
for _, told in workers:
    os.read(told, 1)
for conn in conns:
    linger_0(conn)
    conn.close()
say(workers[1][0], port)
order()
for pid, _ in workers:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
say("killed")
order()
"#;

#[test]
fn a_process_that_gave_its_listener_up_owns_nothing_of_it() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut workload = Workload::start(&namespace, "gives-up", GIVES_UP, &[]);
    let [works, port] = workload.hear_numbers();
    // Nothing was asked before.
    eventually("the worker held five connections that ended", || {
        daemon.connections_in(&namespace);
        let ended = daemon.json(&format!("/history?local_port={port}"));
        let rows = ended["connections"].as_array().unwrap().clone();
        let wrong = |row: &&Value| row["process"]["pid"] == workload.pid();
        assert_eq!(rows.iter().find(wrong), None);
        let right = |row: &&Value| row["accepted"] == true && row["process"]["pid"] == works as u64;
        if rows.iter().filter(right).count() == 5 { Ok(()) } else { Err(ended.to_string()) }
    });
    let server = [("process", "gives-up"), ("role", "server"), ("peer", &*format!(":{port}"))];
    let opened = daemon.metrics().sum("tcpwatch_connections_opened_total", &server);
    // The worker has the parent's name: it is counted there only where its accepts were seen.
    let seen = !daemon.hook("accept").starts_with("inferred");
    assert_eq!(opened.unwrap_or(0), if seen { 5 } else { 0 });
    assert_eq!(workload.ask(), "killed");
}

/// A worker is killed that has not accepted; a child that inherited a connection exits with unread data in it.
const KILLED: &str = r#"
listener = listen("127.0.0.1")
waiting, tell = os.pipe()
worker = os.fork()
if worker == 0:
    own = listen("127.0.0.2")
    os.write(tell, str(port_of(own)).encode())
    time.sleep(600)
queued = connect("127.0.0.2", os.read(waiting, 9))
conn = connect("127.0.0.1", port_of(listener))
held = listener.accept()[0]
child = os.fork()
if child == 0:
    listener.close()
    conn.close()
    time.sleep(600)
held.close()
conn.send(b"PING")
say(worker, child)
order()
for pid in (worker, child):
    os.kill(pid, 9)
    os.waitpid(pid, 0)
say("killed")
order()
"#;

#[test]
fn the_process_whose_end_resets_a_connection_closed_it() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut workload = Workload::start(&namespace, "killed", KILLED, &[]);
    let [worker, child] = workload.hear_numbers();
    assert_eq!(workload.ask(), "killed");
    for (reason, pid, accepted) in [("listener_closed", worker, false), ("unread_data", child, true)] {
        let row = eventually("the reset is reported", || {
            let ended = daemon.json("/history?comm=killed");
            let rows = ended["connections"].as_array().unwrap().iter();
            let row = rows
                .filter(|row| row["netns"] == namespace.inode)
                .find(|row| row["reset"]["reason"] == reason);
            row.cloned().ok_or_else(|| ended.to_string())
        });
        let known =
            json!([row["closer"]["pid"], row["process"]["pid"], row["process_seen"], row["accepted"]]);
        assert_eq!(known, json!([pid as u64, pid as u64, "closer", accepted]), "{row}");
        assert_eq!(row["reset"]["process_exited"], true, "{row}");
    }
}

const MULTIPATH: &str = r#"
def sock(proto):
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, proto)
server = sock(262)
server.bind(("127.0.0.1", 0))
server.listen(16)
pairs = []
for proto in (262, 262, 0):
    client = sock(proto)
    client.connect(("127.0.0.1", port_of(server)))
    pairs.append((client, server.accept()[0]))
queued = sock(262)
queued.connect(("127.0.0.1", port_of(server)))
for client, accepted in pairs:
    client.sendall(b"hello")
    assert accepted.recv(9) == b"hello"
say("connected")
order()
pairs[0][0].close()
pairs[2][0].close()
say("closed")
order()
"#;

#[test]
fn a_subflow_belongs_to_the_process_that_holds_its_multipath_socket() {
    if !Path::new("/proc/sys/net/mptcp").exists() {
        eprintln!("SKIPPED: this kernel has no Multipath TCP");
        return;
    }
    for started_before in [true, false] {
        let before = started_before.then(|| Daemon::start(&[]));
        let namespace = Namespace::new();
        let mut workload = Workload::start(&namespace, "multipath", MULTIPATH, &[]);
        assert_eq!(workload.hear(), "connected");
        let daemon = before.unwrap_or_else(|| Daemon::start(&[]));
        let pid = workload.pid();
        let known = |rows: &[Value]| {
            let row = |row: &Value| {
                let process = row["process"]["pid"] == pid;
                format!("{} {process} {}", row["role"], row["accepted"]).replace('"', "")
            };
            let mut known: Vec<_> = rows.iter().map(row).collect();
            known.sort();
            known
        };
        let mut expected = vec!["client true null"; 4];
        expected.push("listener true null");
        expected.push("server true false");
        expected.extend(["server true true"; 3]);
        let as_expected = || {
            let rows = known(&daemon.connections_in(&namespace));
            if rows == expected { Ok(()) } else { Err(format!("{rows:#?}")) }
        };
        eventually("the owners are known", as_expected);
        assert_eq!(workload.ask(), "closed");
        eventually("the roles and owners stay", as_expected);
        let waiting = daemon.connections_in(&namespace);
        let waits = |row: &&Value| row["accepted"] == false;
        let waiting: Vec<_> = waiting.iter().filter(waits).map(|row| row["process_seen"].clone()).collect();
        assert_eq!(waiting, ["listener"]);
    }
}
