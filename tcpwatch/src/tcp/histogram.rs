//! Durations as Prometheus counts them, and counts that grow only.

use tcpwatch_common::DURATION_BOUNDS_NS;

/// Upper bounds of the buckets of durations, in seconds.
pub const DURATION_BUCKETS: [f64; DURATION_BOUNDS_NS.len()] = {
    let mut bounds = [0.0; DURATION_BOUNDS_NS.len()];
    let mut at = 0;
    while at < bounds.len() {
        bounds[at] = DURATION_BOUNDS_NS[at] as f64 / NANOS_PER_SECOND;
        at += 1;
    }
    bounds
};

const NANOS_PER_SECOND: f64 = 1e9;

/// A Prometheus histogram: counts for each bucket, the last one unbounded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    pub buckets: [u64; DURATION_BUCKETS.len() + 1],
    sum_ns: u64,
}

impl Histogram {
    pub fn of(buckets: [u64; DURATION_BUCKETS.len() + 1], sum_ns: u64) -> Self {
        Self { buckets, sum_ns }
    }

    pub(crate) fn observe(&mut self, nanos: u64) {
        let bucket = DURATION_BOUNDS_NS.iter().position(|bound| nanos <= *bound);
        self.buckets[bucket.unwrap_or(DURATION_BOUNDS_NS.len())] += 1;
        self.sum_ns = self.sum_ns.saturating_add(nanos);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }

    /// What is new in `told`, which is the same later.
    pub(crate) fn news(&mut self, told: &Self) -> Self {
        let [sum_ns] = grown(std::array::from_mut(&mut self.sum_ns), [told.sum_ns]);
        Self { buckets: grown(&mut self.buckets, told.buckets), sum_ns }
    }

    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / NANOS_PER_SECOND
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// How much more was told than is known; told late, nothing.
pub(crate) fn grown<const N: usize>(known: &mut [u64; N], told: [u64; N]) -> [u64; N] {
    let mut new = [0; N];
    for ((new, known), told) in new.iter_mut().zip(known).zip(told) {
        *new = told.saturating_sub(*known);
        *known = told.max(*known);
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_bucket_of_their_upper_bound() {
        let mut histogram = Histogram::default();
        for nanos in [1_000_000, 1_000_001, 3_600_000_000_000, 3_600_000_000_001] {
            histogram.observe(nanos);
        }
        assert_eq!(histogram.buckets, [1, 1, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(histogram.count(), 4);
    }
}
