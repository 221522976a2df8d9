//! What the network namespace of the calling thread is set to.

use std::fs;

use crate::{events::frame::NamespaceSettings, kernel::local_ports::LocalPorts};

pub(super) fn read(netns: u32) -> NamespaceSettings {
    let ports = LocalPorts::read().ok();
    NamespaceSettings {
        netns,
        somaxconn: number("/proc/sys/net/core/somaxconn"),
        tw_reuse: number("/proc/sys/net/ipv4/tcp_tw_reuse"),
        local_ports: ports.as_ref().map(LocalPorts::span),
        reserved_ports: ports.map_or_else(Vec::new, |ports| ports.reserved_spans()),
    }
}

/// The file shows the reader's namespace.
fn number(path: &str) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
