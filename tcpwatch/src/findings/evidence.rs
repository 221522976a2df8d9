//! What is known of why a connection stands in its state, beyond the state: the kinds of [`Evidence`], the other end of a
//! connection on this node, and the connections that a proxy waits for.

use std::net::Ipv6Addr;

use rustc_hash::{FxHashMap, FxHashSet};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    events::decode::Endpoint,
    findings::observation::MAX_SOCKETS,
    model::{
        address::Address,
        groups::Role,
        processes::{Process, ProcessId},
        table::{Conn, ConnFlags, Standing},
        tracker::Tracker,
    },
    tcp::state::TcpState,
};

/// What is known of connections that stand too long, beyond their state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The state alone.
    None,
    /// CLOSE_WAIT: nobody has accepted them.
    Unaccepted,
    /// CLOSE_WAIT of a client: the last exchange was over when the peer closed, and nothing was sent since. Pools of
    /// connections leave them so until they want to use them.
    Idle,
    /// CLOSE_WAIT: the process has sent since the peer closed, or still has something to send.
    Sending,
    /// CLOSE_WAIT or FIN_WAIT2: something in the kernel holds them, but no process has a descriptor of them.
    NoDescriptor,
    /// FIN_WAIT2: the process shut down its sending side, and holds them.
    Held,
    /// FIN_WAIT2: the process closed them.
    Orphaned,
    /// The FIN, or the SYN, has not been sent yet.
    Unsent,
    /// SYN_SENT: segments of another connection between the same addresses and ports answered the SYNs.
    Challenged,
    /// SYN_RECV: the client has acknowledged the handshake, and the listener's accept queue had no room.
    Acknowledged,
    /// SYN_RECV: the client has acknowledged the handshake, and the listener waits for data (TCP_DEFER_ACCEPT).
    Deferred,
}

/// Who holds the other end of connections, where that is on this node.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct OtherEnd {
    /// The process that holds that end, or held it last; `null` where it is not known.
    pub process: Option<Process>,
    /// The state of that end.
    pub state: TcpState,
    /// Number of the connections whose other end this is.
    pub count: usize,
}

impl OtherEnd {
    /// Such as `backend (pid 12)`.
    pub(in crate::findings) fn name(&self) -> String {
        let process = self.process.as_ref();
        process
            .map_or_else(|| "an unknown process".to_owned(), |one| format!("{} (pid {})", one.comm, one.pid))
    }
}

/// The connections that a process waits for, which has passed a close on.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct WaitsFor {
    /// Number of the connections that are matched by one that it shut down within a second after.
    pub count: usize,
    /// Where those lead to; the port or address is of one of them.
    pub remote: Address,
    /// Who holds their other end; `null` where that is not on this node.
    pub other_end: Option<OtherEnd>,
}

/// An idle connection has carried nothing for this long when the peer closes it. A peer that closes behind its answer
/// does so within milliseconds.
const IDLE_NS: u64 = 500_000_000;
/// Bytes of a farewell with which a peer may close an idle connection (a TLS alert, a database's error).
const FAREWELL_BYTES: u32 = 512;
/// A process that has sent this long ago may well go on.
const SENDING_NS: u64 = 30_000_000_000;
/// How far a tick of the kernel may be from the time of a record.
const TICK_NS: u64 = 20_000_000;
/// How soon a proxy passes a close on.
const RELAY_NS: u64 = 1_000_000_000;

/// By what is known of one connection at `now_ns`.
pub(in crate::findings) fn of(conn: &Conn, now_ns: u64) -> Evidence {
    let standing = conn.standing();
    let has = |what: fn(&Standing) -> bool| standing.is_some_and(what);
    match conn.state() {
        TcpState::CloseWait if conn.accepted() == Some(false) => Evidence::Unaccepted,
        TcpState::CloseWait if has(|one| one.without_descriptor) => Evidence::NoDescriptor,
        TcpState::CloseWait if standing.is_some_and(|one| is_sending(conn, one, now_ns)) => Evidence::Sending,
        TcpState::CloseWait if standing.is_some_and(|one| was_idle(conn, one)) => Evidence::Idle,
        TcpState::FinWait2 if conn.is(ConnFlags::MINISOCK) || has(|one| one.orphan) => Evidence::Orphaned,
        TcpState::FinWait2 if has(|one| one.without_descriptor) => Evidence::NoDescriptor,
        TcpState::FinWait2 if has(|one| one.held) => Evidence::Held,
        TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck if has(|one| one.unsent > 0) => {
            Evidence::Unsent
        }
        TcpState::SynSent if conn.challenges() > 0 => Evidence::Challenged,
        TcpState::SynSent if has(|one| one.unacknowledged_segments == 0) => Evidence::Unsent,
        TcpState::SynRecv if has(|one| one.handshake_acknowledged && one.queue.deferred) => {
            Evidence::Deferred
        }
        TcpState::SynRecv if has(|one| one.handshake_acknowledged) => Evidence::Acknowledged,
        _ => Evidence::None,
    }
}

fn is_sending(conn: &Conn, standing: &Standing, now_ns: u64) -> bool {
    let sent_since = standing.sent_ns.is_some_and(|sent_ns| {
        sent_ns > conn.since_ns() + TICK_NS && sent_ns.saturating_add(SENDING_NS) > now_ns
    });
    sent_since || standing.unsent > 0 || standing.unacknowledged_segments > 0
}

fn was_idle(conn: &Conn, standing: &Standing) -> bool {
    let (Some(sent_ns), Some(received_ns)) = (standing.sent_ns, standing.received_ns) else { return false };
    let closed_ns = conn.since_ns();
    conn.role == Role::Client
        && sent_ns.saturating_add(IDLE_NS) <= closed_ns
        && received_ns >= sent_ns
        && conn.unread_bytes <= FAREWELL_BYTES
        // Unread bytes that came before the farewell are an answer that nobody read.
        && (conn.unread_bytes == 0 || received_ns.saturating_add(IDLE_NS) > closed_ns)
}

/// The other ends of connections, as far as they are in the table.
pub(in crate::findings) struct OtherEnds<'a> {
    by_ends: FxHashMap<(Endpoint, Endpoint), Vec<&'a Conn>>,
}

impl<'a> OtherEnds<'a> {
    /// Finds those of `conns`, in one walk through the table.
    pub(in crate::findings) fn find(tracker: &'a Tracker, conns: impl Iterator<Item = &'a Conn>) -> Self {
        let wanted: FxHashSet<_> = conns.map(|conn| (conn.remote, conn.local)).collect();
        let mut by_ends: FxHashMap<_, Vec<&Conn>> = FxHashMap::default();
        if !wanted.is_empty() {
            for conn in tracker.table().iter() {
                let ends = (conn.local, conn.remote);
                if wanted.contains(&ends) {
                    by_ends.entry(ends).or_default().push(conn);
                }
            }
        }
        Self { by_ends }
    }

    /// That of one connection: in its own network namespace, else in the only one that has it. Loopback addresses mean
    /// something else in each.
    pub(in crate::findings) fn of(&self, conn: &Conn) -> Option<&'a Conn> {
        let found = self.by_ends.get(&(conn.remote, conn.local))?;
        let here = found.iter().find(|other| other.netns == conn.netns && other.cookie != conn.cookie);
        here.copied().or_else(|| match found[..] {
            [only] if only.netns != conn.netns && !is_loopback(conn.remote.addr) => Some(only),
            _ => None,
        })
    }

    /// The cookies of those of these connections that are known.
    pub(in crate::findings) fn cookies(&self, conns: &[&Conn]) -> Vec<u64> {
        conns.iter().take(MAX_SOCKETS).filter_map(|conn| Some(self.of(conn)?.cookie)).collect()
    }

    /// That of most of these connections.
    pub(in crate::findings) fn of_most(&self, tracker: &Tracker, conns: &[&Conn]) -> Option<OtherEnd> {
        let mut counts: FxHashMap<(Option<ProcessId>, TcpState), usize> = FxHashMap::default();
        for other in conns.iter().filter_map(|conn| self.of(conn)) {
            *counts.entry((other.process, other.state())).or_default() += 1;
        }
        let by_pid = |process: Option<ProcessId>| process.map(|id| tracker.processes().get(id).pid);
        let most =
            counts.into_iter().max_by_key(|((process, state), count)| (*count, by_pid(*process), *state));
        most.map(|((process, state), count)| OtherEnd {
            process: process.map(|id| tracker.processes().get(id).clone()),
            state,
            count,
        })
    }
}

pub(in crate::findings) fn is_loopback(addr: Ipv6Addr) -> bool {
    addr.to_canonical().is_loopback()
}

/// Full sockets in FIN_WAIT2 by the process that holds them, oldest first: what proxies may wait for.
pub(in crate::findings) fn shut_down_by_process(tracker: &Tracker) -> FxHashMap<ProcessId, Vec<&Conn>> {
    let mut found: FxHashMap<ProcessId, Vec<&Conn>> = FxHashMap::default();
    for conn in tracker.table().in_state(TcpState::FinWait2) {
        if let Some(process) = conn.process
            && of(conn, 0) == Evidence::Held
        {
            found.entry(process).or_default().push(conn);
        }
    }
    for conns in found.values_mut() {
        conns.sort_by_key(|conn| conn.since_ns());
    }
    found
}

/// Matches each of the connections that the peer closed with one that the same process shut down right after.
pub(in crate::findings) fn waits_for<'a>(closed: &[&Conn], shut_down: &[&'a Conn]) -> Vec<&'a Conn> {
    let mut closed: Vec<u64> = closed.iter().map(|conn| conn.since_ns()).collect();
    closed.sort_unstable();
    let mut left = shut_down.iter().copied().peekable();
    let mut matched = Vec::new();
    for since_ns in closed {
        while left.next_if(|conn| conn.since_ns() + TICK_NS < since_ns).is_some() {}
        matched.extend(left.next_if(|conn| conn.since_ns() <= since_ns.saturating_add(RELAY_NS)));
    }
    matched
}

/// The listener that takes connections to this end, if there is only one. To be asked only of connections that the end
/// has not answered: of others sweeps know the listener.
pub(in crate::findings) fn listener(tracker: &Tracker, netns: u32, end: Endpoint) -> Option<&Conn> {
    let score = |conn: &Conn| {
        let here = conn.netns == netns && conn.local.port == end.port;
        match conn.local.addr {
            addr if here && addr == end.addr => 2,
            _ if here && conn.local.is_wildcard() => 1,
            _ => 0,
        }
    };
    let mut best: Option<(u8, &Conn)> = None;
    let mut alone = true;
    for conn in tracker.table().in_state(TcpState::Listen) {
        let score = score(conn);
        if score > best.map_or(0, |(score, _)| score) {
            (best, alone) = (Some((score, conn)), true);
        } else if score > 0 && best.is_some_and(|(best, _)| best == score) {
            alone = false;
        }
    }
    best.filter(|_| alone).map(|(_, conn)| conn)
}
