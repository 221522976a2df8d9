//! The kernel's ticks (jiffies): the time of each, and when a timer that is set in ticks really fires.

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

/// Ticks a second (CONFIG_HZ).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TickRate(pub NonZeroU16);

impl TickRate {
    fn hz(self) -> u64 {
        self.0.get().into()
    }

    pub fn nanos(self, ticks: u32) -> u64 {
        u64::from(ticks) * NANOS / self.hz()
    }

    /// Whole seconds, rounded down: as the kernel reports times that it keeps in ticks.
    pub fn seconds(self, ticks: u64) -> u64 {
        ticks / self.hz()
    }
}

/// Ticks of the running kernel, tied to CLOCK_MONOTONIC by one reading of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks {
    hz: u64,
    /// The tick count and CLOCK_MONOTONIC at the same moment.
    jiffies: u64,
    time_ns: u64,
}

impl Ticks {
    /// Ties ticks to CLOCK_MONOTONIC by a reading of both. `None` where the reading does not fit the rate.
    ///
    /// The kernel starts to count 300 s before the lower 32 bits wrap (INITIAL_JIFFIES, include/linux/jiffies.h), about
    /// when CLOCK_MONOTONIC starts at 0. The two may differ by 5 s, and by the hundredth part of the time since then,
    /// which a slewed clock may gain or lose.
    pub fn from_reading(rate: TickRate, jiffies: u64, time_ns: u64) -> Option<Self> {
        let hz = rate.hz();
        let elapsed = i128::from(jiffies) - i128::from((1u64 << 32) - 300 * hz);
        let error_ns = (elapsed * 1_000_000_000 / i128::from(hz) - i128::from(time_ns)).unsigned_abs();
        let tolerated_ns = 5_000_000_000 + u128::from(time_ns) / 100;
        (error_ns < tolerated_ns).then_some(Self { hz, jiffies, time_ns })
    }

    /// CLOCK_MONOTONIC at a tick; `jiffies` is its full 64-bit count.
    pub fn time_of(&self, jiffies: u64) -> u64 {
        translate(jiffies, (self.jiffies, self.time_ns), NANOS, self.hz)
    }

    /// The same for the lower 32 bits of a past tick.
    pub fn time_of_past(&self, jiffies: u32) -> u64 {
        let ago = (self.jiffies as u32).wrapping_sub(jiffies);
        self.time_of(self.jiffies.saturating_sub(u64::from(ago)))
    }

    /// CLOCK_MONOTONIC when a timer fires that was set at `set_ns` for `timeout_ns`. Timers share the buckets of a
    /// wheel, whose steps are coarser the longer the time-out, and are rounded up to the next step (calc_index and
    /// calc_wheel_index in kernel/time/timer.c). With 1000 ticks a second a 60 s TIME_WAIT lasts up to 4 s longer.
    pub fn timer_fires(&self, set_ns: u64, timeout_ns: u64) -> u64 {
        let set = translate(set_ns, (self.time_ns, self.jiffies), self.hz, NANOS);
        let timeout = self.ticks(timeout_ns);
        self.expiry_fires(set.saturating_add(timeout), timeout)
    }

    /// The same for a timer that was set for `timeout` ticks and expires at the tick `expires`.
    pub fn expiry_fires(&self, expires: u64, timeout: u64) -> u64 {
        let shift = wheel_level(timeout) * LEVEL_CLOCK_SHIFT;
        self.time_of(((expires >> shift) + 1) << shift)
    }

    pub fn ticks(&self, nanos: u64) -> u64 {
        scale(nanos, self.hz, NANOS)
    }
}

/// Nanoseconds in a second.
const NANOS: u64 = 1_000_000_000;

/// A moment of one clock, given in the other. The other counts `by` units while the first counts `per`; `same` is one
/// moment in both.
fn translate(moment: u64, same: (u64, u64), by: u64, per: u64) -> u64 {
    let apart = scale(moment.abs_diff(same.0), by, per);
    if moment >= same.0 { same.1.saturating_add(apart) } else { same.1.saturating_sub(apart) }
}

/// `value * by / per`, without the product, which may exceed 64 bits. `by` and `per` are at most a billion.
fn scale(value: u64, by: u64, per: u64) -> u64 {
    (value / per).saturating_mul(by).saturating_add(value % per * by / per)
}

/// kernel/time/timer.c: LVL_CLK_SHIFT, LVL_SIZE, LVL_DEPTH.
const LEVEL_CLOCK_SHIFT: u32 = 3;
const LEVEL_SIZE: u64 = 64;
const LEVELS: u32 = 9;

/// The level of the wheel for a timer set for `timeout` ticks.
fn wheel_level(timeout: u64) -> u32 {
    (1..LEVELS)
        .find(|level| timeout < (LEVEL_SIZE - 1) << ((level - 1) * LEVEL_CLOCK_SHIFT))
        .map_or(LEVELS - 1, |level| level - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_fits_the_rate_or_is_none() {
        for rate in [100, 250, 300, 1000, u16::MAX].map(|rate| TickRate(NonZeroU16::new(rate).unwrap())) {
            let hz = rate.hz();
            // At 300 s the tick count is 2^32 at every rate.
            for seconds in [2, 289, 300, 100_000] {
                let jiffies = (1 << 32) - 300 * hz + seconds * hz;
                let read_at = |seconds| Ticks::from_reading(rate, jiffies, seconds * NANOS);
                assert_eq!(read_at(seconds).map(|ticks| ticks.hz), Some(hz), "{hz} at {seconds} s");
                assert_eq!(read_at(seconds + 10 + seconds / 50), None, "{hz} at {seconds} s");
            }
            for jiffies in [0, u64::MAX] {
                assert_eq!(Ticks::from_reading(rate, jiffies, 100), None, "{hz}");
            }
        }
    }

    #[test]
    fn a_minute_ends_at_the_next_step_of_its_level() {
        // 60,000 ticks go to level 4 of the wheel, in steps of 4096.
        let ticks = Ticks { hz: 1000, jiffies: 40_960, time_ns: 0 };
        let second = 1_000_000_000;
        assert_eq!(ticks.timer_fires(0, 60 * second), (102_400 - 40_960) * 1_000_000);
        // With 250 ticks a second it is level 3, in steps of 512.
        let ticks = Ticks { hz: 250, jiffies: 0, time_ns: 0 };
        assert_eq!(ticks.timer_fires(0, 60 * second), (15_000 / 512 + 1) * 512 * 4_000_000);
    }

    #[test]
    fn a_past_tick_is_found_across_the_wrap_of_32_bits() {
        let ticks = Ticks { hz: 100, jiffies: (1 << 32) + 5, time_ns: 1_000_000_000 };
        assert_eq!(ticks.time_of_past(u32::MAX), 1_000_000_000 - 60_000_000);
    }
}
