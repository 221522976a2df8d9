//! Which connections are asked for.

use std::{net::IpAddr, str::FromStr};

use ipnet::IpNet;

use crate::{
    http::parameters::parameters,
    model::{groups::Role, interfaces::Interface, table::Conn, transition::Transition},
    node::Node,
    tcp::state::TcpState,
};

parameters! {
    /// Conditions on a connection; all that are given must hold.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Filter {
        /// only in this state; `close-wait` and `close_wait` stand for `CLOSE_WAIT`
        pub state: Option<TcpState>,
        /// only of the process with this id
        pub pid: Option<u32>,
        /// only of processes with exactly this name, as answers show it
        pub comm: Option<String>,
        /// only with this port on this side
        pub local_port: Option<u16>,
        /// only with this port on the other side
        pub remote_port: Option<u16>,
        /// only where the other side has this address, or one in this network, such as `10.0.0.0/8`
        pub remote: Option<IpNet>,
        /// only where the socket is bound to this interface, by name or index
        pub interface: Option<String>,
        /// only of this side of the connection
        pub role: Option<Role>,
    }
}

parameters! {
    /// Conditions on sums by process name and role.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Chosen {
        /// only of processes with exactly this name, as answers show it
        comm: Option<String>,
        /// only of this side of the connections
        role: Option<Role>,
    }
}

impl Chosen {
    pub(crate) fn matches(&self, process: Option<&str>, role: Role) -> bool {
        self.role.is_none_or(|wanted| wanted == role)
            && self.comm.as_deref().is_none_or(|wanted| process == Some(wanted))
    }
}

impl Filter {
    pub(crate) fn matches(&self, node: &Node, conn: &Conn) -> bool {
        let process = conn.process.map(|id| node.tracker.processes().get(id));
        self.state.is_none_or(|state| conn.state() == state)
            && self.role.is_none_or(|role| conn.role == role)
            && self.matches_ports(conn.local.port, conn.remote.port)
            && self.matches_remote(conn.remote.addr.to_canonical())
            && self.matches_interface(|| node.tracker.interface(conn.netns, conn.interface))
            && self.matches_process(process.map(|process| process.pid), process.map(|process| &*process.comm))
    }

    pub(crate) fn wants(&self, transition: &Transition) -> bool {
        let process = transition.process.as_ref();
        self.state.is_none_or(|state| state == transition.to)
            && self.role.is_none_or(|role| role == transition.role)
            && self.matches_ports(transition.local.port, transition.remote.port)
            && self.matches_remote(transition.remote.addr)
            && self.matches_interface(|| transition.interface.clone())
            && self.matches_process(process.map(|process| process.pid), process.map(|process| &*process.comm))
    }

    fn matches_ports(&self, local: u16, remote: u16) -> bool {
        self.local_port.is_none_or(|port| port == local) && self.remote_port.is_none_or(|port| port == remote)
    }

    fn matches_remote(&self, remote: IpAddr) -> bool {
        self.remote.is_none_or(|net| net.contains(&remote))
    }

    fn matches_interface(&self, interface: impl FnOnce() -> Option<Interface>) -> bool {
        self.interface.as_deref().is_none_or(|wanted| {
            interface().is_some_and(|interface| {
                interface.name.as_deref() == Some(wanted) || wanted.parse() == Ok(interface.index)
            })
        })
    }

    fn matches_process(&self, pid: Option<u32>, comm: Option<&str>) -> bool {
        (self.pid.is_none() || self.pid == pid) && (self.comm.is_none() || self.comm.as_deref() == comm)
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let role = Self::ALL.iter().copied().find(|role| role.name() == text);
        role.ok_or_else(|| "not one of client, server, listener, unknown".to_owned())
    }
}
