//! How long a connection had been idle when a side closed it, and how long clients wait for answers: what the programs
//! themselves know of it.

use crate::{daemon::Daemon, eventually::eventually, netns::Namespace, workload::Workload};

/// Answers each byte with one after so many seconds. When told, closes what it accepted.
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

/// Asks once, waits so many seconds after the answer and then, when told, closes.
const CLIENT: &str = r#"
conn = connect(args[0], args[1])
conn.send(b"x")
conn.recv(1)
answered = time.monotonic()
time.sleep(float(args[2]))
say("idle")
order()
conn.close()
say(time.monotonic() - answered)
order()
"#;

/// What `/history`, or for what is left in TIME_WAIT `/connections`, tells of it.
fn idle_of(daemon: &Daemon, namespace: &Namespace, process: &str) -> serde_json::Value {
    eventually("the close is told", || {
        let rows = daemon.connections_in(namespace).into_iter();
        let row = rows.filter(|row| row["process"]["comm"] == process).map(|row| daemon.detail(&row)).next();
        let live = row.filter(|detail| !detail["first_close"].is_null());
        let ended = daemon.json(&format!("/history?process={process}"))["connections"].get(0).cloned();
        live.or(ended).ok_or("not yet")
    })
}

#[test]
fn the_idle_time_before_a_close_is_told_whoever_closes() {
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
        let [measured] = {
            client.order();
            client.hear_numbers()
        };
        let told = idle_of(&daemon, &namespace, process);
        assert_eq!(told["first_close"], first, "{told}");
        for side in ["sending_seconds", "receiving_seconds"] {
            let idle = told["idle"][side].as_f64().unwrap();
            // To a tick of the kernel, of which there are at least a hundred in a second.
            assert!(idle >= 0.67 && idle <= measured + 0.03, "{side} of {measured}: {told}");
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
    let [measured] = {
        client.order();
        client.hear_numbers()
    };
    let told = idle_of(&daemon, &namespace, "busy-client");
    // 32 ticks are at least as many milliseconds.
    assert!(told["idle"].is_null() || measured > 0.03, "{measured}: {told}");
}

/// Asks again and again, a while after each answer.
const ASKING: &str = r#"
conn = connect(args[0], args[1])
say("connected")
while True:
    conn.send(b"x")
    conn.recv(1)
    time.sleep(2)
"#;

/// Hears again and again, and never asked.
const LISTENING: &str = r#"
conn = connect(args[0], args[1])
say("connected")
while conn.recv(1):
    pass
"#;

/// Sends by itself.
const PUSHING: &str = r#"
listener = listen(args[0])
say(port_of(listener))
conn = listener.accept()[0]
while True:
    conn.send(b"k")
    time.sleep(0.2)
"#;

#[test]
fn how_long_clients_wait_for_answers_is_sampled() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut server = Workload::start(&namespace, "slow-server", SERVER, &["127.0.0.1", "0.3"]);
    let mut pushing = Workload::start(&namespace, "pushing-server", PUSHING, &["127.0.0.1"]);
    let (slow, pushes) = (server.hear(), pushing.hear());
    let mut asking = Workload::start(&namespace, "asking-client", ASKING, &["127.0.0.1", &slow]);
    let mut listening = Workload::start(&namespace, "hearing-client", LISTENING, &["127.0.0.1", &pushes]);
    assert_eq!((asking.hear(), listening.hear()), ("connected".to_owned(), "connected".to_owned()));
    let answers = eventually("there is a sample", || {
        // Asked for owners, it sweeps.
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
