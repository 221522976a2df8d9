//! Whichever way a signal comes, the answers are the same: two daemons watch one workload, one by the ways it
//! chose, one by the ways it was told to take.

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

const FENTRY: &str = "state=fentry,close=fentry,accept=fexit,minisock=fentry";
const KPROBE: &str = "state=kprobe,close=kprobe,accept=kretprobe,minisock=kprobe";
const RAW: &str = "state=raw_tp,retransmit=raw_tp,synack=raw_tp";

/// A worker accepts what its parent listens for, then each connection ends in its own way.
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

/// Longer than the two daemons' programs are apart, or one socket's processor from the other's.
const SAME_SECONDS: f64 = 0.05;

/// Everything that both know of the namespace's connections: by port of the client and role.
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

/// What must not depend on the way: all but the id and the durations, and the unread bytes, which without a hook for
/// the close are those of the last sweep.
fn answer(life: &Value) -> Value {
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
    // The last lasts until it is asked for.
    steps.iter().rev().skip(1).map(|step| step["duration_seconds"].as_f64().unwrap()).collect()
}

/// Both daemons, asked until they agree: sweeps come when they come.
fn agree(chosen: &Daemon, forced: &Daemon, namespace: &Namespace) -> Vec<Value> {
    let connections = |daemon: &Daemon| {
        // That a socket listens some ways tell later than others.
        lives(daemon, namespace).into_iter().filter(|life| life["role"] != "listener").collect::<Vec<_>>()
    };
    eventually("both say the same", || {
        let (ours, theirs) = (connections(chosen), connections(forced));
        let answers = |lives: &[Value]| lives.iter().map(answer).collect::<Vec<_>>();
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

/// Whether this kernel takes these ways; if not, it is said why of each that it does not take.
fn can_take(ways: &str) -> bool {
    let output = tcpwatch(TCPWATCH).args(["check", "--json", "--hook", ways]).output().unwrap();
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
    let Some(signals) = checked["signals"].as_array().filter(|_| checked["verdict"] != "unusable") else {
        assert!(checked["error"].as_str().unwrap().contains("state changes"), "{checked}");
        return false;
    };
    // Another signal may be one that this kernel does not give at all.
    let asked = |key: &str| ways.split(',').any(|choice| choice.starts_with(&format!("{key}=")));
    let refused: Vec<_> =
        signals.iter().filter(|one| one["hook"].is_null() && asked(one["key"].as_str().unwrap())).collect();
    for signal in &refused {
        assert!(signal["tried"][0]["error"].is_string(), "{signal}");
    }
    refused.is_empty()
}

/// Again where the kernel skipped a program, as it does with one that would run inside itself: what that one would have
/// told is found by a sweep, and then not to the moment.
fn give_the_same_answers(ways: &str) {
    const ATTEMPTS: usize = 3;
    for attempt in 1..=ATTEMPTS {
        // Before the daemons, or `/history` could tell one of them of another test's namespace, removed in between,
        // whose number one of these got.
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
        // Long enough to tell a duration from none.
        thread::sleep(Duration::from_millis(200));
        assert_eq!(client.ask(), "done");
        assert_eq!(server.ask(), "done");
        assert_eq!(client.ask(), "done");
        let lives = agree(chosen, forced, namespace);
        assert_eq!(lives.len(), 12, "{lives:#?}");
        // The one that its server reset by closing.
        let unread = |life: &&Value| life["state"] == "ESTABLISHED" && life["unread_bytes"] == 5;
        if ways != RAW {
            let told = self::lives(forced, namespace);
            for lives in [&lives, &told] {
                assert_eq!(lives.iter().filter(unread).count(), 1, "closed with unread bytes: {lives:#?}");
            }
        }
        workloads.push((server, client));
    }
    if ways == RAW {
        return;
    }
    // The end of TIME_WAIT, by the hook that tells it.
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
fn each_way_gives_the_same_answers_or_says_why_it_cannot_be_taken() {
    for ways in [RAW, FENTRY, KPROBE] {
        if can_take(ways) {
            give_the_same_answers(ways);
        } else {
            // A kernel with kprobes takes them all; any takes raw tracepoints.
            let kprobes = Path::new("/sys/bus/event_source/devices/kprobe").exists();
            assert!(!kprobes && ways != RAW, "this kernel should take {ways}");
        }
    }
}
