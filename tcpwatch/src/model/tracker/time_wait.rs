//! The TIME_WAIT of orphans: a minisock in FIN_WAIT2 enters it when the peer's FIN comes, which no state change reports.
//!
//! A record reports it where the hook for that can be had. Elsewhere the connection's other end does, if it is in the same
//! network namespace: it goes from LAST_ACK to CLOSE when its FIN is acknowledged. What is left only a sweep notices.

use crate::{
    events::decode::{Ends, Socket},
    model::{
        table::ConnKey,
        tracker::{MINISOCK_NS, Tracker},
    },
    tcp::{life::Cause, state::TcpState},
};

impl Tracker {
    /// The minisock with these ends is in TIME_WAIT, which began, or began anew, at `now_ns`.
    pub(crate) fn restart_time_wait(&mut self, ends: Ends, now_ns: u64) {
        let Some(key) = self.table.find_minisock(ends) else {
            self.sweep.entered_time_wait(ends, now_ns);
            return;
        };
        let conn = self.table.get(key);
        // Of two records the clocks may differ a little; an older one than that is of an earlier minisock.
        if conn.since_ns() > now_ns && conn.state() == TcpState::TimeWait {
            return;
        }
        let expires_ns = self.minisock_expires(now_ns);
        if conn.state() == TcpState::TimeWait {
            self.table.get_mut(key).seen_ns = now_ns;
            self.table.expire_at(key, expires_ns);
        } else {
            self.leave(key, TcpState::FinWait2, TcpState::TimeWait, now_ns);
            self.enter_time_wait(key, now_ns, now_ns, expires_ns);
        }
    }

    /// The socket has left LAST_ACK without an error: its FIN was acknowledged, so the other end has it.
    pub(crate) fn notice_acknowledged_fin(&mut self, socket: &Socket, now_ns: u64) {
        // Where records lack the namespace, another one may have the same ends.
        if self.reported.time_waits || socket.netns == 0 {
            return;
        }
        let has_orphans = self.table.oldest_minisock(TcpState::FinWait2).is_some();
        if !has_orphans && !self.sweep.is_under_way() {
            return;
        }
        let other = Ends { local: socket.remote, remote: socket.local, ..socket.ends() };
        let found = self.table.find_minisock(other);
        if found.is_none_or(|key| self.table.get(key).state() == TcpState::FinWait2) {
            self.restart_time_wait(other, now_ns);
        }
    }

    /// Moves a minisock from FIN_WAIT2 to TIME_WAIT, which it entered at `since_ns`.
    pub(crate) fn enter_time_wait(&mut self, key: ConnKey, since_ns: u64, now_ns: u64, expires_ns: u64) {
        self.table.expire_at(key, expires_ns);
        self.table.enter(key, TcpState::TimeWait, Cause::Peer, since_ns);
        let conn = self.table.get_mut(key);
        conn.seen_ns = conn.seen_ns.max(now_ns);
    }

    /// When the timer fires of a minisock that is left at `now_ns`.
    pub(crate) fn minisock_expires(&self, now_ns: u64) -> u64 {
        let timer = self.ticks.map(|ticks| ticks.timer_fires(now_ns, MINISOCK_NS));
        timer.unwrap_or_else(|| now_ns.saturating_add(MINISOCK_NS))
    }

    /// Whether there are minisocks whose further life no record reports.
    pub fn has_unreported_minisocks(&self) -> bool {
        let unreported_ends = !self.reported.minisock_ends && self.table.has_minisocks();
        unreported_ends
            || (!self.reported.time_waits && self.table.oldest_minisock(TcpState::FinWait2).is_some())
    }
}
