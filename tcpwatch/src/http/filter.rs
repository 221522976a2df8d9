//! Which connections are asked for.

use std::{net::IpAddr, str::FromStr};

use ipnet::IpNet;

use crate::{
    http::{ApiError, request::Params},
    model::{groups::Role, table::Conn, transition::Transition},
    node::Node,
    tcp::state::TcpState,
};

#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub state: Option<TcpState>,
    pub pid: Option<u32>,
    pub comm: Option<String>,
    pub local_port: Option<u16>,
    pub remote_port: Option<u16>,
    pub remote: Option<IpNet>,
    pub role: Option<Role>,
}

/// Of what process and role: where sums are asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chosen {
    comm: Option<String>,
    role: Option<Role>,
}

impl Chosen {
    pub(crate) const PARAMETERS: [&str; 2] = ["comm", "role"];

    pub(crate) fn take(params: &mut Params) -> Result<Self, ApiError> {
        Ok(Self { comm: params.take("comm")?, role: params.take_as("role")? })
    }

    pub(crate) fn matches(&self, process: Option<&str>, role: Role) -> bool {
        self.role.is_none_or(|wanted| wanted == role)
            && self.comm.as_deref().is_none_or(|wanted| process == Some(wanted))
    }
}

impl Filter {
    /// The parameters that a filter takes.
    pub(crate) const PARAMETERS: [&str; 7] =
        ["state", "pid", "comm", "local_port", "remote_port", "remote", "role"];

    pub(crate) fn take(params: &mut Params) -> Result<Self, ApiError> {
        Ok(Self {
            state: params.take_as("state")?,
            pid: params.take_as("pid")?,
            comm: params.take("comm")?,
            local_port: params.take_as("local_port")?,
            remote_port: params.take_as("remote_port")?,
            remote: params.take("remote")?.map(|text| address_or_cidr("remote", &text)).transpose()?,
            role: params.take_as("role")?,
        })
    }

    pub(crate) fn matches(&self, node: &Node, conn: &Conn) -> bool {
        let process = conn.process.map(|id| node.tracker.processes().get(id));
        self.state.is_none_or(|state| conn.state() == state)
            && self.role.is_none_or(|role| conn.role == role)
            && self.matches_ports(conn.local.port, conn.remote.port)
            && self.matches_remote(conn.remote.addr.to_canonical())
            && self.matches_process(process.map(|process| process.pid), process.map(|process| &*process.comm))
    }

    pub(crate) fn wants(&self, transition: &Transition) -> bool {
        let process = transition.process.as_ref();
        self.state.is_none_or(|state| state == transition.to)
            && self.role.is_none_or(|role| role == transition.role)
            && self.matches_ports(transition.local.port, transition.remote.port)
            && self.matches_remote(transition.remote.addr)
            && self.matches_process(process.map(|process| process.pid), process.map(|process| &*process.comm))
    }

    fn matches_ports(&self, local: u16, remote: u16) -> bool {
        self.local_port.is_none_or(|port| port == local) && self.remote_port.is_none_or(|port| port == remote)
    }

    fn matches_remote(&self, remote: IpAddr) -> bool {
        self.remote.is_none_or(|net| net.contains(&remote))
    }

    fn matches_process(&self, pid: Option<u32>, comm: Option<&str>) -> bool {
        (self.pid.is_none() || self.pid == pid) && (self.comm.is_none() || self.comm.as_deref() == comm)
    }
}

pub(crate) fn address_or_cidr(parameter: &str, text: &str) -> Result<IpNet, ApiError> {
    let address = text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
    address.or_else(|_| text.parse()).map_err(|_| {
        ApiError::bad(parameter, format!("`{text}` is not an address or CIDR such as 10.0.0.0/8"))
    })
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let role = Self::ALL.iter().copied().find(|role| role.name() == text);
        role.ok_or_else(|| "not one of client, server, listener, unknown".to_owned())
    }
}
