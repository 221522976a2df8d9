//! One reading of the clocks, passed in wherever a time is needed.

use std::{
    num::NonZeroU16,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_getres, clock_gettime};

use crate::ticks::TickRate;

/// The kernel's monotonic clock, which stamps the records, beside the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// CLOCK_MONOTONIC.
    pub now_ns: u64,
    pub wall: SystemTime,
}

impl Clock {
    pub fn read() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        let now_ns =
            u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0);
        Self { now_ns, wall: SystemTime::now() }
    }

    /// The clocks as they stood at a past time of CLOCK_MONOTONIC.
    #[must_use]
    pub fn at(&self, then_ns: u64) -> Self {
        let ago = Duration::from_nanos(self.now_ns.saturating_sub(then_ns));
        Self { now_ns: then_ns, wall: self.wall - ago }
    }

    /// Seconds from a CLOCK_MONOTONIC time until now; 0 for one that is not yet past.
    pub fn seconds_since(&self, then_ns: u64) -> f64 {
        seconds(self.now_ns.saturating_sub(then_ns))
    }

    /// Wall clock minus CLOCK_MONOTONIC, in nanoseconds.
    pub fn wall_offset_ns(&self) -> u64 {
        let wall = self.wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(wall.as_nanos()).unwrap_or(0).saturating_sub(self.now_ns)
    }

    /// RFC 3339, in UTC, with milliseconds.
    pub fn rfc3339(&self) -> String {
        humantime::format_rfc3339_millis(self.wall).to_string()
    }
}

/// The kernel's: its coarse clocks advance by one tick each (posix_get_coarse_res, kernel/time/posix-timers.c). `None` where
/// they say what no kernel's tick is.
pub fn tick_rate() -> Option<TickRate> {
    let tick = clock_getres(ClockId::MonotonicCoarse);
    let tick_ns = u64::try_from(tick.tv_nsec).ok().filter(|tick_ns| *tick_ns > 0)?;
    let rate = u16::try_from((1_000_000_000 + tick_ns / 2) / tick_ns).ok()?;
    NonZeroU16::new(rate).map(TickRate)
}

/// RFC 3339, in UTC, with microseconds, of nanoseconds since 1970.
pub fn rfc3339(since_epoch_ns: u64) -> String {
    humantime::format_rfc3339_micros(UNIX_EPOCH + Duration::from_nanos(since_epoch_ns)).to_string()
}

/// Nanoseconds as seconds, to the microsecond: finer digits would be noise.
pub fn seconds(nanos: u64) -> f64 {
    Duration::from_micros(nanos / 1000).as_secs_f64()
}
