//! Retransmits on a lossy link between two namespaces, compared with the kernel's counts: in total, by kind, by process
//! and by connection.

use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    counts::OPENED,
    daemon::Daemon,
    eventually::eventually,
    metrics::Metrics,
    netns::{Namespace, needs},
    witness::{Witness, witnessed},
    workload::Workload,
};

pub(crate) const ADDRESS: &str = "10.98.0.2";
const RETRANSMITS: &str = "tcpwatch_retransmits_total";
const BY_KIND: &str = "tcpwatch_retransmits_by_kind_total";
const BYTES: &str = "tcpwatch_retransmitted_bytes_total";
const KINDS: [&str; 7] = ["syn", "syn_ack", "fast", "slow_start", "timeout", "probe", "unknown"];
const HELD_BACK: &str = "tcpwatch_records_held_back_total";

/// Drops packets that arrive at veth0 and match `rule`, in the language of nftables.
pub(crate) fn lose(namespace: &Namespace, rule: &str) {
    namespace.run(&["nft", "add table inet loss"]);
    namespace.run(&["nft", "add chain inet loss input { type filter hook input priority 0; }"]);
    namespace.run(&["nft", &format!("add rule inet loss input iif veth0 {rule} drop")]);
}

pub(crate) fn lose_nothing(namespace: &Namespace) {
    namespace.run(&["nft", "delete table inet loss"]);
}

/// Two joined namespaces: the client's and the server's.
pub(crate) fn joined() -> (Namespace, Namespace) {
    needs("nft", "nftables");
    let (client, server) = (Namespace::new(), Namespace::new());
    client.join(&server);
    (client, server)
}

/// Answers each request of the given size with one byte, in a thread for each connection.
const SERVER: &str = r#"
import threading
def serve(conn, size):
    try:
        while True:
            left = size
            while left:
                data = conn.recv(min(left, 65536))
                if not data:
                    conn.close()
                    return
                left -= len(data)
            conn.send(b"k")
    except OSError:
        conn.close()
listener = listen(args[0])
say(port_of(listener))
while True:
    conn = listener.accept()[0]
    threading.Thread(target=serve, args=(conn, int(args[1])), daemon=True).start()
"#;

/// Opens the given number of connections; sends a request on each on order.
const CLIENT: &str = r#"
import threading
conns = []
def dial():
    conns.append(connect(args[0], args[1]))
def ask(conn):
    conn.sendall(b"x" * int(args[3]))
    conn.recv(1)
def all(what, *lists):
    threads = [threading.Thread(target=what, args=each) for each in zip(*lists)] if lists else [
        threading.Thread(target=what) for _ in range(int(args[2]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
all(dial)
say("connected")
order()
all(ask, conns)
say("asked")
order()
for conn in conns:
    conn.close()
say("closed")
order()
"#;

/// The kernel's count in both namespaces.
fn kernel(sides: &[&Workload], name: &str) -> u64 {
    sides.iter().filter_map(|side| side.kernel_count(name)).sum()
}

fn counted(metrics: &Metrics, name: &str, processes: &[&str]) -> u64 {
    processes.iter().filter_map(|process| metrics.sum(name, &[("process", process)])).sum()
}

fn of_kinds(metrics: &Metrics, processes: &[&str], kinds: &[&str]) -> u64 {
    let each = processes.iter().flat_map(|process| kinds.iter().map(move |kind| (process, kind)));
    each.filter_map(|(process, kind)| metrics.sum(BY_KIND, &[("process", process), ("kind", kind)])).sum()
}

/// Asserts that the daemon's counts are the kernel's: in total, and by kind where the kernel counts kinds, apart from
/// the few segments whose kind no program saw. `handshakes`: whether segments of handshakes were lost, whose time-outs
/// the kernel does not count separately.
fn agree(daemon: &Daemon, sides: &[&Workload], processes: &[&str], handshakes: bool) -> Metrics {
    eventually("the counts are the kernel's", || {
        // A request about owners starts a sweep, which reads the sockets' own counts.
        daemon.json("/leaks");
        let before = kernel(sides, "RetransSegs");
        let metrics = daemon.metrics();
        let of = |kinds: &[&str]| of_kinds(&metrics, processes, kinds);
        let unknown = of(&["unknown"]);
        let totals = [
            ("TcpRetransSegs", before, counted(&metrics, RETRANSMITS, processes)),
            ("all kinds", before, of(&KINDS)),
        ];
        let mut kinds = vec![
            ("TCPSynRetrans", kernel(sides, "TCPSynRetrans"), of(&["syn", "syn_ack"])),
            ("TCPFastRetrans", kernel(sides, "TCPFastRetrans"), of(&["fast"])),
            ("TCPSlowStartRetrans", kernel(sides, "TCPSlowStartRetrans"), of(&["slow_start"])),
        ];
        if !handshakes {
            kinds.push(("TCPTimeouts", kernel(sides, "TCPTimeouts"), of(&["timeout"])));
        }
        let probes = ("TCPLossProbes", kernel(sides, "TCPLossProbes"), of(&["probe"]));
        let right = totals.iter().all(|(_, kernel, ours)| kernel == ours)
            && kinds.iter().all(|(_, kernel, ours)| (*ours..=ours + unknown).contains(kernel))
            && probes.2 <= probes.1
            // A packet that the kernel sends at once may count as some forty segments.
            && unknown <= before / 4;
        // The count did not change during the comparison.
        if right && kernel(sides, "RetransSegs") == before {
            return Ok(metrics);
        }
        Err(format!("{totals:?}, {kinds:?}, {probes:?}, unknown: {unknown}"))
    })
}

/// `retrans:0/N` and `bytes_retrans:N` of each connection, by local port, as `ss -ti` shows them.
fn shown_by_ss(namespace: &Namespace) -> Vec<(u64, u64, u64)> {
    let output = Command::new("nsenter")
        .args([&format!("--net={}", namespace.path()), "ss", "-Htino", "state", "established"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let number = |text: &str, key: &str| {
        let found = text.split_whitespace().find_map(|word| word.strip_prefix(key));
        found.map_or(0, |value| value.rsplit('/').next().unwrap().parse().unwrap())
    };
    let pairs = lines.chunks(2).map(|pair| {
        let local = pair[0].split_whitespace().nth(2).unwrap();
        let port = local.rsplit_once(':').unwrap().1.parse().unwrap();
        (port, number(pair[1], "retrans:"), number(pair[1], "bytes_retrans:"))
    });
    let mut shown: Vec<_> = pairs.collect();
    shown.sort_unstable();
    shown
}

/// The same from the daemon.
fn shown_by_daemon(daemon: &Daemon, namespace: &Namespace) -> Vec<(u64, u64, u64)> {
    let rows = daemon.connections_in(namespace).into_iter().filter(|row| row["role"] != "listener");
    let mut shown: Vec<_> = rows
        .map(|row| {
            let detail = daemon.detail(&row);
            let number = |key: &str| detail[key].as_u64().unwrap();
            (row["local"]["port"].as_u64().unwrap(), number("retransmits"), number("retransmitted_bytes"))
        })
        .collect();
    shown.sort_unstable();
    shown
}

#[test]
fn transfers_on_a_lossy_link_have_the_kernels_counts() {
    let daemon = Daemon::start(&[]);
    let (there, here) = joined();
    let processes = ["lossy-client", "lossy-server"];
    let mut server = Workload::start(&here, processes[1], SERVER, &[ADDRESS, "300000"]);
    let port = server.hear();
    let mut client = Workload::start(&there, processes[0], CLIENT, &[ADDRESS, &port, "20", "300000"]);
    assert_eq!(client.hear(), "connected");
    // What is retransmitted before its owner is known counts without a process.
    daemon.sweep();
    // Data segments, and acknowledgements.
    lose(&here, "numgen random mod 100 < 10");
    lose(&there, "numgen random mod 100 < 5");
    assert_eq!(client.ask(), "asked");
    let sides = [&client, &server];
    let metrics = agree(&daemon, &sides, &processes, false);
    assert!(of_kinds(&metrics, &processes, &["fast"]) > 0, "a test that loses nothing shows nothing");
    let (shown, ours) = (shown_by_ss(&there), shown_by_daemon(&daemon, &there));
    assert_eq!(shown, ours);
    assert!(shown.iter().map(|(_, _, bytes)| bytes).sum::<u64>() > 0);
    assert_eq!(
        counted(&metrics, BYTES, &processes[..1]),
        shown.iter().map(|(_, _, bytes)| bytes).sum::<u64>()
    );
    // FINs are lost too; sockets without a holder go on retransmitting them.
    assert_eq!(client.ask(), "closed");
    eventually("both sides are closed", || {
        let left = client.sockets_in(4) + client.sockets_in(11) + server.sockets_in(9);
        if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
    });
    let metrics = agree(&daemon, &[&client, &server], &processes, false);
    let spurious = counted(&metrics, "tcpwatch_spurious_retransmits_total", &processes);
    assert!(spurious <= kernel(&[&client, &server], "RetransSegs"));
    assert_eq!(metrics.sum("tcpwatch_records_lost_total", &[("cause", "ring_full")]), Some(0));
    for comm in processes {
        let answer = daemon.json(&format!("/processes?comm={comm}"));
        let row = &answer["processes"][0];
        for (kind, count) in row["retransmits_by_kind"].as_object().unwrap() {
            assert_eq!(of_kinds(&metrics, &[comm], &[kind]), count.as_u64().unwrap(), "{comm}, {kind}");
        }
        let by_kind = row["retransmits_by_kind"].as_object().unwrap().values();
        assert_eq!(by_kind.filter_map(Value::as_u64).sum::<u64>(), counted(&metrics, RETRANSMITS, &[comm]));
        assert_eq!(row["retransmitted_bytes"], counted(&metrics, BYTES, &[comm]), "{comm}");
        let spurious = counted(&metrics, "tcpwatch_spurious_retransmits_total", &[comm]);
        assert_eq!(row["spurious_retransmits"], spurious, "{comm}");
    }
}

#[test]
fn handshakes_on_a_lossy_link_have_the_kernels_counts() {
    witnessed(|witness| handshakes_on_a_lossy_link(&witness.start(&[])));
}

fn handshakes_on_a_lossy_link(daemon: &Daemon) {
    let (there, here) = joined();
    let processes = ["shaky-client", "shaky-server"];
    lose(&here, "numgen random mod 100 < 25");
    lose(&there, "numgen random mod 100 < 25");
    let mut server = Workload::start(&here, processes[1], SERVER, &[ADDRESS, "1"]);
    let port = server.hear();
    let mut client = Workload::start(&there, processes[0], CLIENT, &[ADDRESS, &port, "30", "1"]);
    assert_eq!(client.hear(), "connected");
    lose_nothing(&here);
    lose_nothing(&there);
    assert_eq!(client.ask(), "asked");
    let metrics = agree(daemon, &[&client, &server], &processes, true);
    assert!(of_kinds(&metrics, &processes[..1], &["syn"]) > 0);
    assert!(of_kinds(&metrics, &processes[1..], &["syn_ack"]) > 0);
    assert_eq!(metrics.sum(OPENED, &[("process", processes[1])]), Some(30));
    // A server's connection inherits the number of its SYN-ACKs, in the kernel and in the daemon.
    assert_eq!(shape(&shown_by_ss(&here)), shape(&shown_by_daemon(daemon, &here)));
    assert_eq!(client.ask(), "closed");
    agree(daemon, &[&client, &server], &processes, true);
}

/// The numbers of segments, sorted by port.
fn shape(shown: &[(u64, u64, u64)]) -> Vec<u64> {
    shown.iter().map(|(_, segments, _)| *segments).collect()
}

const DIAL: &str = r#"
conn = socket.socket()
conn.setblocking(False)
conn.connect_ex((args[0], int(args[1])))
say("dials")
order()
conn.close()
say("closed")
order()
"#;

#[test]
fn syns_into_a_black_hole_are_counted_during_the_connect_and_after() {
    witnessed(|witness| syns_into_a_black_hole(&witness.start(&[])));
}

fn syns_into_a_black_hole(daemon: &Daemon) {
    let (there, here) = joined();
    lose(&here, "");
    let mut client = Workload::start(&there, "into-nowhere", DIAL, &[ADDRESS, "4711"]);
    assert_eq!(client.hear(), "dials");
    eventually("the SYN is retransmitted", || match client.retransmitted() {
        count @ 0..2 => Err(count.to_string()),
        _ => Ok(()),
    });
    let metrics = agree(daemon, &[&client], &["into-nowhere"], true);
    let labels =
        [("process", "into-nowhere"), ("peer", "10.98.0.2:4711"), ("role", "client"), ("kind", "syn")];
    assert_eq!(metrics.sum(BY_KIND, &labels), Some(client.retransmitted()));
    let rows = daemon.connections_in(&there);
    let detail = daemon.detail(&rows[0]);
    assert_eq!(detail["retransmits_by_kind"]["syn"].as_u64(), Some(client.retransmitted()), "{detail}");
    assert_eq!(client.ask(), "closed");
    agree(daemon, &[&client], &["into-nowhere"], true);
}

const ACCEPTS: &str = r#"
listener = listen(args[0])
say(port_of(listener))
conn = listener.accept()[0]
say("accepted")
order()
conn.close()
say("closed")
order()
"#;

#[test]
fn a_syn_ack_retransmit_counts_for_the_listener_only() {
    witnessed(|witness| a_repeated_syn_ack(&witness.start(&[])));
}

fn a_repeated_syn_ack(daemon: &Daemon) {
    let (there, here) = joined();
    let mut server = Workload::start(&here, "deaf-server", ACCEPTS, &[ADDRESS]);
    let port = server.hear();
    lose(&here, "tcp flags & syn == 0");
    let mut client = Workload::start(&there, "deaf-client", DIAL, &[ADDRESS, &port]);
    assert_eq!(client.hear(), "dials");
    eventually("the SYN-ACK is retransmitted", || match server.retransmitted() {
        count @ 0..2 => Err(count.to_string()),
        _ => Ok(()),
    });
    let server_side = |peer: &str, metrics: &Metrics| {
        let labels = [("process", "deaf-server"), ("role", "server"), ("peer", peer), ("kind", "syn_ack")];
        metrics.sum(BY_KIND, &labels)
    };
    let peer = format!(":{port}");
    let metrics = agree(daemon, &[&server], &["deaf-server"], true);
    assert_eq!(server_side(&peer, &metrics), Some(server.retransmitted()));
    lose_nothing(&here);
    // The next retransmit of the SYN-ACK is answered.
    assert_eq!(server.hear(), "accepted");
    let metrics = agree(daemon, &[&server], &["deaf-server"], true);
    assert_eq!(server_side(&peer, &metrics), Some(server.retransmitted()));
    let inherited = shown_by_daemon(daemon, &here);
    assert_eq!((shape(&inherited), inherited[0].1), (shape(&shown_by_ss(&here)), server.retransmitted()));
    assert_eq!(server.ask(), "closed");
    agree(daemon, &[&server, &client], &["deaf-server", "deaf-client"], true);
}

#[test]
fn a_storm_is_counted_exactly_with_few_records() {
    let daemon = Daemon::start(&[]);
    let (there, here) = joined();
    let processes = ["storm-sender", "storm-reader"];
    let mut server = Workload::start(&here, processes[1], SERVER, &[ADDRESS, "20000000"]);
    let port = server.hear();
    let mut client = Workload::start(&there, processes[0], CLIENT, &[ADDRESS, &port, "4", "20000000"]);
    assert_eq!(client.hear(), "connected");
    daemon.sweep();
    lose(&here, "numgen random mod 100 < 5");
    // The ring has room for some 400 records while nobody reads it.
    daemon.signal(Signal::STOP);
    client.order();
    eventually("there is a storm", || match client.retransmitted() {
        count @ 0..2000 => Err(count.to_string()),
        _ => Ok(()),
    });
    lose_nothing(&here);
    assert_eq!(client.hear(), "asked");
    daemon.signal(Signal::CONT);
    let metrics = agree(&daemon, &[&client, &server], &processes, false);
    assert_eq!(metrics.sum("tcpwatch_records_lost_total", &[("cause", "ring_full")]), Some(0));
    let held_back = eventually("what was held back is counted", || {
        let status = daemon.json("/status")["records"]["held_back"].as_u64();
        let metric = daemon.metrics().sum(HELD_BACK, &[]);
        if status > Some(20) && status == metric { Ok(status) } else { Err(format!("{status:?} {metric:?}")) }
    });
    assert!(held_back < Some(client.retransmitted() + server.retransmitted()));
    assert_eq!(client.ask(), "closed");
    agree(&daemon, &[&client, &server], &processes, false);
}

/// Two requests to warm up, then one on each order.
const ONE_REQUEST: &str = r#"
conn = connect(args[0], args[1])
for _ in range(2):
    conn.send(b"x")
    conn.recv(1)
say("warm")
order()
conn.send(b"x")
say("sent")
conn.recv(1)
say("answered")
order()
conn.send(b"x")
conn.recv(1)
say("answered")
order()
"#;

#[test]
fn a_tail_loss_probe_is_one_and_what_was_before_the_start_is_not_ours() {
    witnessed(a_tail_loss_probe);
}

fn a_tail_loss_probe(witness: &Witness) {
    let (there, here) = joined();
    let mut server = Workload::start(&here, "probed-server", SERVER, &[ADDRESS, "1"]);
    let port = server.hear();
    let mut client = Workload::start(&there, "probing-client", ONE_REQUEST, &[ADDRESS, &port]);
    assert_eq!(client.hear(), "warm");
    let lose_until_retransmitted = |client: &mut Workload| {
        let before = client.retransmitted();
        lose(&here, "");
        client.order();
        eventually("the request is retransmitted", || match client.retransmitted() - before {
            0 => Err("not yet"),
            _ => Ok(()),
        });
        lose_nothing(&here);
    };
    lose_until_retransmitted(&mut client);
    assert_eq!((client.hear(), client.hear()), ("sent".to_owned(), "answered".to_owned()));
    let (old, old_probes) = (client.retransmitted(), client.kernel_count("TCPLossProbes").unwrap());
    assert!(old_probes > 0, "the kernel's first answer to a lost tail is a probe");

    let daemon = witness.start(&[]);
    lose_until_retransmitted(&mut client);
    assert_eq!(client.hear(), "answered");
    let new = client.retransmitted() - old;
    let probes = client.kernel_count("TCPLossProbes").unwrap() - old_probes;
    eventually("what is new is counted", || {
        let metrics = daemon.metrics();
        let ours = (
            counted(&metrics, RETRANSMITS, &["probing-client"]),
            of_kinds(&metrics, &["probing-client"], &["probe"]),
        );
        if ours == (new, probes) {
            return Ok(());
        }
        let kinds = KINDS.map(|kind| (kind, of_kinds(&metrics, &["probing-client"], &[kind])));
        let ss = shown_by_ss(&there);
        Err(format!("{ours:?}, kernel: {new}, {probes}; {kinds:?}; ss: {ss:?}"))
    });
    let rows = daemon.connections_in(&there);
    let detail: Value = daemon.detail(&rows[0]);
    assert_eq!(detail["retransmits"], client.retransmitted(), "{detail}");
    assert_eq!(detail["retransmitted_bytes"], new, "{detail}");
}

#[test]
fn failed_retransmits_have_the_kernels_count() {
    witnessed(|witness| failed_retransmits(&witness.start(&[])));
}

fn failed_retransmits(daemon: &Daemon) {
    let (there, here) = joined();
    let mut server = Workload::start(&here, "failing-server", SERVER, &[ADDRESS, "1"]);
    let port = server.hear();
    let mut client = Workload::start(&there, "failing-client", ONE_REQUEST, &[ADDRESS, &port]);
    assert_eq!(client.hear(), "warm");
    let timeouts = |client: &Workload, from: u64| {
        eventually("it is tried again", || match client.kernel_count("TCPTimeouts").unwrap() {
            now if now > from => Ok(now),
            now => Err(now.to_string()),
        })
    };
    lose(&here, "");
    client.order();
    let now = timeouts(&client, client.kernel_count("TCPTimeouts").unwrap());
    // A retransmit that this machine's own packet filter drops is counted before it fails.
    there.run(&["nft", "add table inet fail"]);
    there.run(&["nft", "add chain inet fail output { type filter hook output priority 0; }"]);
    there.run(&["nft", "add rule inet fail output oif veth0 drop"]);
    let now = timeouts(&client, now);
    assert!(client.kernel_count("TCPRetransFail").unwrap() > 0);
    // A retransmit without a route is not counted.
    there.run(&["ip", "link", "set", "veth0", "down"]);
    timeouts(&client, now);
    there.run(&["nft", "delete table inet fail"]);
    there.run(&["ip", "link", "set", "veth0", "up"]);
    lose_nothing(&here);
    assert_eq!((client.hear(), client.hear()), ("sent".to_owned(), "answered".to_owned()));
    // The kernel counts the ones with the filter's errno, not the ones without a route.
    let failed = client.kernel_count("TCPRetransFail").unwrap();
    let errnos = eventually("the failures are counted", || {
        let peers = daemon.json("/peers?comm=failing-client");
        let errnos = peers["peers"][0]["retransmits_failed"].clone();
        if errnos["EPERM"] == failed { Ok(errnos) } else { Err(format!("{peers}, kernel: {failed}")) }
    });
    assert!(errnos["ENETUNREACH"].as_u64().or(errnos["EHOSTUNREACH"].as_u64()) > Some(0), "{errnos}");
    let labels = [("process", "failing-client"), ("errno", "EPERM")];
    assert_eq!(daemon.metrics().sum("tcpwatch_retransmits_failed_total", &labels), Some(failed));
    let detail = daemon.detail(&daemon.connections_in(&there)[0]);
    assert_eq!(detail["retransmits_failed"], errnos, "{detail}");
    eventually("the count is the kernel's", || {
        // This request starts a sweep: before Linux 6.18 no record reports a failure.
        let shown = shown_by_daemon(daemon, &there);
        let (kernel, ours) =
            (client.retransmitted(), counted(&daemon.metrics(), RETRANSMITS, &["failing-client"]));
        let rows: Vec<_> = shown.iter().map(|(_, segments, _)| *segments).collect();
        if ours == kernel && rows == [kernel] { Ok(()) } else { Err(format!("{ours} {rows:?} of {kernel}")) }
    });
}
