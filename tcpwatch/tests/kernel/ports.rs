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
    }
    // The daemon's own namespace is that of the tests.
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let [first, last] = [0, 1].map(|at| range.split_whitespace().nth(at).unwrap().parse::<u64>().unwrap());
    let reserved = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap();
    assert_eq!(reserved.trim(), "", "this machine's");
    assert_eq!(daemon.metrics().sum("tcpwatch_local_ports_available", &[]), Some(last - first + 1));
}
