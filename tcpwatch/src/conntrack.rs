//! What network address translation (NAT) made of a connection's addresses: the kernel's connection tracking knows both.

use std::{fs, io, net::IpAddr};

use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple},
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::{decode::Endpoint, netlink, sock_diag::Target};

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

/// Asks, in the connection's namespace. `None` where nothing was translated.
///
/// # Errors
/// Why it cannot be asked, for people.
pub fn ask(target: &Target) -> Result<Option<Translation>, String> {
    translation(target).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => "CAP_NET_ADMIN is missing to ask the kernel".to_owned(),
        _ => format!("cannot ask the kernel (conntrack): {error}"),
    })
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
    let (mut addresses, mut ports) = ((None, None), (None, None));
    for part in tuple {
        match part {
            Tuple::Ip(parts) => parts.iter().for_each(|part| match part {
                IPTuple::SourceAddress(address) => addresses.0 = Some(*address),
                IPTuple::DestinationAddress(address) => addresses.1 = Some(*address),
                _ => {}
            }),
            Tuple::Proto(parts) => parts.iter().for_each(|part| match part {
                ProtoTuple::SourcePort(port) => ports.0 = Some(*port),
                ProtoTuple::DestinationPort(port) => ports.1 = Some(*port),
                _ => {}
            }),
            _ => {}
        }
    }
    Some((Endpoint::new(addresses.0?, ports.0?), Endpoint::new(addresses.1?, ports.1?)))
}
