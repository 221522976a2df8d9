//! Counts the data that connections carried, each byte once.
//!
//! The kernel counts it for each socket. Records report that count when a side first closes and at the end, sightings in
//! between; the increase is added each time. The first count of an older connection only says where to start.

use crate::{
    events::decode::{Traffic, TrafficRecord},
    model::{
        table::{ConnFlags, ConnKey},
        tracker::Tracker,
    },
    tcp::first_close::FirstClose,
};

impl Tracker {
    /// Arrives just before the change of state and with its time, by which that change knows of it.
    pub(crate) fn apply_traffic(&mut self, record: &TrafficRecord) {
        if let Some(key) = self.table.find(record.cookie) {
            self.carry(key, record.traffic, record.time_ns);
            self.table.get_mut(key).seen_ns = record.time_ns;
        }
    }

    /// Adds what is new in the socket's own count.
    pub(crate) fn carry(&mut self, key: ConnKey, total: Traffic, now_ns: u64) {
        let conn = self.table.get_mut(key);
        let before = match conn.traffic() {
            Some(before) => before,
            None if conn.is(ConnFlags::OLDER) => total,
            None => Traffic::default(),
        };
        let new = total.since(before);
        let mut all = before;
        all += new;
        conn.set_traffic(all);
        if new == Traffic::default() {
            return;
        }
        let mut after_close = Traffic::default();
        let first = FirstClose::of_state(conn.state());
        if conn.is(ConnFlags::AFTER_CLOSE_KNOWN) {
            match first {
                Some(FirstClose::Local) => after_close.received_bytes = new.received_bytes,
                _ => after_close.sent_bytes = new.sent_bytes,
            }
            if after_close != Traffic::default() {
                conn.end.get_or_insert_default().after_close_bytes += after_close.total();
            }
        }
        if !conn.is(ConnFlags::COUNTS_WAIT)
            && let Some(group) = self.group(key, now_ns)
        {
            let counts = self.groups.counts(group);
            counts.traffic += new;
            counts.after_close += after_close;
        }
    }
}
