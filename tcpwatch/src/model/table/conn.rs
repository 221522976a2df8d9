//! A connection as the table keeps it.

use bitflags::bitflags;
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    events::{
        decode::{Endpoint, Ends, Kind, Traffic},
        seen::ListenQueue,
    },
    model::{
        groups::{Closer, GroupId, Peer, Role},
        processes::ProcessId,
        socket_retransmits::SocketRetransmits,
        table::Place,
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
    /// Index of the interface that the socket is bound to, 0 for none.
    pub interface: u32,
    pub local: Endpoint,
    pub remote: Endpoint,
    /// Its states so far. Changed through the table, which lists connections by state.
    pub(super) life: Life,
    /// CLOCK_MONOTONIC of the latest record or sighting.
    pub seen_ns: u64,
    /// See [`Conn::expires_ns`]. Changed through the table, which lists minisocks by it.
    pub(super) expires_ns: u64,
    /// The process that called connect(); unknown of a passive open.
    pub opener: Option<ProcessId>,
    /// The process that holds it, or held it last; before it is accepted, the one that holds the listener which it waits at.
    pub process: Option<ProcessId>,
    /// The process that closed it or shut down its sending side.
    pub closer: Option<ProcessId>,
    /// The group in which it is counted; `None` until there is something to count.
    pub group: Option<GroupId>,
    pub role: Role,
    pub flags: ConnFlags,
    /// The errno that ended it, 0 for none.
    pub error: u8,
    /// See [`Conn::total_retrans`]; `UNKNOWN` for `None`.
    pub(super) total_retrans: u32,
    /// Present once a retransmit was seen.
    pub retransmits: Option<Box<SocketRetransmits>>,
    /// What is known beyond the states.
    pub end: Option<Box<EndFacts>>,
    /// See [`Conn::traffic`].
    pub(super) traffic: Traffic,
    /// What became of its connect; `None` until that is over and known.
    pub connect: Option<Outcome>,
    /// Received and not read by the application, at the peer's FIN or at the latest sighting, or when the application closed.
    pub unread_bytes: u32,
    /// Number of the latest sweep that saw it.
    pub swept: u32,
    pub(super) place: Place,
    pub(super) previous: u32,
    pub(super) next: u32,
}

/// No socket retransmits that many segments.
pub(super) const UNKNOWN: u32 = u32::MAX;

/// Every connection takes one, and every record changes one: each word more costs memory and time.
const _: () = assert!(size_of::<Conn>() == 192);

/// How a connection ended, or is about to, and how its connect began.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndFacts {
    pub reset: Option<ObservedReset>,
    /// How long it had been idle when a side first closed it; `None` where it was not idle.
    pub idle: Option<Idle>,
    /// See [`Conn::after_close_bytes`].
    pub after_close_bytes: u64,
    /// How long it was in SYN_SENT before it sent the SYN, where that waited for the first data.
    pub deferred_ns: u64,
    /// Resets that its connect sent in answer to segments of another connection.
    pub challenges: u32,
    /// As of the latest sweep.
    pub standing: Option<Standing>,
}

/// What a sweep found of a socket in a state that should be short.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    /// No process will use it any more: it was closed.
    pub orphan: bool,
    /// It belongs to a file, so that something in the kernel holds it.
    pub held: bool,
    /// The sweep under way, or the latest, found a descriptor of it.
    pub(crate) descriptor_found: bool,
    /// It belongs to a file, and the latest sweep found no process with a descriptor of that.
    pub without_descriptor: bool,
    /// Sequence numbers written and not sent: one a byte, and one for a FIN.
    pub unsent: u32,
    pub unacknowledged_segments: u32,
    /// CLOCK_MONOTONIC when data was last sent and last received; `None` where none was, or that is not known.
    pub sent_ns: Option<u64>,
    pub received_ns: Option<u64>,
    /// Of a request: the queue of its listener, as the request's sighting found it.
    pub queue: ListenQueue,
    /// Of a request: the client has acknowledged the SYN-ACK, and the listener made no connection of it.
    pub handshake_acknowledged: bool,
    /// Of a request, and of a connection in an accept queue: the cookie of its listener.
    pub(crate) listener: Option<u64>,
}

impl Standing {
    /// Whether sweeps note it of a socket in this state.
    pub(crate) fn is_noted_in(state: TcpState) -> bool {
        !matches!(state, TcpState::Established | TcpState::TimeWait | TcpState::Close | TcpState::Listen)
    }

    /// Bytes of data written and not sent; in `state` a FIN may wait behind them.
    pub fn unsent_bytes(&self, state: TcpState) -> u32 {
        let closed = matches!(state, TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck);
        self.unsent.saturating_sub(closed.into())
    }
}

/// How long no data had been sent, and none received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    pub sending_ns: u64,
    pub receiving_ns: u64,
}

/// Data this young, from the side that closes, is its farewell: a TLS close_notify, a database's last error, a GOAWAY.
const FAREWELL_NS: u64 = 50_000_000;

impl Idle {
    /// How long the side that closes had waited: since data last went toward it where it has just sent its farewell, else
    /// since data went either way. Behind an answer without a farewell that is the time that the answer took.
    pub fn before_close(self, closer: Closer) -> u64 {
        let (toward, from) = match closer {
            Closer::Local => (self.receiving_ns, self.sending_ns),
            Closer::Peer => (self.sending_ns, self.receiving_ns),
        };
        if from < FAREWELL_NS { toward } else { toward.min(from) }
    }
}

bitflags! {
    /// How complete our knowledge of a connection is.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ConnFlags: u16 {
        /// It began before it was first seen: its age is a lower bound.
        const OLDER = 1;
        /// It entered its state before it was seen there: the time in the state is a lower bound.
        const STATE_OLDER = 1 << 1;
        /// It has been ESTABLISHED.
        const ESTABLISHED = 1 << 2;
        /// Its connect is counted as an attempt, its outcome not yet.
        const CONNECTING = 1 << 3;
        /// The process was seen acting on the socket or holding it; without this flag it is the one that held the listener
        /// on whose accept queue the connection was.
        const OWNER_SEEN = 1 << 4;
        /// The latest sweep that saw the socket found that its process holds it.
        const OWNER_HOLDS = 1 << 5;
        /// The latest sweep that saw the socket has added it to the gauges of its group.
        const MEASURED = 1 << 6;
        /// A passive open that no process has accepted yet.
        const UNACCEPTED = 1 << 7;
        /// The kernel keeps only a minisock of it.
        const MINISOCK = 1 << 8;
        /// A handshake under way (`struct request_sock`), known from sweeps only.
        const REQUEST = 1 << 9;
        /// Nobody had accepted it when it was seen last, by a sweep or at its end.
        const FOUND_UNACCEPTED = 1 << 10;
        /// Its cookie is the address of a socket, which another socket may get when this one is gone.
        const BY_ADDRESS = 1 << 11;
        /// Its traffic is known.
        const TRAFFIC_KNOWN = 1 << 12;
        /// Its traffic when a side first closed it is known.
        const AFTER_CLOSE_KNOWN = 1 << 13;
        /// It ended in repair mode (TCP_REPAIR): nothing was sent.
        const ENDED_IN_REPAIR = 1 << 14;
        /// Nothing of it is counted yet, as its owner is not known; see `tracker/waiting.rs`.
        const COUNTS_WAIT = 1 << 15;
    }
}

/// How a connection's process is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProcessSeen {
    /// Seen: a sweep found the connection's descriptor in it, or it accepted the connection.
    Holder,
    /// Seen: it called connect() or listen().
    Opener,
    /// Seen: it closed the connection or shut down its sending side.
    Closer,
    /// Inferred: it holds the listener on whose accept queue the connection is; nobody has accepted it.
    Listener,
}

impl ConnFlags {
    #[must_use]
    pub(crate) fn with(mut self, flag: Self, is: bool) -> Self {
        self.set(flag, is);
        self
    }

    /// Sets or clears the flag and returns whether it was set before.
    pub(crate) fn replace(&mut self, flag: Self, is: bool) -> bool {
        let was = self.contains(flag);
        self.set(flag, is);
        was
    }
}

impl Conn {
    /// The identifier that users see.
    pub fn id(&self) -> u64 {
        // An address identifies a connection only together with the time at which that began.
        if self.is(ConnFlags::BY_ADDRESS) {
            self.cookie ^ self.opened_ns().rotate_left(24)
        } else {
            self.cookie
        }
    }

    /// Whether the next socket at its address is another connection.
    pub(super) fn has_lost_cookie(&self) -> bool {
        self.is(ConnFlags::BY_ADDRESS) && self.is(ConnFlags::MINISOCK)
    }

    pub fn is(&self, flag: ConnFlags) -> bool {
        self.flags.contains(flag)
    }

    /// Whether the kernel has a full socket of it, neither a minisock nor a request.
    pub fn is_full(&self) -> bool {
        !self.flags.intersects(ConnFlags::MINISOCK | ConnFlags::REQUEST)
    }

    pub fn ends(&self) -> Ends {
        Ends { netns: self.netns, interface: self.interface, local: self.local, remote: self.remote }
    }

    pub fn state(&self) -> TcpState {
        self.life.state()
    }

    /// Retransmitted SYNs; `None` where the connect was not seen, or retransmits are not reported by kind.
    pub fn syn_retransmits(&self) -> Option<u64> {
        if self.state() == TcpState::SynSent {
            return self.total_retrans().map(u64::from);
        }
        let segments = self.retransmits.as_ref().map(|tally| tally.counted.segments).unwrap_or_default();
        let syns = segments[Kind::Syn as usize];
        let known = !self.is(ConnFlags::OLDER) && (syns > 0 || segments[Kind::Unknown as usize] == 0);
        known.then_some(syns)
    }

    /// The kernel's count of retransmitted segments, as last reported; `None` until then of a connection that is older
    /// than its first sight.
    pub fn total_retrans(&self) -> Option<u32> {
        (self.total_retrans != UNKNOWN).then_some(self.total_retrans)
    }

    pub(crate) fn set_total_retrans(&mut self, total: u32) {
        self.total_retrans = total.min(UNKNOWN - 1);
    }

    /// The reset that ended it or is about to end it.
    pub fn reset(&self) -> Option<&ObservedReset> {
        self.end.as_ref()?.reset.as_ref()
    }

    /// How long it was in SYN_SENT before it sent the SYN, where that waited for the first data.
    pub fn deferred_ns(&self) -> u64 {
        self.end.as_ref().map_or(0, |end| end.deferred_ns)
    }

    /// What the latest sweep found of it, in a state that should be short.
    pub fn standing(&self) -> Option<&Standing> {
        self.end.as_ref()?.standing.as_ref()
    }

    /// Segments of another connection that answered its SYNs, as far as resets in answer show.
    pub fn challenges(&self) -> u32 {
        self.end.as_ref().map_or(0, |end| end.challenges)
    }

    /// How long it had been idle when a side first closed it; `None` where it was not idle.
    pub fn idle(&self) -> Option<Idle> {
        self.end.as_ref()?.idle
    }

    /// The data it carried, as the kernel last reported it: when a side first closed it, at its end, and at each sighting.
    pub fn traffic(&self) -> Option<Traffic> {
        self.is(ConnFlags::TRAFFIC_KNOWN).then_some(self.traffic)
    }

    pub(crate) fn set_traffic(&mut self, traffic: Traffic) {
        self.traffic = traffic;
        self.flags.insert(ConnFlags::TRAFFIC_KNOWN);
    }

    /// The part of its traffic that was received after this side first closed, or sent after the peer did. `None` while
    /// neither has closed, and where the traffic before that is not known.
    pub fn after_close_bytes(&self) -> Option<u64> {
        let known = self.is(ConnFlags::AFTER_CLOSE_KNOWN);
        known.then(|| self.end.as_ref().map_or(0, |end| end.after_close_bytes))
    }

    /// The stall that holds up its delivery now.
    pub fn stalled(&self) -> Option<Stalled> {
        self.retransmits.as_ref()?.stalled
    }

    /// CLOCK_MONOTONIC when it entered its state.
    pub fn since_ns(&self) -> u64 {
        self.life.since_ns()
    }

    /// CLOCK_MONOTONIC when it began, or the earliest time at which it is known to have existed.
    pub fn opened_ns(&self) -> u64 {
        self.life.began_ns()
    }

    pub fn life(&self) -> &Life {
        &self.life
    }

    /// CLOCK_MONOTONIC when the kernel's timer ends this minisock; `u64::MAX` of all other sockets.
    pub fn expires_ns(&self) -> u64 {
        self.expires_ns
    }

    /// The server's end of it.
    pub fn peer(&self) -> Peer {
        match self.role {
            Role::Client => Peer::Remote(self.remote.addr, self.remote.port),
            Role::Server | Role::Listener => Peer::LocalPort(self.local.port),
            // Either port may be ephemeral.
            Role::Unknown => Peer::Unknown,
        }
    }

    /// How its process is known; `None` where that is not.
    pub fn process_seen(&self) -> Option<ProcessSeen> {
        let process = self.process?;
        Some(if !self.is(ConnFlags::OWNER_SEEN) {
            ProcessSeen::Listener
        } else if self.is(ConnFlags::OWNER_HOLDS) {
            ProcessSeen::Holder
        } else if self.closer == Some(process) {
            ProcessSeen::Closer
        } else if self.opener == Some(process) {
            ProcessSeen::Opener
        } else {
            ProcessSeen::Holder
        })
    }

    /// Whether a process has accepted it, of a passive open: `None` while it may have been accepted since it was
    /// established.
    pub fn accepted(&self) -> Option<bool> {
        // Only the application leads to the others; a listener that closes resets what nobody accepted.
        let closed = !matches!(self.state(), TcpState::Established | TcpState::SynRecv | TcpState::CloseWait);
        if closed || !self.flags.intersects(ConnFlags::UNACCEPTED | ConnFlags::REQUEST) {
            return Some(true);
        }
        (self.is(ConnFlags::FOUND_UNACCEPTED) || self.is(ConnFlags::REQUEST)).then_some(false)
    }
}
