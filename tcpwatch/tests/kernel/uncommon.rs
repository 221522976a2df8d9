//! Sockets that are used in uncommon ways: TCP Fast Open, simultaneous open, refused and kept, repair mode.

use serde_json::{Value, json};

use crate::{daemon::Daemon, eventually::eventually, netns::Namespace, workload::Workload};

const CONNECTS: &str = "tcpwatch_connects_total";

/// TCP_FASTOPEN_CONNECT: a first connection fetches the cookie. Then one socket waits for its first data, one is closed
/// without any, and one sends after a second and a half.
const FAST_OPEN: &str = r#"
listener = socket.socket()
listener.setsockopt(socket.IPPROTO_TCP, 23, 5)  # TCP_FASTOPEN
listener.bind(("127.0.0.1", 0))
listener.listen(8)
open("/proc/sys/net/ipv4/tcp_fastopen", "w").write("3")
first = socket.socket()
first.sendto(b"early", socket.MSG_FASTOPEN, listener.getsockname())
kept = [listener.accept()[0]]
kept[0].recv(5)


def lazy():
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
    sock.connect(listener.getsockname())
    return sock


waits = lazy()
lazy().close()
sends = lazy()
time.sleep(1.5)
sends.send(b"x")
kept.append(listener.accept()[0])
say(port_of(waits), port_of(sends))
order()
"#;

#[test]
fn a_fast_open_socket_connects_when_it_sends() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut process = Workload::start(&namespace, "fast-open", FAST_OPEN, &[]);
    let [waits, sends] = process.hear_numbers::<2>();
    let rows = daemon.connections_in(&namespace);
    let row_of = |port: f64| {
        let clients = rows.iter().filter(|row| row["role"] == "client");
        clients.into_iter().find(|row| row["local"]["port"] == json!(port as u64)).unwrap()
    };
    let waiting = daemon.detail(row_of(waits));
    assert_eq!((&waiting["state"], &waiting["connect"]["outcome"]), (&json!("SYN_SENT"), &Value::Null));
    let sending = &waiting["transfer"]["sending"];
    assert_eq!((&sending["queue_bytes"], &sending["unsent_bytes"]), (&json!(0), &json!(0)), "{waiting}");
    let sent = daemon.detail(row_of(sends));
    assert_eq!(sent["connect"]["outcome"], "established");
    let seconds = sent["connect"]["duration_seconds"].as_f64().unwrap();
    assert!(seconds < 1.0, "{seconds} s, of which 1.5 s are the application's");
    let transfers = daemon.json("/transfer?comm=fast-open");
    for row in transfers["transfers"].as_array().unwrap() {
        assert!(row["send_queue_bytes"].as_u64() < Some(1000), "{row}");
    }
    eventually("the socket closed unsent is given up", || {
        let metrics = daemon.metrics();
        let count =
            |outcome| metrics.sum(CONNECTS, &[("process", "fast-open"), ("outcome", outcome)]).unwrap_or(0);
        let counts = ["aborted", "no_port", "established"].map(count);
        if counts == [1, 0, 2] { Ok(()) } else { Err(format!("{counts:?}")) }
    });
}

/// Both ends open at once, and neither has received anything when one closes.
const SIMULTANEOUS: &str = r#"
sock = socket.socket()
sock.bind(("127.0.0.1", 0))
sock.connect(sock.getsockname())
silent = socket.socket()
silent.bind(("127.0.0.1", 0))
silent.connect(silent.getsockname())
sock.send(b"ping")
sock.recv(4)
time.sleep(1)
say(port_of(sock), port_of(silent))
order()
sock.shutdown(socket.SHUT_WR)
silent.shutdown(socket.SHUT_WR)
say("closed")
order()
"#;

#[test]
fn a_connection_that_never_received_was_idle_since_it_was_established() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut process = Workload::start(&namespace, "to-itself", SIMULTANEOUS, &[]);
    let ports = process.hear_numbers::<2>();
    let rows = daemon.connections_in(&namespace);
    assert_eq!(process.ask(), "closed");
    for port in ports {
        let row = rows.iter().find(|row| row["local"]["port"] == json!(port as u64)).unwrap();
        let idle = eventually("it is closed", || {
            let detail = daemon.detail(row);
            if detail["idle"].is_object() { Ok(detail["idle"].clone()) } else { Err(detail) }
        });
        for side in ["sending_seconds", "receiving_seconds"] {
            let seconds = idle[side].as_f64().unwrap();
            assert!((0.9..60.0).contains(&seconds), "{port}: {idle}");
        }
    }
}

const REFUSED: &str = r#"
closed = socket.socket()
closed.bind(("127.0.0.1", 0))
refused = []
for _ in range(12):
    refused.append(socket.socket())
    assert refused[-1].connect_ex(closed.getsockname()) == 111
bare = socket.socket()
say("refused")
order()
"#;

#[test]
fn refused_sockets_that_are_kept_are_not_only_bound() {
    let daemon = Daemon::start(&["--linger", "close=1s"]);
    let namespace = Namespace::new();
    let mut process = Workload::start(&namespace, "keeps-refused", REFUSED, &[]);
    assert_eq!(process.hear(), "refused");
    eventually("the sockets are found", || {
        let leaks = daemon.leaks_of(process.pid());
        let summary = leaks.first().map_or("", |leak| leak["summary"].as_str().unwrap()).to_owned();
        let expected = "14 TCP sockets that are no connections: 1 never bound nor connected, 1 only bound, \
                        12 over, but not closed.";
        if summary.ends_with(expected) { Ok(()) } else { Err(summary) }
    });
}

/// TCP_REPAIR, as CRIU uses it: the client's socket is closed without a segment, and made anew in another one.
const REPAIR: &str = r#"
TCP_REPAIR = 19
listener = listen("127.0.0.1")
conn = connect("127.0.0.1", port_of(listener))
peer = listener.accept()[0]
local, remote = conn.getsockname(), conn.getpeername()
say(local[1])
order()
conn.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
conn.close()
again = socket.socket()
again.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
again.bind(local)
again.connect(remote)
again.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
say("restored")
order()
"#;

#[test]
fn a_connection_closed_in_repair_mode_was_not_reset() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut process = Workload::start(&namespace, "repairs", REPAIR, &[]);
    let port: u64 = process.hear().parse().unwrap();
    let rows = daemon.connections_in(&namespace);
    let is_client = |row: &&Value| row["role"] == "client" && row["local"]["port"] == port;
    let row = rows.iter().find(is_client).unwrap().clone();
    assert_eq!(process.ask(), "restored");
    let first_close = eventually("it is over", || {
        let detail = daemon.detail(&row);
        if detail["ended_at"].is_null() { Err(detail) } else { Ok(detail["first_close"].clone()) }
    });
    assert_eq!(first_close, "repair");
    let restored = eventually("it lives on", || {
        let rows = daemon.connections_in(&namespace);
        let found = rows.iter().find(|row| row["local"]["port"] == port && row["role"] != "listener");
        found.cloned().ok_or_else(|| format!("{rows:?}"))
    });
    assert_eq!((&restored["state"], &restored["role"]), (&json!("ESTABLISHED"), &json!("unknown")));
    let attempts = daemon.metrics().sum("tcpwatch_connect_attempts_total", &[("process", "repairs")]);
    assert_eq!(attempts, Some(1), "what is restored connects to nobody");
}

/// Answers after 40 ms; the client asks again at once, 400 times.
const ASKS_AT_ONCE: &str = r#"
import threading
listener = listen("127.0.0.1")


def serve():
    conn = listener.accept()[0]
    while conn.recv(1):
        time.sleep(0.04)
        conn.send(b"k")


threading.Thread(target=serve, daemon=True).start()
conn = connect("127.0.0.1", port_of(listener))
conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
say("asks")
for _ in range(400):
    conn.send(b"x")
    conn.recv(1)
"#;

#[test]
fn the_answer_time_of_a_client_that_asks_again_at_once_is_known() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut process = Workload::start(&namespace, "asks-at-once", ASKS_AT_ONCE, &[]);
    assert_eq!(process.hear(), "asks");
    eventually("an answer is seen", || {
        let answer = daemon.json("/transfer?comm=asks-at-once&role=client");
        let row = &answer["transfers"][0];
        let (answered, least) =
            (row["answer_time"]["mean_seconds"].as_f64(), row["least_rtt"]["mean_seconds"].as_f64());
        // A busy machine may be late.
        let right = answered.is_some_and(|seconds| (0.03..0.2).contains(&seconds));
        if right && least.is_some_and(|seconds| seconds < 0.03) { Ok(()) } else { Err(row.clone()) }
    });
}
