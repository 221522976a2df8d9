//! What became of a connect(), told by the state changes and the errno with which they end, or by the errno that it
//! returned at once.

/// include/uapi/asm-generic/errno-base.h and errno.h; a few old architectures have other numbers.
pub mod errno {
    pub const EACCES: u8 = 13;
    pub const ENONET: u8 = 64;
    pub const EPROTO: u8 = 71;
    pub const ENOPROTOOPT: u8 = 92;
    pub const EOPNOTSUPP: u8 = 95;
    pub const ENETUNREACH: u8 = 101;
    pub const ECONNABORTED: u8 = 103;
    pub const ECONNRESET: u8 = 104;
    pub const ETIMEDOUT: u8 = 110;
    pub const ECONNREFUSED: u8 = 111;
    pub const EHOSTDOWN: u8 = 112;
    pub const EHOSTUNREACH: u8 = 113;
}
use errno::{
    EACCES, ECONNREFUSED, ECONNRESET, EHOSTDOWN, EHOSTUNREACH, ENETUNREACH, ENONET, ENOPROTOOPT, EOPNOTSUPP,
    EPROTO, ETIMEDOUT,
};

use crate::tcp::serialized_by_name;

/// What became of an attempt to connect.
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
    /// With another errno, such as ECONNABORTED of `ss --kill`.
    Other,
    /// Its end was not told.
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

    /// Whether it is one that the application did not want, as far as known.
    pub const fn is_failure(self) -> bool {
        !matches!(self, Self::Established | Self::Aborted | Self::Unknown)
    }

    /// Of a connect that went from SYN_SENT (or, in a simultaneous open, from SYN_RECV) to CLOSE. The kernel sets
    /// `sk_err` before it changes the state (tcp_reset in net/ipv4/tcp_input.c, tcp_write_err in tcp_timer.c,
    /// tcp_v4_err in tcp_ipv4.c; since 6.11 all by tcp_done_with_error), but not where the application itself ends it:
    /// in tcp_v4_connect's own failures, in close() and in tcp_disconnect, which sets it afterwards. Those differ by
    /// whether a SYN was sent. A time-out has the errno of an ICMP error that came while the socket was locked
    /// (`sk_err_soft`), as the application sees it.
    ///
    /// Before 6.11 tcp_write_err and tcp_v4_err wake the application first: one that takes the error (SO_ERROR)
    /// within the microsecond until the state changes makes of the connect one that it gave up.
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

/// What the kernel makes of an ICMP error (icmp_err_convert in net/ipv4/icmp.c, icmpv6_err_convert in
/// net/ipv6/icmp.c, tcp_v4_err), but for "port unreachable", which is ECONNREFUSED, and "packet too big".
pub const fn is_unreachable(error: u8) -> bool {
    matches!(
        error,
        EHOSTUNREACH | ENETUNREACH | EACCES | EHOSTDOWN | ENONET | ENOPROTOOPT | EOPNOTSUPP | EPROTO
    )
}
