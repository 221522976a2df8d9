//! Durations as Prometheus counts them, and counts that grow only.
//!
//! What is measured decides the bounds of the buckets: round trips need steps below a second, states need days.

use std::{fmt::Debug, marker::PhantomData};

use tcpwatch_common::DURATION_BOUNDS_NS;

const NANOS_PER_SECOND: f64 = 1e9;
const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000 * MICROSECOND;
const SECOND: u64 = 1_000 * MILLISECOND;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// The bounds of a histogram's buckets.
pub trait Layout: Clone + Copy + Debug + Default + PartialEq {
    /// Upper bounds in nanoseconds, the lowest first; a bucket without a bound follows.
    const BOUNDS_NS: &'static [u64];
    /// One count for each bound, and one for the bucket without.
    type Buckets: AsRef<[u64]> + AsMut<[u64]> + Copy + Debug + Default + PartialEq;
}

/// What lasts about as long as a round trip: 0.1 ms to 10 s, in steps of 1, 2.5 and 5.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency;

impl Layout for Latency {
    const BOUNDS_NS: &'static [u64] = &[
        100 * MICROSECOND,
        250 * MICROSECOND,
        500 * MICROSECOND,
        MILLISECOND,
        2_500 * MICROSECOND,
        5 * MILLISECOND,
        10 * MILLISECOND,
        25 * MILLISECOND,
        50 * MILLISECOND,
        100 * MILLISECOND,
        250 * MILLISECOND,
        500 * MILLISECOND,
        SECOND,
        2_500 * MILLISECOND,
        5 * SECOND,
        10 * SECOND,
    ];
    type Buckets = [u64; 17];
}

/// What may last for days: 1 s to 7 days.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lasting;

impl Layout for Lasting {
    const BOUNDS_NS: &'static [u64] = &[
        SECOND,
        5 * SECOND,
        15 * SECOND,
        30 * SECOND,
        MINUTE,
        5 * MINUTE,
        15 * MINUTE,
        HOUR,
        3 * HOUR,
        12 * HOUR,
        DAY,
        3 * DAY,
        7 * DAY,
    ];
    type Buckets = [u64; 14];
}

/// Stalls of delivery, 1 ms to 1 h: the BPF programs count them with these bounds, so the records of retransmits have them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stalling;

impl Layout for Stalling {
    const BOUNDS_NS: &'static [u64] = &DURATION_BOUNDS_NS;
    type Buckets = [u64; DURATION_BOUNDS_NS.len() + 1];
}

/// A Prometheus histogram: counts for each bucket, the last one unbounded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram<L: Layout> {
    buckets: L::Buckets,
    sum_ns: u64,
    layout: PhantomData<L>,
}

impl<L: Layout> Histogram<L> {
    pub fn of(buckets: L::Buckets, sum_ns: u64) -> Self {
        Self { buckets, sum_ns, layout: PhantomData }
    }

    pub fn observe(&mut self, nanos: u64) {
        // Most of what is measured is short: a linear search ends at once.
        let bucket = L::BOUNDS_NS.iter().position(|bound| nanos <= *bound).unwrap_or(L::BOUNDS_NS.len());
        self.buckets.as_mut()[bucket] += 1;
        self.sum_ns = self.sum_ns.saturating_add(nanos);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.as_mut().iter_mut().zip(other.buckets()) {
            *mine += theirs;
        }
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }

    /// The growth since this one of `later`, a later reading of the same histogram; this one becomes it.
    pub(crate) fn delta(&mut self, later: &Self) -> Self {
        let [sum_ns] = grown(std::array::from_mut(&mut self.sum_ns), [later.sum_ns]);
        let mut buckets = L::Buckets::default();
        let known = self.buckets.as_mut().iter_mut().zip(later.buckets());
        for (new, (known, count)) in buckets.as_mut().iter_mut().zip(known) {
            *new = count.saturating_sub(*known);
            *known = (*count).max(*known);
        }
        Self::of(buckets, sum_ns)
    }

    pub fn buckets(&self) -> &[u64] {
        self.buckets.as_ref()
    }

    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / NANOS_PER_SECOND
    }

    pub fn count(&self) -> u64 {
        self.buckets().iter().sum()
    }
}

/// The growth of each count since `known`, which becomes the greater of both; a stale count adds nothing.
pub(crate) fn grown<const N: usize>(known: &mut [u64; N], count: [u64; N]) -> [u64; N] {
    let mut new = [0; N];
    for ((new, known), count) in new.iter_mut().zip(known).zip(count) {
        *new = count.saturating_sub(*known);
        *known = count.max(*known);
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_layout<L: Layout>() {
        assert!(L::BOUNDS_NS.is_sorted(), "{L:?}", L = L::default());
        assert_eq!(L::Buckets::default().as_ref().len(), L::BOUNDS_NS.len() + 1, "{L:?}", L = L::default());
        let mut histogram = Histogram::<L>::default();
        for bound in L::BOUNDS_NS {
            histogram.observe(*bound);
            histogram.observe(bound + 1);
        }
        let mut expected = vec![2; L::BOUNDS_NS.len() + 1];
        (expected[0], expected[L::BOUNDS_NS.len()]) = (1, 1);
        assert_eq!(histogram.buckets(), expected);
        assert_eq!(histogram.count(), 2 * L::BOUNDS_NS.len() as u64);
    }

    #[test]
    fn durations_fall_into_the_bucket_of_their_upper_bound() {
        assert_layout::<Latency>();
        assert_layout::<Lasting>();
        assert_layout::<Stalling>();
    }
}
