//! The options of a live connection's socket: compared with what getsockopt() says to its owner.

use std::process::Command;

use serde_json::{Value, json};

use crate::{
    daemon::Daemon,
    eventually::eventually,
    netns::Namespace,
    workload::{Workload, python_args},
};

/// Says what getsockopt() tells of a client's socket: as it is, and after each change.
const CLIENT: &str = r#"
listener = listen(args[0])
conn = connect(args[0], port_of(listener))
server = listener.accept()[0]
SOCKET, TCP = socket.SOL_SOCKET, socket.IPPROTO_TCP
def linger(on, seconds):
    return (SOCKET, socket.SO_LINGER, struct.pack("ii", on, seconds))
def tell():
    numbers = [conn.getsockopt(level, option) for level, option in [
        (SOCKET, socket.SO_KEEPALIVE),
        (TCP, socket.TCP_KEEPIDLE),
        (TCP, socket.TCP_KEEPINTVL),
        (TCP, socket.TCP_KEEPCNT),
        (TCP, socket.TCP_NODELAY),
        (TCP, socket.TCP_CORK),
        (TCP, socket.TCP_USER_TIMEOUT),
    ]]
    say(*numbers, *struct.unpack("ii", conn.getsockopt(SOCKET, socket.SO_LINGER, 8)))
    order()
tell()
for change in [
    (SOCKET, socket.SO_KEEPALIVE, 1),
    (TCP, socket.TCP_KEEPIDLE, 33),
    (TCP, socket.TCP_KEEPINTVL, 7),
    (TCP, socket.TCP_KEEPCNT, 4),
    (TCP, socket.TCP_NODELAY, 1),
    (TCP, socket.TCP_CORK, 1),
    (TCP, socket.TCP_NODELAY, 0),
    linger(1, 5),
    linger(1, 0),
    (TCP, socket.TCP_USER_TIMEOUT, 30500),
    (TCP, socket.TCP_CORK, 0),
    linger(0, 9),
    (TCP, socket.TCP_USER_TIMEOUT, 0),
    (SOCKET, socket.SO_KEEPALIVE, 0),
]:
    conn.setsockopt(*change)
    tell()
"#;

/// What the answer is to say after each.
fn changes() -> [(&'static str, Value); 14] {
    [
        ("/keepalive/on", json!(true)),
        ("/keepalive/idle_seconds", json!(33)),
        ("/keepalive/interval_seconds", json!(7)),
        ("/keepalive/probes", json!(4)),
        ("/nodelay", json!(true)),
        ("/cork", json!(true)),
        ("/nodelay", json!(false)),
        ("/linger_seconds", json!(5)),
        ("/linger_seconds", json!(0)),
        ("/user_timeout_seconds", json!(30.5)),
        ("/cork", json!(false)),
        ("/linger_seconds", Value::Null),
        ("/user_timeout_seconds", Value::Null),
        ("/keepalive/on", json!(false)),
    ]
}

/// The answer that agrees with what getsockopt() tells.
fn told_by_getsockopt(client: &mut Workload) -> Value {
    let [keepalive, idle, interval, probes, nodelay, cork, user_timeout_ms, lingers, linger] =
        client.hear_numbers();
    json!({
        "keepalive": {
            "on": keepalive != 0.0,
            "idle_seconds": idle as u64,
            "interval_seconds": interval as u64,
            "probes": probes as u64,
        },
        "nodelay": nodelay != 0.0,
        "cork": cork != 0.0,
        "linger_seconds": (lingers != 0.0).then_some(linger as u64),
        "user_timeout_seconds": (user_timeout_ms > 0.0).then_some(user_timeout_ms / 1000.0),
    })
}

fn side(daemon: &Daemon, ends: &Workload, role: &str) -> Value {
    let rows = daemon.json(&format!("/connections?pid={}&role={role}", ends.pid()));
    daemon.detail(&rows["connections"][0])
}

/// The client among those of its process that have keep-alive `on` or `off`.
fn counts_among(daemon: &Daemon, comm: &str, keepalive: &str) {
    eventually("a sweep saw it", || {
        // Asking for them asks for a sweep.
        daemon.json(&format!("/processes?comm={comm}"));
        let metrics = daemon.metrics();
        let told = ["on", "off"].map(|keepalive| {
            let labels = [("process", comm), ("role", "client"), ("keepalive", keepalive)];
            metrics.sum("tcpwatch_held_connections", &labels)
        });
        let expected = ["on", "off"].map(|one| Some(u64::from(one == keepalive)));
        if told == expected { Ok(()) } else { Err(format!("{told:?}")) }
    });
}

#[test]
fn options_are_what_getsockopt_says_whatever_identifies_the_socket() {
    // The second knows sockets by their address.
    for ways in [&[][..], &["--hook", "state=raw_tp"]] {
        let daemon = Daemon::start(ways);
        for (addr, comm) in [("127.0.0.1", "options-4"), ("::1", "options-6")] {
            let namespace = Namespace::new();
            let mut client = Workload::start(&namespace, comm, CLIENT, &[addr]);
            let told = told_by_getsockopt(&mut client);
            let answer = side(&daemon, &client, "client");
            assert_eq!((&answer["options"], &answer["options_error"]), (&told, &Value::Null), "{answer}");
            let server = side(&daemon, &client, "server")["options"].clone();
            for (place, value) in changes() {
                client.order();
                let told = told_by_getsockopt(&mut client);
                let options = side(&daemon, &client, "client")["options"].clone();
                assert_eq!((&options, options.pointer(place)), (&told, Some(&value)), "{place}");
                if place == "/keepalive/on" {
                    counts_among(&daemon, comm, if value == true { "on" } else { "off" });
                }
            }
            // The other end of the same connection is another socket.
            assert_eq!(side(&daemon, &client, "server")["options"], server);
            let listener = side(&daemon, &client, "listener");
            assert_eq!([&listener["options"], &listener["options_error"]], [&Value::Null; 2]);
        }
    }
}

#[test]
fn a_socket_is_found_in_the_daemons_own_namespace_and_in_another_by_turns() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let args = ["127.0.0.1"];
    let mut python = Command::new("python3");
    let here = Workload::spawn(python.args(python_args("here", CLIENT, &args))).unwrap();
    let mut clients = [Workload::start(&namespace, "elsewhere", CLIENT, &args), here];
    let told = clients.each_mut().map(told_by_getsockopt);
    for _ in 0..3 {
        for (client, told) in clients.iter().zip(&told) {
            let answer = side(&daemon, client, "client");
            assert_eq!(&answer["options"], told, "{answer}");
        }
    }
}

const SYSCTLS: [&str; 3] = ["time", "intvl", "probes"];

/// Says the figures of its namespace each time that it is told to.
const DEFAULTS: &str = r#"
listener = listen("127.0.0.1")
conn = connect("127.0.0.1", port_of(listener))
server = listener.accept()[0]
while True:
    say(*[open("/proc/sys/net/ipv4/tcp_keepalive_" + name).read().strip() for name in args])
    order()
"#;

#[test]
fn without_figures_of_its_own_a_socket_has_those_of_its_namespace_as_they_are_now() {
    let daemon = Daemon::start(&[]);
    let mut places = [Namespace::new(), Namespace::new()].map(|namespace| {
        let ends = Workload::start(&namespace, "defaults", DEFAULTS, &SYSCTLS);
        (namespace, ends)
    });
    // Of both, once they agree with what the namespace says.
    let figures = |places: &mut [(Namespace, Workload); 2]| {
        places.each_mut().map(|(_, ends)| {
            let figures: [f64; 3] = ends.hear_numbers();
            let keepalive = side(&daemon, ends, "client")["options"]["keepalive"].clone();
            let told = ["idle_seconds", "interval_seconds", "probes"].map(|name| keepalive[name].as_f64());
            assert_eq!(told, figures.map(Some), "{keepalive}");
            figures
        })
    };
    let before = figures(&mut places);
    let changed = before[0].map(|figure| figure + 2.0);
    for (sysctl, figure) in SYSCTLS.iter().zip(changed) {
        let write = format!("echo {figure} > /proc/sys/net/ipv4/tcp_keepalive_{sysctl}");
        places[0].0.run(&["sh", "-c", &write]);
    }
    for (_, ends) in &mut places {
        ends.order();
    }
    assert_eq!(figures(&mut places), [changed, before[1]]);
}
