//! The outcome of a connect(): from the state changes and the errno with which they end, or from the errno that
//! connect() returned at once.

use tcpwatch_common::errno::{
    EACCES, ECONNREFUSED, ECONNRESET, EHOSTDOWN, EHOSTUNREACH, ENETUNREACH, ENONET, ENOPROTOOPT, EOPNOTSUPP,
    EPROTO, ETIMEDOUT,
};

use crate::tcp::serialized_by_name;

/// The outcome of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Outcome {
    Established,
    /// The peer answered with a reset, or someone with ICMP "port unreachable".
    Refused,
    /// Nothing answered.
    TimedOut,
    /// Someone on the way, or this host, answered with another ICMP error, or this host has no way there.
    Unreachable,
    /// The peer answered, and reset before the handshake was complete: simultaneous opens only.
    Reset,
    /// No SYN was sent: no local port was free toward this destination (EADDRNOTAVAIL).
    NoPort,
    /// The application gave up.
    Aborted,
    /// It failed with another errno, such as ECONNABORTED of `ss --kill`.
    Other,
    /// Its end was not reported.
    Unknown,
}

impl Outcome {
    pub const ALL: [Self; 9] = [
        Self::Established,
        Self::Refused,
        Self::TimedOut,
        Self::Unreachable,
        Self::Reset,
        Self::NoPort,
        Self::Aborted,
        Self::Other,
        Self::Unknown,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Reset => "reset",
            Self::NoPort => "no_port",
            Self::Aborted => "aborted",
            Self::Other => "other",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the application did not want this outcome, as far as is known.
    pub const fn is_failure(self) -> bool {
        !matches!(self, Self::Established | Self::Aborted | Self::Unknown)
    }

    /// The outcome of a connect that went from SYN_SENT (or, in a simultaneous open, from SYN_RECV) to CLOSE.
    ///
    /// The kernel sets `sk_err` before it changes the state (tcp_reset in net/ipv4/tcp_input.c, tcp_write_err in
    /// tcp_timer.c, tcp_v4_err in tcp_ipv4.c; since 6.11 all by tcp_done_with_error). It is 0 where the application
    /// itself ends the connect: in tcp_v4_connect's own failures, in close(), and in tcp_disconnect, which sets it
    /// afterwards. `unsent`, whether no SYN was sent, decides between these. A time-out has the errno of an ICMP error
    /// that came while the socket was locked (`sk_err_soft`), as the application sees it.
    ///
    /// Before 6.11 tcp_write_err and tcp_v4_err wake the application first. If it takes the error (SO_ERROR) within
    /// the microsecond until the state changes, the connect reads as `Aborted`.
    pub const fn of_failed(error: u8, unsent: bool) -> Self {
        match error {
            0 if unsent => Self::NoPort,
            0 => Self::Aborted,
            ECONNREFUSED => Self::Refused,
            ETIMEDOUT => Self::TimedOut,
            ECONNRESET => Self::Reset,
            error if is_unreachable(error) => Self::Unreachable,
            _ => Self::Other,
        }
    }
}

serialized_by_name!(Outcome);

/// Whether the kernel sets this errno for an ICMP error (icmp_err_convert in net/ipv4/icmp.c, icmpv6_err_convert in
/// net/ipv6/icmp.c, tcp_v4_err). "Port unreachable", which is ECONNREFUSED, and "packet too big" are not among them.
pub const fn is_unreachable(error: u8) -> bool {
    matches!(
        error,
        EHOSTUNREACH | ENETUNREACH | EACCES | EHOSTDOWN | ENONET | ENOPROTOOPT | EOPNOTSUPP | EPROTO
    )
}
