//! Which reset ended a connection, and why: from what the kernel knew of the socket when it sent or received it.

use std::ops::AddAssign;

use schemars::JsonSchema;
use serde::Serialize;
use tcpwatch_common::errno::{ECONNABORTED, ETIMEDOUT};

use crate::tcp::{connect_outcome::is_unreachable, serialized_by_name};

/// A reset of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ResetReason {
    /// Received before the connection was established: mostly because nobody listens there.
    Connecting,
    /// Received while neither side had closed.
    Established,
    /// Received after the local side had closed or shut down its sending.
    LocalClosed,
    /// Received after the peer's FIN: the peer had closed both directions, and data was sent to it.
    PeerClosed,
    /// Received from a packet filter of this machine, which refused what was sent.
    PolicyReceived,
    /// Sent because the application closed with received bytes unread.
    UnreadData,
    /// Sent because the application closed with a linger time of zero.
    ZeroLinger,
    /// Sent because the application disconnected the socket in another way, for example by connect() to AF_UNSPEC.
    Disconnect,
    /// Sent because the listener closed before anyone accepted the connection.
    ListenerClosed,
    /// Sent because data came after the application had closed.
    DataAfterClose,
    /// Sent when the kernel gave up: keep-alive probes or the user time-out.
    TimedOut,
    /// Sent because an administrator ended the connection, for example by `ss --kill`.
    Killed,
    /// Sent in answer to a segment that does not belong to the connection, which goes on.
    InvalidSegment,
    /// Sent by a packet filter of this machine, which refused what was received; the connection goes on.
    PolicySent,
    /// Sent for another reason, such as lack of memory.
    Other,
}

/// Which way a reset went, as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Received,
    Sent,
}

impl Direction {
    pub const ALL: [Self; 2] = [Self::Received, Self::Sent];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Sent => "sent",
        }
    }
}

impl ResetReason {
    pub const ALL: [Self; 15] = [
        Self::Connecting,
        Self::Established,
        Self::LocalClosed,
        Self::PeerClosed,
        Self::PolicyReceived,
        Self::UnreadData,
        Self::ZeroLinger,
        Self::Disconnect,
        Self::ListenerClosed,
        Self::DataAfterClose,
        Self::TimedOut,
        Self::Killed,
        Self::InvalidSegment,
        Self::PolicySent,
        Self::Other,
    ];

    pub const fn direction(self) -> Direction {
        match self {
            Self::Connecting
            | Self::Established
            | Self::LocalClosed
            | Self::PeerClosed
            | Self::PolicyReceived => Direction::Received,
            _ => Direction::Sent,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Established => "established",
            Self::LocalClosed => "local_closed",
            Self::PeerClosed => "peer_closed",
            Self::PolicyReceived | Self::PolicySent => "policy",
            Self::UnreadData => "unread_data",
            Self::ZeroLinger => "zero_linger",
            Self::Disconnect => "disconnect",
            Self::ListenerClosed => "listener_closed",
            Self::DataAfterClose => "data_after_close",
            Self::TimedOut => "timed_out",
            Self::Killed => "killed",
            Self::InvalidSegment => "invalid_segment",
            Self::Other => "other",
        }
    }

    /// The reason, made precise by the errno with which the socket ended afterwards: only the errno identifies the
    /// reset of a timer or an administrator.
    #[must_use]
    pub fn ended(self, error: u8) -> Self {
        match (self, error) {
            (Self::Other, ECONNABORTED) => Self::Killed,
            (Self::Other, ETIMEDOUT) => Self::TimedOut,
            (Self::Other, error) if is_unreachable(error) => Self::TimedOut,
            _ => self,
        }
    }

    /// Whether the connection goes on after this reset.
    pub fn spares_connection(self) -> bool {
        matches!(self, Self::InvalidSegment | Self::PolicySent)
    }

    /// Whether the application closed the connection so that it sent this reset.
    pub fn is_abort(self) -> bool {
        matches!(self, Self::UnreadData | Self::ZeroLinger | Self::Disconnect)
    }

    /// Whether this received reset may really have been sent. When data comes that nobody can receive any more, the
    /// kernel ends the connection as if a reset had been received (tcp_rcv_state_process in net/ipv4/tcp_input.c), and
    /// sends one in answer, which is reported right after it.
    pub fn may_be_an_answer(self) -> bool {
        matches!(self, Self::LocalClosed | Self::PeerClosed)
    }
}

serialized_by_name!(ResetReason);

/// Data that resets threw away: received and not read, written and not sent, sent and not acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Discarded {
    /// Bytes received and not read.
    pub unread_bytes: u64,
    /// Bytes written and not sent.
    pub unsent_bytes: u64,
    /// Bytes sent and not acknowledged.
    pub unacknowledged_bytes: u64,
}

impl Discarded {
    /// Each count under the name of what was discarded.
    pub fn parts(self) -> [(&'static str, u64); 3] {
        [
            ("unread", self.unread_bytes),
            ("unsent", self.unsent_bytes),
            ("unacknowledged", self.unacknowledged_bytes),
        ]
    }

    pub fn total(self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }
}

impl AddAssign for Discarded {
    fn add_assign(&mut self, other: Self) {
        self.unread_bytes += other.unread_bytes;
        self.unsent_bytes += other.unsent_bytes;
        self.unacknowledged_bytes += other.unacknowledged_bytes;
    }
}

/// A connection's reset, with the data that it threw away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedReset {
    pub reason: ResetReason,
    /// Sent because the process exited.
    pub exiting: bool,
    pub discarded: Discarded,
    /// Already part of its group's counts.
    pub(crate) counted: bool,
}
