//! Decides which process owns a connection: the one seen acting on the socket or holding it and, until it is accepted, its
//! listener's.

use crate::{
    events::decode::Endpoint,
    model::{
        groups::Role,
        processes::ProcessId,
        table::{Conn, ConnFlags, ConnKey},
        tracker::Tracker,
    },
    tcp::state::TcpState,
};

impl Tracker {
    /// The process of the listener that the kernel chose for a connection with this local end; `None` when several
    /// processes listen equally well.
    pub(crate) fn listener_of(&self, netns: u32, local: Endpoint) -> Option<ProcessId> {
        let listeners = self.listeners.get(&(netns, local.port))?;
        // The usual case.
        if let [only] = listeners[..] {
            let listener = self.table.get(only);
            return match_score(listener.local, local).and(listener.process);
        }
        let scored = || {
            listeners.iter().filter_map(|key| {
                let listener = self.table.get(*key);
                Some((match_score(listener.local, local)?, listener.process))
            })
        };
        let best = scored().map(|(score, _)| score).max()?;
        let mut owners = scored().filter(|(score, _)| *score == best).map(|(_, owner)| owner);
        let first = owners.next()??;
        owners.all(|owner| owner == Some(first)).then_some(first)
    }

    /// The process was seen acting on the socket or holding it. `None` changes nothing.
    pub(crate) fn own(&mut self, key: ConnKey, process: Option<ProcessId>, now_ns: u64) {
        if process.is_some() {
            self.set_process(key, process, now_ns);
            let flags = &mut self.table.get_mut(key).flags;
            flags.insert(ConnFlags::OWNER_SEEN);
            flags.remove(ConnFlags::UNACCEPTED);
        }
    }

    pub(crate) fn closed_by(&mut self, key: ConnKey, process: Option<ProcessId>, now_ns: u64) {
        self.own(key, process, now_ns);
        self.refer(key, process, |conn| &mut conn.closer);
    }

    /// Sets the opener or closer of a connection, and counts the reference.
    pub(crate) fn refer(
        &mut self,
        key: ConnKey,
        process: Option<ProcessId>,
        place: impl Fn(&mut Conn) -> &mut Option<ProcessId>,
    ) {
        if let Some(id) = process {
            self.processes.add_user(id);
            if let Some(old) = place(self.table.get_mut(key)).replace(id) {
                self.processes.drop_user(old);
            }
        }
    }

    pub(crate) fn set_process(&mut self, key: ConnKey, process: Option<ProcessId>, now_ns: u64) {
        let conn = self.table.get_mut(key);
        if conn.process == process {
            return;
        }
        if let Some(id) = process {
            self.processes.add_user(id);
        }
        if let Some(id) = std::mem::replace(&mut conn.process, process) {
            self.processes.drop_user(id);
        }
        if let Some(group) = conn.group.take() {
            self.groups.release(group, now_ns);
        }
    }

    /// Forgets the listener's process as the owner of a connection that was closed here: the closing process had accepted it,
    /// and need not be the listener's. Has no effect where the owner was seen.
    pub(crate) fn doubt_listener(&mut self, key: ConnKey, now_ns: u64) {
        let conn = self.table.get_mut(key);
        let closed_here = !matches!(
            conn.state(),
            TcpState::SynRecv | TcpState::Established | TcpState::CloseWait | TcpState::Close
        );
        if conn.role == Role::Server && closed_here && !conn.is(ConnFlags::OWNER_SEEN) {
            conn.flags.remove(ConnFlags::UNACCEPTED | ConnFlags::REQUEST);
            self.set_process(key, None, now_ns);
        }
    }

    pub(crate) fn forget_listener(&mut self, key: ConnKey, conn: &Conn) {
        self.queues.remove(&conn.cookie);
        self.overflows.listener_gone(conn.netns);
        self.unlist(key, (conn.netns, conn.local.port));
    }

    pub(crate) fn unlist(&mut self, key: ConnKey, port: (u32, u16)) {
        if let Some(listeners) = self.listeners.get_mut(&port) {
            listeners.retain(|listener| *listener != key);
            if listeners.is_empty() {
                self.listeners.remove(&port);
            }
        }
    }
}

/// How well a listener matches a connection's local end, as the kernel scores it (compute_score in
/// net/ipv4/inet_hashtables.c): its own address, then any of its family, then `::` for IPv4.
fn match_score(listening: Endpoint, local: Endpoint) -> Option<u8> {
    if listening.addr == local.addr {
        Some(2)
    } else if !listening.is_wildcard() {
        None
    } else if listening.addr.to_ipv4_mapped().is_some() == local.addr.to_ipv4_mapped().is_some() {
        Some(1)
    } else {
        listening.addr.is_unspecified().then_some(0)
    }
}
