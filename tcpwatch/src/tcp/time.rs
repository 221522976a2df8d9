//! A reading of the clocks, passed in wherever a time is needed, and how times and durations are written.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The kernel's monotonic clock, which stamps the records, beside the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// CLOCK_MONOTONIC.
    pub now_ns: u64,
    pub wall: SystemTime,
}

impl Clock {
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

    /// The wall clock in RFC 3339.
    pub fn rfc3339(&self) -> String {
        rfc3339(self.wall)
    }
}

/// RFC 3339, in UTC, with microseconds: the precision that durations have. What a clock that was set back puts before 1970
/// is written as its beginning.
pub fn rfc3339(wall: SystemTime) -> String {
    humantime::format_rfc3339_micros(wall.max(UNIX_EPOCH)).to_string()
}

/// The same for nanoseconds since 1970.
pub fn rfc3339_of_ns(since_epoch_ns: u64) -> String {
    rfc3339(UNIX_EPOCH + Duration::from_nanos(since_epoch_ns))
}

/// Nanoseconds as seconds, to the microsecond: finer digits would be noise.
pub fn seconds(nanos: u64) -> f64 {
    Duration::from_micros(nanos / 1000).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_a_clock_that_was_set_back_is_written_too() {
        let clock = Clock { now_ns: 100_000_000_000, wall: UNIX_EPOCH + Duration::from_secs(1) };
        assert_eq!(clock.rfc3339(), "1970-01-01T00:00:01.000000Z");
        assert_eq!(clock.at(0).rfc3339(), "1970-01-01T00:00:00.000000Z");
    }
}
