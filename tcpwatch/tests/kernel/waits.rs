//! Idle times before a close and answer times of clients, compared with the applications' own measurements.

use crate::{daemon::Daemon, eventually::eventually, netns::Namespace, workload::Workload};

/// Answers each byte with one byte after the given seconds. On order, closes the accepted connections.
const SERVER: &str = r#"
import threading
def serve(conn):
    try:
        while conn.recv(1):
            time.sleep(float(args[1]))
            conn.send(b"k")
    except OSError:
        pass
listener = listen(args[0])
say(port_of(listener))
conns = []
def accept():
    while True:
        conn = listener.accept()[0]
        conns.append(conn)
        threading.Thread(target=serve, args=(conn,), daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
order()
for conn in conns:
    conn.shutdown(socket.SHUT_RDWR)
    conn.close()
say("closed")
order()
"#;

/// Asks once, waits the given seconds after the answer, and closes on order. Says how long it was idle then at most: the
/// answer may have come long before a busy machine let the program read it.
const CLIENT: &str = r#"
conn = connect(args[0], args[1])
asked = time.monotonic()
conn.send(b"x")
conn.recv(1)
time.sleep(float(args[2]))
say("idle")
order()
conn.close()
say(time.monotonic() - asked)
order()
"#;

/// The process's connection in `/history`, or in `/connections` while it is in TIME_WAIT.
fn idle_of(daemon: &Daemon, namespace: &Namespace, process: &str) -> serde_json::Value {
    eventually("the close is shown", || {
        let rows = daemon.connections_in(namespace).into_iter();
        let row = rows.filter(|row| row["process"]["comm"] == process).map(|row| daemon.detail(&row)).next();
        let live = row.filter(|detail| !detail["first_close"].is_null());
        let ended = daemon.json(&format!("/history?comm={process}"))["connections"].get(0).cloned();
        live.or(ended).ok_or("not yet")
    })
}

#[test]
fn the_idle_time_before_a_close_is_known_whichever_side_closes() {
    let daemon = Daemon::start(&[]);
    for (process, first, closes) in [("idle-local", "local", "client"), ("idle-peer", "peer", "server")] {
        let namespace = Namespace::new();
        let mut server = Workload::start(&namespace, "idle-server", SERVER, &["127.0.0.1", "0"]);
        let port = server.hear();
        let mut client = Workload::start(&namespace, process, CLIENT, &["127.0.0.1", &port, "0.7"]);
        assert_eq!(client.hear(), "idle");
        if closes == "server" {
            assert_eq!(server.ask(), "closed");
        }
        let [at_most] = {
            client.order();
            client.hear_numbers()
        };
        let row = idle_of(&daemon, &namespace, process);
        assert_eq!(row["first_close"], first, "{row}");
        for side in ["sending_seconds", "receiving_seconds"] {
            let idle = row["idle"][side].as_f64().unwrap();
            // Exact to a tick of the kernel, which has at least 100 a second.
            assert!(idle >= 0.67 && idle <= at_most + 0.03, "{side}, at most {at_most}: {row}");
        }
        let labels = [("process", process), ("closed", first)];
        let metrics = daemon.metrics();
        assert_eq!(metrics.sum("tcpwatch_idle_before_close_seconds_count", &labels), Some(1));
        let peers = daemon.json(&format!("/peers?comm={process}"));
        assert_eq!(peers["peers"][0]["idle_before_close"][first]["count"], 1, "{peers}");
    }
}

#[test]
fn a_connection_that_is_closed_at_once_was_not_idle() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut server = Workload::start(&namespace, "busy-server", SERVER, &["127.0.0.1", "0"]);
    let port = server.hear();
    let mut client = Workload::start(&namespace, "busy-client", CLIENT, &["127.0.0.1", &port, "0"]);
    assert_eq!(client.hear(), "idle");
    let [at_most] = {
        client.order();
        client.hear_numbers()
    };
    let row = idle_of(&daemon, &namespace, "busy-client");
    // 32 ticks, the limit, are at least 32 ms.
    assert!(row["idle"].is_null() || at_most > 0.03, "{at_most}: {row}");
}

/// Asks repeatedly, two seconds after each answer.
const ASKING: &str = r#"
conn = connect(args[0], args[1])
say("connected")
while True:
    conn.send(b"x")
    conn.recv(1)
    time.sleep(2)
"#;

/// Receives repeatedly, and never asks.
const LISTENING: &str = r#"
conn = connect(args[0], args[1])
say("connected")
while conn.recv(1):
    pass
"#;

/// Sends without being asked.
const PUSHING: &str = r#"
listener = listen(args[0])
say(port_of(listener))
conn = listener.accept()[0]
while True:
    conn.send(b"k")
    time.sleep(0.2)
"#;

#[test]
fn answer_times_of_clients_are_sampled() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut server = Workload::start(&namespace, "slow-server", SERVER, &["127.0.0.1", "0.3"]);
    let mut pushing = Workload::start(&namespace, "pushing-server", PUSHING, &["127.0.0.1"]);
    let (slow, pushes) = (server.hear(), pushing.hear());
    let mut asking = Workload::start(&namespace, "asking-client", ASKING, &["127.0.0.1", &slow]);
    let mut listening = Workload::start(&namespace, "hearing-client", LISTENING, &["127.0.0.1", &pushes]);
    assert_eq!((asking.hear(), listening.hear()), ("connected".to_owned(), "connected".to_owned()));
    let answers = eventually("there is a sample", || {
        // A request about owners starts a sweep.
        daemon.json("/leaks");
        let peers = daemon.json("/peers?comm=asking-client");
        let answers = peers["peers"][0]["answers"].clone();
        if answers["count"].as_u64() >= Some(1) { Ok(answers) } else { Err(peers.to_string()) }
    });
    let waited = answers["mean_seconds"].as_f64().unwrap();
    assert!((0.28..1.0).contains(&waited), "{answers}");
    let rtt = answers["mean_rtt_seconds"].as_f64().unwrap();
    assert!(rtt > 0.0 && rtt < 0.28, "the network is not what is slow: {answers}");
    let metrics = daemon.metrics();
    let count = |process| metrics.sum("tcpwatch_answer_seconds_count", &[("process", process)]);
    assert!(count("asking-client") >= Some(1));
    for (process, none) in [("hearing-client", Some(0)), ("slow-server", None), ("pushing-server", None)] {
        assert_eq!(count(process), none, "{process} asked nothing");
    }
}
