//! Kernels that do not publish their types, and sockets that are identified by their address. `/sys/kernel/btf` is
//! hidden in a mount namespace of the daemon's own.

use serde_json::Value;

use crate::{
    daemon::{Daemon, TCPWATCH, tcpwatch},
    eventually::eventually,
    netns::Namespace,
    rights::{
        ALL, Copy,
        User::{self, Nobody, Root},
        run,
    },
    workload::Workload,
};

const SERVER: &str = r#"
listener = listen("127.0.0.1", args[0])
say("listens")
for _ in range(int(args[1])):
    conn = listener.accept()[0]
    read_to_end(conn)
    conn.close()
kept = listener.accept()[0]
say("accepted")
read_to_end(kept)
kept.close()
say("closed")
order()
"#;

/// Closes only after the server has, so that no orphan waits for the server's FIN.
const CLIENT: &str = r#"
def end(conn):
    conn.shutdown(socket.SHUT_WR)
    read_to_end(conn)
    conn.close()
for _ in range(int(args[1])):
    end(connect("127.0.0.1", args[0]))
kept = connect("127.0.0.1", args[0])
say(port_of(kept))
order()
end(kept)
say("closed")
order()
"#;

/// include/net/tcp_states.h
const TIME_WAIT: u8 = 6;

/// Asserts that the daemon follows many short connections, whose sockets reuse a few addresses, and one that lives
/// longer. `port`: identifies the connections where their namespace is unknown; no other test uses it.
fn assert_follows(daemon: &Daemon, port: u16) {
    const SHORT: &str = "500";
    assert_eq!(daemon.json("/status")["identity"], "socket address");
    let namespace = Namespace::new();
    let mut server = Workload::start(&namespace, "by-address", SERVER, &[&port.to_string(), SHORT]);
    assert_eq!(server.hear(), "listens");
    let mut client = Workload::start(&namespace, "dials", CLIENT, &[&port.to_string(), SHORT]);
    let kept: u16 = client.hear().parse().unwrap();
    assert_eq!(server.hear(), "accepted");
    daemon.sweep();
    let status = daemon.json("/status");
    let by_program = |key| hook_of(&status, key).as_str().is_some_and(|hook| !hook.starts_with("inferred "));
    let shows_accepts = by_program("accept") || by_program("held");

    let rows =
        |filter: &str| daemon.json(&format!("/connections?limit=10000&{filter}"))["connections"].clone();
    let [of_client, of_server] =
        [format!("local_port={kept}&remote_port={port}"), format!("local_port={port}&remote_port={kept}")];
    let [client_id, server_id] = [(&of_client, &client), (&of_server, &server)].map(|(filter, owner)| {
        let found = rows(filter);
        assert_eq!(found.as_array().map(Vec::len), Some(1), "{found}");
        assert_eq!(found[0]["state"], "ESTABLISHED", "{found}");
        let pid = if owner.pid() == client.pid() || shows_accepts { owner.pid().into() } else { Value::Null };
        assert_eq!(found[0]["process"]["pid"], pid, "{found}");
        found[0]["id"].as_str().unwrap().to_owned()
    });
    assert_eq!(client.ask(), "closed");
    assert_eq!(server.hear(), "closed");

    let lives = [(client_id, &client), (server_id, &server)].map(|(id, owner)| {
        let life = daemon.json(&format!("/connections/{id}"));
        assert_eq!(life["closer"]["pid"], owner.pid(), "{life}");
        let steps =
            life["life"].as_array().unwrap().iter().map(|step| step["state"].as_str().unwrap().to_owned());
        // Skipped where the peer's FIN arrives with its ACK.
        steps.filter(|state| state != "FIN_WAIT2").collect::<Vec<_>>()
    });
    assert_eq!(lives[0], ["SYN_SENT", "ESTABLISHED", "FIN_WAIT1", "TIME_WAIT"]);
    assert_eq!(lives[1], ["ESTABLISHED", "CLOSE_WAIT", "LAST_ACK", "CLOSE"]);

    let swept = hook_of(&daemon.json("/status"), "unheld") != &Value::Null;
    eventually("every TIME_WAIT of the kernel is listed, with the process that closed", || {
        let listed = rows(&format!("state=time-wait&remote_port={port}"));
        let listed = listed.as_array().unwrap();
        let owned = listed.iter().filter(|row| row["process"]["pid"] == client.pid()).count();
        let count = client.sockets_in(TIME_WAIT);
        // The kernel may reuse the first ones for the last connections: from the age of one second on.
        assert!(count > 1, "{count}");
        // An ACK that arrives when the server's socket is gone is answered by a reset, which ends the client's
        // TIME_WAIT (RFC 1337). Without an iterator tcpwatch does not notice that.
        let resets = client.kernel_count("OutRsts").unwrap() as usize;
        let unnoticed = if swept { 0 } else { resets };
        if owned == listed.len() && (count..=count + unnoticed).contains(&owned) {
            Ok(())
        } else {
            Err(format!("{owned} owned of {} listed, {count} in the kernel, {resets} resets", listed.len()))
        }
    });
}

#[test]
fn sockets_identified_by_address_are_followed_into_time_wait() {
    assert_follows(&Daemon::start(&["--hook", "state=raw_tp"]), 4990);
}

const HIDE_TYPES: &str = "mount -t tmpfs tcpwatch-test /sys/kernel/btf\n";
/// Fails where there is no tracefs, or where it is mounted already.
const SHOW_TRACEPOINTS: &str = "mount -t tracefs tcpwatch-test /sys/kernel/tracing 2>/dev/null || true\n";
const FORMAT: &str = "/sys/kernel/tracing/events/sock/inet_sock_set_state/format";

fn hook_of<'a>(status: &'a Value, key: &str) -> &'a Value {
    let signals = status["signals"].as_array().unwrap();
    &signals.iter().find(|signal| signal["key"] == key).unwrap()["hook"]
}

#[test]
fn types_from_a_file_replace_unpublished_ones() {
    let (program, types) = (Copy::new(), Copy::of("/sys/kernel/btf/vmlinux"));
    let daemon = Daemon::start_by(program.behind(HIDE_TYPES, Root, &ALL), &["--btf", types.path()]);
    let status = daemon.json("/status");
    assert_eq!(status["kernel"]["btf"], types.path());
    for (signal, hook) in
        [("state", "raw_tp inet_sock_set_state"), ("retransmit", "raw_tp tcp_retransmit_skb")]
    {
        assert_eq!(hook_of(&status, signal), hook, "{status:#}");
    }
    // Iterators need the types that the kernel publishes.
    assert_eq!([hook_of(&status, "held"), hook_of(&status, "unheld")], [&Value::Null; 2], "{status:#}");
    assert_follows(&daemon, 4991);
}

#[test]
fn a_file_without_types_is_named_in_the_error() {
    for (file, problem) in [("/no/such/file", "cannot read"), ("/proc/self/status", "cannot be used")] {
        let (code, _, error) = run(tcpwatch(TCPWATCH).args(["--listen", "127.0.0.1:0", "--btf", file]));
        assert_eq!(code, Some(69), "{error}");
        assert!(error.contains(file) && error.contains(problem), "{error}");
        let (code, printed, _) = run(tcpwatch(TCPWATCH).args(["check", "--btf", file]));
        assert_eq!(code, Some(2), "{printed}");
        assert!(printed.contains(file) && printed.contains(problem), "{printed}");
    }
}

#[test]
fn without_any_types_tracepoints_are_used_where_they_exist() {
    let script = format!("{HIDE_TYPES}{SHOW_TRACEPOINTS}");
    let shown = format!("{script}test -e {FORMAT}");
    let mut probe = tcpwatch("unshare");
    let offered = run(probe.args(["--mount", "--propagation=private", "sh", "-ec", &shown])).0 == Some(0);

    let program = Copy::new();
    let mut without_search = ALL.to_vec();
    without_search.retain(|capability| *capability != "dac_read_search");
    let cases: [(User, &[&str], bool); 3] =
        [(Root, &ALL, offered), (Nobody, &ALL, offered), (Nobody, &without_search, false)];
    for (user, capabilities, works) in cases {
        let (code, printed, _) = run(program.behind(&script, user, capabilities).args(["check", "--json"]));
        let checked: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(checked["kernel"]["btf"], Value::Null);
        if works {
            assert_eq!(code, Some(1), "{checked:#}");
            assert_eq!(hook_of(&checked, "state"), "tracepoint sock:inet_sock_set_state");
            assert_eq!(hook_of(&checked, "retransmit"), "tracepoint tcp:tcp_retransmit_skb");
        } else {
            assert_eq!(code, Some(2), "{user:?}: {checked:#}");
            let error = checked["error"].as_str().unwrap();
            for named in ["/sys/kernel/btf/vmlinux", "--btf", "events/sock/inet_sock_set_state/format"] {
                assert!(error.contains(named), "{user:?}: no {named} in: {error}");
            }
            // Only root may read tracefs.
            assert_eq!(error.contains("Permission denied"), offered, "{user:?}: {error}");
            let mut run_it = program.behind(&script, user, capabilities);
            assert_eq!(run(run_it.args(["--listen", "127.0.0.1:0"])).0, Some(69), "{user:?}");
        }
    }
    if offered {
        assert_follows(&Daemon::start_by(program.behind(&script, Root, &ALL), &[]), 4992);
    }
}
