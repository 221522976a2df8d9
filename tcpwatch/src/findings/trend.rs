//! How a number went in the last quarter of an hour, and whether it grows.
//!
//! Growth is the median of the slopes between all samples (Theil and Sen): a step, as of a pool that is filled at once, is
//! none.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::findings::{Rule, observation::Subject};

/// Time between two samples.
const INTERVAL_NS: u64 = 10_000_000_000;
/// For how long samples are kept.
const WINDOW_NS: u64 = 900_000_000_000;
/// A number is judged from this many samples on: a minute.
const MIN_SAMPLES: usize = 7;
/// A number that grows rose this many times.
const MIN_RISES: usize = 3;
/// Subjects kept at once; the least recently sampled goes first.
const MAX_TRENDS: usize = 4096;

/// The samples of all subjects.
#[derive(Default)]
pub struct Trends {
    by_subject: FxHashMap<(Rule, Subject), Trend>,
}

/// The samples of one number, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Trend {
    samples: VecDeque<(u64, u64)>,
}

impl Trends {
    /// Takes a sample, if one is due.
    pub fn sample(&mut self, rule: Rule, subject: &Subject, count: u64, now_ns: u64) {
        if !self.by_subject.contains_key(&(rule, subject.clone())) && self.by_subject.len() >= MAX_TRENDS {
            let last = |trend: &Trend| trend.samples.back().map(|(then_ns, _)| *then_ns);
            let oldest =
                self.by_subject.iter().min_by_key(|(_, trend)| last(trend)).map(|(key, _)| key.clone());
            oldest.map(|key| self.by_subject.remove(&key));
        }
        self.by_subject.entry((rule, subject.clone())).or_default().sample(count, now_ns);
    }

    pub fn get(&self, rule: Rule, subject: &Subject) -> Option<&Trend> {
        self.by_subject.get(&(rule, subject.clone()))
    }

    /// Drops what was not sampled for the length of the window.
    pub fn expire(&mut self, now_ns: u64) {
        self.by_subject.retain(|_, trend| {
            trend.samples.back().is_some_and(|(then_ns, _)| then_ns.saturating_add(WINDOW_NS) > now_ns)
        });
    }
}

impl Trend {
    /// Of these samples, oldest first: a time of CLOCK_MONOTONIC and a number.
    pub(super) fn of(samples: impl Iterator<Item = (u64, u64)>) -> Self {
        Self { samples: samples.collect() }
    }

    fn sample(&mut self, count: u64, now_ns: u64) {
        if self.samples.back().is_some_and(|(then_ns, _)| then_ns.saturating_add(INTERVAL_NS) > now_ns) {
            return;
        }
        while self.samples.front().is_some_and(|(then_ns, _)| then_ns.saturating_add(WINDOW_NS) < now_ns) {
            self.samples.pop_front();
        }
        self.samples.push_back((now_ns, count));
    }

    /// Seconds that the samples span.
    pub fn seconds(&self) -> f64 {
        let (Some((first_ns, _)), Some((last_ns, _))) = (self.samples.front(), self.samples.back()) else {
            return 0.0;
        };
        (last_ns - first_ns) as f64 / 1e9
    }

    /// Growth a minute; negative where the number falls. `None` until it was watched for a minute.
    pub fn per_minute(&self) -> Option<f64> {
        if self.samples.len() < MIN_SAMPLES {
            return None;
        }
        let mut slopes: Vec<f64> = Vec::with_capacity(self.samples.len() * (self.samples.len() - 1) / 2);
        for (index, (then_ns, before)) in self.samples.iter().enumerate() {
            for (now_ns, after) in self.samples.iter().skip(index + 1) {
                slopes.push((*after as f64 - *before as f64) * 60e9 / (now_ns - then_ns) as f64);
            }
        }
        slopes.sort_unstable_by(f64::total_cmp);
        Some(slopes[slopes.len() / 2])
    }

    /// Growth a minute of a number that grows steadily, by one a minute at least; else `None`.
    pub fn growth(&self) -> Option<f64> {
        let rises =
            self.samples.iter().zip(self.samples.iter().skip(1)).filter(|((_, a), (_, b))| b > a).count();
        let most = self.samples.iter().map(|(_, count)| *count).max()?;
        let (_, last) = self.samples.back()?;
        let goes_on = rises >= MIN_RISES && *last as f64 >= 0.95 * most as f64;
        self.per_minute().filter(|slope| goes_on && *slope >= 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trend(counts: impl IntoIterator<Item = u64>) -> Trend {
        let mut trend = Trend::default();
        for (index, count) in (0..).zip(counts) {
            trend.sample(count, index * INTERVAL_NS);
        }
        trend
    }

    #[test]
    fn steady_growth_is_its_slope_and_a_step_is_none() {
        let rising = trend((0..12).map(|index| 2 * index));
        assert_eq!(rising.growth(), Some(12.0));
        for (counts, why) in [
            ([0, 0, 0, 0, 12, 12, 12, 12, 12, 12], "a step"),
            ([12; 10], "flat"),
            ([0, 9, 0, 9, 0, 9, 0, 9, 0, 9], "up and down"),
            ([30, 27, 24, 21, 18, 15, 12, 9, 6, 3], "falling"),
        ] {
            assert_eq!(trend(counts).growth(), None, "{why}");
        }
    }

    #[test]
    fn nothing_is_said_before_a_minute_has_passed() {
        assert_eq!(trend(0..6).per_minute(), None);
        assert_eq!(trend(0..7).per_minute(), Some(6.0));
    }

    #[test]
    fn samples_are_as_far_apart_as_they_should_be_and_forgotten_in_time() {
        let mut trend = Trend::default();
        for second in 0..2000 {
            trend.sample(second, second * 1_000_000_000);
        }
        assert_eq!(trend.samples.len(), 91);
        assert!((trend.seconds() - 900.0).abs() < 0.1);
    }
}
