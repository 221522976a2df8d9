//! Counts each reset once, with the connection that it ended.
//!
//! A reset is reported just before the end of its connection or just after it: an abortive close sets the state to CLOSE
//! before the kernel sends the reset.

use crate::{
    events::decode::ResetRecord,
    model::{
        groups::{GroupId, Groups, Peer, Role},
        processes::{Activity, ProcessId, ProcessTable},
        table::{Conn, ConnFlags, ConnKey},
        tracker::{Ended, Tracker},
    },
    tcp::{
        life::Cause,
        reset_reason::{Discarded, ObservedReset, ResetReason},
        state::TcpState,
    },
};

/// How long after the end of its connection a reset may be sent, or a received one turn out not to be one.
const AFTER_NS: u64 = 100_000_000;

/// A reset reported as received, of a connection that is over: counted unless one is sent in answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    since_ns: u64,
    group: GroupId,
    /// Whose connection it was; named by this too.
    process: Option<ProcessId>,
    reset: ObservedReset,
}

impl Pending {
    fn count(self, groups: &mut Groups, processes: &mut ProcessTable) {
        groups.counts(self.group).count_reset(&self.reset);
        processes.count(self.process, Activity::RESET);
        if let Some(id) = self.process {
            processes.drop_user(id);
        }
    }
}

impl Tracker {
    pub(crate) fn apply_reset(&mut self, record: &ResetRecord) {
        let reset = observed(record, record.state);
        if record.socket.is_minisock() {
            self.reset_minisock(record, reset);
        } else if record.socket.cookie == 0 {
            // The program cannot ask for the cookie, and the socket had none yet.
            self.count_reset(None, &reset, record.time_ns);
        } else if record.state == TcpState::Close {
            self.reset_ended(record, &reset);
        } else {
            match self.find_or_insert(&record.socket, record.state, record.time_ns) {
                Some(key) if !reset.reason.spares_connection() => {
                    let end = self.table.get_mut(key).end.get_or_insert_default();
                    // The socket receives what a packet filter sent just before.
                    if end.reset.is_none_or(|before| before.reason != ResetReason::PolicyReceived) {
                        end.reset = Some(reset);
                    }
                }
                // The connection goes on, or has no place in the table.
                key => {
                    if let Some(key) = key.filter(|_| record.state == TcpState::SynSent && !record.policy) {
                        self.table.get_mut(key).end.get_or_insert_default().challenges += 1;
                    }
                    self.count_reset(key, &reset, record.time_ns);
                }
            }
        }
    }

    /// A reset in answer to a segment for a minisock removes the minisock (TCP_TW_RST, net/ipv4/tcp_ipv4.c).
    fn reset_minisock(&mut self, record: &ResetRecord, reset: ObservedReset) {
        let key = self.table.find_minisock(record.socket.ends());
        if let Some(key) = key {
            self.table.get_mut(key).end.get_or_insert_default().reset =
                Some(ObservedReset { counted: true, ..reset });
        }
        self.count_reset(key, &reset, record.time_ns);
        self.end_minisock(&record.socket, record.time_ns);
    }

    /// The connection had ended before the kernel sent it.
    fn reset_ended(&mut self, record: &ResetRecord, reset: &ObservedReset) {
        let cookie = record.socket.cookie;
        let by = record.pid.and_then(|pid| self.processes.by_pid(pid));
        if let Some(key) = self.table.find(cookie) {
            self.closed_by(key, by, record.time_ns);
            // Its end was lost. Or it seemed to leave a minisock, where a negative TCP_LINGER2 wants none.
            let conn = self.table.get_mut(key);
            let reset = observed(record, conn.state());
            conn.end.get_or_insert_default().reset = Some(reset);
            conn.flags.set(ConnFlags::UNACCEPTED, record.socket.is_unaccepted());
            if conn.is(ConnFlags::MINISOCK) {
                self.remove(key, Cause::Application, record.time_ns);
            }
            return;
        }
        if let Some(id) = self.pending_resets.remove(&cookie).and_then(|pending| pending.process) {
            self.processes.drop_user(id);
        }
        let just_now = |ended: &&mut Ended| ended.ended_ns.saturating_add(AFTER_NS) >= record.time_ns;
        let found =
            self.ended.iter_mut().rev().take_while(just_now).find(|ended| ended.conn.cookie == cookie);
        let Some(Ended { conn, cause, .. }) = found else {
            self.count_reset(None, reset, record.time_ns);
            return;
        };
        let reset = ObservedReset { counted: true, ..observed(record, conn.state()) };
        if reset.reason == ResetReason::DataAfterClose {
            *cause = Cause::Peer;
        }
        conn.unread_bytes = record.unread_bytes;
        conn.end.get_or_insert_default().reset = Some(reset);
        Self::reset_by(&mut self.processes, conn, by);
        let process = conn.process.map(|id| &self.processes.get(id).comm);
        let counts = self.groups.counts_of(process, conn.role, conn.peer(), record.time_ns);
        counts.count_reset(&reset);
        self.processes.count(conn.process, Activity::RESET);
        let conn = conn.clone();
        self.keep_end(&conn, record.time_ns);
    }

    /// The connection ends: its reset is settled, unless a reset sent in answer may still show that none was received.
    pub(crate) fn settle_reset(&mut self, key: ConnKey, now_ns: u64) {
        let Conn { cookie, error, end, .. } = self.table.get_mut(key);
        let Some(reset) = end.as_mut().and_then(|end| end.reset.as_mut()) else { return };
        if std::mem::replace(&mut reset.counted, true) {
            return;
        }
        reset.reason = reset.reason.ended(*error);
        let (cookie, reset) = (*cookie, *reset);
        if !reset.reason.may_be_an_answer() {
            self.count_reset(Some(key), &reset, now_ns);
        } else if let Some(group) = self.group(key, now_ns) {
            let process = self.table.get(key).process;
            if let Some(id) = process {
                self.processes.add_user(id);
            }
            let pending = Pending { since_ns: now_ns, group, process, reset };
            // Of another socket that had the same address.
            if let Some(before) = self.pending_resets.insert(cookie, pending) {
                before.count(&mut self.groups, &mut self.processes);
            }
        }
    }

    /// Counts the pending resets in answer to which one would have been sent by now.
    pub(crate) fn settle_pending_resets(&mut self, now_ns: u64) {
        let Self { groups, processes, pending_resets, .. } = self;
        pending_resets.retain(|_, pending| {
            let waits = pending.since_ns.saturating_add(AFTER_NS) > now_ns;
            if !waits {
                pending.count(groups, processes);
            }
            waits
        });
    }

    /// `key`: `None` where its connection is not known.
    fn count_reset(&mut self, key: Option<ConnKey>, reset: &ObservedReset, now_ns: u64) {
        let counts = match key.and_then(|key| self.group(key, now_ns)) {
            Some(group) => self.groups.counts(group),
            None => self.groups.counts_of(None, Role::Unknown, Peer::Unknown, now_ns),
        };
        counts.count_reset(reset);
        self.processes.count(key.and_then(|key| self.table.get(key).process), Activity::RESET);
    }
}

/// Why, as far as the record alone says. A close has set the state to CLOSE before the kernel sends the reset
/// (`__tcp_close` and tcp_disconnect in net/ipv4/tcp.c, which look at unread bytes first).
fn reason_of(record: &ResetRecord) -> ResetReason {
    if record.policy {
        return if record.received { ResetReason::PolicyReceived } else { ResetReason::PolicySent };
    }
    if record.received {
        return match record.state {
            TcpState::SynSent | TcpState::SynRecv => ResetReason::Connecting,
            TcpState::Established => ResetReason::Established,
            TcpState::CloseWait | TcpState::LastAck | TcpState::Closing => ResetReason::PeerClosed,
            _ => ResetReason::LocalClosed,
        };
    }
    match (record.state, record.answers) {
        (TcpState::Close, true) => ResetReason::DataAfterClose,
        (_, true) if record.socket.is_minisock() => ResetReason::DataAfterClose,
        (_, true) => ResetReason::InvalidSegment,
        (TcpState::Close, false) if record.socket.is_unaccepted() => ResetReason::ListenerClosed,
        (TcpState::Close, false) if record.unread_bytes > 0 => ResetReason::UnreadData,
        (TcpState::Close, false) if record.zero_linger => ResetReason::ZeroLinger,
        (TcpState::Close, false) => ResetReason::Disconnect,
        (_, false) => ResetReason::Other,
    }
}

/// The reset with what it discarded. `was`: the connection's state before it.
fn observed(record: &ResetRecord, was: TcpState) -> ObservedReset {
    // The record counts sequence numbers, of which SYN and FIN take one each.
    let numbers = match was {
        TcpState::SynSent
        | TcpState::SynRecv
        | TcpState::FinWait1
        | TcpState::Closing
        | TcpState::LastAck => 1,
        _ => 0,
    };
    let waiting = record.unsent.min(numbers);
    let reason = reason_of(record);
    let discarded = Discarded {
        // The application may still read what came before a reset that was received.
        unread_bytes: if record.received { 0 } else { record.unread_bytes.into() },
        unsent_bytes: (record.unsent - waiting).into(),
        unacknowledged_bytes: record.unacknowledged.saturating_sub(numbers - waiting).into(),
    };
    ObservedReset {
        reason,
        exiting: record.exiting,
        discarded: if reason.spares_connection() { Discarded::default() } else { discarded },
        counted: false,
    }
}
