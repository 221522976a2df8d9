//! How a live connection's data goes, as the kernel tells when it is asked: compared with what was sent, and with `ss`.

use std::process::Command;

use serde_json::Value;

use crate::{daemon::Daemon, eventually::eventually, netns::Namespace, workload::Workload};

/// Reads so many bytes, answers with ten, and leaves unread what comes after.
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

/// Sends so many bytes and reads the answer; then as many as nobody reads.
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

/// Connects so many times and sends so many bytes each time, which all are read, as ten of an answer are.
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

fn side(daemon: &Daemon, namespace: &Namespace, role: &str) -> Value {
    let rows = daemon.connections_in(namespace);
    daemon.detail(rows.iter().find(|row| row["role"] == role).unwrap())
}

/// What `ss` says after `key:`.
fn told_by_ss(namespace: &Namespace, client_port: &Value, key: &str) -> String {
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
fn how_the_data_goes_is_what_the_kernel_says_of_both_ends() {
    let daemon = Daemon::start(&[]);
    for addr in ["127.0.0.1", "::1"] {
        let namespace = Namespace::new();
        let mut server = Workload::start(&namespace, "data-server", SERVER, &[addr, &BYTES.to_string()]);
        let port = server.hear();
        let mut client =
            Workload::start(&namespace, "data-client", CLIENT, &[addr, &port, &BYTES.to_string()]);
        assert_eq!((client.hear(), server.hear()), ("asked".to_owned(), "answered".to_owned()));
        eventually("both ends tell of all the bytes", || {
            let (ours, theirs) = (side(&daemon, &namespace, "client"), side(&daemon, &namespace, "server"));
            let (ours, theirs) = (&ours["transfer"], &theirs["transfer"]);
            let right = ours["sending"]["bytes"] == BYTES
                // The SYN counts.
                && ours["sending"]["acknowledged_bytes"] == BYTES + 1
                && ours["sending"]["queue_bytes"] == 0
                && ours["receiving"]["bytes"] == 10
                && theirs["receiving"]["bytes"] == BYTES
                && theirs["receiving"]["queue_bytes"] == 0
                && theirs["sending"]["bytes"] == 10;
            if right { Ok(()) } else { Err(format!("{ours}\n{theirs}")) }
        });
        let ours = side(&daemon, &namespace, "client");
        let (transfer, local) = (&ours["transfer"], &ours["local"]["port"]);
        assert_eq!(transfer["congestion"]["state"], "open");
        assert_eq!(
            transfer["congestion"]["window_segments"].to_string(),
            told_by_ss(&namespace, local, "cwnd")
        );
        let (smoothed, variation) = (&transfer["rtt"]["seconds"], &transfer["rtt"]["variation_seconds"]);
        let millis = [smoothed, variation].map(|value| value.as_f64().unwrap() * 1e3);
        let shown = told_by_ss(&namespace, local, "rtt");
        for (ours, shown) in millis.iter().zip(shown.split('/')) {
            let shown: f64 = shown.parse().unwrap();
            assert!((ours - shown).abs() < 1e-3, "{ours} ms, ss: {shown}");
        }
        assert!(transfer["sending"]["last_seconds"].as_f64() >= Some(0.0), "{transfer}");

        // Nobody reads any more.
        assert_eq!(client.ask(), "full");
        let waited = eventually("the peer's window holds it up", || {
            let ours = side(&daemon, &namespace, "client")["transfer"].clone();
            let limited = ours["sending"]["peer_window_limited_seconds"].as_f64().unwrap();
            let probes = ours["timer"]["kind"] == "window_probe" && ours["timer"]["seconds"].is_number();
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
    }
}

#[test]
fn sums_by_process_and_peer_are_those_of_their_connections() {
    let daemon = Daemon::start(&[]);
    for (addr, comm) in [("127.0.0.1", "sums-4"), ("::1", "sums-6")] {
        // Those of one name are summed over namespaces, where the peer is the same.
        let mut ends = [Namespace::new(), Namespace::new()]
            .map(|namespace| (Workload::start(&namespace, comm, MANY, &[addr, "3", "5000"]), namespace));
        let ports = ends.each_mut().map(|(one, _)| one.hear());
        let told = daemon.json(&format!("/transfer?comm={comm}&limit=0"));
        assert_eq!((&told["problems"], &told["truncated"]), (&Value::Null, &Value::Bool(false)), "{told}");
        let rows = told["transfers"].as_array().unwrap();
        for (role, sent, received) in [("client", 15_000, 30), ("server", 30, 15_000)] {
            let of_role: Vec<_> = rows.iter().filter(|row| row["role"] == role).collect();
            let connections: u64 = of_role.iter().map(|row| row["connections"].as_u64().unwrap()).sum();
            assert_eq!(connections, 6, "{told}");
            for row in of_role {
                let times = row["connections"].as_u64().unwrap() / 3;
                let figure = |name: &str| row[name].as_u64().unwrap();
                assert_eq!(
                    (figure("sent_bytes"), figure("received_bytes")),
                    (sent * times, received * times)
                );
                let empty = ["retransmitted_bytes", "receive_queue_bytes", "window_probes"].map(figure);
                assert_eq!(empty, [0; 3], "{row}");
                let port = row["peer"].as_str().unwrap().rsplit(':').next().unwrap();
                assert!(ports.iter().any(|one| one == port), "{row}");
                let rtt = ["least_seconds", "mean_seconds", "most_seconds"]
                    .map(|name| row["rtt"][name].as_f64().unwrap());
                assert!(0.0 < rtt[0] && rtt.is_sorted(), "{row}");
            }
        }
        // The same as of each connection by itself.
        for (_, namespace) in &ends {
            let rows = daemon.connections_in(namespace);
            let clients = rows.iter().filter(|row| row["role"] == "client");
            let sent: u64 =
                clients.map(|row| daemon.detail(row)["transfer"]["sending"]["bytes"].as_u64().unwrap()).sum();
            assert_eq!(sent, 15_000);
        }
    }
}
