//! The options of a live connection's socket, compared with those that getsockopt() returns to its owner.

use std::process::Command;

use serde_json::{Value, json};

use crate::{
    daemon::{Daemon, errors_of},
    eventually::eventually,
    netns::Namespace,
    workload::{Workload, python_args},
};

/// Says the options of a client's socket from getsockopt(): at first, and after each change.
const CLIENT: &str = r#"
listener = listen(args[0])
conn = connect(args[0], port_of(listener))
server = listener.accept()[0]
SOCKET, TCP = socket.SOL_SOCKET, socket.IPPROTO_TCP
def linger(on, seconds):
    return (SOCKET, socket.SO_LINGER, struct.pack("ii", on, seconds))
def say_options():
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
say_options()
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
    say_options()
"#;

/// The expected place and value in the answer after each change.
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

/// The answer that agrees with getsockopt().
fn options_of_getsockopt(client: &mut Workload) -> Value {
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

/// Asserts that the client's part of its process's sums is the client's own answer.
fn counts_in(daemon: &Daemon, comm: &str, client: &Value) {
    let (options, transfer) = (&client["options"], &client["transfer"]);
    let on = |place: &str, off: Value| u64::from(*options.pointer(place).unwrap() != off);
    let is_kept_alive = options["keepalive"]["on"] == json!(true);
    let values: Vec<_> = [
        ("keepalive_idle_seconds", "/keepalive/idle_seconds", is_kept_alive),
        ("keepalive_interval_seconds", "/keepalive/interval_seconds", is_kept_alive),
        ("keepalive_probes", "/keepalive/probes", is_kept_alive),
        ("linger_seconds", "/linger_seconds", true),
        ("user_timeout_seconds", "/user_timeout_seconds", true),
    ]
    .into_iter()
    .map(|(name, place, is_on)| (name, options.pointer(place).unwrap().as_f64().filter(|_| is_on)))
    .collect();
    let ranges = values.iter().filter_map(|(name, value)| {
        value.map(|value| ((*name).to_owned(), json!({ "least": value, "most": value })))
    });
    let expected = json!({
        "options": {
            "keepalive": on("/keepalive/on", json!(false)),
            "nodelay": on("/nodelay", json!(false)),
            "cork": on("/cork", json!(false)),
            "linger": on("/linger_seconds", Value::Null),
            "user_timeout": on("/user_timeout_seconds", Value::Null),
        },
        "option_values": Value::Object(ranges.collect()),
        "congestion_algorithms": { transfer["congestion"]["algorithm"].as_str().unwrap(): 1 },
        "send_buffer_bytes": transfer["sending"]["buffer_bytes"],
        "receive_buffer_bytes": transfer["receiving"]["buffer_bytes"],
        "min_rtt_seconds": transfer["rtt"]["min_seconds"],
        "mean_rtt_variation_seconds": transfer["rtt"]["variation_seconds"],
    });
    let labels = [("process", comm), ("role", "client")];
    eventually("a sweep saw it", || {
        // This request starts a sweep.
        let peers = daemon.json(&format!("/peers?comm={comm}&role=client"));
        let live = &peers["peers"][0]["live"];
        let shown: Value =
            expected.as_object().unwrap().keys().map(|key| (key.clone(), live[key].clone())).collect();
        if shown != expected {
            return Err(format!("{shown} is not {expected}"));
        }
        let metrics = daemon.metrics();
        for (option, count) in expected["options"].as_object().unwrap() {
            let labels = labels.iter().copied().chain([("option", option.as_str())]).collect::<Vec<_>>();
            let shown = metrics.sum("tcpwatch_held_connections_by_option", &labels).unwrap_or_default();
            assert_eq!(Some(shown), count.as_u64(), "{option}");
        }
        Ok(())
    });
    let metrics = daemon.metrics();
    for (name, label, expected) in [
        ("tcpwatch_held_connections", None, 1),
        ("tcpwatch_held_connections_by_congestion_algorithm", None, 1),
        (
            "tcpwatch_socket_buffer_bytes",
            Some(("buffer", "send")),
            expected["send_buffer_bytes"].as_u64().unwrap(),
        ),
        (
            "tcpwatch_socket_buffer_bytes",
            Some(("buffer", "receive")),
            expected["receive_buffer_bytes"].as_u64().unwrap(),
        ),
    ] {
        let labels: Vec<_> = labels.iter().copied().chain(label).collect();
        assert_eq!(metrics.sum(name, &labels), Some(expected), "{name} {label:?}");
    }
    for (name, value) in values {
        for bound in ["min", "max"] {
            let metric = match name.strip_suffix("_seconds") {
                Some(name) => format!("tcpwatch_{name}_{bound}_seconds"),
                None => format!("tcpwatch_{name}_{bound}"),
            };
            let shown = metrics.sum(&metric, &labels).map(|_| metrics.exact(&metric, &labels));
            assert_eq!(shown, value, "{name} {bound}");
        }
    }
}

#[test]
fn options_equal_getsockopt_whatever_identifies_the_socket() {
    // The second daemon identifies sockets by their address.
    for ways in [&[][..], &["--hook", "state=raw_tp"]] {
        let daemon = Daemon::start(ways);
        for (addr, comm) in [("127.0.0.1", "options-4"), ("::1", "options-6")] {
            let namespace = Namespace::new();
            let mut client = Workload::start(&namespace, comm, CLIENT, &[addr]);
            let shown = options_of_getsockopt(&mut client);
            daemon.sweep();
            let answer = side(&daemon, &client, "client");
            assert_eq!((&answer["options"], errors_of(&answer, "options")), (&shown, Vec::new()), "{answer}");
            let server = side(&daemon, &client, "server")["options"].clone();
            for (place, value) in changes() {
                client.order();
                let shown = options_of_getsockopt(&mut client);
                let answer = side(&daemon, &client, "client");
                let options = &answer["options"];
                assert_eq!((options, options.pointer(place)), (&shown, Some(&value)), "{place}");
                // Only twice, as a sweep takes time: with most options on, and with none.
                if value == json!(30.5) || (place, &value) == ("/keepalive/on", &json!(false)) {
                    counts_in(&daemon, comm, &answer);
                }
            }
            // The other end of the same connection is another socket.
            assert_eq!(side(&daemon, &client, "server")["options"], server);
            let listener = side(&daemon, &client, "listener");
            assert_eq!((&listener["options"], errors_of(&listener, "options")), (&Value::Null, Vec::new()));
        }
    }
}

#[test]
fn a_socket_is_found_in_the_daemons_namespace_and_in_another() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let args = ["127.0.0.1"];
    let mut python = Command::new("python3");
    let here = Workload::spawn(python.args(python_args("here", CLIENT, &args))).unwrap();
    let mut clients = [Workload::start(&namespace, "elsewhere", CLIENT, &args), here];
    let shown = clients.each_mut().map(options_of_getsockopt);
    for _ in 0..3 {
        for (client, shown) in clients.iter().zip(&shown) {
            let answer = side(&daemon, client, "client");
            assert_eq!(&answer["options"], shown, "{answer}");
        }
    }
}

const SYSCTLS: [&str; 3] = ["time", "intvl", "probes"];

/// Says the keep-alive values of its namespace on each order.
const DEFAULTS: &str = r#"
listener = listen("127.0.0.1")
conn = connect("127.0.0.1", port_of(listener))
conn.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
server = listener.accept()[0]
while True:
    say(*[open("/proc/sys/net/ipv4/tcp_keepalive_" + name).read().strip() for name in args])
    order()
"#;

#[test]
fn a_socket_without_keepalive_values_has_its_namespaces_present_ones() {
    let daemon = Daemon::start(&[]);
    let mut places = [Namespace::new(), Namespace::new()].map(|namespace| {
        let ends = Workload::start(&namespace, "defaults", DEFAULTS, &SYSCTLS);
        (namespace, ends)
    });
    // The values of both, each asserted to equal the namespace's.
    let values = |places: &mut [(Namespace, Workload); 2]| {
        places.each_mut().map(|(_, ends)| {
            let values: [f64; 3] = ends.hear_numbers();
            let side = side(&daemon, ends, "client");
            let keepalive = &side["options"]["keepalive"];
            let shown = ["idle_seconds", "interval_seconds", "probes"].map(|name| keepalive[name].as_f64());
            assert_eq!(shown, values.map(Some), "{side}");
            values
        })
    };
    let before = values(&mut places);
    let changed = before[0].map(|value| value + 2.0);
    for (sysctl, value) in SYSCTLS.iter().zip(changed) {
        let write = format!("echo {value} > /proc/sys/net/ipv4/tcp_keepalive_{sysctl}");
        places[0].0.run(&["sh", "-c", &write]);
    }
    for (_, ends) in &mut places {
        ends.order();
    }
    assert_eq!(values(&mut places), [changed, before[1]]);
    // The sums have the least and the most.
    let ranges = ["keepalive_idle_seconds", "keepalive_interval_seconds", "keepalive_probes"]
        .into_iter()
        .zip(before[1].iter().zip(changed))
        .map(|(name, (least, most))| (name.to_owned(), json!({ "least": least, "most": most })));
    let expected = Value::Object(ranges.collect());
    eventually("a sweep saw both", || {
        let answer = daemon.json("/processes?comm=defaults");
        let shown = &answer["processes"][0]["live"]["option_values"];
        if *shown == expected { Ok(()) } else { Err(format!("{shown} is not {expected}")) }
    });
}
