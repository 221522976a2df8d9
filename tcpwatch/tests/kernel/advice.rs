//! Findings say what is known, and no more: each kind is made in reality, and seen by a daemon that was there before and
//! is asked only at the end, and by one that starts afterwards.

use serde_json::{Value, json};

use crate::{daemon::Daemon, eventually::eventually, netns::Namespace, workload::Workload};

/// States are judged after a second.
const LIMITS: [&str; 10] = [
    "--linger",
    "close-wait=1s",
    "--linger",
    "fin-wait2=1s",
    "--linger",
    "fin-wait1=1s",
    "--linger",
    "syn-sent=1s",
    "--linger",
    "syn-recv=1s",
];

/// The only finding with this state of a process.
fn finding(daemon: &Daemon, pid: u32, state: &str) -> Result<Value, String> {
    let leaks = daemon.leaks_of(pid);
    let mut found = leaks.iter().filter(|leak| leak["state"] == state);
    match (found.next(), found.next()) {
        (Some(leak), None) => Ok(leak.clone()),
        _ => Err(format!("{leaks:#?}")),
    }
}

/// The finding, once `is` holds of it.
fn finding_that(daemon: &Daemon, pid: u32, state: &str, is: impl Fn(&Value) -> bool) -> Value {
    eventually("the finding", || {
        let leak = finding(daemon, pid, state)?;
        if is(&leak) { Ok(leak) } else { Err(leak.to_string()) }
    })
}

fn text(leak: &Value) -> String {
    format!("{} {}", leak["summary"].as_str().unwrap(), leak["next_step"].as_str().unwrap())
}

/// Fills an accept queue of 4 as `args` say: the listener's address, and where to connect to. Of the handshakes whose
/// acknowledgements are lost at first, two find no room later; the last connects find none for their SYNs. With SYN cookies
/// only the last do: the kernel forgets the others.
const FILLS_ITS_QUEUE: &str = r#"
family = socket.AF_INET6 if ":" in args[0] else socket.AF_INET
listener = socket.socket(family)
if family == socket.AF_INET6:
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
listener.bind((args[0], 0))
listener.listen(4)
dialling = []
def dial(count):
    for _ in range(count):
        sock = socket.socket(socket.AF_INET6 if ":" in args[1] else socket.AF_INET)
        sock.setblocking(False)
        sock.connect_ex((args[1], port_of(listener)))
        dialling.append(sock)
say(port_of(listener))
order()
dial(3)
lose(listener, [(0x30, 0, 0, 13), (0x45, 1, 0, 2), (6, 0, 0, 0), (6, 0, 0, 0xFFFFFFFF)])
dial(4)
time.sleep(.3)
lose_nothing(listener)
time.sleep(2.5)
dial(4)
time.sleep(1.5)
say("full")
order()
"#;

#[test]
fn overflows_are_the_kernels_own_count() {
    let before = Daemon::start(&LIMITS);
    for (listens, dials, sysctls) in [
        ("127.0.0.1", "127.0.0.1", &[][..]),
        ("::1", "::1", &["tcp_abort_on_overflow=1"]),
        ("::", "127.0.0.1", &["tcp_syncookies=0"]),
        ("::", "::1", &["tcp_syncookies=2"]),
    ] {
        let namespace = Namespace::new();
        for sysctl in sysctls {
            let (name, value) = sysctl.split_once('=').unwrap();
            namespace.run(&["sh", "-c", &format!("echo {value} > /proc/sys/net/ipv4/{name}")]);
        }
        let mut server = Workload::start(&namespace, "full", FILLS_ITS_QUEUE, &[listens, dials]);
        server.hear();
        assert_eq!(server.ask(), "full");
        let what = format!("{dials} to {listens}, {sysctls:?}");
        let listener = |daemon: &Daemon| {
            let rows = daemon.connections_in(&namespace);
            rows.into_iter().find(|row| row["role"] == "listener").ok_or("no listener")
        };
        let row = eventually("the count stands still while it is asked for", || {
            let kernels = server.kernel_count("ListenOverflows");
            let row = listener(&before)?;
            if server.kernel_count("ListenOverflows") == kernels && kernels != Some(0) {
                assert_eq!(row["overflows"], kernels.unwrap(), "{what}: {row}");
                Ok(row)
            } else {
                Err("changes")
            }
        });
        assert_eq!(row["overflows_is_lower_bound"], false, "{what}: {row}");
        assert_eq!((&row["queue"], &row["queue_limit"]), (&json!(5), &json!(4)), "{what}: {row}");
        // What it was too late for it does not claim to know.
        let middle = Daemon::start(&LIMITS);
        let row = listener(&middle).unwrap();
        assert_eq!(row["overflows_is_lower_bound"], true, "{what}: {row}");
        for daemon in [&before, &middle] {
            let leak = finding_that(daemon, server.pid(), "SYN_SENT", |leak| !leak["queue"].is_null());
            assert_eq!(leak["other_end"]["process"]["pid"], server.pid(), "{what}: {leak}");
            assert!(text(&leak).contains("holds 5 (limit 4"), "{what}: {leak}");
        }
        // The next namespace may get the inode of this one, so the daemon has to see that this one is gone.
        drop(server);
        drop(namespace);
        before.json("/leaks");
    }
}

const DEFERS: &str = r#"
listener = socket.socket()
listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
listener.bind(("127.0.0.1", 0))
listener.listen(16)
conns = [connect("127.0.0.1", port_of(listener)) for _ in range(3)]
conns[0].send(b"GET")
accepted = listener.accept()
say("accepted")
order()
"#;

#[test]
fn a_deferred_accept_is_no_loss_and_no_overflow() {
    let before = Daemon::start(&LIMITS);
    let namespace = Namespace::new();
    let mut server = Workload::start(&namespace, "defers", DEFERS, &[]);
    assert_eq!(server.hear(), "accepted");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let middle = Daemon::start(&LIMITS);
    for daemon in [&before, &middle] {
        let leak = finding_that(daemon, server.pid(), "SYN_RECV", |leak| leak["count"] == 2);
        assert_eq!((&leak["evidence"], &leak["severity"]), (&json!("deferred"), &json!("info")), "{leak}");
        assert!(text(&leak).contains("Nothing is lost"), "{leak}");
        let rows = daemon.connections_in(&namespace);
        let listener = rows.iter().find(|row| row["role"] == "listener").unwrap();
        assert_eq!(server.kernel_count("ListenOverflows"), Some(0));
        assert_eq!((&listener["overflows"], &listener["deferred"]), (&json!(0), &json!(true)), "{listener}");
    }
}

/// A client vanishes and comes back on the same port, where its resets do not reach the older connection.
const STALE: &str = r#"
def vanish(sock):
    sock.setsockopt(socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR: no FIN, no reset
    sock.close()
listener = listen("127.0.0.1")
first = connect("127.0.0.1", port_of(listener))
port = port_of(first)
stale = listener.accept()[0]
stale.shutdown(socket.SHUT_WR)
time.sleep(.2)
lose(stale, [(0x30, 0, 0, 13), (0x45, 0, 1, 4), (6, 0, 0, 0), (6, 0, 0, 0xFFFFFFFF)])
vanish(first)
again = socket.socket()
again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
again.bind(("127.0.0.1", port))
again.setblocking(False)
again.connect_ex(("127.0.0.1", port_of(listener)))
say(port)
order()
"#;

#[test]
fn a_syn_that_an_older_connection_answers_is_told_apart_from_silence() {
    let before = Daemon::start(&LIMITS);
    let namespace = Namespace::new();
    let mut both = Workload::start(&namespace, "stale", STALE, &[]);
    both.hear();
    std::thread::sleep(std::time::Duration::from_millis(1200));
    let middle = Daemon::start(&LIMITS);
    for daemon in [&before, &middle] {
        let leak = finding_that(daemon, both.pid(), "SYN_SENT", |leak| !leak["other_end"].is_null());
        assert_eq!(leak["other_end"]["state"], "FIN_WAIT2", "{leak}");
        assert_eq!(leak["other_end"]["process"]["pid"], both.pid(), "{leak}");
        assert!(text(&leak).contains("older connection"), "{leak}");
        assert!(!text(&leak).contains("host that is down"), "{leak}");
    }
    let leak = finding(&before, both.pid(), "SYN_SENT").unwrap();
    assert_eq!(leak["evidence"], "challenged", "{leak}");
}

const POOL: &str = r#"
listener = listen("127.0.0.1")
if os.fork() == 0:
    conns = [listener.accept()[0] for _ in range(9)]
    for conn in conns:
        conn.sendall(conn.recv(100))
    time.sleep(.8)
    for conn in conns:
        conn.close()
    order()
    os._exit(0)
pool = [connect("127.0.0.1", port_of(listener)) for _ in range(9)]
for conn in pool:
    conn.send(b"question")
for conn in pool:
    conn.recv(100)
say(os.getpid())
order()
"#;

#[test]
fn an_idle_pool_is_no_leak() {
    let before = Daemon::start(&LIMITS);
    let namespace = Namespace::new();
    let mut pool = Workload::start(&namespace, "pool", POOL, &[]);
    pool.hear();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let middle = Daemon::start(&LIMITS);
    for daemon in [&before, &middle] {
        let leak = finding_that(daemon, pool.pid(), "CLOSE_WAIT", |leak| leak["count"] == 9);
        assert_eq!((&leak["evidence"], &leak["severity"]), (&json!("idle"), &json!("info")), "{leak}");
        assert!(!text(&leak).contains("has not closed") && !text(&leak).contains("restart"), "{leak}");
    }
}

/// An accepted connection's descriptor is on its way to nobody.
const IN_FLIGHT: &str = r#"
listener = listen("127.0.0.1")
client = connect("127.0.0.1", port_of(listener))
conn = listener.accept()[0]
left, right = socket.socketpair(socket.AF_UNIX)
socket.send_fds(left, [b"x"], [conn.fileno()])
conn.close()
client.close()
say("closed")
order()
"#;

#[test]
fn a_connection_that_no_descriptor_refers_to_is_named_so() {
    let before = Daemon::start(&LIMITS);
    let namespace = Namespace::new();
    let mut holder = Workload::start(&namespace, "in-flight", IN_FLIGHT, &[]);
    assert_eq!(holder.hear(), "closed");
    let middle = Daemon::start(&LIMITS);
    for daemon in [&before, &middle] {
        let leak = eventually("it is named", || {
            let answer = daemon.json("/leaks");
            let leaks = answer["leaks"].as_array().unwrap().iter();
            let here = |leak: &&Value| leak["netns"] == namespace.inode && leak["state"] == "CLOSE_WAIT";
            leaks
                .filter(here)
                .find(|leak| leak["evidence"] == "no_descriptor")
                .cloned()
                .ok_or(answer.to_string())
        });
        assert!(text(&leak).contains("Unix socket"), "{leak}");
        assert!(!text(&leak).contains("an unknown process"), "{leak}");
    }
}

/// A proxy in the middle passes half-closes on, and its backend never closes.
const PROXY: &str = r#"
import threading
back = listen("127.0.0.1")
front = listen("127.0.0.1")
backend = os.fork()
if backend == 0:
    open("/proc/self/comm", "w").write("backend")
    front.close()
    held = []
    while True:
        held.append(back.accept()[0])
proxy = os.fork()
if proxy == 0:
    open("/proc/self/comm", "w").write("proxy")
    address = back.getsockname()
    back.close()
    def pump(source, target):
        while data := source.recv(4096):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    while True:
        client = front.accept()[0]
        onward = connect(*address)
        for one, other in ((client, onward), (onward, client)):
            threading.Thread(target=pump, args=(one, other), daemon=True).start()
address = front.getsockname()
back.close()
front.close()
for _ in range(12):
    conn = connect(*address)
    conn.send(b"x")
    conn.close()
say(backend, proxy)
order()
os.kill(proxy, 9)
os.kill(backend, 9)
say("killed")
order()
"#;

#[test]
fn a_proxy_is_not_blamed_for_its_backend() {
    let before = Daemon::start(&LIMITS);
    let namespace = Namespace::new();
    let mut client = Workload::start(&namespace, "client", PROXY, &[]);
    let [backend, proxy] = client.hear_numbers().map(|pid| pid as u32);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let middle = Daemon::start(&LIMITS);
    for daemon in [&before, &middle] {
        let all = |leak: &Value| leak["count"] == 12;
        let leak =
            finding_that(daemon, proxy, "CLOSE_WAIT", |leak| all(leak) && !leak["waits_for"].is_null());
        assert_eq!(leak["waits_for"]["count"], 12, "{leak}");
        assert_eq!(leak["waits_for"]["other_end"]["process"]["pid"], backend, "{leak}");
        assert!(
            leak["next_step"].as_str().unwrap().starts_with(&format!("Look at backend (pid {backend})")),
            "{leak}"
        );
        let leak = finding_that(daemon, proxy, "FIN_WAIT2", all);
        assert_eq!(
            (&leak["evidence"], &leak["other_end"]["process"]["pid"]),
            (&json!("held"), &json!(backend)),
            "{leak}"
        );
        let leak = finding_that(daemon, backend, "CLOSE_WAIT", all);
        assert!(leak["waits_for"].is_null(), "{leak}");
        assert_eq!(leak["other_end"]["process"]["pid"], proxy, "{leak}");
    }
    let leak = finding_that(&before, client.pid(), "FIN_WAIT2", |leak| leak["count"] == 12);
    assert_eq!(
        (&leak["evidence"], &leak["other_end"]["process"]["pid"]),
        (&json!("orphaned"), &json!(proxy)),
        "{leak}"
    );
    assert_eq!(client.ask(), "killed");
}

/// One keeps alive a peer that is gone; one writes to a peer that does not read, then closes; one closes to a peer that is
/// gone.
const UNANSWERED: &str = r#"
def pair():
    listener = listen("127.0.0.1")
    conn = connect("127.0.0.1", port_of(listener))
    return conn, listener.accept()[0], listener
def fill(sock):
    sock.setblocking(False)
    try:
        while True:
            sock.send(b"x" * 65536)
    except BlockingIOError:
        pass
alive, gone1, l1 = pair()
lose(gone1, DROP_ALL)
alive.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
for option, value in ((4, 1), (5, 1), (6, 60)):
    alive.setsockopt(socket.IPPROTO_TCP, option, value)
writes, full1, l2 = pair()
fill(writes)
orphan, full2, l3 = pair()
fill(orphan)
orphan_port = port_of(full2)
orphan.close()
dead, gone2, l4 = pair()
lose(gone2, DROP_ALL)
dead.close()
say(port_of(gone1), port_of(full1), orphan_port, port_of(gone2))
order()
"#;

#[test]
fn probes_and_fins_that_were_never_sent_are_what_they_are() {
    let before = Daemon::start(&LIMITS);
    let namespace = Namespace::new();
    let mut client = Workload::start(&namespace, "unanswered", UNANSWERED, &[]);
    let [gone, full, orphan, dead] = client.hear_numbers().map(|port| port as u16);
    std::thread::sleep(std::time::Duration::from_millis(3500));
    let middle = Daemon::start(&LIMITS);
    for daemon in [&before, &middle] {
        let rows = daemon.connections_in(&namespace);
        let transfer = |port: u16| {
            let row = rows.iter().find(|row| row["remote"]["port"] == port).unwrap();
            daemon.detail(row)["transfer"]["sending"].clone()
        };
        assert_eq!(transfer(gone)["window_probes"], 0, "keep-alive: {}", transfer(gone));
        let filled = transfer(full);
        assert!(filled["unsent_bytes"].as_u64() > Some(0), "{filled}");
        let fin = |port: u16| {
            eventually("the unanswered close", || {
                let answer = daemon.json("/leaks");
                let leaks = answer["leaks"].as_array().unwrap().iter();
                let here = leaks.filter(|leak| leak["netns"] == namespace.inode);
                let found = here
                    .filter(|leak| leak["state"] == "FIN_WAIT1")
                    .find(|leak| leak["remote"]["port"] == port);
                found.cloned().ok_or(answer.to_string())
            })
        };
        let leak = fin(orphan);
        assert_eq!(leak["evidence"], "unsent", "{leak}");
        assert!(leak["unsent_bytes"].as_u64() > Some(0), "{leak}");
        assert!(text(&leak).contains("does not read") && !text(&leak).contains("not acknowledged"), "{leak}");
        let leak = fin(dead);
        assert_eq!((&leak["evidence"], &leak["unsent_bytes"]), (&json!("none"), &json!(0)), "{leak}");
        assert!(text(&leak).contains("its FIN is not acknowledged"), "{leak}");
    }
}
