//! Every way to a signal leads to the same answers: two daemons watch one workload, one by the ways that it chose, one
//! by ways that `--hook` forces.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    daemon::{Daemon, TCPWATCH, tcpwatch},
    eventually::eventually,
    netns::Namespace,
    workload::Workload,
};

const FENTRY: &str = "state=fentry,close=fentry,accept=fexit,minisock=fentry,time_wait=fentry";
const KPROBE: &str = "state=kprobe,close=kprobe,accept=kretprobe,minisock=kprobe,time_wait=kprobe";
const RAW: &str = "state=raw_tp,retransmit=raw_tp,synack=raw_tp";

/// A worker accepts connections of its parent's listener; then each connection ends differently.
const SERVER: &str = r#"
listener = listen(args[0])
say(port_of(listener))
if os.fork() == 0:
    conns = [listener.accept()[0] for _ in range(6)]
    listener.close()
    say("accepted", os.getpid())
    order()
    conns[0].recv(100)
    conns[0].recv(100)
    conns[0].close()
    conns[1].close()
    conns[2].close()
    conns[4].recv(100)
    say("done")
    order()
    os._exit(0)
listener.close()
os.wait()
"#;

const CLIENT: &str = r#"
conns = [connect(*args) for _ in range(6)]
say(*[port_of(conn) for conn in conns])
order()
conns[0].send(b"12345")
conns[0].close()
conns[2].send(b"12345")
linger_0(conns[3])
conns[3].close()
conns[4].shutdown(socket.SHUT_WR)
say("done")
order()
conns[1].recv(100)
conns[1].close()
conns[4].close()
say("done")
order()
"#;

/// include/net/tcp_states.h
const TIME_WAIT: u8 = 6;

/// Tolerance for equal durations: longer than the delay between the programs of the two daemons, or between the clocks
/// of two processors.
const SAME_SECONDS: f64 = 0.05;

/// Every connection of the namespace that the daemon knows, live or ended, sorted by its ports.
fn lives(daemon: &Daemon, namespace: &Namespace) -> Vec<Value> {
    let live = daemon.connections_in(namespace);
    let live = live.iter().map(|row| daemon.detail(row));
    let ended = daemon.json("/history?limit=10000");
    let ended = ended["connections"].as_array().unwrap().clone();
    let mut lives: Vec<Value> =
        live.chain(ended.into_iter().filter(|row| row["netns"] == namespace.inode)).collect();
    lives.sort_by_key(|row| (row["local"]["port"].as_u64(), row["remote"]["port"].as_u64()));
    lives
}

/// The part of an answer that must not depend on the way: without the id and the durations, and without the unread
/// bytes, which are those of the last sweep where no hook reports the close.
fn comparable(life: &Value) -> Value {
    let steps = life["life"].as_array().unwrap();
    let states: Vec<_> = steps.iter().map(|step| json!([step["state"], step["cause"]])).collect();
    let pid = |place: &str| life[place]["pid"].clone();
    json!({
        "local": life["local"], "remote": life["remote"], "role": life["role"], "accepted": life["accepted"],
        "pids": [pid("opener"), pid("process"), pid("closer")],
        "older": [life["age_is_lower_bound"], life["state_is_lower_bound"], life["established_is_lower_bound"]],
        "errno": life["errno"], "retransmits": life["retransmits"],
        "life": states, "over": life["ended_at"].is_string(),
    })
}

fn durations(life: &Value) -> Vec<f64> {
    let steps = life["life"].as_array().unwrap();
    // The last step lasts until the request.
    steps.iter().rev().skip(1).map(|step| step["duration_seconds"].as_f64().unwrap()).collect()
}

/// Asks both daemons until they agree, because each sweeps in its own time.
fn agree(chosen: &Daemon, forced: &Daemon, namespace: &Namespace) -> Vec<Value> {
    let connections = |daemon: &Daemon| {
        // Some ways report a new listener later than others.
        lives(daemon, namespace).into_iter().filter(|life| life["role"] != "listener").collect::<Vec<_>>()
    };
    eventually("both daemons agree", || {
        let (ours, theirs) = (connections(chosen), connections(forced));
        let answers = |lives: &[Value]| lives.iter().map(comparable).collect::<Vec<_>>();
        if answers(&ours) != answers(&theirs) {
            return Err(format!("{:#?}\nbut\n{:#?}", answers(&ours), answers(&theirs)));
        }
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let differ = durations(ours)
                .iter()
                .zip(durations(theirs))
                .any(|(ours, theirs)| (ours - theirs).abs() > SAME_SECONDS);
            if differ {
                return Err(format!("{:?} s but {:?} s: {ours}", durations(ours), durations(theirs)));
            }
        }
        Ok(ours)
    })
}

/// Whether this kernel accepts these ways; where not, asserts that `check` says why for each.
fn accepts(ways: &str) -> bool {
    let output = tcpwatch(TCPWATCH).args(["check", "--json", "--hook", ways]).output().unwrap();
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
    let Some(signals) = checked["signals"].as_array().filter(|_| checked["verdict"] != "unusable") else {
        assert!(checked["error"].as_str().unwrap().contains("state changes"), "{checked}");
        return false;
    };
    // Signals that were not asked for may be missing on this kernel.
    let asked = |key: &str| ways.split(',').any(|choice| choice.starts_with(&format!("{key}=")));
    let refused: Vec<_> =
        signals.iter().filter(|one| one["hook"].is_null() && asked(one["key"].as_str().unwrap())).collect();
    for signal in &refused {
        assert!(signal["tried"][0]["error"].is_string(), "{signal}");
    }
    refused.is_empty()
}

/// Compares the answers; repeats where the kernel skipped a run of a program, as it does when the program would run
/// inside itself: a sweep finds what the skipped run would have reported, but later.
fn assert_same_answers(ways: &str) {
    const ATTEMPTS: usize = 3;
    for attempt in 1..=ATTEMPTS {
        // Before the daemons: otherwise a namespace could get the inode of another test's that was removed in between,
        // and `/history` of one daemon would have that test's connections.
        let namespaces = [Namespace::new(), Namespace::new()];
        let daemons = [Daemon::start(&[]), Daemon::start(&["--hook", ways])];
        let outcome = catch_unwind(AssertUnwindSafe(|| compare(&daemons, &namespaces, ways)));
        let skipped = |daemon: &Daemon| {
            daemon.metrics().sum("tcpwatch_records_lost_total", &[("cause", "run_skipped")]) > Some(0)
        };
        match outcome {
            Ok(()) => return,
            Err(_) if attempt < ATTEMPTS && daemons.iter().any(skipped) => {}
            Err(failure) => resume_unwind(failure),
        }
    }
}

fn compare([chosen, forced]: &[Daemon; 2], namespaces: &[Namespace; 2], ways: &str) {
    let mut workloads = Vec::new();
    for (namespace, addr) in namespaces.iter().zip(["127.0.0.1", "::1"]) {
        let mut server = Workload::start(namespace, "ways-server", SERVER, &[addr]);
        let port = server.hear();
        let mut client = Workload::start(namespace, "ways-client", CLIENT, &[addr, &port]);
        client.hear_numbers::<6>();
        let accepted = server.hear();
        let worker: u64 = accepted.strip_prefix("accepted ").unwrap().parse().unwrap();
        let owner = |life: &Value| if life["role"] == "server" { worker } else { u64::from(client.pid()) };
        eventually("the worker that accepted is named", || {
            let lives = agree(chosen, forced, namespace);
            let wrong = lives.iter().find(|life| life["process"]["pid"] != owner(life));
            wrong.map_or(Ok(()), |life| Err(life.to_string()))
        });
        // Long enough to distinguish a duration from none.
        thread::sleep(Duration::from_millis(200));
        assert_eq!(client.ask(), "done");
        assert_eq!(server.ask(), "done");
        assert_eq!(client.ask(), "done");
        let lives = agree(chosen, forced, namespace);
        assert_eq!(lives.len(), 12, "{lives:#?}");
        // The connection that its server reset by closing it.
        let unread = |life: &&Value| life["state"] == "ESTABLISHED" && life["unread_bytes"] == 5;
        if ways != RAW {
            let by_force = self::lives(forced, namespace);
            for lives in [&lives, &by_force] {
                assert_eq!(lives.iter().filter(unread).count(), 1, "closed with unread bytes: {lives:#?}");
            }
        }
        workloads.push((server, client));
    }
    if ways == RAW {
        return;
    }
    // The end of TIME_WAIT, by the hook that reports it.
    while workloads.iter().any(|(server, _)| server.sockets_in(TIME_WAIT) > 0) {
        thread::sleep(Duration::from_secs(1));
    }
    for namespace in namespaces {
        let lives = agree(chosen, forced, namespace);
        let waited = |life: &Value| {
            let steps = life["life"].as_array().unwrap();
            steps
                .iter()
                .find(|step| step["state"] == "TIME_WAIT")
                .map(|step| step["duration_seconds"].as_f64().unwrap())
        };
        let waited: Vec<f64> = lives.iter().filter_map(waited).collect();
        assert_eq!(waited.len(), 2, "{lives:#?}");
        // The timer's wheel turns in steps of some seconds.
        assert!(waited.iter().all(|seconds| (59.9..69.0).contains(seconds)), "{waited:?}");
    }
}

#[test]
fn each_way_gives_the_same_answers_or_check_reports_why_not() {
    for ways in [RAW, FENTRY, KPROBE] {
        if accepts(ways) {
            assert_same_answers(ways);
        } else {
            // A kernel with kprobes accepts all ways; every kernel accepts raw tracepoints.
            let kprobes = Path::new("/sys/bus/event_source/devices/kprobe").exists();
            assert!(!kprobes && ways != RAW, "this kernel should accept {ways}");
        }
    }
}
