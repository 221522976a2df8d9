//! The addresses dialled and reached, where the kernel translates addresses (NAT).

use serde_json::{Value, json};

use crate::{
    daemon::{Daemon, errors_of},
    eventually::eventually,
    netns::{Namespace, needs},
    rights::{Copy, User},
    workload::Workload,
};

/// Listens at its first address and port, and connects to the second.
const ENDS: &str = r"
listener = listen(args[0], args[1])
client = connect(args[2], args[3])
server = listener.accept()[0]
say(client.getsockname()[1], server.getpeername()[1])
order()
";

/// Connections to port 7000 are redirected to 7001; those to 127.0.0.9 reach 127.0.0.1, which sees 127.0.0.5.
const RULES: [&str; 9] = [
    "add table ip nat",
    "add chain ip nat output { type nat hook output priority -100; }",
    "add chain ip nat postrouting { type nat hook postrouting priority 100; }",
    "add rule ip nat output tcp dport 7000 redirect to :7001",
    "add rule ip nat output ip daddr 127.0.0.9 tcp dport 7100 dnat to 127.0.0.1:7101",
    "add rule ip nat postrouting tcp dport 7101 snat to 127.0.0.5",
    "add table ip6 nat",
    "add chain ip6 nat output { type nat hook output priority -100; }",
    "add rule ip6 nat output tcp dport 7000 redirect to :7001",
];

fn translating() -> Namespace {
    needs("nft", "nftables");
    let namespace = Namespace::new();
    add(&namespace, &RULES);
    namespace
}

fn add(namespace: &Namespace, rules: &[&str]) {
    for rule in rules {
        namespace.run(&["nft", rule]);
    }
}

/// The same, tracked in a zone.
fn translating_in(zone: &str) -> Namespace {
    let namespace = translating();
    for family in ["ip", "ip6"] {
        let chain = format!("add chain {family} nat raw {{ type filter hook output priority raw; }}");
        add(&namespace, &[&chain, &format!("add rule {family} nat raw {zone}")]);
    }
    namespace
}

/// `/connections/ID` of both sides.
fn sides(daemon: &Daemon, ends: &Workload) -> [Value; 2] {
    daemon.sweep();
    let rows = daemon.json(&format!("/connections?pid={}", ends.pid()));
    ["client", "server"].map(|role| {
        let row = rows["connections"].as_array().unwrap().iter().find(|row| row["role"] == role);
        daemon.detail(row.unwrap_or_else(|| panic!("no {role}: {rows}")))
    })
}

/// `/connections/ID` of one side, in this state.
fn side_in(daemon: &Daemon, ends: &Workload, role: &str, state: &str) -> Value {
    let row = eventually(&format!("a {role} in {state}"), || {
        let rows = daemon.json(&format!("/connections?pid={}", ends.pid()));
        let mut all = rows["connections"].as_array().unwrap().iter();
        all.find(|row| row["role"] == role && row["state"] == state).cloned().ok_or(rows.to_string())
    });
    daemon.detail(&row)
}

fn end(addr: &str, port: f64) -> Value {
    json!({ "addr": addr, "port": port as u16 })
}

/// `nat` of a connection from this port to 7000, which reaches 7001.
fn redirected(addr: &str, port: f64) -> Value {
    let source = end(addr, port);
    json!({ "source": source, "dialled": end(addr, 7000.0), "source_seen": source, "reached": end(addr, 7001.0) })
}

/// Asserts that there are neither translated addresses nor an error.
fn assert_silent(side: &Value) {
    assert_nat(side, &Value::Null);
}

/// The addresses are these, and nothing is wrong with them.
fn assert_nat(side: &Value, nat: &Value) {
    assert_eq!((&side["nat"], errors_of(side, "nat")), (nat, Vec::new()), "{side}");
}

/// Asserts the translations of both sides of three connections whose addresses [`RULES`] translate.
fn assert_both_sides_are_shown(daemon: &Daemon, namespace: &Namespace, test: &str) {
    for (comm, [at, port, dials, dialled], seen_from) in [
        ("redirect", ["127.0.0.1", "7001", "127.0.0.1", "7000"], "127.0.0.1"),
        ("redirect-6", ["::1", "7001", "::1", "7000"], "::1"),
        ("dnat", ["127.0.0.1", "7101", "127.0.0.9", "7100"], "127.0.0.5"),
    ] {
        // Other tests run beside this one, and `/nat` names no namespace.
        let comm = &format!("{comm}-{test}");
        let mut ends = Workload::start(namespace, comm, ENDS, &[at, port, dials, dialled]);
        let [source_port, seen_port] = ends.hear_numbers();
        let source = if at == "::1" { "::1" } else { "127.0.0.1" };
        let nat = json!({
            "source": end(source, source_port),
            "dialled": end(dials, dialled.parse().unwrap()),
            "source_seen": end(seen_from, seen_port),
            "reached": end(at, port.parse().unwrap()),
        });
        for side in sides(daemon, &ends) {
            assert_nat(&side, &nat);
        }
        let all = daemon.json(&format!("/nat?comm={comm}"));
        let row = |role: &str| {
            json!({
                "comm": comm,
                "role": role,
                "dialled": nat["dialled"],
                "reached": nat["reached"],
                "connections": 1,
                "source_translated": u64::from(nat["source"] != nat["source_seen"]),
            })
        };
        assert_eq!(all["translations"], json!([row("client"), row("server")]));
        assert_eq!((&all["total"], &all["next_cursor"]), (&json!(2), &Value::Null), "{all}");
        assert_eq!(errors_of(&all, "translations"), [] as [&str; 0]);
        assert_eq!(
            daemon.json(&format!("/nat?comm={comm}&role=server"))["translations"],
            json!([row("server")])
        );
        assert!(daemon.json(&format!("/nat?comm={comm}&limit=1"))["next_cursor"].is_string());
        assert_counted(daemon, comm, &json!(1));
    }
}

/// Asserts the number of translated clients, and servers, of a process; `null` where it is not known, and without
/// `nat=true`.
fn assert_counted(daemon: &Daemon, comm: &str, expected: &Value) {
    for role in ["client", "server"] {
        for (nat, expected) in [("true", expected), ("false", &Value::Null)] {
            let peers = daemon.json(&format!("/peers?comm={comm}&role={role}&nat={nat}"));
            assert_eq!(
                (&peers["total"], &peers["peers"][0]["connections"]["translated"]),
                (&json!(1), expected),
                "{peers}"
            );
            let metrics = daemon.metrics_at(&format!("/metrics?nat={nat}"));
            let labels = [("process", comm), ("role", role)];
            assert_eq!(
                metrics.sum("tcpwatch_translated_connections", &labels),
                expected.as_u64(),
                "{role} {nat}"
            );
        }
    }
    let processes = daemon.json(&format!("/processes?comm={comm}&nat=true"));
    let process = &processes["processes"][0];
    let both = expected.as_u64().map(|count| 2 * count);
    for counted in [process, &process["instances"][0]] {
        assert_eq!(counted["connections"]["translated"].as_u64(), both, "{processes}");
    }
    assert_eq!(errors_of(&processes, "translated").is_empty(), !expected.is_null(), "{processes}");
}

#[test]
fn both_sides_show_their_translation() {
    assert_both_sides_are_shown(&Daemon::start(&[]), &translating(), "out");
}

#[test]
fn both_sides_show_a_translation_tracked_in_a_zone() {
    let daemon = Daemon::start(&[]);
    for (zone, test) in
        [("ct zone set 5", "5"), ("ct original zone set 5", "5o"), ("ct reply zone set 5", "5r")]
    {
        let namespace = translating_in(zone);
        assert_both_sides_are_shown(&daemon, &namespace, test);

        let mut plain =
            Workload::start(&namespace, "zone-plain", ENDS, &["127.0.0.1", "7200", "127.0.0.1", "7200"]);
        plain.hear();
        sides(&daemon, &plain).iter().for_each(assert_silent);
        assert_eq!(daemon.json("/nat?comm=zone-plain")["total"], 0);
        assert_counted(&daemon, "zone-plain", &json!(0));
    }
}

/// Two connections with the same ports and other addresses.
const SAME_PORTS: &str = r#"
listeners = [listen("127.0.0.1", 7001), listen("127.0.0.3", 7000)]
client = connect("127.0.0.1", 7000)
server = listeners[0].accept()[0]
other_client = socket.create_connection(("127.0.0.3", 7000), source_address=("127.0.0.2", port_of(client)))
other_server = listeners[1].accept()[0]
say("connected")
order()
"#;

#[test]
fn a_translation_of_other_addresses_with_the_same_ports_is_ignored() {
    let daemon = Daemon::start(&[]);
    let namespace = translating_in("ct zone set 5");
    add(&namespace, &["insert rule ip nat raw ip daddr { 127.0.0.2, 127.0.0.3 } notrack accept"]);
    let mut ends = Workload::start(&namespace, "same-ports", SAME_PORTS, &[]);
    ends.hear();
    daemon.sweep();
    let rows = daemon.json(&format!("/connections?pid={}", ends.pid()));
    let rows = rows["connections"].as_array().unwrap().iter().filter(|row| row["role"] != "listener");
    let (other, translated): (Vec<_>, Vec<_>) = rows
        .map(|row| daemon.detail(row))
        .partition(|side| side["local"]["addr"] == "127.0.0.2" || side["local"]["addr"] == "127.0.0.3");
    assert_eq!((other.len(), translated.len()), (2, 2));
    other.iter().for_each(assert_silent);
    for side in translated {
        assert_eq!(side["nat"]["dialled"], end("127.0.0.1", 7000.0), "{side}");
    }
}

/// Two connections with the same addresses on the client's side, one after the other. They reach the first and the
/// second port.
const AGAIN: &str = r#"
listeners = {port: listen("127.0.0.1", port) for port in set(args)}
client = connect("127.0.0.1", 7000)
port = port_of(client)
linger_0(client)
client.close()
listeners[args[0]].accept()[0].close()
say("closed")
order()
client = socket.create_connection(("127.0.0.1", 7000), source_address=("127.0.0.1", port))
server = listeners[args[1]].accept()[0]
say(port)
order()
"#;

#[test]
fn of_several_zones_the_translating_one_counts_unless_they_differ() {
    let daemon = Daemon::start(&[]);
    for (first, differ) in [("7000", false), ("7001", false), ("7002", true)] {
        let namespace = translating_in("ct zone set 5");
        // Otherwise the first connection's tracking ends after ten seconds.
        let keep = "echo 600 > /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close";
        namespace.run(&["sh", "-c", keep]);
        let redirect = format!("add rule ip nat output tcp dport 7000 redirect to :{first}");
        add(&namespace, &["flush chain ip nat output", &redirect]);
        let mut ends = Workload::start(&namespace, "again", AGAIN, &[first, "7001"]);
        ends.hear();
        add(&namespace, &["flush chain ip nat raw", "add rule ip nat raw ct zone set 6"]);
        add(&namespace, &["flush chain ip nat output", RULES[3]]);
        ends.order();
        let [port] = ends.hear_numbers();
        let nat = redirected("127.0.0.1", port);
        let [client, server] = sides(&daemon, &ends);
        assert_nat(&server, &nat);
        let all = daemon.json("/nat?comm=again");
        assert_eq!(
            (&all["total"], !errors_of(&all, "translations").is_empty()),
            (&json!(if differ { 1 } else { 2 }), differ),
            "{all}"
        );
        if differ {
            assert!(client["nat"].is_null() && errors_of(&client, "nat").len() == 1, "{client}");
        } else {
            assert_nat(&client, &nat);
        }
    }
}

/// The ends that are named last close on order, one after the other.
const CLOSING: &str = r#"
listener = listen(args[0], args[1])
ends = {"client": connect(args[2], args[3]), "server": listener.accept()[0]}
say(port_of(ends["client"]))
order()
for name in args[4:]:
    ends[name].close()
say("closed")
order()
"#;

#[test]
fn both_sides_show_the_translation_of_a_minisock() {
    let daemon = Daemon::start(&[]);
    for namespace in [translating(), translating_in("ct zone set 5")] {
        for (addr, closing, state) in [
            ("127.0.0.1", &["client", "server"][..], "TIME_WAIT"),
            ("::1", &["server", "client"], "TIME_WAIT"),
            ("127.0.0.1", &["server"], "FIN_WAIT2"),
            ("::1", &["client"], "FIN_WAIT2"),
        ] {
            // Beside an untranslated connection.
            for (dialled, reached) in [("7000", "7001"), ("7200", "7200")] {
                let args = [&[addr, reached, addr, dialled], closing].concat();
                let mut ends = Workload::start(&namespace, "nat-minisock", CLOSING, &args);
                let [port] = ends.hear_numbers();
                ends.ask();
                let side = side_in(&daemon, &ends, closing[0], state);
                assert!(side["transfer"].is_null() && errors_of(&side, "transfer").is_empty(), "{side}");
                let nat = if dialled == reached { Value::Null } else { redirected(addr, port) };
                assert_nat(&side, &nat);
            }
        }
    }
}

#[test]
fn an_untranslated_connection_has_no_nat_and_no_error() {
    let daemon = Daemon::start(&[]);
    // Without and with connection tracking.
    for namespace in [Namespace::new(), translating()] {
        let mut ends =
            Workload::start(&namespace, "plain", ENDS, &["127.0.0.1", "7200", "127.0.0.1", "7200"]);
        ends.hear();
        for side in sides(&daemon, &ends) {
            assert_silent(&side);
            assert!(side["transfer"].is_object(), "{side}");
        }
        assert_counted(&daemon, "plain", &json!(0));
    }
}

#[test]
fn without_net_admin_the_answer_has_an_error() {
    let copy = Copy::new();
    let capabilities = ["bpf", "perfmon", "sys_admin", "sys_ptrace", "dac_read_search"];
    let daemon = Daemon::start_by(copy.with(User::Root, &capabilities), &[]);
    let namespace = translating();
    let mut ends =
        Workload::start(&namespace, "nat-denied", ENDS, &["127.0.0.1", "7001", "127.0.0.1", "7000"]);
    ends.hear();
    for side in sides(&daemon, &ends) {
        let errors = errors_of(&side, "nat");
        assert!(errors[0].contains("CAP_NET_ADMIN") && side["nat"].is_null(), "{side}");
    }
    assert_counted(&daemon, "nat-denied", &Value::Null);
    let all = daemon.json("/nat");
    assert!(all["total"] == 0 && errors_of(&all, "translations")[0].contains("CAP_NET_ADMIN"), "{all}");
}
