//! What network address translation (NAT) made of a connection's addresses: the kernel's connection tracking knows both.

use std::{fs, io, net::IpAddr};

use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple},
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::{decode::Endpoint, netlink, netns, sock_diag::Target};

/// How many connections are tracked in the reader's namespace; not there where none can be. Asked first, because asking
/// for one would make the kernel load what it has not needed yet.
const TRACKED: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// The addresses of one connection on both sides of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Client and server as the client has them.
    pub dialled: (Endpoint, Endpoint),
    /// The same as the server has them.
    pub reached: (Endpoint, Endpoint),
}

/// `None` where nothing was translated.
///
/// # Errors
/// Why it cannot be asked, for people.
pub async fn ask(target: Target) -> Result<Option<Translation>, String> {
    netns::on_own_thread(move || {
        if !netns::enter_by_inode(target.netns, target.pid)? {
            return Ok(None);
        }
        translation(&target).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => "CAP_NET_ADMIN is missing to ask the kernel".to_owned(),
            _ => format!("cannot ask the kernel (conntrack): {error}"),
        })
    })
    .await?
}

fn translation(target: &Target) -> io::Result<Option<Translation>> {
    if fs::read_to_string(TRACKED).is_ok_and(|count| count.trim() != "0") {
        // It finds a connection by the addresses of either side.
        let answer = netlink::exchange(NETLINK_NETFILTER, request(target.local, target.remote))?;
        Ok(answer.as_ref().and_then(read))
    } else {
        Ok(None)
    }
}

fn request(source: Endpoint, destination: Endpoint) -> NetfilterMessage {
    let addresses = [source.addr.to_canonical(), destination.addr.to_canonical()];
    let family = match addresses[0] {
        IpAddr::V4(_) => NetfilterProtoFamily::IPv4,
        IpAddr::V6(_) => NetfilterProtoFamily::IPv6,
    };
    let tuple = vec![
        Tuple::Ip(vec![IPTuple::SourceAddress(addresses[0]), IPTuple::DestinationAddress(addresses[1])]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(Protocol::Tcp),
            ProtoTuple::SourcePort(source.port),
            ProtoTuple::DestinationPort(destination.port),
        ]),
    ];
    let question = ConntrackMessage::Get(vec![ConntrackAttribute::CtaTupleOrig(tuple)]);
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), question)
}

fn read(answer: &NetfilterMessage) -> Option<Translation> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = &answer.inner else {
        return None;
    };
    let dialled = attributes.iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(tuple) => ends(tuple),
        _ => None,
    })?;
    // The answers go the other way.
    let (server, client) = attributes.iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleReply(tuple) => ends(tuple),
        _ => None,
    })?;
    let translation = Translation { dialled, reached: (client, server) };
    (translation.dialled != translation.reached).then_some(translation)
}

/// Source and destination.
fn ends(tuple: &[Tuple]) -> Option<(Endpoint, Endpoint)> {
    let (mut source, mut destination) = ((None, None), (None, None));
    for part in tuple {
        match part {
            Tuple::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(address) => source.0 = Some(*address),
                        IPTuple::DestinationAddress(address) => destination.0 = Some(*address),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(ports) => {
                for port in ports {
                    match port {
                        ProtoTuple::SourcePort(port) => source.1 = Some(*port),
                        ProtoTuple::DestinationPort(port) => destination.1 = Some(*port),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let end = |(addr, port): (Option<IpAddr>, Option<u16>)| {
        let addr = match addr? {
            IpAddr::V4(addr) => addr.to_ipv6_mapped(),
            IpAddr::V6(addr) => addr,
        };
        Some(Endpoint { addr, port: port? })
    };
    Some((end(source)?, end(destination)?))
}
