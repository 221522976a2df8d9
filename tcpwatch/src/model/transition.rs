//! One transition as `/events` and `tcpwatch trace --json` report it.

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    events::decode::{Socket, SocketRecord, What},
    model::{
        address::Address,
        groups::Role,
        interfaces::Interface,
        processes::Process,
        table::{Conn, ConnFlags, ProcessSeen},
        tracker::Tracker,
    },
    tcp::{
        errno::Errno,
        life::{Cause, cause},
        state::TcpState,
        time::{rfc3339_of_ns, seconds},
    },
};

/// A change of state, with what is known of the connection after it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Transition {
    /// When the state changed; RFC 3339 in UTC with microseconds.
    pub at: String,
    /// The connection's identifier, as in `/connections`.
    pub id: String,
    /// Inode of the network namespace, as in /proc/PID/ns/net.
    pub netns: u32,
    /// Which side of the connection this socket is.
    pub role: Role,
    /// The state that the connection left.
    pub from: TcpState,
    /// The state that it entered.
    pub to: TcpState,
    /// Seconds that it was in `from`; `null` where its entry into that state was not seen.
    pub from_seconds: Option<f64>,
    /// Who caused the transition.
    pub cause: Cause,
    /// Name of the socket's errno, of a transition to CLOSE; `null` for none, and where the hook for state changes does
    /// not report it (see `/status`).
    pub errno: Option<Errno>,
    /// The process that holds the connection, or held it last; `null` where it is not known.
    pub process: Option<Process>,
    /// How `process` is known; `null` where it is `null`.
    pub process_seen: Option<ProcessSeen>,
    /// This socket's end.
    pub local: Address,
    /// The other end.
    pub remote: Address,
    /// The interface that the socket is bound to; `null` for none.
    pub interface: Option<Interface>,
}

/// What a [`Transition`] needs from the time before the record is applied.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    since_ns: Option<u64>,
    /// Of a record of a minisock: its state.
    minisock: Option<TcpState>,
}

impl Before {
    pub fn note(tracker: &Tracker, record: &SocketRecord) -> Self {
        let is_minisock = record.what == What::TimeWait;
        let table = tracker.table();
        let found = if is_minisock {
            table.find_minisock(record.socket.ends())
        } else {
            table.find(record.socket.cookie)
        };
        let conn = found.map(|slot| table.get(slot));
        Self {
            since_ns: conn.filter(|conn| !conn.is(ConnFlags::STATE_OLDER)).map(Conn::since_ns),
            minisock: conn.filter(|_| is_minisock).map(Conn::state),
        }
    }
}

impl Transition {
    /// The transition of a record that was just applied, `None` for another kind of record. `wall_offset_ns`: wall
    /// clock minus CLOCK_MONOTONIC.
    pub fn of(before: Before, tracker: &Tracker, record: &SocketRecord, wall_offset_ns: u64) -> Option<Self> {
        let Socket { cookie, netns, interface, local, remote, .. } = record.socket;
        let (from, reported, error) = match record.what {
            What::Transition { from, to, .. } => (from, to, 0),
            What::End { from, error, .. } => (from, TcpState::Close, error),
            What::TimeWait => (before.minisock?, TcpState::TimeWait, 0),
            What::Retransmit { .. }
            | What::Accept { .. }
            | What::ConnectFailed { .. }
            | What::Close { .. }
            | What::MinisockEnd => return None,
        };
        // A connection that became a minisock is not found by the socket's address any more.
        let minisock = || {
            (tracker.reported().identity_is_address || before.minisock.is_some())
                .then(|| tracker.table().find_minisock(record.socket.ends()))
                .flatten()
        };
        let live = tracker.table().find(cookie).or_else(minisock).map(|slot| tracker.table().get(slot));
        let ended = || tracker.ended().back().map(|ended| &ended.conn).filter(|conn| conn.cookie == cookie);
        let conn = live.or_else(ended);
        // The kernel reports CLOSE for a socket that becomes a minisock.
        let to = live.map_or(reported, Conn::state);
        // An orphan in FIN_WAIT2 becomes a minisock in FIN_WAIT2.
        if to == from {
            return None;
        }
        Some(Self {
            at: rfc3339_of_ns(wall_offset_ns.saturating_add(record.time_ns)),
            id: format!("{:x}", conn.map_or(cookie, Conn::id)),
            netns,
            role: conn.map_or(Role::Unknown, |conn| conn.role),
            from,
            to,
            from_seconds: before.since_ns.map(|since_ns| seconds(record.time_ns.saturating_sub(since_ns))),
            cause: cause(from, reported, error),
            errno: Errno::of(error),
            process: conn.and_then(|conn| conn.process).map(|id| tracker.processes().get(id).clone()),
            process_seen: conn.and_then(Conn::process_seen),
            local: local.into(),
            remote: remote.into(),
            interface: tracker.interface(netns, interface),
        })
    }
}
