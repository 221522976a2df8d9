//! A ring too small and a daemon too slow: lost records are counted, reported and repaired.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    daemon::{Daemon, errors_of},
    eventually::eventually,
    netns::Namespace,
    workload::Workload,
};

const SERVER: &str = r#"
import threading
listener = listen("127.0.0.1")
say(port_of(listener))
kept = []
while True:
    conn = listener.accept()[0]
    if conn.recv(1) == b"k":
        kept.append(conn)
    else:
        conn.close()
"#;

/// Connections for the ring to overflow, then some that stay.
const CLIENT: &str = r#"
kept = []
for wish, count in ((b"c", 500), (b"k", 4)):
    for _ in range(count):
        conn = connect("127.0.0.1", args[0])
        conn.send(wish)
        if wish == b"k":
            kept.append(conn)
        else:
            conn.close()
say("done")
order()
for conn in kept:
    conn.close()
say("closed")
order()
"#;

#[test]
fn after_a_loss_the_table_equals_the_kernels_again() {
    let daemon = Daemon::start(&["--ring-size", "4KiB", "--linger", "close-wait=1s"]);
    let namespace = Namespace::new();
    let mut server = Workload::start(&namespace, "storm-server", SERVER, &[]);
    let port = server.hear();

    daemon.signal(Signal::STOP);
    let mut client = Workload::start(&namespace, "storm-client", CLIENT, &[&port]);
    assert_eq!(client.hear(), "done");
    daemon.signal(Signal::CONT);

    eventually("the loss is reported", || {
        let lost = daemon.metrics().sum("tcpwatch_records_lost_total", &[("cause", "ring_full")]);
        if lost > Some(0) { Ok(()) } else { Err(format!("{lost:?}")) }
    });
    assert!(daemon.json("/status")["records"]["lost"].as_u64() > Some(0));

    // Lost were, among others, the four connections that stay, and the ends of some that do not.
    let open = |rows: &[Value]| {
        let open = rows.iter().filter(|row| row["state"] != "TIME_WAIT" && row["state"] != "LISTEN");
        let mut open: Vec<_> =
            open.map(|row| json!([row["state"], row["role"], row["process"]["pid"]]).to_string()).collect();
        open.sort();
        open
    };
    let mut truth: Vec<_> = [("client", client.pid()), ("server", server.pid())]
        .iter()
        .flat_map(|(role, pid)| vec![json!(["ESTABLISHED", role, pid]).to_string(); 4])
        .collect();
    truth.sort();
    eventually("the table equals the kernel's", || {
        let found = open(&daemon.connections_in(&namespace));
        if found == truth { Ok(()) } else { Err(format!("{} open: {found:?}", found.len())) }
    });

    eventually("the table is complete again", || {
        let complete = daemon.json("/leaks")["complete"].clone();
        if complete == true { Ok(()) } else { Err(complete.to_string()) }
    });
    assert!(daemon.metrics().sum("tcpwatch_repairs_total", &[]) > Some(0));

    // Not the counts: what came and went meanwhile is known to nobody.
    for (path, list) in [("/processes?comm=storm-client", "processes"), ("/peers?comm=storm-client", "peers")]
    {
        let answer = daemon.json(path);
        assert!(!errors_of(&answer, "counts").is_empty(), "{answer}");
        let (_, text) = daemon.get(path);
        assert!(text.contains("INCOMPLETE: counts: "), "{text}");
        for row in answer[list].as_array().unwrap() {
            let [opened, closed] = ["opened", "closed"].map(|count| row[count].as_u64().unwrap());
            assert!((4..=504).contains(&opened) && closed <= opened, "{row}");
        }
    }

    // And it goes on working.
    assert_eq!(client.ask(), "closed");
    let leak = eventually("a new leak is named", || match &daemon.leaks_of(server.pid())[..] {
        [leak] if leak["count"] == 4 => Ok(leak.clone()),
        leaks => Err(format!("{leaks:?}")),
    });
    assert_eq!(leak["rule"], "close_wait_leak");
}
