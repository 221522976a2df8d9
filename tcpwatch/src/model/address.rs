//! Addresses, in the one shape that all answers and the stream of transitions have: `{addr, port}`.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{events::decode::Endpoint, model::groups::Peer};

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Address {
    /// IPv4 or IPv6 address; an IPv4 address is written as such also where the socket is an IPv6 one (v4-mapped). The
    /// unspecified address for the remote end of a listener.
    pub addr: IpAddr,
    /// TCP port; 0 for the remote end of a listener, and while a connecting socket has no port yet.
    pub port: u16,
}

impl From<Endpoint> for Address {
    fn from(end: Endpoint) -> Self {
        Self { addr: end.addr.to_canonical(), port: end.port }
    }
}

/// As `ss` writes it: `127.0.0.1:80`, `[::1]:80`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.addr, self.port).fmt(f)
    }
}

/// What the ends of a group of connections have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct GroupAddress {
    /// The address; `null` where the connections of the group differ in it.
    pub addr: Option<IpAddr>,
    /// The port; `null` where the connections of the group differ in it.
    pub port: Option<u16>,
}

/// A client's peer has an address and a port, a server's peers are known by the server's own port.
impl From<Peer> for GroupAddress {
    fn from(peer: Peer) -> Self {
        match peer {
            Peer::Remote(addr, port) => Self { addr: Some(addr.to_canonical()), port: Some(port) },
            Peer::LocalPort(port) => Self { addr: None, port: Some(port) },
            Peer::Unknown | Peer::Other => Self::default(),
        }
    }
}

/// `127.0.0.1:80`; `*` in the place of what differs.
impl fmt::Display for GroupAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.addr, self.port) {
            (Some(addr), Some(port)) => SocketAddr::new(addr, port).fmt(f),
            (Some(IpAddr::V6(addr)), None) => write!(f, "[{addr}]:*"),
            (Some(addr), None) => write!(f, "{addr}:*"),
            (None, Some(port)) => write!(f, "*:{port}"),
            (None, None) => f.write_str("*:*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_null_and_a_star() {
        let addr = "::1".parse().unwrap();
        for (peer, text, json) in [
            (Peer::Remote(addr, 80), "[::1]:80", r#"{"addr":"::1","port":80}"#),
            (
                Peer::Remote("::ffff:1.2.3.4".parse().unwrap(), 80),
                "1.2.3.4:80",
                r#"{"addr":"1.2.3.4","port":80}"#,
            ),
            (Peer::LocalPort(80), "*:80", r#"{"addr":null,"port":80}"#),
            (Peer::Other, "*:*", r#"{"addr":null,"port":null}"#),
        ] {
            let address = GroupAddress::from(peer);
            assert_eq!((&*address.to_string(), &*serde_json::to_string(&address).unwrap()), (text, json));
        }
        let only_addr = GroupAddress { addr: Some(addr.into()), port: None };
        assert_eq!(only_addr.to_string(), "[::1]:*");
    }
}
