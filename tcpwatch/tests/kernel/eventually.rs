//! Waiting for what must become true, and the clock to judge ages by.

use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant},
};

/// Far longer than anything takes on an idle machine; a busy one gets its time.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// What `look` finds, looked for again and again; until then `look` says what it sees instead.
///
/// # Panics
/// With the last thing seen, when [`DEADLINE`] passes.
pub(crate) fn eventually<T, E: Display>(what: &str, mut look: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match look() {
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
