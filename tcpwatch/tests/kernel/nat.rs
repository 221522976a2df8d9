//! The addresses dialled and reached, where the kernel translates them.

use serde_json::{Value, json};

use crate::{
    daemon::Daemon,
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
    for rule in RULES {
        namespace.run(&["nft", rule]);
    }
    namespace
}

/// The answers about both sides.
fn sides(daemon: &Daemon, ends: &Workload) -> [Value; 2] {
    let rows = daemon.json(&format!("/connections?pid={}", ends.pid()));
    ["client", "server"].map(|role| {
        let row = rows["connections"].as_array().unwrap().iter().find(|row| row["role"] == role);
        daemon.detail(row.unwrap_or_else(|| panic!("no {role}: {rows}")))
    })
}

fn end(addr: &str, port: f64) -> Value {
    json!({ "addr": addr, "port": port as u16 })
}

#[test]
fn both_sides_of_a_translation_are_told_at_either_end() {
    let daemon = Daemon::start(&[]);
    let namespace = translating();
    for (comm, [at, port, dials, dialled], seen_from) in [
        ("nat-redirect", ["127.0.0.1", "7001", "127.0.0.1", "7000"], "127.0.0.1"),
        ("nat-redirect-6", ["::1", "7001", "::1", "7000"], "::1"),
        ("nat-dnat", ["127.0.0.1", "7101", "127.0.0.9", "7100"], "127.0.0.5"),
    ] {
        let mut ends = Workload::start(&namespace, comm, ENDS, &[at, port, dials, dialled]);
        let [source_port, seen_port] = ends.hear_numbers();
        let source = if at == "::1" { "::1" } else { "127.0.0.1" };
        let nat = json!({
            "source": end(source, source_port),
            "dialled": end(dials, dialled.parse().unwrap()),
            "source_seen": end(seen_from, seen_port),
            "reached": end(at, port.parse().unwrap()),
        });
        for side in sides(&daemon, &ends) {
            assert_eq!((&side["nat"], &side["nat_error"]), (&nat, &Value::Null), "{side}");
        }
    }
}

#[test]
fn what_is_not_translated_has_no_nat_and_no_error() {
    let daemon = Daemon::start(&[]);
    // Without and with connection tracking.
    for namespace in [Namespace::new(), translating()] {
        let mut ends =
            Workload::start(&namespace, "plain", ENDS, &["127.0.0.1", "7200", "127.0.0.1", "7200"]);
        ends.hear();
        for side in sides(&daemon, &ends) {
            assert_eq!((&side["nat"], &side["nat_error"]), (&Value::Null, &Value::Null), "{side}");
            assert!(side["transfer"].is_object(), "{side}");
        }
    }
}

#[test]
fn without_net_admin_the_answer_says_so() {
    let copy = Copy::new();
    let capabilities = ["bpf", "perfmon", "sys_admin", "sys_ptrace", "dac_read_search"];
    let daemon = Daemon::start_by(copy.with(User::Root, &capabilities), &[]);
    let namespace = translating();
    let mut ends =
        Workload::start(&namespace, "nat-denied", ENDS, &["127.0.0.1", "7001", "127.0.0.1", "7000"]);
    ends.hear();
    for side in sides(&daemon, &ends) {
        let error = side["nat_error"].as_str().unwrap();
        assert!(error.contains("CAP_NET_ADMIN") && side["nat"].is_null(), "{side}");
    }
}
