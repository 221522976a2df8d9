//! Whose a connection is: the process that was seen acting on the socket or holding it and, until somebody has accepted
//! it, its listener's.

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
    /// A connection that nobody accepted yet belongs to its listener's process; to nobody known when
    /// several processes listen and the kernel may have chosen any.
    pub(crate) fn listener_of(&self, netns: u32, local: Endpoint) -> Option<ProcessId> {
        let listeners = self.listeners.get(&(netns, local.port))?;
        // Mostly there is one.
        if let [only] = listeners[..] {
            let listener = self.table.get(only);
            return match_score(listener.local, local).and(listener.process);
        }
        let scored = || {
            listeners.iter().filter_map(|slot| {
                let listener = self.table.get(*slot);
                Some((match_score(listener.local, local)?, listener.process))
            })
        };
        let best = scored().map(|(score, _)| score).max()?;
        let mut owners = scored().filter(|(score, _)| *score == best).map(|(_, owner)| owner);
        let first = owners.next()??;
        owners.all(|owner| owner == Some(first)).then_some(first)
    }

    /// The process was seen acting on the socket or holding it. An unknown one changes nothing.
    pub(crate) fn own(&mut self, slot: ConnKey, process: Option<ProcessId>, now_ns: u64) {
        if process.is_some() {
            self.set_process(slot, process, now_ns);
            let marks = &mut self.table.get_mut(slot).marks;
            marks.insert(ConnFlags::OWNER_SEEN);
            marks.remove(ConnFlags::UNACCEPTED);
        }
    }

    pub(crate) fn closed_by(&mut self, slot: ConnKey, process: Option<ProcessId>, now_ns: u64) {
        self.own(slot, process, now_ns);
        self.refer(slot, process, |conn| &mut conn.closer);
    }

    /// Notes a process in one of the connection's places for one.
    pub(crate) fn refer(
        &mut self,
        slot: ConnKey,
        process: Option<ProcessId>,
        place: impl Fn(&mut Conn) -> &mut Option<ProcessId>,
    ) {
        if let Some(id) = process {
            self.processes.add_user(id);
            if let Some(old) = place(self.table.get_mut(slot)).replace(id) {
                self.processes.drop_user(old);
            }
        }
    }

    pub(crate) fn set_process(&mut self, slot: ConnKey, process: Option<ProcessId>, now_ns: u64) {
        let conn = self.table.get_mut(slot);
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

    /// Whoever closed a connection had accepted it: where neither the record of the close nor a sweep said who
    /// that was, it need not be the listener's process.
    pub(crate) fn doubt_listener(&mut self, slot: ConnKey, now_ns: u64) {
        let conn = self.table.get_mut(slot);
        let closed_here = !matches!(
            conn.state(),
            TcpState::SynRecv | TcpState::Established | TcpState::CloseWait | TcpState::Close
        );
        if conn.role == Role::Server && closed_here && !conn.is(ConnFlags::OWNER_SEEN) {
            conn.marks.remove(ConnFlags::UNACCEPTED | ConnFlags::REQUEST);
            self.set_process(slot, None, now_ns);
        }
    }

    pub(crate) fn forget_listener(&mut self, slot: ConnKey, conn: &Conn) {
        self.queues.remove(&conn.cookie);
        self.unlist(slot, (conn.netns, conn.local.port));
    }

    pub(crate) fn unlist(&mut self, slot: ConnKey, key: (u32, u16)) {
        if let Some(listeners) = self.listeners.get_mut(&key) {
            listeners.retain(|listener| *listener != slot);
            if listeners.is_empty() {
                self.listeners.remove(&key);
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
