//! The accept queues of listeners, read between sweeps: the kernel finds listeners in a table of their own
//! (inet_diag_dump_icsk in net/ipv4/inet_diag.c), which costs microseconds however many connections there are.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::{
    events::frame::{ListenQueues, NamespaceQueues, QueueRead},
    kernel::{
        clock, netlink,
        netns::{self, Hints},
        netstat,
    },
};

/// Reads those of these namespaces; moves the calling thread. What cannot be entered or read is left out: sweeps say why.
pub(super) fn read(namespaces: &BTreeMap<u32, Hints>) -> ListenQueues {
    let time_ns = clock::read().now_ns;
    let namespaces = namespaces.iter().filter(|(netns, ways)| netns::enter_known(**netns, ways));
    ListenQueues { time_ns, namespaces: namespaces.filter_map(|(netns, _)| of_namespace(*netns)).collect() }
}

fn of_namespace(netns: u32) -> Option<NamespaceQueues> {
    let mut listeners = Vec::new();
    for family in [AF_INET, AF_INET6] {
        netlink::dump(NETLINK_SOCK_DIAG, SockDiagMessage::InetRequest(request(family)), |answer| {
            if let SockDiagMessage::InetResponse(response) = answer {
                listeners.extend(queue(&response));
            }
            true
        })
        .ok()?;
    }
    Some(NamespaceQueues { netns, overflows: netstat::listen_overflows(), listeners })
}

fn request(family: u8) -> InetRequest {
    let any = match family {
        AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::SKMEMINFO,
        states: StateFlags::LISTEN,
        socket_id: SocketId {
            source_port: 0,
            destination_port: 0,
            source_address: any,
            destination_address: any,
            interface_id: 0,
            cookie: [0xff; 8],
        },
    }
}

/// `None` where nothing waits and nothing was dropped.
fn queue(response: &InetResponse) -> Option<QueueRead> {
    let header = &response.header;
    let drops = response.nlas.iter().find_map(|nla| match nla {
        Nla::MemInfo(memory) => Some(memory.drops),
        _ => None,
    });
    let read = QueueRead {
        cookie: u64::from_ne_bytes(header.socket_id.cookie),
        addr: header.socket_id.source_address,
        port: header.socket_id.source_port,
        waiting: header.recv_queue,
        limit: header.send_queue,
        drops: drops.unwrap_or(0),
    };
    (read.waiting > 0 || read.drops > 0).then_some(read)
}
