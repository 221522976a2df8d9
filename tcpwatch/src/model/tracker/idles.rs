//! Samples how long connections had been idle when a side closed them, and how soon clients close what their peer has.

use crate::{
    model::{
        groups::{Closer, Role},
        idle_times::{ClientKey, IdleKey},
        table::{Conn, ConnKey},
        tracker::Tracker,
    },
    tcp::{life::Step, reset_reason::ResetReason, state::TcpState},
};

/// A side that has sent data so shortly before its close may have answered, and closed behind its answer: how long that
/// took is no time-out, unless it is as long as time-outs are.
const ANSWERED_NS: u64 = 1_000_000_000;

impl Tracker {
    /// A side has closed the connection, which had been idle.
    pub(crate) fn sample_close(&mut self, key: ConnKey) {
        let conn = self.table.get(key);
        let Some((closer, closed_ns)) = first_close(conn) else { return };
        let Some(idle) = conn.idle().filter(|_| matches!(conn.role, Role::Client | Role::Server)) else {
            return;
        };
        let idle_ns = idle.before_close(closer);
        let is_answer = idle_ns > idle.sending_ns.min(idle.receiving_ns) && idle_ns < ANSWERED_NS;
        // A server that has closed its listener ends.
        let ends = conn.role == Role::Server
            && closer == Closer::Local
            && !self.listeners.contains_key(&(conn.netns, conn.local.port));
        if !is_answer && !ends {
            let key = IdleKey { netns: conn.netns, role: conn.role, server: conn.peer(), closer };
            self.idle_times.sample_close(key, idle_ns, closed_ns);
        }
    }

    /// The connection is over: a client's, which was idle when its peer closed, and over which nothing was sent since.
    pub(crate) fn sample_dwell(&mut self, conn: &Conn, ended_ns: u64) {
        let was_idle = conn.role == Role::Client && conn.idle().is_some();
        if !was_idle || conn.after_close_bytes() != Some(0) {
            return;
        }
        let met_it = conn.reset().is_some_and(|reset| reset.reason == ResetReason::PeerClosed);
        let mut steps = conn.life().steps().skip_while(|step| step.state != TcpState::CloseWait);
        if let Some(closed) = steps.next().filter(|_| !met_it) {
            let left_ns = steps.next().map_or(ended_ns, |step| step.since_ns);
            let process = conn.process.map(|id| self.processes.get(id).comm.clone());
            let key = ClientKey { netns: conn.netns, process, server: conn.peer() };
            self.idle_times.sample_dwell(key, left_ns.saturating_sub(closed.since_ns), ended_ns);
        }
    }
}

/// Who sent a FIN first, and when.
pub(crate) fn first_close(conn: &Conn) -> Option<(Closer, u64)> {
    let close = |step: Step| Some((Closer::of(step.state)?, step.since_ns));
    conn.life().steps().find_map(close)
}
