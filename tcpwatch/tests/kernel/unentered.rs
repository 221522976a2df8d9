//! Network namespaces that the daemon may not enter without CAP_SYS_ADMIN: the limits of what it knows there.

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    daemon::{Daemon, errors_of},
    eventually::eventually,
    netns::Namespace,
    rights::{ALL, Copy, User::Root},
    workload::Workload,
};

/// include/net/tcp_states.h
const FIN_WAIT2: u8 = 5;
const TIME_WAIT: u8 = 6;

const ALL_BUT_SYS_ADMIN: [&str; 4] = ["bpf", "perfmon", "sys_ptrace", "dac_read_search"];

/// `before` is closed and `after` made while the ring is full.
const STORM: &str = r#"
listener = listen("127.0.0.1")
def pair():
    return connect("127.0.0.1", port_of(listener)), listener.accept()[0]
def close(first, second):
    first.close()
    read_to_end(second)
    second.close()
before = pair()
say(port_of(before[0]))
order()
for _ in range(300):
    close(*pair())
close(*before)
after = pair()
say(port_of(after[0]))
order()
"#;

#[test]
fn without_sys_admin_a_loss_in_another_namespace_stays_unrepaired() {
    let copy = Copy::new();
    let daemon = Daemon::start_by(copy.with(Root, &ALL_BUT_SYS_ADMIN), &["--ring-size", "4KiB"]);
    let namespace = Namespace::new();
    let mut storm = Workload::start(&namespace, "storm", STORM, &[]);
    let before: u16 = storm.hear().parse().unwrap();
    let state_of = |port: u16| {
        let rows = daemon.connections_in(&namespace);
        let row = rows.iter().find(|row| row["local"]["port"] == port && row["role"] == "client");
        row.map(|row| row["state"].as_str().unwrap().to_owned())
    };
    assert_eq!(state_of(before).as_deref(), Some("ESTABLISHED"));
    let rows = daemon.connections_in(&namespace);
    let row = rows.iter().find(|row| row["local"]["port"] == before).unwrap();
    let detail = daemon.detail(row);
    for what in ["transfer", "options"] {
        assert_eq!(detail[what], Value::Null);
        let errors = errors_of(&detail, what);
        assert!(errors[0].contains("cannot enter network namespace"), "{detail}");
    }

    daemon.signal(Signal::STOP);
    let after: u16 = storm.ask().parse().unwrap();
    daemon.signal(Signal::CONT);
    eventually("the loss is reported", || {
        let lost = daemon.metrics().sum("tcpwatch_records_lost_total", &[("cause", "ring_full")]);
        if lost > Some(0) { Ok(()) } else { Err(format!("{lost:?}")) }
    });
    // The records of this connection were lost too, so a sweep that finds it began after the loss.
    eventually("a sweep finds what is held", || {
        state_of(after).filter(|state| state == "ESTABLISHED").ok_or("not listed")
    });
    let status = daemon.json("/status");
    // Where sockets are identified by their address, another may have this one's by now.
    if status["identity"] == "socket cookie" {
        let state = state_of(before);
        assert_eq!(state.as_deref(), Some("ESTABLISHED"), "who knows whether it lives on without a holder");
    }
    assert_eq!(daemon.json("/leaks")["complete"], false);
    let problems = errors_of(&status, "connections").concat();
    assert!(problems.contains("cannot enter network namespace"), "{problems}");
}

/// An orphan whose peer closes on order; then a connection is passed to another process, which sweeps find.
const ORPHAN: &str = r#"
listener = listen("127.0.0.1")
orphan, peer = connect("127.0.0.1", port_of(listener)), listener.accept()[0]
orphan.close()
say("closed")
order()
peer.close()
handed_on = connect("127.0.0.1", port_of(listener))
gone, parent = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(parent)
    os.read(gone, 1)
    os._exit(0)
handed_on.close()
say(pid)
order()
"#;

#[test]
fn an_orphan_whose_peer_closes_is_in_time_wait_even_where_its_namespace_cannot_be_entered() {
    let copy = Copy::new();
    for capabilities in [&ALL_BUT_SYS_ADMIN[..], &ALL] {
        let daemon = Daemon::start_by(copy.with(Root, capabilities), &["--linger", "fin-wait2=1s"]);
        let namespace = Namespace::new();
        let mut workload = Workload::start(&namespace, "leaves-orphan", ORPHAN, &[]);
        assert_eq!(workload.hear(), "closed");
        // From the kernel's own list.
        let waits_for = |workload: &Workload, state: u8| {
            eventually("the peer's segment arrives", || match workload.sockets_in(state) {
                1 => Ok(()),
                count => Err(format!("{count} in state {state}")),
            });
        };
        waits_for(&workload, FIN_WAIT2);
        let child: u64 = workload.ask().parse().unwrap();
        waits_for(&workload, TIME_WAIT);
        eventually("a sweep finds the new holder", || {
            let rows = daemon.connections_in(&namespace);
            let of = |pid: u64| rows.iter().filter(move |row| row["process"]["pid"] == pid);
            let orphans = of(workload.pid().into()).filter(|row| row["role"] == "client");
            if of(child).next().is_none() {
                return Err(format!("{rows:#?}"));
            }
            let found: Vec<_> = orphans.map(|row| row["state"].as_str().unwrap().to_owned()).collect();
            // That sweep may have visited this namespace before the peer closed; the next one does so after.
            if found == ["TIME_WAIT"] { Ok(()) } else { Err(format!("{found:?}")) }
        });
        assert_eq!(daemon.leaks_of(workload.pid()), [] as [Value; 0]);
    }
}
