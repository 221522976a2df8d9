//! How live connections' data goes, as the kernel reports it on request, compared with what was sent, and with `ss`.

use std::{collections::HashMap, process::Command};

use serde_json::{Value, json};

use crate::{
    daemon::{Daemon, errors_of},
    eventually::{eventually, monotonic},
    netns::Namespace,
    workload::Workload,
};

/// Reads the given number of bytes, answers with ten, and leaves later data unread.
const SERVER: &str = r#"
listener = listen(args[0])
say(port_of(listener))
conn = listener.accept()[0]
left = int(args[1])
while left:
    left -= len(conn.recv(min(left, 65536)))
conn.send(b"0123456789")
say("answered")
order()
"#;

/// Sends the given number of bytes and reads the answer; then sends until the buffers are full.
const CLIENT: &str = r#"
conn = connect(args[0], args[1])
conn.sendall(b"x" * int(args[2]))
conn.recv(10)
say("asked")
order()
conn.setblocking(False)
blocked = 0
while blocked < 5:
    try:
        conn.send(b"x" * 65536)
        blocked = 0
    except BlockingIOError:
        blocked += 1
        time.sleep(0.1)
say("full")
order()
"#;

const BYTES: u64 = 100_000;

/// Connects the given number of times and sends the given number of bytes on each connection. All are read and answered
/// with ten bytes.
const MANY: &str = r#"
listener = listen(args[0])
clients = [connect(args[0], port_of(listener)) for _ in range(int(args[1]))]
servers = [listener.accept()[0] for _ in clients]
for client in clients:
    client.sendall(b"x" * int(args[2]))
for server in servers:
    left = int(args[2])
    while left:
        left -= len(server.recv(left))
    server.send(b"0123456789")
for client in clients:
    left = 10
    while left:
        left -= len(client.recv(left))
say(port_of(listener))
order()
"#;

/// One client is answered after 300 ms, one never. Says the bounds of each time.
const ANSWERS: &str = r#"
answering, silent = listen(args[0]), listen(args[0])
asker = connect(args[0], port_of(answering))
server = answering.accept()[0]
waiter = connect(args[0], port_of(silent))
clock = time.monotonic
asked_from = clock()
asker.send(b"question")
asked_until = clock()
server.recv(100)
time.sleep(0.3)
answered_from = clock()
server.send(b"answer")
asker.recv(100)
answered_until = clock()
waits_from = clock()
waiter.send(b"question")
waits_until = clock()
say(port_of(answering))
say(port_of(silent))
say(answered_from - asked_until, answered_until - asked_from)
say(waits_from, waits_until)
order()
"#;

/// Connects to three ports: one connection of a known rate that carried 10 MB before, new connections that each carry
/// 1000 bytes at their beginning, and one whose segments get lost.
const FLOWS: &str = r#"
import threading
listeners = [listen(args[0]) for _ in range(3)]
ports = [port_of(listener) for listener in listeners]
steady, lossy = connect(args[0], ports[0]), connect(args[0], ports[2])
readers = [listeners[0].accept()[0], listeners[2].accept()[0]]
lose(readers[1], DROP_SOME_DATA)
for reader in readers:
    threading.Thread(target=read_to_end, args=(reader,), daemon=True).start()
steady.sendall(b"x" * 10_000_000)
lossy.setblocking(False)

def flow():
    began, sent, held = time.monotonic(), 0, []
    while True:
        due = int((time.monotonic() - began) * int(args[1])) - sent
        steady.sendall(b"x" * due)
        sent += due
        held.append(connect(args[0], ports[1]))
        held[-1].send(b"x" * 1000)
        try:
            lossy.send(b"x" * 1000)
        except BlockingIOError:
            pass
        time.sleep(0.05)

threading.Thread(target=flow, daemon=True).start()
say(*ports)
order()
"#;

/// Toward three ports: a connection on which nothing is sent and whose server sends its FIN; one that loses some of what
/// it carries before that; and one on which nothing happens.
const HALF_CLOSED: &str = r#"
listeners = [listen(args[0]) for _ in range(3)]
silent, lossy, idle = [connect(args[0], port_of(listener)) for listener in listeners]
servers = [listener.accept()[0] for listener in listeners]
servers[0].shutdown(socket.SHUT_WR)
assert silent.recv(1) == b""
lossy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
lose(servers[1], DROP_SOME_DATA)
for _ in range(100):
    lossy.sendall(b"x" * 200)
left = 20_000
while left:
    left -= len(servers[1].recv(65536))
lose_nothing(servers[1])
servers[1].send(b"0123456789")
servers[1].shutdown(socket.SHUT_WR)
left = 10
while left:
    left -= len(lossy.recv(left))
assert lossy.recv(1) == b""
say(*map(port_of, listeners))
order()
"#;

/// The longest that a tick of the kernel takes (HZ=100).
const JIFFY: f64 = 0.01;

/// Rows of that role by the port of their peer.
fn rows_by_port(answer: &Value, role: &str) -> HashMap<String, Value> {
    assert_eq!(errors_of(answer, "transfers"), [] as [&str; 0], "{answer}");
    let rows = answer["transfers"].as_array().unwrap().iter().filter(|row| row["role"] == role);
    rows.map(|row| (row["peer"]["port"].to_string(), row.clone())).collect()
}

fn side(daemon: &Daemon, namespace: &Namespace, role: &str) -> Value {
    let rows = daemon.connections_in(namespace);
    daemon.detail(rows.iter().find(|row| row["role"] == role).unwrap())
}

/// What `ss` shows after `key:`.
fn shown_by_ss(namespace: &Namespace, client_port: &Value, key: &str) -> String {
    let filter = format!("sport = :{client_port}");
    let output = Command::new("nsenter")
        .args([&format!("--net={}", namespace.path()), "ss", "-Htino", &filter])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let found = text.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix(':'));
    found.unwrap_or_else(|| panic!("no {key} in {text}")).to_owned()
}

#[test]
fn transfer_values_of_both_ends_are_the_kernels() {
    let daemon = Daemon::start(&[]);
    for (addr, server_comm, client_comm) in
        [("127.0.0.1", "data-server-4", "data-client-4"), ("::1", "data-server-6", "data-client-6")]
    {
        let namespace = Namespace::new();
        let mut server = Workload::start(&namespace, server_comm, SERVER, &[addr, &BYTES.to_string()]);
        let port = server.hear();
        let mut client = Workload::start(&namespace, client_comm, CLIENT, &[addr, &port, &BYTES.to_string()]);
        assert_eq!((client.hear(), server.hear()), ("asked".to_owned(), "answered".to_owned()));
        eventually("both ends show all the bytes", || {
            let (ours, theirs) = (side(&daemon, &namespace, "client"), side(&daemon, &namespace, "server"));
            let (ours, theirs) = (&ours["transfer"], &theirs["transfer"]);
            let right = ours["sending"]["sent_bytes"] == BYTES
                && ours["sending"]["acknowledged_bytes"] == BYTES
                && ours["sending"]["queue_bytes"] == 0
                && ours["receiving"]["received_bytes"] == 10
                && theirs["receiving"]["received_bytes"] == BYTES
                && theirs["receiving"]["queue_bytes"] == 0
                && theirs["sending"]["sent_bytes"] == 10
                && theirs["sending"]["acknowledged_bytes"] == 10;
            if right { Ok(()) } else { Err(format!("{ours}\n{theirs}")) }
        });
        let ours = side(&daemon, &namespace, "client");
        let (transfer, local) = (&ours["transfer"], &ours["local"]["port"]);
        assert_eq!(transfer["congestion"]["state"], "open");
        assert_eq!(
            transfer["congestion"]["window_segments"].to_string(),
            shown_by_ss(&namespace, local, "cwnd")
        );
        let (smoothed, variation) =
            (&transfer["rtt"]["smoothed_seconds"], &transfer["rtt"]["variation_seconds"]);
        let millis = [smoothed, variation].map(|value| value.as_f64().unwrap() * 1e3);
        let shown = shown_by_ss(&namespace, local, "rtt");
        for (ours, shown) in millis.iter().zip(shown.split('/')) {
            let shown: f64 = shown.parse().unwrap();
            assert!((ours - shown).abs() < 1e-3, "{ours} ms, ss: {shown}");
        }
        assert!(transfer["sending"]["since_last_sent_seconds"].as_f64() >= Some(0.0), "{transfer}");

        // The server reads no more.
        assert_eq!(client.ask(), "full");
        let waited = eventually("the peer's window holds it up", || {
            let ours = side(&daemon, &namespace, "client")["transfer"].clone();
            let limited = ours["sending"]["peer_window_limited_seconds"].as_f64().unwrap();
            let probes =
                ours["timer"]["kind"] == "window_probe" && ours["timer"]["remaining_seconds"].is_number();
            if limited > 0.5 && probes { Ok(ours) } else { Err(ours.to_string()) }
        });
        let busy = waited["sending"]["busy_seconds"].as_f64();
        assert!(waited["sending"]["peer_window_limited_seconds"].as_f64() <= busy, "{waited}");
        assert!(waited["sending"]["unsent_bytes"].as_u64() > Some(0), "{waited}");
        let theirs = side(&daemon, &namespace, "server");
        assert!(theirs["transfer"]["receiving"]["queue_bytes"].as_u64() > Some(0), "{theirs}");
        let listener = side(&daemon, &namespace, "listener");
        assert_eq!(listener["transfer"], Value::Null);
        let (status, text) = daemon.get(&format!("/connections/{}", ours["id"].as_str().unwrap()));
        assert_eq!(status, 200);
        for line in
            ["sent", "received", "round trip", "limited by", "congestion", "timer       window_probe in"]
        {
            assert!(text.contains(&format!("\n  {line}")), "no {line}: {text}");
        }
        for comm in [client_comm, server_comm] {
            let answer = daemon.json(&format!("/transfer?comm={comm}"));
            assert_sweep_agrees_with_kernel(&daemon, &answer["transfers"][0]);
        }
    }
}

/// The label `peer` of the metrics.
fn shown(addr: &str, port: &Value) -> String {
    if addr.contains(':') { format!("[{addr}]:{port}") } else { format!("{addr}:{port}") }
}

/// Asserts that a row of `/transfer`, for which the kernel is asked, has the values of the latest sweep.
fn assert_sweep_agrees_with_kernel(daemon: &Daemon, row: &Value) {
    /// The values that never fall while the connection lives.
    const VALUES: [&str; 5] = [
        "connections",
        "busy_seconds",
        "peer_window_limited_seconds",
        "buffer_limited_seconds",
        "out_of_order_packets",
    ];
    let [comm, role] = ["comm", "role"].map(|name| row[name].as_str().unwrap());
    let (peer, port) = (&row["peer"], &row["peer"]["port"]);
    let peer_label = peer["addr"].as_str().map_or_else(|| format!(":{port}"), |addr| shown(addr, port));
    let rows = |path: &str, list: &str| {
        let answer = daemon.json(&format!("{path}?comm={comm}&role={role}&limit=10000"));
        let rows = answer[list].as_array().unwrap().iter().filter(|row| row["peer"] == *peer);
        rows.cloned().collect::<Vec<_>>()
    };
    // An unknown value counts as 0.
    let value = |row: &Value, name: &str| row[name].as_f64().unwrap_or_default();
    let values = |row: &Value| VALUES.map(|name| value(row, name));
    let now = || rows("/transfer", "transfers").remove(0);
    let earliest = values(&now());
    eventually("a sweep came after that", || {
        // This request starts a sweep.
        daemon.json(&format!("/processes?comm={comm}"));
        let peers = rows("/peers", "peers")[0]["live"].clone();
        let metrics = daemon.metrics();
        let now = now();
        let latest = values(&now);
        let metric = |name: &str, label: &[(&str, &str)]| {
            metrics
                .exact(name, &[&[("process", comm), ("role", role), ("peer", &peer_label)], label].concat())
        };
        let shown = values(&peers);
        for (index, value) in VALUES.iter().enumerate() {
            let (least, most) = (earliest[index] - 1e-6, latest[index] + 1e-6);
            if !(least..=most).contains(&shown[index]) {
                return Err(format!("{value} is {}, not in {least}..{most}", shown[index]));
            }
        }
        let held = [metric("tcpwatch_held_connections", &[]), value(&peers, "connections")];
        if held.map(|held| held as u64) != [shown[0] as u64; 2] {
            return Err(format!("{held:?} are held"));
        }
        for (name, family) in [
            ("delivery_bytes_per_second", "tcpwatch_delivery_rate_bytes_per_second"),
            ("window_probes", "tcpwatch_window_probes"),
        ] {
            let shown = [value(&peers, name), metric(family, &[])].map(|shown| shown as u64);
            if shown != [value(&now, name) as u64; 2] {
                return Err(format!("{name} is {shown:?}: {now}"));
            }
        }
        let [least, mean, most] =
            ["min", "mean", "max"].map(|value| metric(&format!("tcpwatch_round_trip_{value}_seconds"), &[]));
        assert!(0.0 < least && least <= mean && mean <= most, "{least} {mean} {most}");
        Ok(())
    });
}

#[test]
fn sums_by_process_and_peer_equal_their_connections() {
    let daemon = Daemon::start(&[]);
    for (addr, comm) in [("127.0.0.1", "sums-4"), ("::1", "sums-6")] {
        // Processes of one name are summed over namespaces, where the peer is the same.
        let mut ends = [Namespace::new(), Namespace::new()]
            .map(|namespace| (Workload::start(&namespace, comm, MANY, &[addr, "3", "5000"]), namespace));
        let ports = ends.each_mut().map(|(one, _)| one.hear());
        daemon.sweep();
        let answer = daemon.json(&format!("/transfer?comm={comm}&limit=10000"));
        assert_eq!(
            (errors_of(&answer, "transfers"), &answer["next_cursor"]),
            (Vec::new(), &Value::Null),
            "{answer}"
        );
        let rows = answer["transfers"].as_array().unwrap();
        for (role, sent, received) in [("client", 15_000, 30), ("server", 30, 15_000)] {
            let of_role: Vec<_> = rows.iter().filter(|row| row["role"] == role).collect();
            let connections: u64 = of_role.iter().map(|row| row["connections"].as_u64().unwrap()).sum();
            assert_eq!(connections, 6, "{answer}");
            for row in of_role {
                let times = row["connections"].as_u64().unwrap() / 3;
                let value = |name: &str| row[name].as_u64().unwrap();
                assert_eq!((value("sent_bytes"), value("received_bytes")), (sent * times, received * times));
                let empty = ["retransmitted_bytes", "receive_queue_bytes", "window_probes"].map(value);
                assert_eq!(empty, [0; 3], "{row}");
                let port = row["peer"]["port"].to_string();
                assert!(ports.contains(&port), "{row}");
                let rtt = ["least_seconds", "mean_seconds", "most_seconds"]
                    .map(|name| row["rtt"][name].as_f64().unwrap());
                assert!(0.0 < rtt[0] && rtt.is_sorted(), "{row}");
            }
        }
        // The sums are those of the single connections.
        for (_, namespace) in &ends {
            let rows = daemon.connections_in(namespace);
            let clients = rows.iter().filter(|row| row["role"] == "client");
            let sent: u64 = clients
                .map(|row| daemon.detail(row)["transfer"]["sending"]["sent_bytes"].as_u64().unwrap())
                .sum();
            assert_eq!(sent, 15_000);
        }
    }
}

#[test]
fn each_byte_counts_once_and_a_fin_is_no_byte() {
    let daemon = Daemon::start(&[]);
    for (addr, comm) in [("127.0.0.1", "half-closed-4"), ("::1", "half-closed-6")] {
        let namespace = Namespace::new();
        let mut program = Workload::start(&namespace, comm, HALF_CLOSED, &[addr]);
        let ports = program.hear_for_long();
        let ports: Vec<u64> = ports.split(' ').map(|port| port.parse().unwrap()).collect();
        assert!(program.retransmitted() > 0, "a test without loss shows nothing");
        // The FIN was received, acknowledged, or there was none.
        let expected = [
            (ports[0], "client", "CLOSE_WAIT", 0, 0),
            (ports[0], "server", "FIN_WAIT2", 0, 0),
            (ports[1], "client", "CLOSE_WAIT", 20_000, 10),
            (ports[1], "server", "FIN_WAIT2", 10, 20_000),
            (ports[2], "client", "ESTABLISHED", 0, 0),
            (ports[2], "server", "ESTABLISHED", 0, 0),
        ];
        daemon.sweep();
        eventually("all is acknowledged", || {
            let answer = daemon.json(&format!("/transfer?comm={comm}&seconds=0.05"));
            let rows = ["client", "server"].map(|role| rows_by_port(&answer, role));
            for (port, role, state, sent, received) in expected {
                let row = &rows[usize::from(role == "server")][&port.to_string()];
                assert_eq!(
                    (&row["sent_bytes"], &row["received_bytes"]),
                    (&json!(sent), &json!(received)),
                    "{row}"
                );
                assert_eq!(row["rates"]["sent_bytes_per_second"], 0, "{row}");
                let is_lossy = (port, role) == (ports[1], "client");
                assert!(!is_lossy || row["retransmitted_bytes"].as_u64() > Some(0), "{row}");
                let end = if role == "client" { "remote" } else { "local" };
                let rows = daemon.connections_in(&namespace);
                let one = rows.iter().find(|one| one["role"] == role && one[end]["port"] == port).unwrap();
                let detail = daemon.detail(one);
                let Value::Object(sending) = &detail["transfer"]["sending"] else { panic!("{detail}") };
                let carried = [&sending["sent_bytes"], &detail["transfer"]["receiving"]["received_bytes"]];
                assert_eq!(carried, [&json!(sent), &json!(received)], "{detail}");
                if (&detail["state"], &sending["acknowledged_bytes"]) != (&json!(state), &json!(sent)) {
                    return Err(detail.to_string());
                }
                // Nothing came that could be a time of data.
                let last = &detail["transfer"]["receiving"]["since_last_received_seconds"];
                assert_eq!(last.is_null(), received == 0, "{detail}");
            }
            Ok(())
        });
    }
}

#[test]
fn a_clients_row_has_its_answer_times_and_waiting_time() {
    let daemon = Daemon::start(&[]);
    for (addr, comm) in [("127.0.0.1", "answers-4"), ("::1", "answers-6")] {
        let namespace = Namespace::new();
        let mut program = Workload::start(&namespace, comm, ANSWERS, &[addr]);
        let (answering, silent) = (program.hear(), program.hear());
        let [at_least, at_most] = program.hear_numbers();
        let [waits_from, waits_until] = program.hear_numbers();
        let asked = monotonic();
        let answer = daemon.json(&format!("/transfer?comm={comm}"));
        let (least_wait, most_wait) = (asked - waits_until, monotonic() - waits_from);
        let clients = rows_by_port(&answer, "client");
        let within = |value: &Value, least: f64, most: f64| {
            let seconds = value.as_f64().unwrap();
            assert!(
                (least - JIFFY..=most + JIFFY).contains(&seconds),
                "{seconds} is not in {least}..{most}: {answer}"
            );
        };
        let (answered, waits) = (&clients[&answering], &clients[&silent]);
        for which in ["least_seconds", "mean_seconds", "most_seconds"] {
            within(&answered["answer_time"][which], at_least, at_most);
        }
        assert_eq!((&answered["waiting"], &waits["answer_time"]), (&Value::Null, &Value::Null), "{answer}");
        assert_eq!(waits["waiting"]["connections"], 1, "{answer}");
        within(&waits["waiting"]["longest_seconds"], least_wait, most_wait);
        for server in rows_by_port(&answer, "server").values() {
            assert_eq!((&server["answer_time"], &server["waiting"]), (&Value::Null, &Value::Null));
        }
    }
}

#[test]
fn rates_are_of_the_bytes_between_two_samples() {
    const RATE: f64 = 200_000.0;
    let daemon = Daemon::start(&[]);
    for (addr, comm) in [("127.0.0.1", "flows-4"), ("::1", "flows-6")] {
        let namespace = Namespace::new();
        let mut program = Workload::start(&namespace, comm, FLOWS, &[addr, &RATE.to_string()]);
        let ports = program.hear();
        let ports: Vec<_> = ports.split(' ').collect();
        let [steady, fresh, lossy] = ports[..] else { panic!("{ports:?}") };
        daemon.sweep();
        let path = format!("/transfer?comm={comm}");
        let before = rows_by_port(&daemon.json(&path), "client");
        let answer = daemon.json(&format!("{path}&seconds=1.5&sort=rate"));
        let after = rows_by_port(&daemon.json(&path), "client");
        let seconds = answer["period_seconds"].as_f64().unwrap();
        assert!(seconds >= 1.5, "{answer}");
        let (clients, servers) = (rows_by_port(&answer, "client"), rows_by_port(&answer, "server"));
        let rate = |row: &Value, what: &str| row["rates"][what].as_f64().unwrap();
        // With wide bounds: a busy machine delays the sender and the samples.
        let [sent, received] = ["sent_bytes_per_second", "received_bytes_per_second"];
        for (row, what, nothing) in [(&clients[steady], sent, received), (&servers[steady], received, sent)] {
            assert!((RATE / 4.0..RATE * 4.0).contains(&rate(row, what)), "{answer}");
            assert_eq!(row["rates"][nothing], 0, "{answer}");
        }
        // Only connections that began between the samples count: each carries nothing after its first bytes.
        assert!(rate(&clients[fresh], sent) > 0.0, "{answer}");
        for port in [steady, fresh] {
            let [earlier, later] = [&before, &after].map(|rows| rows[port]["sent_bytes"].as_f64().unwrap());
            let at_most = later - earlier;
            // A rate is a whole number.
            assert!(rate(&clients[port], sent) * seconds <= at_most + seconds, "{port}: {answer}");
        }
        let order: Vec<_> = answer["transfers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| rate(row, sent) + rate(row, received))
            .collect();
        assert!(order.is_sorted_by(|a, b| a >= b), "{answer}");
        let row = eventually("what is lost is repeated", || {
            let answer = daemon.json(&format!("{path}&seconds=0.5"));
            let row = &rows_by_port(&answer, "client")[lossy];
            let server = rows_by_port(&answer, "server")[lossy].clone();
            if rate(row, "retransmitted_bytes_per_second") > 0.0 { Ok(server) } else { Err(row.to_string()) }
        });
        // The segments after a lost one arrive out of order, which the sweep counts.
        assert_sweep_agrees_with_kernel(&daemon, &row);
    }
}
