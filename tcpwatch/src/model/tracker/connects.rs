//! Counts connects: each attempt once, and its outcome once.
//!
//! A connect that began before it was first seen is counted as an attempt when it ends, so the attempts are always the
//! outcomes plus the connections flagged as connecting.

use crate::{
    events::decode::{Socket, SocketRecord},
    model::{
        dials::DialEnd,
        groups::Role,
        processes::Activity,
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
    /// The socket's errno; `None` where records lack it.
    pub(crate) error: Option<u8>,
}

/// How much longer than the handshake a connect may take: the application may lose the processor before the SYN is sent.
const BEFORE_SYN_NS: u64 = 20_000_000;

impl Tracker {
    /// The socket was in SYN_SENT before it sent the SYN: with TCP_FASTOPEN_CONNECT that waits for the first data.
    /// `handshake_us`: the time from the SYN to its acknowledgement, 0 where that is not known.
    pub(crate) fn note_deferred_connect(&mut self, key: ConnKey, handshake_us: u32, now_ns: u64) {
        let conn = self.table.get_mut(key);
        let handshake_ns = u64::from(handshake_us) * 1000;
        let deferred_ns = now_ns.saturating_sub(conn.since_ns()).saturating_sub(handshake_ns);
        if handshake_us != 0 && deferred_ns > BEFORE_SYN_NS {
            conn.end.get_or_insert_default().deferred_ns = deferred_ns;
        }
    }

    /// The application called connect().
    pub(crate) fn count_attempt(&mut self, key: ConnKey, now_ns: u64) {
        let conn = self.table.get_mut(key);
        let first = conn.role == Role::Client && !conn.flags.replace(ConnFlags::CONNECTING, true);
        self.kept_ends.note_connect(conn, now_ns);
        if first && let Some(group) = self.group(key, now_ns) {
            self.groups.counts(group).attempts += 1;
        }
    }

    /// Counts the outcome of a connect.
    pub(crate) fn count_connect(&mut self, key: ConnKey, outcome: Outcome, now_ns: u64) {
        let conn = self.table.get_mut(key);
        let counted = conn.flags.replace(ConnFlags::CONNECTING, false);
        if conn.role != Role::Client || (conn.connect.is_some() && !counted) {
            return;
        }
        conn.connect = Some(outcome);
        if let Some(group) = self.group(key, now_ns) {
            let counts = self.groups.counts(group);
            counts.attempts += u64::from(!counted);
            counts.connects[outcome as usize] += 1;
            let succeeded = counts.connects[Outcome::Established as usize] > 0;
            if outcome.is_failure() {
                self.count_activity(key, Activity { failed_connects: 1, ..Activity::default() });
            }
            self.note_dial(key, outcome, succeeded, now_ns);
        }
    }

    /// Counts it with its destination, if connects fail there.
    fn note_dial(&mut self, key: ConnKey, outcome: Outcome, succeeded: bool, now_ns: u64) {
        let conn = self.table.get(key);
        let process = conn.process.map(|id| &self.processes.get(id).comm);
        let counted = self.dials.count(&DialEnd { conn, outcome, now_ns, succeeded }, process);
        if let Some(id) = counted.kept {
            self.processes.add_user(id);
        }
        for conn in &counted.released {
            self.forget(conn);
        }
    }

    /// The socket went from SYN_SENT or SYN_RECV to CLOSE.
    pub(crate) fn fail_connect(&mut self, key: ConnKey, socket: &Socket, failure: Failure, now_ns: u64) {
        if self.table.get(key).is(ConnFlags::ESTABLISHED) {
            return;
        }
        let unsent = failure.from == TcpState::SynSent && socket.is_unsent();
        let outcome = match failure.error {
            Some(error) => Outcome::of_failed(error, unsent),
            None if unsent => Outcome::NoPort,
            None => Outcome::Unknown,
        };
        self.count_connect(key, outcome, now_ns);
    }

    /// Counts a connect() that failed without a change of state: a connection that began in CLOSE and ended there.
    pub(crate) fn fail_at_once(&mut self, record: &SocketRecord, pid: Option<u32>, error: u8) {
        let (socket, now_ns) = (&record.socket, record.time_ns);
        // An earlier life of the same socket is over.
        if let Some(key) = self.table.find(socket.cookie) {
            self.supersede(key, now_ns);
        }
        let life = Life::new(TcpState::Close, Cause::Application, now_ns);
        let flags = ConnFlags::default().with(ConnFlags::BY_ADDRESS, self.reported.identity_is_address);
        // Even into a full table, which it leaves at once.
        let key = self.table.insert(socket, life, Role::Client, now_ns, flags);
        let process = pid.and_then(|pid| self.processes.by_pid(pid));
        self.own(key, process, now_ns);
        self.refer(key, process, |conn| &mut conn.opener);
        self.table.get_mut(key).error = error;
        self.count_connect(key, Outcome::of_failed(error, true), now_ns);
        self.remove(key, Cause::Application, now_ns);
    }
}
