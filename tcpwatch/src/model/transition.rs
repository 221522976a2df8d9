//! A transition as the followers of `/events` receive it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{
    events::decode::{Endpoint, SocketRecord, What},
    model::{
        table::{Conn, ConnFlags},
        tracker::Tracker,
    },
    tcp::{
        life::cause,
        state::TcpState,
        time::{rfc3339, seconds},
    },
};

/// A transition, and the connection's properties after it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Transition {
    /// RFC 3339.
    pub time: String,
    pub id: String,
    pub netns: u32,
    pub from: String,
    pub to: String,
    /// How long the connection was in `from`; `null` where it was not seen to enter it.
    pub seconds: Option<f64>,
    pub cause: String,
    pub role: String,
    pub pid: Option<u32>,
    pub comm: Option<String>,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// What a [`Transition`] needs from the time before the record is applied.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    since_ns: Option<u64>,
}

impl Before {
    pub fn note(tracker: &Tracker, record: &SocketRecord) -> Self {
        let conn = tracker.table().find(record.socket.cookie).map(|slot| tracker.table().get(slot));
        Self { since_ns: conn.filter(|conn| !conn.is(ConnFlags::STATE_OLDER)).map(Conn::since_ns) }
    }
}

impl Transition {
    /// The transition of a record that was just applied, `None` for another kind of record. `wall_offset_ns`: wall
    /// clock minus CLOCK_MONOTONIC.
    pub fn of(before: Before, tracker: &Tracker, record: &SocketRecord, wall_offset_ns: u64) -> Option<Self> {
        let cookie = record.socket.cookie;
        let (from, reported, error) = match record.what {
            What::Transition { from, to, .. } => (from, to, 0),
            What::End { from, error, .. } => (from, TcpState::Close, error),
            What::Retransmit { .. }
            | What::Accept { .. }
            | What::ConnectFailed { .. }
            | What::Close { .. }
            | What::MinisockEnd => return None,
        };
        // A connection that became a minisock is not found by the socket's address any more.
        let minisock = || {
            tracker
                .reported()
                .identity_is_address
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
        let process = conn.and_then(|conn| conn.process).map(|id| tracker.processes().get(id));
        let address = |end: Endpoint| SocketAddr::new(end.addr.to_canonical(), end.port);
        Some(Self {
            time: rfc3339(wall_offset_ns + record.time_ns),
            id: format!("{:x}", conn.map_or(cookie, Conn::id)),
            netns: record.socket.netns,
            from: from.name().to_owned(),
            to: to.name().to_owned(),
            seconds: before.since_ns.map(|since_ns| seconds(record.time_ns.saturating_sub(since_ns))),
            cause: cause(from, reported, error).name().to_owned(),
            role: conn.map_or("unknown", |conn| conn.role.name()).to_owned(),
            pid: process.map(|process| process.pid),
            comm: process.map(|process| process.comm.to_string()),
            local: address(record.socket.local),
            remote: address(record.socket.remote),
        })
    }
}
