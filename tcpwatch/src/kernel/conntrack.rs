//! Network address translation (NAT) of connections, from the kernel's connection tracking, which knows the addresses
//! on both sides.
//!
//! It reports the translation on this machine. Translations further along the path are out of sight.

use std::{collections::BTreeMap, fs, io, net::IpAddr};

use netlink_packet_core::{DefaultNla, Emitable as _, NLA_F_NESTED, Nla};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
    conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple},
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::{
    events::decode::Endpoint,
    kernel::{
        netlink,
        netns::{self, Hints, OfEach},
        sock_diag::Target,
    },
};

/// Number of connections tracked in the reader's namespace; absent where tracking is not available. Read first, because
/// a request for a connection would make the kernel load a module that it has not needed yet.
const TRACKED: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// The addresses of one connection on both sides of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Client and server as the client sees them.
    pub dialled: (Endpoint, Endpoint),
    /// Client and server as the server sees them.
    pub reached: (Endpoint, Endpoint),
}

impl Translation {
    fn changes_something(&self) -> bool {
        self.dialled != self.reached
    }

    /// Local and remote end of the sockets on both sides.
    pub fn ends(&self) -> [(Endpoint, Endpoint); 2] {
        let (seen, server) = self.reached;
        [self.dialled, (server, seen)]
    }

    /// Whether a socket on one of its sides has these ends.
    fn is_of(&self, local: Endpoint, remote: Endpoint) -> bool {
        self.ends().contains(&(local, remote))
    }
}

/// The translation of a connection, asked from inside its namespace. `None` where nothing is translated.
///
/// # Errors
/// Why the kernel cannot be asked, or that its answers contradict each other; a message for the user.
pub fn ask(target: &Target) -> Result<Option<Translation>, String> {
    let found = translations(target).map_err(|error| why(&error))?;
    match found[..] {
        [] => Ok(None),
        [translation] => Ok(Some(translation)),
        // Zones exist to separate connections with the same ends, and a socket does not say in which zone it is
        // tracked.
        _ => Err(
            "several zones of conntrack translate these addresses differently (`conntrack -L` lists them)"
                .to_owned(),
        ),
    }
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "CAP_NET_ADMIN is missing to ask the kernel".to_owned(),
        _ => format!("cannot ask the kernel (conntrack): {error}"),
    }
}

fn tracks_any() -> bool {
    fs::read_to_string(TRACKED).is_ok_and(|count| count.trim() != "0")
}

/// All translations of each namespace, or the reason why they are unknown. `namespaces`: inodes, and the ways
/// into each.
///
/// # Errors
/// When no namespace can be queried; a message for the user.
pub async fn ask_all(namespaces: BTreeMap<u32, Hints>) -> Result<OfEach<Vec<Translation>>, String> {
    netns::of_each(namespaces, of_namespace).await
}

fn of_namespace(inode: u32, ways: &Hints) -> Result<Vec<Translation>, String> {
    let mut found = Vec::new();
    // One that is gone may still have connections listed, in TIME_WAIT.
    if netns::enter_by_inode(inode, ways)? && tracks_any() {
        for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
            let question =
                NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), ConntrackMessage::Get(Vec::new()));
            netlink::dump(NETLINK_NETFILTER, question, |answer| {
                found.extend(read(&answer).filter(Translation::changes_something));
                true
            })
            .map_err(|error| format!("of network namespace {inode}: {}", why(&error)))?;
        }
    }
    Ok(found)
}

/// The different translations of a connection.
fn translations(target: &Target) -> io::Result<Vec<Translation>> {
    if !tracks_any() {
        return Ok(Vec::new());
    }
    let tuple = tuple(target.local, target.remote);
    let question = ConntrackMessage::Get(vec![ConntrackAttribute::CtaTupleOrig(tuple.clone())]);
    // In the default zone the kernel finds a connection by the addresses of either side.
    let answer = netlink::exchange(NETLINK_NETFILTER, message(target, question))?;
    let mut found = match answer {
        Some(answer) => read(&answer).into_iter().collect(),
        None => in_any_zone(target, &tuple)?,
    };
    found.retain(Translation::changes_something);
    Ok(found)
}

/// include/uapi/linux/netfilter/nfnetlink_conntrack.h: IPCTNL_MSG_CT_GET, CTA_FILTER.
const GET: u8 = 1;
const FILTER: u16 = 25;
/// The same: CTA_TUPLE_ORIG and CTA_TUPLE_REPLY, which CTA_FILTER_ORIG_FLAGS and CTA_FILTER_REPLY_FLAGS equal. The
/// first finds the client's side, the second the server's: from Linux 5.16 and 5.10.83 on (commit ad81d4daf6a3).
const DIRECTIONS: [u16; 2] = [1, 2];
/// net/netfilter/nf_internals.h: CTA_FILTER_F_CTA_PROTO_NUM, _SRC_PORT and _DST_PORT. Not the addresses: the kernel
/// skips equal IPv6 addresses (ctnetlink_filter_match_tuple in net/netfilter/nf_conntrack_netlink.c; seen with 6.18).
const PROTOCOL_AND_PORTS: u32 = 0b11_1000;

/// Dumps all tracked connections with these ports: the kernel finds one directly only in a zone that is named.
fn in_any_zone(target: &Target, tuple: &[Tuple]) -> io::Result<Vec<Translation>> {
    let mut found = Vec::new();
    for direction in DIRECTIONS {
        let flags = DefaultNla::new(direction, PROTOCOL_AND_PORTS.to_ne_bytes().to_vec());
        // Conntrack::Get would send the filter without NLA_F_NESTED, which the kernel refuses.
        let question = NetfilterMessageInner::Other {
            subsys: NetfilterSubsystem::Conntrack,
            message_type: GET,
            attributes: vec![nested(direction, tuple), nested(FILTER, &[flags])],
        };
        netlink::dump(NETLINK_NETFILTER, message(target, question), |answer| {
            let fits = read(&answer).filter(|translation| translation.is_of(target.local, target.remote));
            found.extend(fits.filter(|translation| !found.contains(translation)));
            true
        })?;
        // A socket is on one side only.
        if !found.is_empty() {
            break;
        }
    }
    Ok(found)
}

fn nested<T: Nla>(kind: u16, parts: &[T]) -> DefaultNla {
    let mut value = vec![0; parts.buffer_len()];
    parts.emit(&mut value);
    DefaultNla::new(kind | NLA_F_NESTED, value)
}

fn message(target: &Target, question: impl Into<NetfilterMessageInner>) -> NetfilterMessage {
    let family = match target.local.addr.to_canonical() {
        IpAddr::V4(_) => NetfilterProtoFamily::IPv4,
        IpAddr::V6(_) => NetfilterProtoFamily::IPv6,
    };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), question)
}

fn tuple(source: Endpoint, destination: Endpoint) -> Vec<Tuple> {
    vec![
        Tuple::Ip(vec![
            IPTuple::SourceAddress(source.addr.to_canonical()),
            IPTuple::DestinationAddress(destination.addr.to_canonical()),
        ]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(Protocol::Tcp),
            ProtoTuple::SourcePort(source.port),
            ProtoTuple::DestinationPort(destination.port),
        ]),
    ]
}

/// The translation that an answer describes; `None` of other protocols than TCP.
pub fn read(answer: &NetfilterMessage) -> Option<Translation> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = &answer.inner else {
        return None;
    };
    let dialled = attributes.iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(tuple) => ends(tuple),
        _ => None,
    })?;
    // Answers travel in the other direction.
    let (server, client) = attributes.iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleReply(tuple) => ends(tuple),
        _ => None,
    })?;
    Some(Translation { dialled, reached: (client, server) })
}

/// Source and destination; `None` of other protocols than TCP.
fn ends(tuple: &[Tuple]) -> Option<(Endpoint, Endpoint)> {
    let (mut addresses, mut ports, mut is_tcp) = ((None, None), (None, None), false);
    for part in tuple {
        match part {
            Tuple::Ip(parts) => parts.iter().for_each(|part| match part {
                IPTuple::SourceAddress(address) => addresses.0 = Some(*address),
                IPTuple::DestinationAddress(address) => addresses.1 = Some(*address),
                _ => {}
            }),
            Tuple::Proto(parts) => parts.iter().for_each(|part| match part {
                ProtoTuple::Protocol(protocol) => is_tcp = *protocol == Protocol::Tcp,
                ProtoTuple::SourcePort(port) => ports.0 = Some(*port),
                ProtoTuple::DestinationPort(port) => ports.1 = Some(*port),
                _ => {}
            }),
            _ => {}
        }
    }
    is_tcp.then_some((Endpoint::new(addresses.0?, ports.0?), Endpoint::new(addresses.1?, ports.1?)))
}
