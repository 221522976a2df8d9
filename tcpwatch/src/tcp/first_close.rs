//! Who was the first to end a connection that had been ESTABLISHED: told by the state it ended from.

use crate::tcp::{
    connect_outcome::{
        errno::{ECONNRESET, ETIMEDOUT},
        is_unreachable,
    },
    serialized_by_name,
    state::TcpState,
};

/// Who ended it first, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum FirstClose {
    /// The local side sent its FIN first, or at the same time as the peer.
    Local,
    /// The peer's FIN came first.
    Peer,
    /// The local side reset it: closed with unread bytes or a zero linger time, or disconnected.
    LocalReset,
    /// The peer's reset came.
    PeerReset,
    /// The kernel gave up: retransmits, keep-alive probes or the user time-out.
    Timer,
    /// Another errno, such as ECONNABORTED of `ss --kill`.
    Other,
    /// It was not told.
    Unknown,
}

impl FirstClose {
    pub const ALL: [Self; 7] =
        [Self::Local, Self::Peer, Self::LocalReset, Self::PeerReset, Self::Timer, Self::Other, Self::Unknown];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Peer => "peer",
            Self::LocalReset => "local_reset",
            Self::PeerReset => "peer_reset",
            Self::Timer => "timer",
            Self::Other => "other",
            Self::Unknown => "unknown",
        }
    }

    /// By the states alone (RFC 9293, section 3.3.2): whoever sends its FIN first never passes CLOSE_WAIT, whoever
    /// sends it second always does. `None` where nobody has.
    pub const fn of_state(state: TcpState) -> Option<Self> {
        match state {
            TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing | TcpState::TimeWait => {
                Some(Self::Local)
            }
            TcpState::CloseWait | TcpState::LastAck => Some(Self::Peer),
            _ => None,
        }
    }

    /// Of a connection that went from `from` to CLOSE with this errno; `None`: its end was not told. An ESTABLISHED
    /// one reaches CLOSE without an errno only through the application, whose close the kernel then tells the peer by
    /// a reset (`__tcp_close` and tcp_disconnect in net/ipv4/tcp.c). An ICMP error alone ends none that is
    /// ESTABLISHED, but is the errno of a time-out after it (tcp_write_err in net/ipv4/tcp_timer.c).
    pub const fn of(from: TcpState, error: Option<u8>) -> Self {
        match (Self::of_state(from), error) {
            (Some(first), _) => first,
            (None, None) => Self::Unknown,
            (None, Some(0)) => Self::LocalReset,
            (None, Some(ECONNRESET)) => Self::PeerReset,
            (None, Some(ETIMEDOUT)) => Self::Timer,
            (None, Some(error)) if is_unreachable(error) => Self::Timer,
            (None, Some(_)) => Self::Other,
        }
    }
}

serialized_by_name!(FirstClose);
