//! The life of one connection: in `tcpwatch trace` as it happens, in `/connections/ID` during it and afterwards, and in
//! `/history`.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
};

use serde_json::{Value, json};

use crate::{
    daemon::{Daemon, TCPWATCH, tcpwatch},
    eventually::eventually,
    netns::Namespace,
    workload::Workload,
};

const SERVER: &str = r#"
listener = listen("127.0.0.1")
say(port_of(listener))
conn = listener.accept()[0]
say("accepted")
order()
conn.close()
say("closed")
order()
"#;

const CLIENT: &str = r#"
conn = connect("127.0.0.1", args[0])
say("connected")
order()
# Held until the peer's FIN comes: an orphan may have become a minisock by then, whose changes are not reported.
conn.shutdown(socket.SHUT_WR)
say("closed")
order()
"#;

/// `tcpwatch trace --json` with these filters, following.
struct Trace(Child);

impl Trace {
    fn start(daemon: &Daemon, filters: &[&str]) -> Self {
        let mut trace = tcpwatch(TCPWATCH);
        trace.args(["trace", "--json", "--connect", &daemon.address.to_string()]).args(filters);
        Self(trace.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// The next `count` transitions: from, to, cause, pid.
    fn hear(&mut self, count: usize) -> Vec<Value> {
        let lines = BufReader::new(self.0.stdout.as_mut().unwrap()).lines().take(count);
        lines
            .map(|line| {
                let transition: Value = serde_json::from_str(&line.unwrap()).unwrap();
                json!([
                    transition["from"],
                    transition["to"],
                    transition["cause"],
                    transition["process"]["pid"]
                ])
            })
            .collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The states and causes of a life, whose durations must add up to the connection's age.
fn life(detail: &Value) -> Vec<Value> {
    let steps = detail["life"].as_array().unwrap();
    let sum: f64 = steps.iter().map(|step| step["duration_seconds"].as_f64().unwrap()).sum();
    let age = detail["age_seconds"].as_f64().unwrap();
    assert!((sum - age).abs() < 0.001, "{sum} s in states, {age} s old");
    steps.iter().map(|step| json!([step["state"], step["cause"]])).collect()
}

#[test]
fn states_and_causes_are_shown_live_and_afterwards() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut server = Workload::start(&namespace, "life-server", SERVER, &[]);
    let port = server.hear();
    let mut trace = Trace::start(&daemon, &["--comm", "life-client"]);
    // Following has begun when the daemon holds the follower's connection.
    eventually("the trace follows", || {
        let rows = daemon.json(&format!("/connections?role=client&remote_port={}", daemon.address.port()));
        let follows =
            rows["connections"].as_array().unwrap().iter().any(|row| row["process"]["pid"] == trace.0.id());
        if follows { Ok(()) } else { Err(rows.to_string()) }
    });

    let mut client = Workload::start(&namespace, "life-client", CLIENT, &[&port]);
    assert_eq!((client.hear(), server.hear()), ("connected".into(), "accepted".into()));
    let rows = daemon.connections_in(&namespace);
    let id = |role: &str| {
        let row =
            rows.iter().find(|row| row["role"] == role).unwrap_or_else(|| panic!("no {role}: {rows:?}"));
        row["id"].as_str().unwrap().to_owned()
    };
    let (client_id, server_id) = (id("client"), id("server"));
    assert_eq!(client.ask(), "closed");
    assert_eq!(server.ask(), "closed");

    let client_pid = client.pid();
    assert_eq!(
        trace.hear(5),
        [
            json!(["CLOSE", "SYN_SENT", "application", client_pid]),
            json!(["SYN_SENT", "ESTABLISHED", "peer", client_pid]),
            json!(["ESTABLISHED", "FIN_WAIT1", "application", client_pid]),
            json!(["FIN_WAIT1", "FIN_WAIT2", "peer", client_pid]),
            json!(["FIN_WAIT2", "TIME_WAIT", "peer", client_pid]),
        ]
    );
    // It closed first, so it lives on in TIME_WAIT, and its closer is known.
    let detail = daemon.json(&format!("/connections/{client_id}"));
    assert_eq!((&detail["state"], &detail["ended_at"]), (&json!("TIME_WAIT"), &Value::Null));
    assert_eq!(
        (&detail["opener"]["pid"], &detail["closer"]["pid"]),
        (&json!(client_pid), &json!(client_pid))
    );
    assert_eq!(
        life(&detail),
        [
            json!(["SYN_SENT", "application"]),
            json!(["ESTABLISHED", "peer"]),
            json!(["FIN_WAIT1", "application"]),
            json!(["FIN_WAIT2", "peer"]),
            json!(["TIME_WAIT", "peer"]),
        ]
    );
    // The server's connection is over.
    let detail = daemon.json(&format!("/connections/{server_id}"));
    assert_eq!((&detail["opener"], &detail["closer"]["pid"]), (&Value::Null, &json!(server.pid())));
    assert!(detail["ended_at"].is_string());
    assert_eq!(
        life(&detail),
        [
            json!(["ESTABLISHED", "peer"]),
            json!(["CLOSE_WAIT", "peer"]),
            json!(["LAST_ACK", "application"]),
            json!(["CLOSE", "peer"]),
        ]
    );
    for (query, total) in [
        ("comm=life-server&since=1m", 1),
        (&format!("pid={}&remote=127.0.0.0/8", server.pid()), 1),
        ("comm=life-server&remote=10.0.0.0/8", 0),
        ("comm=life-server&since=2100-01-01T00:00:00Z", 0),
        ("comm=life-client", 0),
    ] {
        let history = daemon.json(&format!("/history?{query}"));
        // A process begins as a fork, and may be the last holder of a socket of its parent in another namespace.
        let ours =
            history["connections"].as_array().unwrap().iter().filter(|row| row["netns"] == namespace.inode);
        assert_eq!(ours.count(), total, "{query}: {history}");
    }
}
