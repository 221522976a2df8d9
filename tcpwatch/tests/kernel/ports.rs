//! `/ports`, in a network namespace that has few ports.

use serde_json::{Value, json};

use crate::{daemon::Daemon, eventually::eventually, netns::Namespace, workload::Workload};

/// Ten ports, two of them reserved. One of four connections is closed, and one has a port outside the range.
const USES_FOUR: &str = r#"
for name, value in (
    ("ip_local_port_range", "50000 50009"),
    ("ip_local_reserved_ports", "50003-50004"),
    ("tcp_tw_reuse", "0"),
):
    with open("/proc/sys/net/ipv4/" + name, "w") as file:
        file.write(value)
listener = listen(args[0], 60000)
held = [connect(args[0], 60000) for _ in range(3)]
held.append(socket.create_connection((args[0], 60000), source_address=(args[0], 45000)))
accepted = [listener.accept()[0] for _ in held]
by_peer = {conn.getpeername()[1]: conn for conn in accepted}
closing = held.pop(0)
other = by_peer[port_of(closing)]
closing.close()
other.recv(1)
other.close()
say("in use")
order()
more = [connect(args[0], 60000) for _ in range(5)]
last = socket.socket(listener.family)
say(last.connect_ex((args[0], 60000)))
order()
"#;

fn row_of(daemon: &Daemon, namespace: &Namespace) -> Option<Value> {
    let answer = daemon.json("/ports?limit=10000");
    assert_eq!(answer["next_cursor"], Value::Null);
    let mut rows = answer["ports"].as_array().unwrap().iter().filter(|row| row["netns"] == namespace.inode);
    let row = rows.next().cloned();
    assert_eq!(rows.next(), None, "one destination");
    row
}

#[test]
fn ports_in_use_and_available_are_shown_until_none_is_left() {
    let daemon = Daemon::start(&[]);
    for (addr, comm) in [("127.0.0.1", "dials-4"), ("::1", "dials-6")] {
        let namespace = Namespace::new();
        let mut ends = Workload::start(&namespace, comm, USES_FOUR, &[addr]);
        assert_eq!(ends.hear(), "in use");
        let expected = json!({
            "netns": namespace.inode,
            "local": { "addr": addr, "port": null },
            "remote": { "addr": addr, "port": 60000 },
            "in_use": 3,
            "available": 8,
            "failed_connects": 0,
            "in_use_anywhere": 3,
            "states": { "ESTABLISHED": 2, "TIME_WAIT": 1 },
            "comms": [comm],
        });
        eventually("the ports are shown", || match row_of(&daemon, &namespace) {
            Some(row) if row == expected => Ok(()),
            other => Err(format!("{other:?}, not {expected}")),
        });
        // The one outside the range counts too.
        assert_eq!(daemon.metrics().sum("tcpwatch_local_ports_in_use", &[("process", comm)]), Some(4));
        // EADDRNOTAVAIL: the TIME_WAIT has the eighth.
        assert_eq!(ends.ask(), "99");
        let row = row_of(&daemon, &namespace).unwrap();
        assert_eq!((&row["in_use"], &row["available"]), (&json!(8), &json!(8)), "{row}");
        assert_eq!((&row["failed_connects"], &row["in_use_anywhere"]), (&json!(1), &json!(8)), "{row}");
    }
    // The daemon's own namespace is that of the tests.
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let [first, last] = [0, 1].map(|at| range.split_whitespace().nth(at).unwrap().parse::<u64>().unwrap());
    let reserved = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap();
    assert_eq!(reserved.trim(), "", "this machine's");
    assert_eq!(daemon.metrics().sum("tcpwatch_local_ports_available", &[]), Some(last - first + 1));
}

/// A source whose sockets bind() a port each takes all of them, and one that uses none finds none free.
const BINDS_THEM_ALL: &str = r#"
with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as file:
    file.write("50000 50009")
listeners = [listen(addr, 60000) for addr in ("127.0.0.2", "127.0.0.3")]
held = []
for n in range(10):
    held.append(socket.socket())
    held[-1].bind(("127.0.0.8", 0))
    held[-1].connect((f"127.0.0.{2 + n % 2}", 60000))
late = socket.socket()
late.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
late.bind(("127.0.0.9", 0))
say(late.connect_ex(("127.0.0.2", 60000)))
order()
"#;

#[test]
fn a_source_that_finds_no_port_has_a_row_although_it_uses_none() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut ends = Workload::start(&namespace, "binds-them-all", BINDS_THEM_ALL, &[]);
    assert_eq!(ends.hear(), "99", "EADDRNOTAVAIL");
    let answer = daemon.json("/ports?limit=10000");
    let rows = answer["ports"].as_array().unwrap().iter().filter(|row| row["netns"] == namespace.inode);
    let mut rows: Vec<_> = rows
        .map(|row| {
            let numbers =
                ["in_use", "available", "failed_connects", "in_use_anywhere"].map(|name| &row[name]);
            (row["local"]["addr"].as_str().unwrap(), row["remote"]["addr"].as_str().unwrap(), json!(numbers))
        })
        .collect();
    rows.sort_by_key(|(local, remote, _)| (*local, *remote));
    assert_eq!(
        rows,
        [
            ("127.0.0.8", "127.0.0.2", json!([5, 10, 0, 10])),
            ("127.0.0.8", "127.0.0.3", json!([5, 10, 0, 10])),
            ("127.0.0.9", "127.0.0.2", json!([0, 10, 1, 10])),
        ],
        "{answer}"
    );
}
