//! TIME_WAIT of connections whose first closer has let them go: what `/status` and `/metrics` say of them, for which nobody
//! sweeps, compared with `ss`.

use std::time::{Duration, Instant};

use crate::{daemon::Daemon, eventually::eventually, netns::Namespace, workload::Workload};

const CONNECTIONS: usize = 4000;

/// Accepts, reads the end and closes, so that each client is an orphan in FIN_WAIT2 for a moment.
const SERVER: &str = r#"
listener = listen(args[0])
say(port_of(listener))
for _ in range(int(args[1])):
    conn = listener.accept()[0]
    read_to_end(conn)
    conn.close()
say("done")
order()
"#;

const CLIENT: &str = r#"
for _ in range(int(args[2])):
    connect(args[0], args[1]).close()
say("done")
order()
"#;

const DURATIONS: &str = "tcpwatch_state_duration_seconds_count";

fn assert_all_in_time_wait(daemon: &Daemon, addr: &str, comm: &str) {
    let namespace = Namespace::new();
    let count = CONNECTIONS.to_string();
    let mut server = Workload::start(&namespace, "tw-server", SERVER, &[addr, &count]);
    let port = server.hear();
    let mut client = Workload::start(&namespace, comm, CLIENT, &[addr, &port, &count]);
    assert_eq!((client.hear_for_long(), server.hear_for_long()), ("done".to_owned(), "done".to_owned()));
    eventually("the kernel has none in FIN_WAIT2", || match client.sockets_in(5) {
        0 => Ok(()),
        count => Err(count),
    });
    // Only the whole machine's states are shown without a sweep. Other tests have few in FIN_WAIT2.
    let status = daemon.json("/status");
    let states = &status["connections"]["states"];
    assert!(states["FIN_WAIT2"].as_u64() < Some(CONNECTIONS as u64 / 40), "{addr}: {states}");
    // Each was seen to leave it; a sweep that finds a TIME_WAIT counts no duration.
    // The kernel may skip runs of the programs, which the daemon admits and sweeps for.
    let metrics = daemon.metrics();
    let left = metrics.sum(DURATIONS, &[("process", comm), ("state", "FIN_WAIT2")]).unwrap_or(0);
    let lost = metrics.sum("tcpwatch_records_lost_total", &[]).unwrap_or(0);
    assert!(left <= CONNECTIONS as u64 && left + lost >= CONNECTIONS as u64, "{addr}: {left}, {lost} lost");
}

#[test]
fn connections_that_the_client_closed_first_are_in_time_wait_without_a_sweep() {
    let daemon = Daemon::start(&[]);
    assert_all_in_time_wait(&daemon, "127.0.0.1", "tw-client-4");
    assert_all_in_time_wait(&daemon, "::1", "tw-client-6");
}

/// Two namespaces, where the records of one end say nothing of the other.
#[test]
fn the_state_of_orphans_is_as_new_as_the_question() {
    let daemon = Daemon::start(&["--linger", "fin-wait2=1s"]);
    let (here, there) = (Namespace::new(), Namespace::new());
    here.join(&there);
    let mut server = Workload::start(
        &there,
        "tw-far-server",
        r#"
listener = listen("10.98.0.2")
say(port_of(listener))
conns = [listener.accept()[0] for _ in range(50)]
say("accepted")
order()
for conn in conns:
    conn.close()
say("closed")
order()
"#,
        &[],
    );
    let port = server.hear();
    let mut client = Workload::start(
        &here,
        "tw-far-client",
        r#"
conns = [connect("10.98.0.2", args[0]) for _ in range(50)]
say("connected")
order()
for conn in conns:
    conn.close()
say("closed")
order()
"#,
        &[&port],
    );
    assert_eq!((client.hear(), server.hear()), ("connected".to_owned(), "accepted".to_owned()));
    assert_eq!(client.ask(), "closed");
    let in_fin_wait2 = || {
        let metrics = daemon.metrics();
        metrics.sum("tcpwatch_lingering_connections", &[("process", "tw-far-client"), ("state", "FIN_WAIT2")])
    };
    let eventually_in_fin_wait2 = |wanted: Option<u64>| {
        eventually("the orphans' state is right", || match in_fin_wait2() {
            found if found == wanted => Ok(()),
            found => Err(format!("{found:?} in FIN_WAIT2, not {wanted:?}")),
        });
    };
    eventually_in_fin_wait2(Some(50));
    assert_eq!(server.ask(), "closed");
    eventually("the kernel has them in TIME_WAIT", || match client.sockets_in(6) {
        50 => Ok(()),
        count => Err(count),
    });
    // A sweep that began before may be under way, and another waits for its turn. Nobody else asks for one for 10 s.
    let closed = Instant::now();
    eventually_in_fin_wait2(None);
    assert!(closed.elapsed() < Duration::from_secs(3), "{:?}", closed.elapsed());
}
