//! The kernel's own view of its sockets, from `ss` and /proc, independent of tcpwatch.

use std::{
    net::{IpAddr, Ipv6Addr},
    process::Command,
};

use crate::netns::Namespace;

/// The identity of a socket, as in a row of `/connections`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) netns: u64,
    /// Name of the interface that it is bound to; empty for none.
    pub(crate) interface: String,
    pub(crate) local: End,
    pub(crate) remote: End,
    pub(crate) state: String,
    /// The cookie, in hexadecimal.
    pub(crate) id: String,
}

pub(crate) type End = (IpAddr, u16);

#[derive(Clone, Debug)]
pub(crate) struct SsRow {
    pub(crate) key: Key,
    /// The processes that hold it, from /proc/PID/fd.
    pub(crate) holders: Vec<u32>,
    /// Whether a descriptor refers to it, which may be on its way between processes.
    pub(crate) has_file: bool,
}

/// All TCP sockets of the namespace that are neither new nor over.
pub(crate) fn sockets(namespace: &Namespace) -> Vec<SsRow> {
    let output = Command::new("nsenter")
        .arg(format!("--net={}", namespace.path()))
        .args(["ss", "-tanpeHO"])
        .output()
        .expect("nsenter (util-linux) and ss (iproute2)");
    assert!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| row(namespace.inode, line)).collect()
}

/// Number of TIME_WAITs with this remote port.
pub(crate) fn time_waits(namespace: &Namespace, remote_port: u16) -> usize {
    let output = Command::new("nsenter")
        .arg(format!("--net={}", namespace.path()))
        .args(["ss", "-Htan", "state", "time-wait", &format!("( dport = :{remote_port} )")])
        .output()
        .expect("nsenter (util-linux) and ss (iproute2)");
    assert!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().count()
}

/// `ESTAB 0 0 127.0.0.1:42589 127.0.0.1:60364 users:(("comm",pid=7832,fd=9)) ino:512112 sk:4aacc …`
fn row(netns: u64, line: &str) -> SsRow {
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |mark: &str| words.iter().find_map(|word| word.strip_prefix(mark));
    let holders = after("users:").unwrap_or("").split("pid=").skip(1);
    let holders = holders.map(|rest| rest.split(',').next().unwrap().parse().unwrap());
    SsRow {
        key: Key {
            netns,
            interface: interface(words[3]).to_owned(),
            local: end(words[3]),
            remote: end(words[4]),
            state: state(words[0]).to_owned(),
            id: after("sk:").expect("a cookie").to_owned(),
        },
        holders: holders.collect(),
        has_file: after("ino:").is_some_and(|inode| inode != "0"),
    }
}

fn state(name: &str) -> &str {
    match name {
        "ESTAB" => "ESTABLISHED",
        "SYN-SENT" => "SYN_SENT",
        "SYN-RECV" => "SYN_RECV",
        "FIN-WAIT-1" => "FIN_WAIT1",
        "FIN-WAIT-2" => "FIN_WAIT2",
        "TIME-WAIT" => "TIME_WAIT",
        "CLOSE-WAIT" => "CLOSE_WAIT",
        "LAST-ACK" => "LAST_ACK",
        same => same,
    }
}

/// What follows the address of the local end: `127.0.0.1%lo:80`, `[fe80::1]%veth0:80`.
fn interface(text: &str) -> &str {
    text.split_once('%').and_then(|(_, rest)| rest.rsplit_once(':')).map_or("", |(interface, _)| interface)
}

/// `127.0.0.1:80`, `[::1]:80`, `[fe80::1]%veth:80`, `*:80` for `::` that takes IPv4 too, port `*` for none.
fn end(text: &str) -> End {
    let (addr, port) = text.rsplit_once(':').unwrap();
    let addr = addr.split('%').next().unwrap().trim_matches(['[', ']']);
    let addr = if addr == "*" { Ipv6Addr::UNSPECIFIED.into() } else { addr.parse::<IpAddr>().unwrap() };
    (addr.to_canonical(), if port == "*" { 0 } else { port.parse().unwrap() })
}
