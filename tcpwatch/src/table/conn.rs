//! One row of the table.

use crate::{
    aggregate::{GroupId, Peer, Role},
    connect::Outcome,
    decode::{Endpoint, Kind, Traffic},
    life::Life,
    process::ProcessId,
    reset::ResetTold,
    stall::Stalled,
    state::TcpState,
    tally::Tally,
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
    pub marks: Marks,
    /// The errno that ended it, 0 for none.
    pub error: u8,
    /// As last told by the kernel; not yet told of a connection that is older than its first sight.
    pub total_retrans: Option<u32>,
    /// Once something was retransmitted before our eyes.
    pub retransmits: Option<Box<Tally>>,
    /// What was told of its end, if there was more to tell than the states.
    pub end: Option<Box<EndTold>>,
    /// As last told by the kernel: when a side first closed it, at its end, and by sweeps.
    pub traffic: Option<Traffic>,
    /// Of it, received after this side first closed, or sent after the peer did. `None` while none has, and where it was
    /// not told how much there was before.
    pub after_close_bytes: Option<u64>,
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

/// How a connection ended, or is about to.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndTold {
    pub reset: Option<ResetTold>,
    /// Of one that had been idle when a side first closed it.
    pub idle: Option<Idle>,
}

/// How long nothing had been sent, and received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    pub sending_ns: u64,
    pub receiving_ns: u64,
}

/// What is known about what is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Marks {
    /// It began before it was first seen.
    pub older: bool,
    /// It entered its state before that was first seen.
    pub state_older: bool,
    /// It was ESTABLISHED at some time.
    pub established: bool,
    /// Its connect is counted as an attempt, and what becomes of it is not yet.
    pub connecting: bool,
    /// The process was seen acting on the socket or holding it; else it is the listener's.
    pub owner_seen: bool,
    /// The sweep that saw the socket last found its process to hold it.
    pub owner_holds: bool,
    /// That sweep has counted it among the live ones of its group.
    pub measured: bool,
    /// Of a passive open: no process has accepted it yet.
    pub unaccepted: bool,
    /// The kernel keeps only a minisock of it.
    pub minisock: bool,
    /// A handshake under way, known from sweeps only.
    pub request: bool,
    /// Records will tell who accepts it.
    pub accept_is_told: bool,
    /// Its cookie is the address of a socket, which another may have when this one is gone.
    pub by_address: bool,
}

/// Network namespace, local and remote end: of minisocks there is one with the same at a time.
pub type Ends = (u32, Endpoint, Endpoint);

impl Conn {
    /// What users name it by.
    pub fn id(&self) -> u64 {
        // An address names one connection only together with when that began.
        if self.marks.by_address { self.cookie ^ self.opened_ns().rotate_left(24) } else { self.cookie }
    }

    /// The next socket at its address is another connection.
    pub(super) fn has_lost_cookie(&self) -> bool {
        self.marks.by_address && self.marks.minisock
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
        let told = !self.marks.older && (syns > 0 || segments[Kind::Unknown as usize] == 0);
        told.then_some(syns)
    }

    /// The reset that ended it, or is about to.
    pub fn reset(&self) -> Option<&ResetTold> {
        self.end.as_ref()?.reset.as_ref()
    }

    /// Of one that had been idle when a side first closed it.
    pub fn idle(&self) -> Option<Idle> {
        self.end.as_ref()?.idle
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
            Role::Unknown => Peer::Other,
        }
    }

    /// Whether a process has accepted it, of a passive open. Where no record tells of an accept: `None` until the
    /// socket was looked at since it was established.
    pub fn accepted(&self) -> Option<bool> {
        // Whoever closed it had accepted it; a listener that goes resets what nobody accepted.
        if !matches!(self.state(), TcpState::Established | TcpState::SynRecv | TcpState::CloseWait) {
            return Some(true);
        }
        match (self.marks.unaccepted || self.marks.request, self.swept) {
            (false, _) => Some(true),
            (true, 0) if !self.marks.accept_is_told => None,
            (true, _) => Some(false),
        }
    }

    /// Whether its times are lower bounds.
    pub fn at_least(&self) -> bool {
        self.marks.older || self.marks.state_older
    }
}
