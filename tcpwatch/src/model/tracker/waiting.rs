//! Counts that wait until the owner of a server's connection is known.
//!
//! A listener makes a connection before anybody accepts it. From then on nothing of it is counted, but for the rare
//! (retransmits, stalls, resets), until its owner was seen or it ends: then all at once, from the states and the traffic
//! that its row has anyway. So nothing counts for a process that turns out not to be the owner.

use crate::{
    model::{
        groups::{Closer, Role},
        processes::Activity,
        table::{ConnFlags, ConnKey},
        tracker::Tracker,
    },
    tcp::{first_close::FirstClose, life::Cause, state::TcpState},
};

impl Tracker {
    /// Counts that the connection was established, now or as soon as its owner is known.
    pub(crate) fn count_opened(&mut self, key: ConnKey, now_ns: u64) {
        let conn = self.table.get_mut(key);
        if conn.role == Role::Server && !conn.is(ConnFlags::OWNER_SEEN) {
            conn.flags.insert(ConnFlags::COUNTS_WAIT);
        } else if let Some(group) = self.group(key, now_ns) {
            self.groups.counts(group).opened += 1;
            self.count_activity(key, Activity { opened: 1, ..Activity::default() });
        }
    }

    /// Counts what waited.
    pub(crate) fn count_waiting(&mut self, key: ConnKey, now_ns: u64) {
        if self.table.get_mut(key).flags.replace(ConnFlags::COUNTS_WAIT, false) {
            self.count_all(key, now_ns);
        }
    }

    fn count_all(&mut self, key: ConnKey, now_ns: u64) {
        self.sample_close(key);
        let Some(group) = self.group(key, now_ns) else { return };
        self.count_activity(key, Activity { opened: 1, ..Activity::default() });
        let conn = self.table.get(key);
        let counts = self.groups.counts(group);
        counts.opened += 1;
        let mut steps = conn.life().steps().skip_while(|step| step.state != TcpState::Established);
        let Some(mut step) = steps.next() else { return };
        for next in steps {
            // Of others it is not known since when.
            if step.cause != Cause::Unknown {
                counts.observe(step.state, next.state, next.since_ns.saturating_sub(step.since_ns));
            }
            if step.state == TcpState::Established
                && let (Some(closer), Some(idle)) = (Closer::of(next.state), conn.idle())
            {
                counts.observe_idle(closer, idle);
            }
            step = next;
        }
        counts.traffic += conn.traffic().unwrap_or_default();
        let after_close = conn.after_close_bytes().unwrap_or(0);
        match FirstClose::of_state(conn.state()) {
            Some(FirstClose::Local) => counts.after_close.received_bytes += after_close,
            _ => counts.after_close.sent_bytes += after_close,
        }
    }
}
