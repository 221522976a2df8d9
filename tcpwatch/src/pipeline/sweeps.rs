//! When sweeps begin, what they may cost, and when one is late. Reads no clock: times are passed in.

use std::time::{Duration, Instant};

/// Sweeps take at most one part in 50 of one processor's time: after a sweep that cost 1 ms, none begins for 50 ms.
const COST_SHARE: u32 = 50;
/// The same for sweeps that nobody asked for and no lost record requires: one part in 500.
const UNASKED_COST_SHARE: u32 = 500;
/// Approximate cost of a sweep for each connection; estimates the connections that were not there at the last sweep.
const COST_EACH: Duration = Duration::from_micros(2);
/// An answer waits for a sweep that is expected to cost at most this.
const WORTH_WAITING: Duration = Duration::from_millis(20);
/// Interval of sweeps that nobody asked for while there are minisocks whose changes this kernel does not report.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same without them: sockets that never became connections are still to be found, and small data that is held back.
const IDLE_INTERVAL: Duration = Duration::from_secs(15);
/// A sweep is late after this time, or after `LATE_FACTOR` times the processor time that it is expected to take where that
/// is more: far longer than on a busy machine, and shorter than a client waits.
const LATE: Duration = Duration::from_secs(2);
const LATE_FACTOR: u32 = 20;
/// The same for the first sweep, of which nothing is known.
const FIRST_LATE: Duration = Duration::from_secs(60);

/// The sweep under way, and what the last one cost.
pub(super) struct Sweeps {
    under_way: bool,
    /// When the one under way, or else the latest, began.
    began: Instant,
    /// When the one under way is late.
    late: Instant,
    cost: Duration,
    /// Connections in the table after the last sweep; `None` before the first ended.
    connections: Option<usize>,
    not_before: Instant,
    finished: Instant,
}

impl Sweeps {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            under_way: false,
            began: now,
            late: now,
            cost: Duration::ZERO,
            connections: None,
            not_before: now,
            finished: now,
        }
    }

    pub(super) fn under_way(&self) -> bool {
        self.under_way
    }

    pub(super) fn may_begin(&self, now: Instant) -> bool {
        !self.under_way && now >= self.not_before
    }

    /// A sweep begins. `connections`: in the table now.
    pub(super) fn begin(&mut self, now: Instant, connections: usize) {
        let usual = LATE.max(self.expected_cost(connections) * LATE_FACTOR);
        let limit = if self.connections.is_some() { usual } else { FIRST_LATE };
        (self.under_way, self.began, self.late) = (true, now, now + limit);
    }

    /// It ended and took `cost` of processor time. Returns how long it took. `connections`: in the table now.
    pub(super) fn end(&mut self, now: Instant, cost: Duration, connections: usize) -> Duration {
        self.under_way = false;
        (self.cost, self.connections) = (cost, Some(connections));
        (self.not_before, self.finished) = (now + cost * COST_SHARE, now);
        now - self.began
    }

    /// Whether a sweep is to begin that nobody asked for. `unreported`: there are minisocks whose changes no record reports.
    pub(super) fn is_due(&self, now: Instant, connections: usize, unreported: bool) -> bool {
        let interval = if unreported { INTERVAL } else { IDLE_INTERVAL };
        now - self.finished >= interval.max(self.expected_cost(connections) * UNASKED_COST_SHARE)
    }

    /// Whether one that nobody asked for may begin at any rate.
    pub(super) fn is_affordable(&self, now: Instant, connections: usize) -> bool {
        now - self.finished >= self.expected_cost(connections) * UNASKED_COST_SHARE
    }

    /// Whether an answer may wait for a sweep.
    pub(super) fn is_cheap(&self, connections: usize) -> bool {
        self.expected_cost(connections) <= WORTH_WAITING
    }

    /// When the sweep under way is late; `None` when there is none.
    pub(super) fn late_at(&self) -> Option<Instant> {
        self.under_way.then_some(self.late)
    }

    /// How long the sweep under way has taken, if it is late.
    pub(super) fn late_for(&self, now: Instant) -> Option<Duration> {
        self.late_at().filter(|late| now >= *late).map(|_| now - self.began)
    }

    fn expected_cost(&self, connections: usize) -> Duration {
        let more = connections.saturating_sub(self.connections.unwrap_or(0));
        self.cost + COST_EACH * u32::try_from(more).unwrap_or(u32::MAX)
    }
}

/// Time between two looks at accept queues: a little less than two ticks.
const QUEUES_INTERVAL: Duration = Duration::from_millis(1900);

/// The looks at accept queues between sweeps. They may cost as much as sweeps that nobody asked for.
pub(super) struct QueueLooks {
    under_way: bool,
    not_before: Instant,
}

impl QueueLooks {
    pub(super) fn new(now: Instant) -> Self {
        Self { under_way: false, not_before: now }
    }

    pub(super) fn may_begin(&self, now: Instant) -> bool {
        !self.under_way && now >= self.not_before
    }

    pub(super) fn begin(&mut self) {
        self.under_way = true;
    }

    /// One has ended that took `cost` of processor time.
    pub(super) fn end(&mut self, now: Instant, cost: Duration) {
        (self.under_way, self.not_before) = (false, now + QUEUES_INTERVAL.max(cost * UNASKED_COST_SHARE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_sweep_is_late_after_many_times_what_it_is_expected_to_cost() {
        let start = Instant::now();
        let mut sweeps = Sweeps::new(start);
        assert_eq!(sweeps.late_for(start + ms(100_000)), None, "none is under way");
        sweeps.begin(start, 0);
        assert_eq!(sweeps.late_for(start + ms(59_999)), None, "nothing is known of the first one's cost");
        assert_eq!(sweeps.late_for(start + ms(60_000)), Some(ms(60_000)));
        // Cost, connections more than at its end, and the limit that follows.
        for (cost, more, limit) in [(1, 0, 2000), (100, 0, 2000), (101, 0, 2020), (100, 50_000, 4000)] {
            sweeps.end(start, ms(cost), 1000);
            assert_eq!(sweeps.late_at(), None);
            sweeps.begin(start, 1000 + more);
            assert_eq!(sweeps.late_for(start + ms(limit - 1)), None);
            assert_eq!(sweeps.late_for(start + ms(limit)), Some(ms(limit)));
        }
    }

    #[test]
    fn sweeps_take_their_share_and_no_more() {
        let start = Instant::now();
        let mut sweeps = Sweeps::new(start);
        assert!(sweeps.may_begin(start) && sweeps.is_cheap(0));
        sweeps.begin(start, 0);
        assert!(!sweeps.may_begin(start));
        assert_eq!(sweeps.end(start + ms(70), ms(10), 100), ms(70));
        let end = start + ms(70);
        assert!(!sweeps.may_begin(end + ms(499)) && sweeps.may_begin(end + ms(500)));
        assert!(sweeps.is_cheap(5100) && !sweeps.is_cheap(5101), "each connection more costs");
        for (unreported, interval) in [(true, 10_000), (false, 15_000)] {
            assert!(!sweeps.is_due(end + ms(interval - 1), 100, unreported));
            assert!(sweeps.is_due(end + ms(interval), 100, unreported));
        }
        assert!(!sweeps.is_affordable(end + ms(4999), 100) && sweeps.is_affordable(end + ms(5000), 100));
        sweeps.end(end, ms(200), 100);
        assert!(!sweeps.is_due(end + ms(99_999), 100, false), "a sweep that costs much is rare");
    }

    #[test]
    fn accept_queues_are_looked_at_every_other_second_or_as_often_as_their_cost_allows() {
        let start = Instant::now();
        let mut looks = QueueLooks::new(start);
        assert!(looks.may_begin(start));
        looks.begin();
        assert!(!looks.may_begin(start + ms(60_000)), "one at a time");
        for (cost, pause) in [(1, 1900), (10, 5000)] {
            looks.end(start, ms(cost));
            assert!(!looks.may_begin(start + ms(pause - 1)) && looks.may_begin(start + ms(pause)));
        }
    }
}
