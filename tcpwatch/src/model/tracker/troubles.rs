//! Connections whose delivery stood still in the last minute, or stands still now, or whose retransmits fail: found without a
//! search through the table.
//!
//! In: what records report of retransmits, stalls and failures, and what sweeps see of the same sockets. Out: for each of
//! these sockets, by its cookie, the long stalls and the failed attempts with their times.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use tcpwatch_common::chrono;

use crate::{
    events::{
        decode::{FAILURES, Retransmits},
        seen::Seen,
    },
    model::{socket_retransmits::RetransmitDelta, table::ConnKey, tracker::Tracker},
    tcp::{
        histogram::{Histogram, Layout as _, Stalling},
        stall::{Recovery, Stalled},
    },
};

/// How long what has ended is kept.
pub const KEPT_NS: u64 = 60_000_000_000;
/// Shorter stalls are not kept. A lost segment that no acknowledgement reports is sent again after at least this long
/// (TCP_RTO_MIN in include/net/tcp.h).
pub const LEAST_NS: u64 = 200_000_000;
/// Stalls kept of one connection; the latest.
const MAX_STALLS: usize = 64;
/// Sockets kept at once. The BPF programs count as many.
const MAX_SOCKETS: usize = 16_384;
/// By how much an attempt may come later than its timer says.
const LATE_NS: u64 = 2_000_000_000;
/// The longest time between two attempts (TCP_RTO_MAX in include/net/tcp.h).
const RTO_MAX_NS: u64 = 120_000_000_000;

/// By the cookies of the sockets.
pub type Troubles = FxHashMap<u64, Trouble>;

/// What held up one connection.
#[derive(Clone, Debug, Default)]
pub struct Trouble {
    /// Ended stalls of the last minute that lasted for [`LEAST_NS`] or longer, the earliest first.
    pub stalls: VecDeque<Stall>,
    /// The stall of now.
    pub present: Option<Present>,
    /// Retransmits that fail, none of which has left since.
    pub failing: Option<Failing>,
    /// The least round trip; `None` where no sweep has measured one.
    pub min_rtt_ns: Option<u64>,
    /// The part of its time in which it had something to send, between its latest two sightings.
    pub busy_share: Option<f64>,
    sighting: Option<Sighting>,
}

/// A stall that is over. Of several that one record reports, each has the mean duration, within the bounds of its bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// CLOCK_MONOTONIC of the report.
    pub ended_ns: u64,
    pub took_ns: u64,
    pub recovery: Recovery,
    /// Bytes that waited.
    pub bytes: u64,
}

impl Stall {
    pub fn began_ns(&self) -> u64 {
        self.ended_ns.saturating_sub(self.took_ns)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present {
    pub stalled: Stalled,
    /// CLOCK_MONOTONIC of the report that showed it first.
    pub reported_ns: u64,
    /// Segments that left this host again since it began.
    pub repeated: u64,
}

/// Attempts to retransmit that fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// CLOCK_MONOTONIC: when the segment was first sent or, where that is not known, of the first attempt that failed.
    pub since_ns: u64,
    /// CLOCK_MONOTONIC of the latest attempt.
    pub latest_ns: u64,
    /// The same of the attempt before; `since_ns` without one.
    before_ns: u64,
    /// By errno, in the order of [`FAILURES`].
    pub attempts: [u64; FAILURES.len()],
}

impl Failing {
    /// Whether another attempt may still come: the kernel doubles the time between two. If none came, the peer has
    /// acknowledged the segment after all.
    pub fn goes_on(&self, now_ns: u64) -> bool {
        let next_ns = (2 * (self.latest_ns - self.before_ns)).min(RTO_MAX_NS);
        self.latest_ns.saturating_add(next_ns + LATE_NS) >= now_ns
    }

    pub fn count(&self) -> u64 {
        self.attempts.iter().sum()
    }
}

#[derive(Clone, Copy, Debug)]
struct Sighting {
    time_ns: u64,
    busy_ns: u64,
}

impl Trouble {
    fn report(&mut self, time_ns: u64, reported: &Retransmits, delta: &RetransmitDelta) {
        for (recovery, stalls) in Recovery::ALL.into_iter().zip(&delta.stalls) {
            for took_ns in durations(&stalls.durations).filter(|took_ns| *took_ns >= LEAST_NS) {
                let bytes = stalls.bytes / stalls.durations.count();
                self.stalls.push_back(Stall { ended_ns: time_ns, took_ns, recovery, bytes });
            }
        }
        while self.stalls.len() > MAX_STALLS {
            self.stalls.pop_front();
        }
        // Since Linux 6.18 an attempt that fails below TCP (EPERM) is counted in both; one without a route only as a failure.
        let failed: u64 = delta.failures.iter().sum();
        let left = delta.segments.iter().sum::<u64>().saturating_sub(failed);
        let before = self.present;
        self.present = reported.stalled.map(|stalled| {
            let same = before.filter(|before| before.stalled.since_ns == stalled.since_ns);
            let (reported_ns, repeated) =
                same.map_or((time_ns, 0), |before| (before.reported_ns, before.repeated));
            Present { stalled, reported_ns, repeated: repeated + left }
        });
        if left > 0 {
            self.failing = None;
        } else if failed > 0 {
            let since_ns = self.present.map_or(time_ns, |present| present.stalled.since_ns.min(time_ns));
            let failing = self.failing.get_or_insert(Failing {
                since_ns,
                latest_ns: since_ns,
                before_ns: since_ns,
                attempts: [0; FAILURES.len()],
            });
            failing.before_ns = failing.latest_ns;
            failing.latest_ns = time_ns.max(failing.before_ns);
            for (mine, new) in failing.attempts.iter_mut().zip(delta.failures) {
                *mine += new;
            }
        }
    }

    fn forget_old(&mut self, now_ns: u64) {
        while self.stalls.front().is_some_and(|stall| stall.ended_ns.saturating_add(KEPT_NS) < now_ns) {
            self.stalls.pop_front();
        }
        self.failing = self.failing.filter(|failing| failing.goes_on(now_ns));
    }

    fn is_over(&self) -> bool {
        self.stalls.is_empty() && self.present.is_none() && self.failing.is_none()
    }
}

/// How long each of these took: the mean, within the bounds of the bucket that it is in.
fn durations(histogram: &Histogram<Stalling>) -> impl Iterator<Item = u64> {
    let mean_ns = histogram.sum_ns().checked_div(histogram.count()).unwrap_or(0);
    let bounds = Stalling::BOUNDS_NS.iter().copied();
    let bounds = std::iter::once(0).chain(bounds.clone()).zip(bounds.chain([u64::MAX]));
    let buckets = histogram.buckets().iter().zip(bounds);
    buckets.flat_map(move |(count, (least, most))| {
        std::iter::repeat_n(mean_ns.clamp(least, most), usize::try_from(*count).unwrap_or(usize::MAX))
    })
}

impl Tracker {
    /// What holds up connections, or did in the last minute.
    pub fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// Notes what a record reports that is new.
    pub(crate) fn note_trouble(
        &mut self,
        key: ConnKey,
        time_ns: u64,
        reported: &Retransmits,
        delta: &RetransmitDelta,
    ) {
        let conn = self.table.get(key);
        let known = self.troubles.contains_key(&conn.cookie);
        let begins = reported.stalled.is_some() || !delta.is_only_segments();
        if !known && (!begins || self.troubles.len() >= MAX_SOCKETS) {
            return;
        }
        let cookie = conn.cookie;
        let least =
            conn.group.and_then(|group| self.groups.get(group).counts.live.least_round_trips.spread());
        let trouble = self.troubles.entry(cookie).or_default();
        trouble.min_rtt_ns =
            trouble.min_rtt_ns.or_else(|| least.map(|spread| (spread.mean_seconds * 1e9) as u64));
        trouble.report(time_ns, reported, delta);
        if trouble.is_over() {
            self.troubles.remove(&cookie);
        }
    }

    /// Notes what a sighting through a descriptor shows of such a connection.
    pub(crate) fn see_trouble(&mut self, seen: &Seen) {
        let Some(trouble) = self.troubles.get_mut(&seen.socket.cookie) else { return };
        let busy_ns = self.tick_rate.nanos(seen.sending_jiffies[chrono::BUSY]);
        if let Some(before) = trouble.sighting
            && seen.time_ns > before.time_ns
        {
            let passed_ns = seen.time_ns - before.time_ns;
            let busy_ns = busy_ns.saturating_sub(before.busy_ns);
            trouble.busy_share = Some((busy_ns as f64 / passed_ns as f64).min(1.0));
        }
        trouble.sighting = Some(Sighting { time_ns: seen.time_ns, busy_ns });
        trouble.min_rtt_ns = seen.min_rtt_ns.or(trouble.min_rtt_ns);
    }

    /// What went on until the socket ended goes on no more.
    pub(crate) fn end_trouble(&mut self, cookie: u64) {
        if let Some(trouble) = self.troubles.get_mut(&cookie) {
            (trouble.present, trouble.failing) = (None, None);
        }
    }

    /// To be called once a second.
    pub(crate) fn forget_troubles(&mut self, now_ns: u64) {
        self.troubles.retain(|_, trouble| {
            trouble.forget_old(now_ns);
            !trouble.is_over()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(stalled_since_ns: Option<u64>) -> Retransmits {
        let stalled = |since_ns| Stalled { since_ns, recovery: Recovery::Timeout, bytes: 5 };
        Retransmits { stalled: stalled_since_ns.map(stalled), ..Retransmits::default() }
    }

    fn failed() -> RetransmitDelta {
        let mut delta = RetransmitDelta::default();
        delta.failures[FAILURES.len() - 2] = 1;
        delta
    }

    #[test]
    fn several_stalls_of_one_report_have_their_mean_within_their_buckets() {
        for (buckets, sum_ms, expected_ms) in [
            ([0, 0, 0, 1, 0, 0, 0, 0, 0], 640, vec![640]),
            ([0, 0, 0, 2, 0, 0, 0, 0, 0], 800, vec![400, 400]),
            ([0, 1, 0, 0, 1, 0, 0, 0, 0], 2010, vec![10, 1005]),
            ([0; 9], 0, vec![]),
        ] {
            let found: Vec<u64> = durations(&Histogram::of(buckets, sum_ms * 1_000_000)).collect();
            assert_eq!(found, expected_ms.iter().map(|ms| ms * 1_000_000).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_attempt_that_is_counted_as_a_segment_too_has_not_left() {
        let mut trouble = Trouble::default();
        let mut dropped = failed();
        dropped.segments[0] = 1;
        for second in 1..=2 {
            trouble.report(second * 1_000_000_000, &reported(Some(800_000_000)), &dropped);
        }
        assert_eq!(trouble.failing.unwrap().count(), 2);
        assert_eq!(trouble.present.unwrap().repeated, 0);
    }

    #[test]
    fn attempts_fail_until_one_leaves_or_the_next_does_not_come() {
        let mut trouble = Trouble::default();
        let second = 1_000_000_000;
        trouble.report(second, &reported(Some(second - 200_000_000)), &failed());
        trouble.report(2 * second, &reported(Some(second - 200_000_000)), &failed());
        let failing = trouble.failing.unwrap();
        assert_eq!((failing.since_ns, failing.count()), (800_000_000, 2));
        // Twice the time between the attempts, and what they may be late.
        assert_eq!((failing.goes_on(6 * second), failing.goes_on(6 * second + 1)), (true, false));
        let mut sent = RetransmitDelta::default();
        sent.segments[0] = 1;
        trouble.report(3 * second, &reported(None), &sent);
        assert_eq!(trouble.failing, None);
        assert!(trouble.is_over());
    }
}
