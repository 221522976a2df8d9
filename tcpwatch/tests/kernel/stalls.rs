//! Head-of-line blocking on a lossy link, compared with the receiving application's own measurement: each message
//! carries the time at which it was sent.

use serde_json::{Value, json};

use crate::{
    daemon::Daemon,
    eventually::eventually,
    metrics::Metrics,
    netns::Namespace,
    retransmits::{ADDRESS, joined, lose, lose_nothing},
    witness::witnessed,
    workload::Workload,
};

const CLOSED: &str = "tcpwatch_connections_closed_total";
const BLOCKED: &str = "tcpwatch_hol_blocked_seconds";
const BLOCKED_BYTES: &str = "tcpwatch_hol_blocked_bytes_total";
const RETRANSMITS: &str = "tcpwatch_retransmits_by_kind_total";

/// Takes messages of 100 bytes, and measures by the time in each how long it took. All messages that waited for one
/// lost segment arrive at once, the lost one first: it waited longest. With `answers` it answers each message.
const RECEIVER: &str = r#"
listener = listen(args[0])
say(port_of(listener))
conn = listener.accept()[0]
stalls, seconds, last = 0, 0.0, 0.0
while True:
    message = conn.recv(100, socket.MSG_WAITALL)
    if len(message) < 100:
        break
    now, sent = time.monotonic(), struct.unpack("d", message[:8])[0]
    # Of several that waited for the same segment, the first counts.
    if now - sent > float(args[1]) and sent > last:
        stalls, seconds, last = stalls + 1, seconds + now - sent, now
    if args[2] == "answers":
        conn.send(b"k")
say(stalls, seconds)
order()
"#;

/// Sends the given number of messages, one each interval in seconds or, with interval 0, one after each answer.
const SENDER: &str = r#"
conn = connect(args[0], args[1])
conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
say("connected")
order()
for _ in range(int(args[2])):
    conn.sendall(struct.pack("d", time.monotonic()) + b"x" * 92)
    if float(args[3]):
        time.sleep(float(args[3]))
    else:
        conn.recv(1)
say("sent")
order()
conn.close()
say("closed")
order()
"#;

/// Number of stalls, and their seconds.
fn blocked(metrics: &Metrics, process: &str, recoveries: &[&str]) -> (u64, f64) {
    let labels = |recovery| [("process", process), ("recovery", recovery)];
    let counts = recoveries.iter().filter_map(|one| metrics.sum(&format!("{BLOCKED}_count"), &labels(*one)));
    let seconds = recoveries.iter().map(|one| metrics.exact(&format!("{BLOCKED}_sum"), &labels(*one)));
    (counts.sum(), seconds.sum())
}

/// Counts of the kernel that may explain a stall which was not reported.
const KERNEL_COUNTS: [&str; 6] = [
    "TCPLossProbes",
    "TCPTimeouts",
    "TCPDSACKRecv",
    "TCPLossUndo",
    "TCPFullUndo",
    "TCPSpuriousRtxHostQueues",
];

/// The recoveries of the sending side.
const ALL: [&str; 3] = ["fast", "timeout", "probe"];

/// The rule for random loss on the way to the receiver.
const AT_RANDOM: &str = "numgen random mod 100 < 8";

/// Sends while `rule` drops packets. Asserts that the daemon's stalls last as long as the receiver measured, within a
/// tenth, and returns the number of stalls that the receiver saw.
fn measure(
    daemon: &Daemon,
    [sender, receiver]: [&str; 2],
    count: &str,
    interval: &str,
    rule: &str,
) -> (Metrics, u64) {
    let (there, here) = joined();
    let (slow, answers) = if interval == "0" { ("0.1", "answers") } else { ("0.01", "listens") };
    let mut receiver = Workload::start(&here, receiver, RECEIVER, &[ADDRESS, slow, answers]);
    let port = receiver.hear();
    let mut client = Workload::start(&there, sender, SENDER, &[ADDRESS, &port, count, interval]);
    assert_eq!(client.hear(), "connected");
    lose(&here, rule);
    client.order();
    assert_eq!(client.hear_for_long(), "sent");
    lose_nothing(&here);
    assert_eq!(client.ask(), "closed");
    let [stalls, seconds] = receiver.hear_numbers();
    let measured = eventually("the stalls are reported", || {
        let metrics = daemon.metrics();
        // The last report comes with the connection's end.
        if metrics.sum(CLOSED, &[("process", sender)]) != Some(1) {
            return Err("its end is not reported".to_owned());
        }
        let unseen = metrics.sum(RETRANSMITS, &[("process", sender), ("kind", "unknown")]).unwrap_or(0);
        let (count, reported) = blocked(&metrics, sender, &ALL);
        println!(
            "{sender}: {stalls} stalls of {seconds} s; reported {count} of {reported} s; {unseen} unseen"
        );
        // The socket counts also the retransmits that no program saw; such stalls are not reported.
        assert_eq!(unseen, 0, "retransmits of which the programs saw nothing");
        if (reported - seconds).abs() <= 0.1 * seconds {
            return Ok(metrics);
        }
        let lost = metrics.sum("tcpwatch_records_lost_total", &[]);
        let counts = KERNEL_COUNTS.map(|name| (name, client.kernel_count(name)));
        Err(format!(
            "{count} of {reported} s, for {stalls} of {seconds} s, lost: {lost:?}, kernel: {counts:?}"
        ))
    });
    (measured, stalls as u64)
}

#[test]
fn delivery_stands_still_as_long_as_the_receiver_measures() {
    witnessed(|witness| stalls_of_a_steady_sender(&witness.start(&[])));
}

fn stalls_of_a_steady_sender(daemon: &Daemon) {
    let (metrics, stalls) = measure(daemon, ["steady-sender", "steady-receiver"], "250", "0.02", AT_RANDOM);
    assert!(stalls >= 3, "a test without stalls shows nothing: {stalls}");
    assert!(blocked(&metrics, "steady-sender", &["fast"]).0 > 0);
    assert_eq!(blocked(&metrics, "steady-receiver", &ALL).0, 0);
    assert!(metrics.sum(BLOCKED_BYTES, &[("process", "steady-sender")]) > Some(0));
}

#[test]
fn a_request_that_is_lost_waits_for_a_probe_or_a_time_out() {
    witnessed(|witness| stalls_of_requests(&witness.start(&[])));
}

fn stalls_of_requests(daemon: &Daemon) {
    let (metrics, stalls) = measure(daemon, ["asking-sender", "asked-receiver"], "150", "0", AT_RANDOM);
    assert!(stalls >= 3, "a test without stalls shows nothing: {stalls}");
    assert!(blocked(&metrics, "asking-sender", &["probe"]).0 > 0);
    assert_eq!(blocked(&metrics, "asking-sender", &["fast"]).0, 0);
    let peers = daemon.json("/peers?comm=asking-sender");
    let shown = &peers["peers"][0]["blocked"]["probe"];
    assert_eq!(shown["count"].as_u64(), Some(blocked(&metrics, "asking-sender", &["probe"]).0), "{peers}");
}

/// On each of several connections: sends a message of 77 bytes, then five of 100, the first of which has its sending
/// time.
const HOLED_SENDER: &str = r#"
while True:
    conn = connect(args[0], args[1])
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    say("connected")
    order()
    conn.sendall(b"x" * 77)
    for _ in range(5):
        conn.sendall(struct.pack("d", time.monotonic()) + b"x" * 92)
    say("sent")
    order()
    conn.close()
"#;

/// Measures how long that first message waited.
const HOLED_RECEIVER: &str = r#"
listener = listen(args[0])
say(port_of(listener))
while True:
    conn = listener.accept()[0]
    if not conn.recv(77, socket.MSG_WAITALL):
        break
    sent = struct.unpack("d", conn.recv(100, socket.MSG_WAITALL)[:8])[0]
    say(time.monotonic() - sent)
    read_to_end(conn)
"#;

/// An IPv4 packet with 77 bytes of data behind a header of TCP with timestamps.
const HOLE: &str = "meta length 129";

#[test]
fn received_data_waits_as_long_as_the_receiver_measures() {
    const ROUNDS: u64 = 3;
    let daemon = Daemon::start(&["--hook", "out_of_order=fexit"]);
    let followed = follows_out_of_order(&daemon);
    let (there, here) = joined();
    let mut receiver = Workload::start(&here, "late-receiver", HOLED_RECEIVER, &[ADDRESS]);
    let port = receiver.hear();
    let mut sender = Workload::start(&there, "holed-sender", HOLED_SENDER, &[ADDRESS, &port]);
    let mut seconds = 0.0;
    for _ in 0..ROUNDS {
        assert_eq!(sender.hear(), "connected");
        lose(&here, HOLE);
        // Acknowledgements are dropped too: after the first that reports the hole the sender would retransmit.
        lose(&there, "");
        assert_eq!(sender.ask(), "sent");
        eventually("it is stalled now", || {
            let rows = daemon.connections_in(&here);
            let row = rows.iter().find(|row| row["state"] == "ESTABLISHED").ok_or("it is not there")?;
            let (stalled, seconds) = (&row["stalled"], row["stalled"]["duration_seconds"].as_f64());
            let reported = (&stalled["recovery"], &stalled["waiting_bytes"]) == (&json!("peer"), &json!(500));
            let stands = if followed { reported && seconds > Some(0.1) } else { stalled.is_null() };
            if stands { Ok(()) } else { Err(row.to_string()) }
        });
        lose_nothing(&there);
        lose_nothing(&here);
        let [waited] = receiver.hear_numbers();
        seconds += waited;
        sender.order();
    }
    let (expected, count) = if followed { (seconds, ROUNDS) } else { (0.0, 0) };
    let metrics = eventually("the waits are reported", || {
        let metrics = daemon.metrics();
        let reported = blocked(&metrics, "late-receiver", &["peer"]);
        if reported.0 == count && (reported.1 - expected).abs() <= 0.1 * expected {
            return Ok(metrics);
        }
        Err(format!("{reported:?}, for {count} of {seconds} s"))
    });
    println!("{seconds} s measured, {:?} reported", blocked(&metrics, "late-receiver", &["peer"]));
    let bytes = metrics.sum(BLOCKED_BYTES, &[("process", "late-receiver"), ("recovery", "peer")]);
    assert_eq!(bytes.unwrap_or(0), 500 * count);
    assert_eq!(blocked(&metrics, "holed-sender", &["peer"]).0, 0, "it received nothing");
}

/// Whether fexit serves the signal. Asserts where it does not that no other signal has fexit, and that `/status` says
/// what is lost.
fn follows_out_of_order(daemon: &Daemon) -> bool {
    let out_of_order = daemon.signal_status("out_of_order");
    if out_of_order["hook"] == "fexit tcp_data_queue" {
        return true;
    }
    let accept = daemon.hook("accept");
    assert!(!accept.starts_with("fexit "), "{out_of_order}");
    assert!(out_of_order["hook"].is_null() && out_of_order["lost"].is_string(), "{out_of_order}");
    false
}

#[test]
fn a_stall_counts_under_the_recovery_that_ended_it() {
    // Lost are the first segments with a request: 1 is the request, 2 also its probe, 3 also the retransmit after a
    // time-out.
    for (lost, recovery) in [(1, "probe"), (2, "timeout"), (3, "timeout")] {
        witnessed(|witness| {
            let rule = format!("ip length > 100 numgen inc mod 1000 < {lost}");
            let names = ["unlucky-sender", "unlucky-receiver"];
            let (metrics, stalls) = measure(&witness.start(&[]), names, "3", "0", &rule);
            assert_eq!(stalls, 1, "{lost} lost");
            assert_eq!(blocked(&metrics, "unlucky-sender", &ALL).0, 1, "{lost} lost");
            assert_eq!(blocked(&metrics, "unlucky-sender", &[recovery]).0, 1, "{lost} lost");
        });
    }
}

/// Sends the given number of MiB. Runs on the same processor as the reader: segments could overtake each other between
/// the queues of two processors, which the kernel takes for losses.
const BULK: &str = r#"
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
conn = connect(args[0], args[1])
data = b"x" * (1 << 20)
for _ in range(int(args[2])):
    conn.sendall(data)
conn.close()
say("closed")
order()
"#;

const SINK: &str = r#"
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
listener = listen(args[0])
say(port_of(listener))
read_to_end(listener.accept()[0])
say("read")
order()
"#;

/// Sends a GiB over a link that loses nothing. `None` when the kernel assumed a loss all the same: segments overtook
/// each other, or an unnecessary probe was not reported as a duplicate.
fn clean_transfer(daemon: &Daemon) -> Option<Value> {
    let (there, here) = joined();
    let mut sink = Workload::start(&here, "clean-sink", SINK, &[ADDRESS]);
    let port = sink.hear();
    let mut bulk = Workload::start(&there, "clean-sender", BULK, &[ADDRESS, &port, "1024"]);
    assert_eq!(bulk.hear_for_long(), "closed");
    assert_eq!(sink.hear(), "read");
    let count = |name| bulk.kernel_count(name).unwrap();
    let recoveries = count("TCPSackRecovery") + count("TCPTimeouts") + count("TCPLossProbeRecovery");
    let clean = recoveries == 0 && count("TCPDSACKRecv") >= bulk.retransmitted();
    clean.then(|| daemon.detail(&row_of(daemon, &there)))
}

#[test]
fn a_gigabyte_over_a_clean_link_never_stalls() {
    let daemon = Daemon::start(&[]);
    let detail =
        (0..10).find_map(|_| clean_transfer(&daemon)).expect("a link that the kernel takes for clean");
    assert_eq!(detail["blocked"], json!({}), "{detail}");
    assert!(detail.get("stalled").is_none(), "{detail}");
}

#[test]
fn a_connection_into_a_black_hole_is_stalled_until_it_goes_on() {
    witnessed(|witness| a_connection_into_a_black_hole(&witness.start(&[])));
}

fn a_connection_into_a_black_hole(daemon: &Daemon) {
    let (there, here) = joined();
    let mut receiver = Workload::start(&here, "gone-receiver", RECEIVER, &[ADDRESS, "1", "listens"]);
    let port = receiver.hear();
    let mut client = Workload::start(&there, "hopeful-sender", SENDER, &[ADDRESS, &port, "3", "0.01"]);
    assert_eq!(client.hear(), "connected");
    lose(&here, "");
    assert_eq!(client.ask(), "sent");
    let row = eventually("it is stalled", || {
        let row = row_of(daemon, &there);
        if row["stalled"]["recovery"] == "timeout" { Ok(row) } else { Err(row.to_string()) }
    });
    let (stalled, age) = (&row["stalled"], row["age_seconds"].as_f64().unwrap());
    assert_eq!(stalled["waiting_bytes"], 200, "the first of three messages is the lost one: {row}");
    let seconds = stalled["duration_seconds"].as_f64().unwrap();
    assert!(seconds >= 0.2 && seconds < age, "{row}");
    let sorted = daemon.json(&format!("/connections?sort=stalled&remote_port={port}"));
    assert_eq!(sorted["connections"][0]["id"], row["id"], "{sorted}");
    lose_nothing(&here);
    eventually("it goes on", || {
        let row = row_of(daemon, &there);
        if row.get("stalled").is_none() { Ok(()) } else { Err(row.to_string()) }
    });
    let (count, seconds) = blocked(&daemon.metrics(), "hopeful-sender", &["timeout"]);
    assert!(count == 1 && seconds >= 0.2, "{count} {seconds}");
}

const GIVES_UP: &str = r#"
conn = connect(args[0], args[1])
say("connected")
order()
conn.send(b"x")
say("sent")
order()
linger_0(conn)
conn.close()
say("closed")
order()
"#;

#[test]
fn a_stall_ends_with_its_connection() {
    witnessed(|witness| a_stall_and_the_end_of_its_connection(&witness.start(&[])));
}

fn a_stall_and_the_end_of_its_connection(daemon: &Daemon) {
    let (there, here) = joined();
    let mut receiver = Workload::start(&here, "left-receiver", RECEIVER, &[ADDRESS, "1", "listens"]);
    let port = receiver.hear();
    let mut client = Workload::start(&there, "leaving-sender", GIVES_UP, &[ADDRESS, &port]);
    assert_eq!(client.hear(), "connected");
    lose(&here, "");
    assert_eq!(client.ask(), "sent");
    eventually("it is stalled", || {
        let row = row_of(daemon, &there);
        if row["stalled"]["recovery"] == "timeout" { Ok(()) } else { Err(row.to_string()) }
    });
    assert_eq!(client.ask(), "closed");
    eventually("the stall is counted", || match blocked(&daemon.metrics(), "leaving-sender", &ALL) {
        (1, seconds) if seconds >= 0.2 => Ok(()),
        (count, seconds) => Err(format!("{count} {seconds}")),
    });
}

fn row_of(daemon: &Daemon, namespace: &Namespace) -> Value {
    daemon.connections_in(namespace).swap_remove(0)
}
