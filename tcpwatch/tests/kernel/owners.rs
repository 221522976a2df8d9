//! Owners: the process that opened, accepted or holds a connection, never one that happened to run.

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
    assert_eq!(
        seen(&daemon.connections_in(&namespace)),
        [
            format!("ESTABLISHED client {client_pid} false"),
            format!("ESTABLISHED client {client_pid} false"),
            format!("ESTABLISHED server {server_pid} false"),
            format!("ESTABLISHED server {server_pid} false"),
            format!("LISTEN listener {server_pid} false"),
        ]
    );
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
