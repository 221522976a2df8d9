//! Minisocks in the order in which they expire: a list for each step of time.
//!
//! Their timers run equally long but for FIN_WAIT2, whose timer is net.ipv4.tcp_fin_timeout or TCP_LINGER2: one list of all
//! would have to be searched for the place of each that expires early. Within a step they stand as they came.

use std::collections::BTreeMap;

use crate::model::table::List;

/// Length of a step, a fraction of what the kernel's timers have: those of a minute fire within steps of 0.5 to 4 s
/// (LVL_GRAN in kernel/time/timer.c).
const STEP_NS: u64 = 50_000_000;

#[derive(Default)]
pub(super) struct Expiries {
    /// By number of the step; none is empty.
    steps: BTreeMap<u64, List>,
    len: usize,
}

impl Expiries {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Those that expire first come first.
    pub(super) fn lists(&self) -> impl Iterator<Item = &List> {
        self.steps.values()
    }

    /// The list to which the caller adds one that expires then.
    pub(super) fn add_to(&mut self, expires_ns: u64) -> &mut List {
        self.len += 1;
        self.steps.entry(expires_ns / STEP_NS).or_insert(List::EMPTY)
    }

    /// Lets `remove` take one that expires then out of its list.
    pub(super) fn remove_from(&mut self, expires_ns: u64, remove: impl FnOnce(&mut List)) {
        let step = expires_ns / STEP_NS;
        if let Some(list) = self.steps.get_mut(&step) {
            self.len -= 1;
            remove(list);
            if list.len == 0 {
                self.steps.remove(&step);
            }
        }
    }
}
