//! Decides which process owns a connection: the one seen acting on the socket or holding it. Until it is accepted, the one
//! that holds the listener on whose accept queue a sweep found the connection: no port says which that is (a transparent
//! proxy's listens on another one, and several listeners may have the same).

use crate::{
    model::{
        groups::Role,
        processes::{ProcessId, ProcessTable},
        table::{Conn, ConnFlags, ConnKey},
        tracker::Tracker,
    },
    tcp::state::TcpState,
};

impl Tracker {
    /// The process was seen acting on the socket or holding it. `None` changes nothing.
    pub(crate) fn own(&mut self, key: ConnKey, process: Option<ProcessId>, now_ns: u64) {
        if process.is_some() {
            self.set_process(key, process, now_ns);
            let flags = &mut self.table.get_mut(key).flags;
            flags.insert(ConnFlags::OWNER_SEEN);
            flags.remove(ConnFlags::UNACCEPTED);
            self.count_waiting(key, now_ns);
        }
    }

    pub(crate) fn closed_by(&mut self, key: ConnKey, process: Option<ProcessId>, now_ns: u64) {
        self.own(key, process, now_ns);
        self.table.get_mut(key).flags.remove(ConnFlags::OWNER_HOLDS);
        self.refer(key, process, |conn| &mut conn.closer);
    }

    /// Sets the opener or closer of a connection, and counts the reference.
    pub(crate) fn refer(
        &mut self,
        key: ConnKey,
        process: Option<ProcessId>,
        place: impl Fn(&mut Conn) -> &mut Option<ProcessId>,
    ) {
        if process.is_some() {
            self.processes.set_user(place(self.table.get_mut(key)), process);
        }
    }

    pub(crate) fn set_process(&mut self, key: ConnKey, process: Option<ProcessId>, now_ns: u64) {
        if self.table.get(key).process == process {
            return;
        }
        let mut before = self.table.set_process(key, process);
        self.processes.set_user(&mut before, process);
        let conn = self.table.get_mut(key);
        if let Some(group) = conn.group.take() {
            self.groups.release(group, now_ns);
        }
    }

    /// Somebody has accepted the connection, who need not be the listener's process.
    pub(crate) fn accepted(&mut self, key: ConnKey, now_ns: u64) {
        let conn = self.table.get_mut(key);
        conn.flags.remove(ConnFlags::UNACCEPTED | ConnFlags::REQUEST);
        if !conn.is(ConnFlags::OWNER_SEEN) {
            self.set_process(key, None, now_ns);
        }
    }

    /// The process that sent the reset with which a connection ended.
    pub(crate) fn reset_by(processes: &mut ProcessTable, conn: &mut Conn, process: Option<ProcessId>) {
        if process.is_none() {
            return;
        }
        for place in [&mut conn.process, &mut conn.closer] {
            processes.set_user(place, process);
        }
        conn.flags.insert(ConnFlags::OWNER_SEEN);
        conn.flags.remove(ConnFlags::OWNER_HOLDS);
    }

    /// A connection that was closed here was accepted. Has no effect where the owner was seen.
    pub(crate) fn doubt_listener(&mut self, key: ConnKey, now_ns: u64) {
        let conn = self.table.get(key);
        let closed_here = !matches!(
            conn.state(),
            TcpState::SynRecv | TcpState::Established | TcpState::CloseWait | TcpState::Close
        );
        if conn.role == Role::Server && closed_here && !conn.is(ConnFlags::OWNER_SEEN) {
            self.accepted(key, now_ns);
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
