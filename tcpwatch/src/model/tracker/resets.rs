//! Resets as the tracker counts them: each once, with the connection that it ended.
//!
//! A reset is told just before the end of its connection, or just after it: whoever closes in an abortive way is in
//! CLOSE when the kernel sends the reset.

use crate::{
    events::decode::ResetRecord,
    model::{
        groups::{GroupId, Groups, Peer, Role},
        table::{Conn, ConnFlags, ConnKey},
        tracker::{Ended, Tracker},
    },
    tcp::{
        life::Cause,
        reset_reason::{Discarded, ObservedReset, ResetReason},
        state::TcpState,
    },
};

/// How long after the end of its connection a reset may be sent, or a received one turn out to be none.
const AFTER_NS: u64 = 100_000_000;

/// A reset that was called received, of a connection that is over: counted when none was sent in answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    since_ns: u64,
    group: GroupId,
    told: ObservedReset,
}

impl Pending {
    fn count(self, groups: &mut Groups) {
        groups.counts(self.group).count_reset(&self.told);
    }
}

impl Tracker {
    pub(crate) fn apply_reset(&mut self, record: &ResetRecord) {
        let told = observed(record, record.state);
        if record.socket.is_minisock() {
            self.reset_minisock(record, told);
        } else if record.socket.cookie == 0 {
            // A probe cannot ask for a cookie, and nobody had before it.
            self.count_reset(None, &told, record.time_ns);
        } else if record.state == TcpState::Close {
            self.reset_ended(record, &told);
        } else {
            match self.find_or_insert(&record.socket, record.state, record.time_ns) {
                Some(slot) if !told.reset.spares_connection() => {
                    let end = self.table.get_mut(slot).end.get_or_insert_default();
                    // What a packet filter sent is received afterwards.
                    if end.reset.is_none_or(|before| before.reset != ResetReason::PolicyReceived) {
                        end.reset = Some(told);
                    }
                }
                // The connection goes on, or has no place in the table.
                slot => self.count_reset(slot, &told, record.time_ns),
            }
        }
    }

    /// What the kernel kept of the connection is gone with it (TCP_TW_RST, net/ipv4/tcp_ipv4.c).
    fn reset_minisock(&mut self, record: &ResetRecord, told: ObservedReset) {
        let (netns, local, remote) = (record.socket.netns, record.socket.local, record.socket.remote);
        let slot = self.table.find_minisock(netns, local, remote);
        if let Some(slot) = slot {
            self.table.get_mut(slot).end.get_or_insert_default().reset =
                Some(ObservedReset { counted: true, ..told });
        }
        self.count_reset(slot, &told, record.time_ns);
        self.end_minisock(&record.socket, record.time_ns);
    }

    /// The connection had ended before the kernel sent it.
    fn reset_ended(&mut self, record: &ResetRecord, told: &ObservedReset) {
        let cookie = record.socket.cookie;
        if let Some(slot) = self.table.find(cookie) {
            // Its end was lost. Or it looked as if a minisock were left, where TCP_LINGER2 wanted none.
            let conn = self.table.get_mut(slot);
            let told = observed(record, conn.state());
            conn.end.get_or_insert_default().reset = Some(told);
            if conn.is(ConnFlags::MINISOCK) {
                self.remove(slot, Cause::Application, record.time_ns);
            }
            return;
        }
        self.pending_resets.remove(&cookie);
        let just_now = |ended: &&mut Ended| ended.ended_ns.saturating_add(AFTER_NS) >= record.time_ns;
        let found =
            self.ended.iter_mut().rev().take_while(just_now).find(|ended| ended.conn.cookie == cookie);
        let Some(Ended { conn, .. }) = found else {
            self.count_reset(None, told, record.time_ns);
            return;
        };
        let told = ObservedReset { counted: true, ..observed(record, conn.state()) };
        conn.end.get_or_insert_default().reset = Some(told);
        let process = conn.process.map(|id| &self.processes.get(id).comm);
        let counts = self.groups.counts_of(process, conn.role, conn.peer(), record.time_ns);
        counts.count_reset(&told);
    }

    /// The connection ends: what was told of its reset holds, but for what an answer may still show.
    pub(crate) fn settle_reset(&mut self, slot: ConnKey, now_ns: u64) {
        let Conn { cookie, error, end, .. } = self.table.get_mut(slot);
        let Some(told) = end.as_mut().and_then(|end| end.reset.as_mut()) else { return };
        if std::mem::replace(&mut told.counted, true) {
            return;
        }
        told.reset = told.reset.ended(*error);
        let (cookie, told) = (*cookie, *told);
        if !told.reset.may_be_an_answer() {
            self.count_reset(Some(slot), &told, now_ns);
        } else if let Some(group) = self.group(slot, now_ns) {
            let before = self.pending_resets.insert(cookie, Pending { since_ns: now_ns, group, told });
            // Of another socket that had its address.
            if let Some(before) = before {
                before.count(&mut self.groups);
            }
        }
    }

    /// Counts those whose answer would have come by now.
    pub(crate) fn settle_pending_resets(&mut self, now_ns: u64) {
        let groups = &mut self.groups;
        self.pending_resets.retain(|_, pending| {
            let waits = pending.since_ns.saturating_add(AFTER_NS) > now_ns;
            if !waits {
                pending.count(groups);
            }
            waits
        });
    }

    /// `slot`: `None` where it is not known whose it is.
    fn count_reset(&mut self, slot: Option<ConnKey>, told: &ObservedReset, now_ns: u64) {
        let counts = match slot.and_then(|slot| self.group(slot, now_ns)) {
            Some(group) => self.groups.counts(group),
            None => self.groups.counts_of(None, Role::Unknown, Peer::Unknown, now_ns),
        };
        counts.count_reset(told);
    }
}

/// Why, as far as the record alone says. A close has set the state to CLOSE before the kernel sends the reset
/// (`__tcp_close` and tcp_disconnect in net/ipv4/tcp.c, which look at unread bytes first).
fn reason(record: &ResetRecord) -> ResetReason {
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

/// `was`: the state that the connection was in.
fn observed(record: &ResetRecord, was: TcpState) -> ObservedReset {
    // What is not delivered counts in sequence numbers, of which SYN and FIN take one.
    let numbers = match was {
        TcpState::SynSent
        | TcpState::SynRecv
        | TcpState::FinWait1
        | TcpState::Closing
        | TcpState::LastAck => 1,
        _ => 0,
    };
    let waiting = record.unsent.min(numbers);
    let reset = reason(record);
    let discarded = Discarded {
        unread_bytes: record.unread_bytes.into(),
        unsent_bytes: (record.unsent - waiting).into(),
        unacknowledged_bytes: record.unacknowledged.saturating_sub(numbers - waiting).into(),
    };
    ObservedReset {
        reset,
        exiting: record.exiting,
        discarded: if reset.spares_connection() { Discarded::default() } else { discarded },
        counted: false,
    }
}
