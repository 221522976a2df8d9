//! Counts of the connections of now that would else cost a walk through all of them: by process and state, and by the
//! destination that clients' local ports are in use toward. They are kept as connections come, change and go.

use std::{fmt, net::Ipv6Addr};

use rustc_hash::FxHashMap;

use crate::{
    events::decode::Endpoint,
    model::{address::Address, groups::Role, processes::ProcessId, table::Conn},
    tcp::state::TcpState,
};

/// Connections by state, at [`TcpState::index`].
pub type StateCounts = [u32; TcpState::COUNT];

/// Destinations that ports are counted toward, 64 bytes each. Beyond them only those are counted that have a place.
const MAX_DESTINATIONS: usize = 65_536;

/// From where to where each connection needs a local port of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortUse {
    /// Inode of the network namespace.
    pub netns: u32,
    pub source: Ipv6Addr,
    pub destination: Endpoint,
}

/// `10.0.0.7 -> 10.20.0.9:9092`
impl fmt::Display for PortUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.source.to_canonical(), Address::from(self.destination))
    }
}

impl PortUse {
    /// Of a client's connection; a server's and a listener's port is not one that the kernel chose.
    pub(super) fn of(conn: &Conn) -> Option<Self> {
        let is_client = conn.role == Role::Client;
        is_client.then_some(Self { netns: conn.netns, source: conn.local.addr, destination: conn.remote })
    }
}

#[derive(Default)]
pub(super) struct Tallies {
    /// Of what has no known process.
    unowned: StateCounts,
    /// At the index of the process.
    by_process: Vec<StateCounts>,
    ports: FxHashMap<PortUse, u32>,
    /// Times that a connection was not counted because its destination found no place.
    ports_left_out: u64,
}

impl Tallies {
    pub(super) fn add(&mut self, conn: &Conn) {
        *self.count(conn.process, conn.state()) += 1;
        self.take_port(PortUse::of(conn));
    }

    pub(super) fn subtract(&mut self, conn: &Conn) {
        *self.count(conn.process, conn.state()) -= 1;
        self.free_port(PortUse::of(conn));
    }

    pub(super) fn move_state(&mut self, process: Option<ProcessId>, from: TcpState, to: TcpState) {
        *self.count(process, from) -= 1;
        *self.count(process, to) += 1;
    }

    pub(super) fn move_process(&mut self, state: TcpState, from: Option<ProcessId>, to: Option<ProcessId>) {
        *self.count(from, state) -= 1;
        *self.count(to, state) += 1;
    }

    pub(super) fn move_port(&mut self, from: Option<PortUse>, to: Option<PortUse>) {
        if from != to {
            self.free_port(from);
            self.take_port(to);
        }
    }

    fn take_port(&mut self, toward: Option<PortUse>) {
        let Some(toward) = toward else { return };
        if let Some(count) = self.ports.get_mut(&toward) {
            *count += 1;
        } else if self.ports.len() < MAX_DESTINATIONS {
            self.ports.insert(toward, 1);
        } else {
            self.ports_left_out += 1;
        }
    }

    fn free_port(&mut self, toward: Option<PortUse>) {
        let Some(toward) = toward else { return };
        // Absent where it found no place.
        if let Some(count) = self.ports.get_mut(&toward) {
            *count -= 1;
            if *count == 0 {
                self.ports.remove(&toward);
            }
        }
    }

    pub(super) fn states_of(&self, process: Option<ProcessId>) -> StateCounts {
        match process {
            None => self.unowned,
            Some(id) => self.by_process.get(id.index()).copied().unwrap_or_default(),
        }
    }

    pub(super) fn owners(&self) -> usize {
        self.by_process.iter().filter(|states| states.iter().any(|count| *count > 0)).count()
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = (&PortUse, u32)> {
        self.ports.iter().map(|(toward, count)| (toward, *count))
    }

    pub(super) fn ports_left_out(&self) -> u64 {
        self.ports_left_out
    }

    #[inline]
    fn count(&mut self, process: Option<ProcessId>, state: TcpState) -> &mut u32 {
        let counts = match process {
            None => &mut self.unowned,
            Some(id) => {
                if id.index() >= self.by_process.len() {
                    self.by_process.resize(id.index() + 1, StateCounts::default());
                }
                &mut self.by_process[id.index()]
            }
        };
        &mut counts[state.index()]
    }
}
