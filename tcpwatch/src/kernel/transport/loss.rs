//! Counters of lost records, by cause.

use std::os::fd::RawFd;

use aya::maps::{MapData, PerCpuArray};
use tcpwatch_common::counter;

use crate::events::frame::{LostRecords, UnrecordedCounts};

const HELD_BACK: [u32; 5] = [
    counter::HELD_BACK_RETRANSMIT,
    counter::HELD_BACK_SYN_ACK,
    counter::HELD_BACK_CONGESTION,
    counter::HELD_BACK_RETRANSMIT_FAILED,
    counter::HELD_BACK_OUT_OF_ORDER,
];

/// Reads the counters. Valid as long as the `Probes` that it was created with.
pub struct LossCounters {
    pub(crate) counters: PerCpuArray<MapData, u64>,
    /// Descriptors of the attached programs.
    pub(crate) programs: Vec<RawFd>,
}

impl LossCounters {
    /// Records lost since the start: for want of space, and by runs that the kernel skipped because the program would
    /// have run inside itself (reported from Linux 5.12 on).
    pub fn read(&self) -> LostRecords {
        let full = (0..counter::LOST_COUNT).map(|index| self.sum(index)).sum();
        let skipped = self.programs.iter().filter_map(|fd| recursion_misses(*fd)).sum();
        LostRecords { ring_full: full, run_skipped: skipped }
    }

    /// What the programs count without a record.
    pub fn unrecorded(&self) -> UnrecordedCounts {
        UnrecordedCounts {
            held_back: HELD_BACK.into_iter().map(|index| self.sum(index)).sum(),
            no_socket_resets: self.sum(counter::RESET_NO_SOCKET),
            listener_resets: self.sum(counter::RESET_LISTENER),
            policy_resets: self.sum(counter::RESET_BY_POLICY),
        }
    }

    fn sum(&self, index: u32) -> u64 {
        self.counters.get(&index, 0).map_or(0, |values| values.iter().sum())
    }
}

fn recursion_misses(program: RawFd) -> Option<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{program}")).ok()?;
    info.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?.trim().parse().ok()
}
