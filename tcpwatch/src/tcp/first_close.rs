//! Who was the first to end a connection that had been ESTABLISHED: from the state it ended from, and the errno.

use tcpwatch_common::errno::{ECONNRESET, ETIMEDOUT};

use crate::tcp::{connect_outcome::is_unreachable, serialized_by_name, state::TcpState};

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
    /// The peer reset it.
    PeerReset,
    /// The kernel gave up: retransmits, keep-alive probes or the user time-out.
    Timer,
    /// The local side closed it in repair mode (TCP_REPAIR), as CRIU does with a connection that it takes elsewhere: nothing
    /// was sent.
    Repair,
    /// Another errno, such as ECONNABORTED of `ss --kill`.
    Other,
    /// Its end was not reported.
    Unknown,
}

impl FirstClose {
    pub const ALL: [Self; 8] = [
        Self::Local,
        Self::Peer,
        Self::LocalReset,
        Self::PeerReset,
        Self::Timer,
        Self::Repair,
        Self::Other,
        Self::Unknown,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Peer => "peer",
            Self::LocalReset => "local_reset",
            Self::PeerReset => "peer_reset",
            Self::Timer => "timer",
            Self::Repair => "repair",
            Self::Other => "other",
            Self::Unknown => "unknown",
        }
    }

    /// Who sent its FIN first, from the state alone (RFC 9293, section 3.3.2): the side that closes first never passes
    /// through CLOSE_WAIT, the side that closes second always does. `None` where neither has closed.
    pub const fn of_state(state: TcpState) -> Option<Self> {
        match state {
            TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing | TcpState::TimeWait => {
                Some(Self::Local)
            }
            TcpState::CloseWait | TcpState::LastAck => Some(Self::Peer),
            _ => None,
        }
    }

    /// Who ended a connection that went from `from` to CLOSE; `error` is its errno, `None` where its end was not
    /// reported.
    ///
    /// An ESTABLISHED connection reaches CLOSE without an errno only through the application, and the kernel then
    /// resets it (`__tcp_close` and tcp_disconnect in net/ipv4/tcp.c). An ICMP error alone does not end an ESTABLISHED
    /// connection, but a time-out after it has its errno (tcp_write_err in net/ipv4/tcp_timer.c).
    pub const fn of(from: TcpState, error: Option<u8>, in_repair: bool) -> Self {
        match (Self::of_state(from), error) {
            (Some(first), _) => first,
            (None, _) if in_repair => Self::Repair,
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
