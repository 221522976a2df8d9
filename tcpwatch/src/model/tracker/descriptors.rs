//! How many descriptors processes have open, of the few that findings are about.

use std::collections::VecDeque;

use crate::{
    events::frame::DescriptorCount,
    model::tracker::{Tracker, pools::ProcessKey},
};

/// For how long counts are kept.
const WINDOW_NS: u64 = 900_000_000_000;
/// Processes whose descriptors are known at once.
const MAX_PROCESSES: usize = 256;

/// The counts of one process, oldest first.
pub(crate) type Counts = VecDeque<DescriptorCount>;

impl Tracker {
    /// The descriptors of a process in the last quarter of an hour, oldest first; `None` of a process of no finding.
    pub fn descriptors(&self, process: ProcessKey) -> Option<&VecDeque<DescriptorCount>> {
        self.descriptors.get(&process)
    }

    pub fn count_descriptors(&mut self, count: &DescriptorCount) {
        let is_old = |one: &DescriptorCount| one.at_ns + WINDOW_NS < count.at_ns;
        self.descriptors.retain(|_, counts| counts.back().is_some_and(|latest| !is_old(latest)));
        let process = (count.pid, count.start_ns);
        if self.descriptors.len() >= MAX_PROCESSES && !self.descriptors.contains_key(&process) {
            return;
        }
        let counts = self.descriptors.entry(process).or_default();
        while counts.front().is_some_and(is_old) {
            counts.pop_front();
        }
        counts.push_back(*count);
    }
}
