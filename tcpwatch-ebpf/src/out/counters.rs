//! The counters that the daemon reads. In: an index, `counter::*`. Out: one more there. Deliberately absent: counts by
//! socket, which `counts` keeps.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use tcpwatch_common::counter;

/// `counter::*`, one set for each processor, so that counting costs no shared cache line. Never full: one element each.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

#[inline(always)]
pub fn add_one(index: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: a non-null value of a per-CPU map belongs to this CPU. Each signal has indices of its
        // own and the kernel never runs a program inside itself, so nothing comes between load and store.
        unsafe { *value += 1 };
    }
}
