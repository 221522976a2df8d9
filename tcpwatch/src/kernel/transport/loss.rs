//! Counters of lost records, by cause.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::fs::FileExt,
    },
};

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
    counters: PerCpuArray<MapData, u64>,
    /// What the kernel says of each attached program, held open: a read takes no descriptor, and each is the latest.
    programs: Vec<File>,
}

impl LossCounters {
    /// # Errors
    /// When /proc says nothing of a program.
    pub(crate) fn new<'a>(
        counters: PerCpuArray<MapData, u64>,
        programs: impl Iterator<Item = BorrowedFd<'a>>,
    ) -> io::Result<Self> {
        let open = |program: BorrowedFd<'_>| File::open(format!("/proc/self/fdinfo/{}", program.as_raw_fd()));
        Ok(Self { counters, programs: programs.map(open).collect::<io::Result<_>>()? })
    }

    /// Records lost since the start: for want of space, and by runs that the kernel skipped because the program would
    /// have run inside itself (reported from Linux 5.12 on). `None` where one of the counts cannot be read now: a sum
    /// without it would be less than one reported before.
    pub fn read(&self) -> Option<LostRecords> {
        let full = self.sum(0..counter::LOST_COUNT)?;
        let skipped = self.programs.iter().map(recursion_misses).sum::<Option<u64>>()?;
        Some(LostRecords { ring_full: full, run_skipped: skipped })
    }

    /// What the programs count without a record; `None` as in `read`.
    pub fn unrecorded(&self) -> Option<UnrecordedCounts> {
        Some(UnrecordedCounts {
            held_back: self.sum(HELD_BACK)?,
            no_socket_resets: self.sum([counter::RESET_NO_SOCKET])?,
            listener_resets: self.sum([counter::RESET_LISTENER])?,
            policy_resets: self.sum([counter::RESET_BY_POLICY])?,
        })
    }

    fn sum(&self, indices: impl IntoIterator<Item = u32>) -> Option<u64> {
        let one = |index| Some(self.counters.get(&index, 0).ok()?.iter().sum::<u64>());
        indices.into_iter().map(one).sum()
    }
}

/// 0 on kernels that do not count them.
fn recursion_misses(program: &File) -> Option<u64> {
    let mut info = [0; 1024];
    let len = program.read_at(&mut info, 0).ok()?;
    let info = str::from_utf8(&info[..len]).ok()?;
    let Some(misses) = info.lines().find_map(|line| line.strip_prefix("recursion_misses:")) else {
        return Some(0);
    };
    misses.trim().parse().ok()
}
