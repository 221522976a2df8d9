//! The clocks of the running kernel.

use std::{num::NonZeroU16, time::SystemTime};

use rustix::time::{ClockId, clock_getres, clock_gettime};

use crate::tcp::{ticks::TickRate, time::Clock};

/// Reads both clocks.
pub fn read() -> Clock {
    let now = clock_gettime(ClockId::Monotonic);
    let now_ns =
        u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0);
    Clock { now_ns, wall: SystemTime::now() }
}

/// Ticks a second of the running kernel: its coarse clocks advance by one tick (posix_get_coarse_res,
/// kernel/time/posix-timers.c). `None` where their resolution is not that of a tick.
pub fn tick_rate() -> Option<TickRate> {
    let tick = clock_getres(ClockId::MonotonicCoarse);
    let tick_ns = u64::try_from(tick.tv_nsec).ok().filter(|tick_ns| *tick_ns > 0)?;
    let rate = u16::try_from((1_000_000_000 + tick_ns / 2) / tick_ns).ok()?;
    NonZeroU16::new(rate).map(TickRate)
}
