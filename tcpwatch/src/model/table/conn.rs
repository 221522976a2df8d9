//! One row of the table.

use bitflags::bitflags;

use crate::{
    events::decode::{Endpoint, Kind, Traffic},
    model::{
        groups::{GroupId, Peer, Role},
        processes::ProcessId,
        socket_retransmits::SocketRetransmits,
    },
    tcp::{
        connect_outcome::Outcome, life::Life, reset_reason::ObservedReset, stall::Stalled, state::TcpState,
    },
};

/// One connection, listener, minisock or request.
#[derive(Clone, Debug)]
pub struct Conn {
    pub cookie: u64,
    pub netns: u32,
    pub local: Endpoint,
    pub remote: Endpoint,
    /// Its states so far. Changed through the table, which lists connections by state.
    pub(super) life: Life,
    /// CLOCK_MONOTONIC, when it was last heard of.
    pub seen_ns: u64,
    /// CLOCK_MONOTONIC, when the kernel will have ended this minisock.
    pub expires_ns: u64,
    /// Who connected; of a server's connection unknown.
    pub opener: Option<ProcessId>,
    /// Who holds it, or held it last; of a connection not accepted yet, who listens.
    pub process: Option<ProcessId>,
    /// Who closed it, or shut down its sending side.
    pub closer: Option<ProcessId>,
    /// Where it is counted, once there was something to count.
    pub group: Option<GroupId>,
    pub role: Role,
    pub marks: ConnFlags,
    /// The errno that ended it, 0 for none.
    pub error: u8,
    /// As last told by the kernel; not yet told of a connection that is older than its first sight.
    pub total_retrans: Option<u32>,
    /// Once something was retransmitted before our eyes.
    pub retransmits: Option<Box<SocketRetransmits>>,
    /// What was told of its end, if there was more to tell than the states.
    pub end: Option<Box<EndFacts>>,
    /// See [`Conn::traffic`].
    pub(super) traffic: Traffic,
    /// What became of its connect, once that is over and was told.
    pub connect: Option<Outcome>,
    /// When last told: at the peer's FIN, or by a sweep.
    pub unread_bytes: u32,
    /// The last sweep that saw it.
    pub swept: u32,
    pub(super) list: u8,
    pub(super) previous: u32,
    pub(super) next: u32,
}

/// There are as many as connections, and each record changes one: a word more costs memory and time.
const _: () = assert!(size_of::<Conn>() == 192);

/// How a connection ended, or is about to.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndFacts {
    pub reset: Option<ObservedReset>,
    /// Of one that had been idle when a side first closed it.
    pub idle: Option<Idle>,
    /// See [`Conn::after_close_bytes`].
    pub after_close_bytes: u64,
}

/// How long nothing had been sent, and received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    pub sending_ns: u64,
    pub receiving_ns: u64,
}

bitflags! {
    /// What is known about what is known.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ConnFlags: u16 {
        /// It began before it was first seen.
        const OLDER = 1;
        /// It entered its state before that was first seen.
        const STATE_OLDER = 1 << 1;
        /// It was ESTABLISHED at some time.
        const ESTABLISHED = 1 << 2;
        /// Its connect is counted as an attempt, and what becomes of it is not yet.
        const CONNECTING = 1 << 3;
        /// The process was seen acting on the socket or holding it; else it is the listener's.
        const OWNER_SEEN = 1 << 4;
        /// The sweep that saw the socket last found its process to hold it.
        const OWNER_HOLDS = 1 << 5;
        /// That sweep has counted it among the live ones of its group.
        const MEASURED = 1 << 6;
        /// Of a passive open: no process has accepted it yet.
        const UNACCEPTED = 1 << 7;
        /// The kernel keeps only a minisock of it.
        const MINISOCK = 1 << 8;
        /// A handshake under way, known from sweeps only.
        const REQUEST = 1 << 9;
        /// Records will tell who accepts it.
        const ACCEPT_IS_TOLD = 1 << 10;
        /// Its cookie is the address of a socket, which another may have when this one is gone.
        const BY_ADDRESS = 1 << 11;
        /// It was told what the connection has carried.
        const TRAFFIC_TOLD = 1 << 12;
        /// Also when a side first closed it.
        const AFTER_CLOSE_TOLD = 1 << 13;
    }
}

impl ConnFlags {
    #[must_use]
    pub(crate) fn with(mut self, mark: Self, is: bool) -> Self {
        self.set(mark, is);
        self
    }

    /// Sets or clears the mark; returns whether it was set before.
    pub(crate) fn replace(&mut self, mark: Self, is: bool) -> bool {
        let was = self.contains(mark);
        self.set(mark, is);
        was
    }
}

/// Network namespace, local and remote end: of minisocks there is one with the same at a time.
pub type Ends = (u32, Endpoint, Endpoint);

impl Conn {
    /// What users name it by.
    pub fn id(&self) -> u64 {
        // An address names one connection only together with when that began.
        if self.is(ConnFlags::BY_ADDRESS) {
            self.cookie ^ self.opened_ns().rotate_left(24)
        } else {
            self.cookie
        }
    }

    /// The next socket at its address is another connection.
    pub(super) fn has_lost_cookie(&self) -> bool {
        self.is(ConnFlags::BY_ADDRESS) && self.is(ConnFlags::MINISOCK)
    }

    pub fn is(&self, mark: ConnFlags) -> bool {
        self.marks.contains(mark)
    }

    /// The kernel has the whole socket of it, neither a minisock nor a request.
    pub fn is_full(&self) -> bool {
        !self.marks.intersects(ConnFlags::MINISOCK | ConnFlags::REQUEST)
    }

    pub fn ends(&self) -> Ends {
        (self.netns, self.local, self.remote)
    }

    pub fn state(&self) -> TcpState {
        self.life.state()
    }

    /// How many SYNs were repeated; `None` where it was not seen to connect, or retransmits are not told by kind.
    pub fn syn_retransmits(&self) -> Option<u64> {
        if self.state() == TcpState::SynSent {
            return self.total_retrans.map(u64::from);
        }
        let segments = self.retransmits.as_ref().map(|tally| tally.counted.segments).unwrap_or_default();
        let syns = segments[Kind::Syn as usize];
        let told = !self.is(ConnFlags::OLDER) && (syns > 0 || segments[Kind::Unknown as usize] == 0);
        told.then_some(syns)
    }

    /// The reset that ended it, or is about to.
    pub fn reset(&self) -> Option<&ObservedReset> {
        self.end.as_ref()?.reset.as_ref()
    }

    /// Of one that had been idle when a side first closed it.
    pub fn idle(&self) -> Option<Idle> {
        self.end.as_ref()?.idle
    }

    /// What it carried, as last told by the kernel: when a side first closed it, at its end, and by sweeps.
    pub fn traffic(&self) -> Option<Traffic> {
        self.is(ConnFlags::TRAFFIC_TOLD).then_some(self.traffic)
    }

    pub(crate) fn set_traffic(&mut self, told: Traffic) {
        self.traffic = told;
        self.marks.insert(ConnFlags::TRAFFIC_TOLD);
    }

    /// Of its traffic, what was received after this side first closed, or sent after the peer did. `None` while none has,
    /// and where it was not told how much there was before.
    pub fn after_close_bytes(&self) -> Option<u64> {
        let told = self.is(ConnFlags::AFTER_CLOSE_TOLD);
        told.then(|| self.end.as_ref().map_or(0, |end| end.after_close_bytes))
    }

    /// Its delivery stands still.
    pub fn stalled(&self) -> Option<Stalled> {
        self.retransmits.as_ref()?.stalled
    }

    /// CLOCK_MONOTONIC, when it entered its state.
    pub fn since_ns(&self) -> u64 {
        self.life.since_ns()
    }

    /// CLOCK_MONOTONIC, when it began or is known to have existed.
    pub fn opened_ns(&self) -> u64 {
        self.life.began_ns()
    }

    pub fn life(&self) -> &Life {
        &self.life
    }

    /// The server's side of it.
    pub fn peer(&self) -> Peer {
        match self.role {
            Role::Client => Peer::Remote(self.remote.addr, self.remote.port),
            Role::Server | Role::Listener => Peer::LocalPort(self.local.port),
            // Either port may be ephemeral.
            Role::Unknown => Peer::Unknown,
        }
    }

    /// Whether a process has accepted it, of a passive open. Where no record tells of an accept: `None` until the
    /// socket was looked at since it was established.
    pub fn accepted(&self) -> Option<bool> {
        // Whoever closed it had accepted it; a listener that goes resets what nobody accepted.
        if !matches!(self.state(), TcpState::Established | TcpState::SynRecv | TcpState::CloseWait) {
            return Some(true);
        }
        match (self.is(ConnFlags::UNACCEPTED) || self.is(ConnFlags::REQUEST), self.swept) {
            (false, _) => Some(true),
            (true, 0) if !self.is(ConnFlags::ACCEPT_IS_TOLD) => None,
            (true, _) => Some(false),
        }
    }

    /// Whether its times are lower bounds.
    pub fn at_least(&self) -> bool {
        self.is(ConnFlags::OLDER) || self.is(ConnFlags::STATE_OLDER)
    }
}
