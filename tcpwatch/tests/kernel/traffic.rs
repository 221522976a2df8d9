//! The data that connections carried, compared with what the applications sent.

use serde_json::{Value, json};

use crate::{daemon::Daemon, eventually::eventually, netns::Namespace, workload::Workload};

/// The client asks with 100,000 bytes and is answered with 5,000; it shuts down, and gets 300 more.
const ENDS: &str = r#"
listener = listen(args[0])
client = connect(args[1], port_of(listener))
server = listener.accept()[0]
listener.close()


def carry(sender, receiver, count):
    sent = received = 0
    while received < count:
        sent += sender.send(b"x" * min(1000, count - sent)) if sent < count else 0
        received += len(receiver.recv(65536)) if sent - received > 20000 or sent == count else 0


carry(client, server, 100_000)
carry(server, client, 5_000)
say("carried")
order()
client.shutdown(socket.SHUT_WR)
assert server.recv(1) == b""
carry(server, client, 300)
server.close()
assert client.recv(1) == b""
client.close()
say("closed")
order()
"#;

/// Sent and received bytes of the clients, then of the servers.
fn sums(daemon: &Daemon, comm: &str) -> [Option<u64>; 4] {
    let metrics = daemon.metrics();
    let sum = |name: &str, role| metrics.sum(name, &[("process", comm), ("role", role)]);
    ["client", "server"]
        .map(|role| {
            ["tcpwatch_sent_bytes_total", "tcpwatch_received_bytes_total"].map(|name| sum(name, role))
        })
        .concat()
        .try_into()
        .unwrap()
}

/// The client's row and the server's, if there are both.
fn ends_of(daemon: &Daemon, path: &str) -> Result<[Value; 2], String> {
    let answer = daemon.json(path);
    let end = |role: &str| answer["connections"].as_array()?.iter().find(|row| row["role"] == role).cloned();
    end("client").zip(end("server")).map(<[Value; 2]>::from).ok_or_else(|| answer.to_string())
}

#[test]
fn sent_and_received_bytes_are_exact() {
    let daemon = Daemon::start(&[]);
    let types_known = !daemon.hook("state").starts_with("tracepoint ");
    for (comm, [at, dials]) in [
        ("traffic-4", ["127.0.0.1"; 2]),
        ("traffic-6-lo", ["::1"; 2]),
        ("traffic-6", ["fd00::1"; 2]),
        ("traffic-mapped", ["127.0.0.1", "::ffff:127.0.0.1"]),
    ] {
        let namespace = Namespace::new();
        namespace.run(&["ip", "address", "add", "fd00::1/128", "dev", "lo", "nodad"]);
        let mut ends = Workload::start(&namespace, comm, ENDS, &[at, dials]);
        assert_eq!(ends.hear(), "carried");
        // Live connections, from a sweep.
        eventually("the data of live connections counts", || {
            let live = format!("/connections?limit=10000&state=ESTABLISHED&pid={}", ends.pid());
            let [client, server] = ends_of(&daemon, &live)?.map(|row| daemon.detail(&row));
            let shown = [&client, &server].map(|row| json!([row["sent_bytes"], row["received_bytes"]]));
            let counted = sums(&daemon, comm);
            let all = [100_000, 5_000, 5_000, 100_000].map(Some);
            if shown == [json!([100_000, 5_000]), json!([5_000, 100_000])] && counted == all {
                Ok(())
            } else {
                Err(format!("{comm}: {shown:?} {counted:?}"))
            }
        });
        assert_eq!(ends.ask(), "closed");
        let [client, server] = eventually("both ends are over", || {
            // The client's connection is in TIME_WAIT.
            let live = daemon.json(&format!("/connections?limit=10000&pid={}", ends.pid()));
            let client =
                live["connections"].as_array().unwrap().iter().find(|row| row["state"] == "TIME_WAIT");
            let ended = daemon.json(&format!("/history?limit=10000&pid={}", ends.pid()));
            let server = ended["connections"].as_array().unwrap().iter().find(|row| row["role"] == "server");
            match (client, server) {
                (Some(client), Some(server)) => Ok([daemon.detail(client), server.clone()]),
                _ => Err(format!("{live} {ended}")),
            }
        });
        if !types_known {
            assert_eq!(client["received_after_close_bytes"], Value::Null, "{client}");
            continue;
        }
        for (row, sent, received, after, other) in [
            (&client, 100_000, 5_300, "received_after_close_bytes", "sent_after_close_bytes"),
            (&server, 5_300, 100_000, "sent_after_close_bytes", "received_after_close_bytes"),
        ] {
            assert_eq!(
                (&row["sent_bytes"], &row["received_bytes"]),
                (&json!(sent), &json!(received)),
                "{row}"
            );
            assert_eq!((&row[after], &row[other]), (&json!(300), &Value::Null), "{row}");
        }
        assert_eq!(sums(&daemon, comm), [100_000, 5_300, 5_300, 100_000].map(Some), "{comm}");
        for (role, direction) in [("client", "received"), ("server", "sent")] {
            let of_role = [("process", comm), ("role", role)];
            let metrics = daemon.metrics();
            let total = metrics.sum("tcpwatch_after_close_bytes_total", &of_role);
            let labels = [&of_role[..], &[("direction", direction)]].concat();
            let directed = metrics.sum("tcpwatch_after_close_bytes_total", &labels);
            assert_eq!([total, directed], [Some(300); 2], "{role}");
        }
        let peers = daemon.json(&format!("/peers?comm={comm}&role=client&sort=bytes"));
        let row = &peers["peers"][0];
        assert_eq!((&row["sent_bytes"], &row["received_bytes"]), (&json!(100_000), &json!(5_300)), "{peers}");
    }
}

/// Some of its segments get lost.
const LOSES: &str = r#"
listener = listen("127.0.0.1")
client = connect("127.0.0.1", port_of(listener))
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
server = listener.accept()[0]
lose(server, DROP_SOME_DATA)
for _ in range(100):
    client.sendall(b"x" * 200)
left = 20_000
while left:
    left -= len(server.recv(65536))
lose_nothing(server)
client.close()
assert server.recv(1) == b""
server.close()
say("closed")
order()
"#;

#[test]
fn retransmitted_bytes_count_once() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut ends = Workload::start(&namespace, "traffic-lossy", LOSES, &[]);
    assert_eq!(ends.hear_for_long(), "closed");
    assert!(ends.retransmitted() > 0, "a test without loss shows nothing");
    let expected = [20_000, 0, 0, 20_000].map(Some);
    eventually("both ends are counted", || {
        let sums = sums(&daemon, "traffic-lossy");
        if sums == expected { Ok(()) } else { Err(format!("{sums:?}")) }
    });
}
