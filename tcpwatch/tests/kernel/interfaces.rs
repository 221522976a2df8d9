//! Sockets that are bound to an interface: the same four numbers on two links are two connections.

use std::process::Command;

use serde_json::{Value, json};

use crate::{daemon::Daemon, eventually::eventually, netns::Namespace, workload::Workload};

/// Listens on a port for all links, or once for each link with a socket that is bound to it. Accepts two connections,
/// closes both first at an order, and accepts one more.
const SERVER: &str = r#"
family = socket.AF_INET6 if ":" in args[0] else socket.AF_INET
listeners, port = [], 0
for device in args[1:] or [""]:
    listener = socket.socket(family)
    if device:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    listener.bind((args[0], port))
    listener.listen()
    port = port_of(listener)
    listeners.append(listener)
say(port)
conns = [listener.accept()[0] for listener in listeners * (2 // len(listeners))]
for conn in conns:
    conn.recv(100)
say("accepted")
order()
for conn in conns:
    conn.close()
say("closed")
conn = listeners[0].accept()[0]
conn.recv(100)
say("again")
order()
"#;

/// Connects from its own address and port, sends a number of bytes, and closes after the server. At an order it does
/// so once more.
const CLIENT: &str = r#"
own, server, port, length = args[0], args[1], int(args[2]), int(args[3])
scope = lambda addr: (0, socket.if_nametoindex("uplink")) if addr.startswith("fe80") else ()
def connect_again():
    conn = socket.socket(socket.AF_INET6 if ":" in own else socket.AF_INET)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    conn.bind((own, 44300, *scope(own)))
    conn.connect((server, port, *scope(server)))
    conn.send(b"x" * length)
    return conn
conn = connect_again()
say("connected")
conn.recv(1)
conn.close()
order()
conn = connect_again()
order()
"#;

/// The address at both ends of both links, of which the server's is first.
const LINK_LOCAL: [&str; 2] = ["fe80::1", "fe80::2"];
const IPV4: [&str; 2] = ["10.97.0.1", "10.97.0.2"];
const IPV6: [&str; 2] = ["fd97::1", "fd97::2"];

/// A server with two links, and on each a client with the same address.
struct Links {
    server: Namespace,
    clients: [Namespace; 2],
}

const LINKS: [&str; 2] = ["left", "right"];

impl Links {
    fn new() -> Self {
        let links = Self { server: Namespace::new(), clients: [Namespace::new(), Namespace::new()] };
        for (name, client) in LINKS.iter().zip(&links.clients) {
            links.server.run(&["ip", "link", "add", name, "type", "veth", "peer", "name", "uplink"]);
            let path = client.path();
            let netns = path.rsplit('/').next().unwrap();
            links.server.run(&["ip", "link", "set", "dev", "uplink", "netns", netns]);
            for (namespace, device, end) in [(&links.server, *name, 0), (client, "uplink", 1)] {
                namespace.run(&["ip", "link", "set", device, "addrgenmode", "none", "up"]);
                for (addr, length) in [(LINK_LOCAL[end], 64), (IPV6[end], 64)] {
                    let addr = format!("{addr}/{length}");
                    namespace.run(&["ip", "addr", "add", &addr, "dev", device, "nodad"]);
                }
                namespace.run(&["ip", "addr", "add", &format!("{}/24", IPV4[end]), "dev", device]);
            }
        }
        links
    }

    /// The server's rows but for listeners, by interface: name and state.
    fn rows(&self, daemon: &Daemon) -> Vec<(String, String, Value)> {
        let rows = daemon.connections_in(&self.server).into_iter().filter(|row| row["role"] != "listener");
        let text = |value: &Value| value.as_str().unwrap_or("none").to_owned();
        let mut rows: Vec<_> =
            rows.map(|row| (text(&row["interface"]["name"]), text(&row["state"]), row)).collect();
        rows.sort_by_key(|(name, state, _)| (name.clone(), state.clone()));
        rows
    }

    fn wait_for(&self, daemon: &Daemon, wanted: [(&str, &str); 2]) -> Vec<Value> {
        eventually("both connections are there, each on its interface", || {
            let rows = self.rows(daemon);
            let found: Vec<_> = rows.iter().map(|(name, state, _)| (&**name, &**state)).collect();
            if found == wanted {
                Ok(rows.into_iter().map(|(_, _, row)| row).collect())
            } else {
                Err(format!("{rows:?}"))
            }
        })
    }
}

/// When the daemon starts, and whether it is asked before the connections end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Watch {
    Before,
    FromTheMiddle,
    AskedAtTheEnd,
}

/// `devices`: those that listeners are bound to.
fn check(links: &Links, watch: Watch, [local, remote]: [&str; 2], devices: &[&str], names: [&str; 2]) {
    let what = format!("{local}, {watch:?}");
    eprintln!("{what}");
    let early = (watch != Watch::FromTheMiddle).then(|| Daemon::start(&[]));
    let bind = if local.starts_with("fe80") { "::" } else { local };
    let mut server = Workload::start(&links.server, "links-server", SERVER, &[&[bind], devices].concat());
    let port = server.hear();
    let mut clients: Vec<_> = links
        .clients
        .iter()
        .zip(["10", "20"])
        .map(|(client, length)| {
            let mut client = Workload::start(client, "links-client", CLIENT, &[remote, local, &port, length]);
            assert_eq!(client.hear(), "connected");
            client
        })
        .collect();
    assert_eq!(server.hear(), "accepted");
    let daemon = early.unwrap_or_else(|| Daemon::start(&[]));
    if watch != Watch::AskedAtTheEnd {
        let rows = links.wait_for(&daemon, [(names[0], "ESTABLISHED"), (names[1], "ESTABLISHED")]);
        for (row, received) in rows.iter().zip([10, 20]) {
            let detail = daemon.detail(row);
            assert_eq!(detail["errors"], json!([]), "{what}: {detail}");
            assert_eq!(detail["transfer"]["receiving"]["received_bytes"], received, "{what}: {detail}");
            assert!(detail["options"].is_object(), "{what}: {detail}");
            assert_eq!(row["process"]["pid"], server.pid(), "{what}: {row}");
        }
        let found = daemon.json(&format!("/connections?interface={}", names[1]));
        let same =
            found["connections"].as_array().unwrap().iter().filter(|row| row["netns"] == links.server.inode);
        assert_eq!(same.filter(|row| row["role"] == "server").count(), 1, "{what}: {found}");
        let (_, text) = daemon.get(&format!("/connections?format=text&local_port={port}&role=server"));
        for name in names {
            let (open, close) = if local.contains(':') { ("[", "]") } else { ("", "") };
            let end = format!("{open}{local}%{name}{close}:{port}");
            assert!(text.contains(&end), "{what}: no {end} in {text}");
        }
    }
    assert_eq!(server.ask(), "closed");
    let rows = links.wait_for(&daemon, [(names[0], "TIME_WAIT"), (names[1], "TIME_WAIT")]);
    for row in &rows {
        assert_eq!(daemon.detail(row)["errors"], json!([]), "{what}");
        assert_eq!(row["process"]["pid"], server.pid(), "{what}: {row}");
    }
    // The client has no minisock; its new connection replaces the server's, on its own link only.
    clients[0].order();
    assert_eq!(server.hear(), "again");
    let rows = links.wait_for(&daemon, [(names[0], "ESTABLISHED"), (names[1], "TIME_WAIT")]);
    assert_eq!(daemon.detail(&rows[0])["transfer"]["receiving"]["received_bytes"], 10, "{what}");
}

#[test]
fn the_same_four_numbers_on_two_links_are_two_connections() {
    for watch in [Watch::Before, Watch::FromTheMiddle, Watch::AskedAtTheEnd] {
        for (addrs, devices) in [(LINK_LOCAL, &[][..]), (IPV4, &LINKS), (IPV6, &LINKS)] {
            check(&Links::new(), watch, addrs, devices, LINKS);
        }
    }
}

/// A connection that a listener accepts in any VRF is bound to the VRF.
#[test]
fn the_same_four_numbers_in_two_vrfs_are_two_connections() {
    const VRFS: [&str; 2] = ["blue", "red"];
    for watch in [Watch::Before, Watch::FromTheMiddle, Watch::AskedAtTheEnd] {
        let links = Links::new();
        for ((name, table), link) in VRFS.iter().zip(["100", "101"]).zip(LINKS) {
            let mut add = Command::new("nsenter");
            add.args([&format!("--net={}", links.server.path()), "ip", "link", "add", name, "type", "vrf"]);
            if !add.args(["table", table]).status().unwrap().success() {
                println!("SKIPPED: this kernel has no VRFs (CONFIG_NET_VRF)");
                return;
            }
            links.server.run(&["ip", "link", "set", name, "up"]);
            links.server.run(&["ip", "link", "set", link, "master", name]);
        }
        links.server.run(&["sysctl", "-q", "net.ipv4.tcp_l3mdev_accept=1"]);
        check(&links, watch, IPV4, &[], VRFS);
    }
}

#[test]
fn a_connect_that_fails_on_an_interface_shows_it() {
    const PROGRAM: &str = r#"
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"left")
say(errno_of(lambda: sock.connect(("192.0.2.1", 80))))
order()
"#;
    let daemon = Daemon::start(&[]);
    let links = Links::new();
    let mut program = Workload::start(&links.server, "no-route", PROGRAM, &[]);
    program.hear();
    if !daemon.serves("connect") {
        println!("SKIPPED: this kernel does not report connects that fail at once");
        return;
    }
    eventually("the failure is there", || {
        let ended = daemon.json("/history?comm=no-route");
        let interfaces: Vec<_> = ended["connections"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["interface"]["index"].clone())
            .collect();
        if interfaces.len() == 1 && interfaces[0].is_u64() { Ok(()) } else { Err(ended.to_string()) }
    });
}
