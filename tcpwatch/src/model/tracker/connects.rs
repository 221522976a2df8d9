//! Connects as the tracker counts them: each attempt once, and once what became of it.
//!
//! What began before it was first seen is counted as an attempt when it ends, so all attempts are those that ended and
//! those that are marked as connecting.

use crate::{
    events::decode::{Socket, SocketRecord},
    model::{
        groups::Role,
        table::{ConnFlags, ConnKey},
        tracker::Tracker,
    },
    tcp::{
        connect_outcome::Outcome,
        life::{Cause, Life},
        state::TcpState,
    },
};

/// The end of a socket whose connect failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    pub(crate) from: TcpState,
    /// The socket's errno; `None` where that is not told.
    pub(crate) error: Option<u8>,
}

impl Tracker {
    /// The application called connect().
    pub(crate) fn count_attempt(&mut self, slot: ConnKey, now_ns: u64) {
        let conn = self.table.get_mut(slot);
        let first = conn.role == Role::Client && !conn.marks.replace(ConnFlags::CONNECTING, true);
        if first && let Some(group) = self.group(slot, now_ns) {
            self.groups.counts(group).attempts += 1;
        }
    }

    /// This became of the connect.
    pub(crate) fn count_connect(&mut self, slot: ConnKey, outcome: Outcome, now_ns: u64) {
        let conn = self.table.get_mut(slot);
        let counted = conn.marks.replace(ConnFlags::CONNECTING, false);
        if conn.role != Role::Client || (conn.connect.is_some() && !counted) {
            return;
        }
        conn.connect = Some(outcome);
        if let Some(group) = self.group(slot, now_ns) {
            let counts = self.groups.counts(group);
            counts.attempts += u64::from(!counted);
            counts.connects[outcome as usize] += 1;
        }
    }

    /// The socket went from SYN_SENT or SYN_RECV to CLOSE.
    pub(crate) fn fail_connect(&mut self, slot: ConnKey, socket: &Socket, failure: Failure, now_ns: u64) {
        if self.table.get(slot).is(ConnFlags::ESTABLISHED) {
            return;
        }
        let unsent = failure.from == TcpState::SynSent && socket.is_unsent();
        let outcome = match failure.error {
            Some(error) => Outcome::of_failed(error, unsent),
            None if unsent => Outcome::NoPort,
            None => Outcome::Unknown,
        };
        self.count_connect(slot, outcome, now_ns);
    }

    /// connect() failed and changed no state: a connection that began in CLOSE and ended there.
    pub(crate) fn fail_at_once(&mut self, record: &SocketRecord, pid: Option<u32>, error: u8) {
        let (socket, now_ns) = (&record.socket, record.time_ns);
        // An earlier life of the same socket.
        if let Some(slot) = self.table.find(socket.cookie) {
            self.supersede(slot, now_ns);
        }
        let life = Life::new(TcpState::Close, Cause::Application, now_ns);
        let marks = ConnFlags::default().with(ConnFlags::BY_ADDRESS, self.reported.identity_is_address);
        // Also in a full table, which it leaves at once.
        let slot = self.table.insert(socket, life, Role::Client, now_ns, marks);
        let process = pid.and_then(|pid| self.processes.by_pid(pid));
        self.own(slot, process, now_ns);
        self.refer(slot, process, |conn| &mut conn.opener);
        self.table.get_mut(slot).error = error;
        self.count_connect(slot, Outcome::of_failed(error, true), now_ns);
        self.remove(slot, Cause::Application, now_ns);
    }
}
