//! Traffic: the data that connections carried, each byte once.
//!
//! The kernel counts it for each socket. Records tell it when one side first closes and at the end, sweeps in between;
//! what is new counts each time. Of an older connection the first that is told only says where counting starts.

use crate::{
    events::decode::{Traffic, TrafficRecord},
    model::{
        table::{ConnFlags, ConnKey},
        tracker::Tracker,
    },
    tcp::first_close::FirstClose,
};

impl Tracker {
    /// Comes just before the change of state, which finds the connection heard of at its own time.
    pub(crate) fn apply_traffic(&mut self, record: &TrafficRecord) {
        if let Some(slot) = self.table.find(record.cookie) {
            self.carry(slot, record.traffic, record.time_ns);
            self.table.get_mut(slot).seen_ns = record.time_ns;
        }
    }

    /// The socket's own count.
    pub(crate) fn carry(&mut self, slot: ConnKey, told: Traffic, now_ns: u64) {
        let conn = self.table.get_mut(slot);
        let before = match conn.traffic() {
            Some(before) => before,
            None if conn.is(ConnFlags::OLDER) => told,
            None => Traffic::default(),
        };
        let new = told.since(before);
        let mut all = before;
        all += new;
        conn.set_traffic(all);
        if new == Traffic::default() {
            return;
        }
        let mut after_close = Traffic::default();
        let first = FirstClose::of_state(conn.state());
        if conn.is(ConnFlags::AFTER_CLOSE_TOLD) {
            match first {
                Some(FirstClose::Local) => after_close.received_bytes = new.received_bytes,
                _ => after_close.sent_bytes = new.sent_bytes,
            }
            if after_close != Traffic::default() {
                conn.end.get_or_insert_default().after_close_bytes += after_close.total();
            }
        }
        if let Some(group) = self.group(slot, now_ns) {
            let counts = self.groups.counts(group);
            counts.traffic += new;
            counts.after_close += after_close;
        }
    }
}
