//! The interfaces that sockets are bound to: by SO_BINDTODEVICE, by the scope of a link-local address, or to a VRF.
//!
//! In: the records that report them, and their names, which only a sweep can read. Out: the interface of a socket.
//! Deliberately absent: interfaces that no socket is bound to.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use rustc_hash::FxHashMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    events::{decode::InterfaceRecord, frame::InterfaceNames},
    model::address::Address,
};

/// Names that are kept. When there are more, all are forgotten: the next sweep reads those that are in use.
const NAMES: usize = 4096;

/// The interface that a socket is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Interface {
    /// Its index in the network namespace.
    pub index: u32,
    /// Its name, as of the latest sweep that found the socket; `null` where none has, and where the interface is gone.
    pub name: Option<Arc<str>>,
}

/// Its name, or where that is not known its index.
impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => self.index.fmt(f),
        }
    }
}

/// The local end, with the interface: `10.0.0.1%eth0:80`, `[fe80::1%eth0]:80`.
pub fn local_text(local: Address, interface: Option<&Interface>) -> String {
    text(local, interface)
}

/// The remote end, with the interface where the address has a meaning only there: `[fe80::1%eth0]:80`.
pub fn remote_text(remote: Address, interface: Option<&Interface>) -> String {
    let link_local = matches!(remote.addr, IpAddr::V6(addr) if addr.is_unicast_link_local());
    text(remote, interface.filter(|_| link_local))
}

fn text(Address { addr, port }: Address, interface: Option<&Interface>) -> String {
    match (addr, interface) {
        (_, None) => SocketAddr::new(addr, port).to_string(),
        (IpAddr::V4(addr), Some(interface)) => format!("{addr}%{interface}:{port}"),
        (IpAddr::V6(addr), Some(interface)) => format!("[{addr}%{interface}]:{port}"),
    }
}

/// What is known of interfaces.
#[derive(Debug, Default)]
pub(crate) struct Interfaces {
    /// By network namespace and index.
    names: FxHashMap<(u32, u32), Arc<str>>,
    /// The latest record about an interface: that of the socket of the next record.
    announced: Option<InterfaceRecord>,
}

impl Interfaces {
    pub(crate) fn announce(&mut self, record: InterfaceRecord) {
        self.announced = Some(record);
    }

    /// The index of the interface, if the latest record about one was of this socket.
    pub(crate) fn announced(&self, cookie: u64) -> Option<u32> {
        self.announced.filter(|record| record.cookie == cookie).map(|record| record.interface)
    }

    /// `index`: 0 for none.
    pub(crate) fn get(&self, netns: u32, index: u32) -> Option<Interface> {
        (index != 0).then(|| Interface { index, name: self.names.get(&(netns, index)).cloned() })
    }

    pub(crate) fn knows(&self, read: &InterfaceNames) -> bool {
        read.names.iter().all(|(index, name)| {
            self.names.get(&(read.netns, *index)).map(AsRef::as_ref) == Some(name.as_str())
        })
    }

    pub(crate) fn learn(&mut self, read: &InterfaceNames) {
        if self.names.len() + read.names.len() > NAMES {
            self.names.clear();
        }
        let names = read.names.iter().take(NAMES);
        self.names.extend(names.map(|(index, name)| ((read.netns, *index), name.as_str().into())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_shows_the_interface_where_it_belongs_to_it() {
        let eth0 = Interface { index: 3, name: Some("eth0".into()) };
        let nameless = Interface { index: 3, name: None };
        for (addr, interface, local, remote) in [
            ("10.0.0.1", None, "10.0.0.1:80", "10.0.0.1:80"),
            ("10.0.0.1", Some(&eth0), "10.0.0.1%eth0:80", "10.0.0.1:80"),
            ("2001:db8::1", Some(&eth0), "[2001:db8::1%eth0]:80", "[2001:db8::1]:80"),
            ("fe80::1", Some(&nameless), "[fe80::1%3]:80", "[fe80::1%3]:80"),
            ("fe80::1", None, "[fe80::1]:80", "[fe80::1]:80"),
        ] {
            let end = Address { addr: addr.parse().unwrap(), port: 80 };
            assert_eq!((&*local_text(end, interface), &*remote_text(end, interface)), (local, remote));
        }
    }

    #[test]
    fn names_are_forgotten_rather_than_kept_without_bound() {
        let mut interfaces = Interfaces::default();
        let one = |netns| InterfaceNames { netns, names: vec![(3, "eth0".to_owned())] };
        for netns in 0..=NAMES as u32 {
            interfaces.learn(&one(netns));
            assert!(interfaces.knows(&one(netns)));
        }
        assert_eq!(interfaces.names.len(), 1);
        assert!(!interfaces.knows(&one(0)));
        assert_eq!(interfaces.get(1, 3), Some(Interface { index: 3, name: None }));
        assert_eq!(interfaces.get(1, 0), None);
    }
}
