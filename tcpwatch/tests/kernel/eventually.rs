//! Waiting for a condition with a deadline, and the clock to compare ages with.

use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant},
};

/// Far longer than any condition takes on an idle machine, so that a busy one has time.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// Calls `check` repeatedly until it is `Ok`, and returns its value. An `Err` says what `check` saw instead.
///
/// # Panics
/// With the last error, when [`DEADLINE`] passes.
pub(crate) fn eventually<T, E: Display>(what: &str, mut check: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match check() {
            Ok(found) => return found,
            Err(seen) => assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}; last: {seen}"),
        }
        thread::sleep(POLL);
    }
}

/// CLOCK_MONOTONIC in seconds: the same as Python's `time.monotonic()` in another process.
pub(crate) fn monotonic() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
