//! Whether a number grows, and how fast: the slope by Theil and Sen, the median of the slopes between all pairs of samples,
//! on which single outliers and a single step have no effect.

use super::Moment;

/// For how long back samples are compared.
pub(super) const WINDOW_NS: u64 = 305_000_000_000;
/// Samples that a slope is taken of at least: a minute's.
const LEAST_SAMPLES: usize = 7;
/// How much a growing number rises a minute at least.
const GROWING_PER_MINUTE: f64 = 1.0;
/// In how many samples it is higher than in the one before, at least.
const RISES: usize = 3;
/// How near to its highest it still is.
const NEAR_HIGHEST: f64 = 0.95;
/// How little a flat number changes a minute, over [`FLAT_NS`].
const FLAT_PER_MINUTE: f64 = 0.2;
const FLAT_NS: u64 = 290_000_000_000;

/// How a number changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// Since the first of the changes of the last five minutes, but over a minute at least.
    pub per_minute: f64,
    /// It rises by at least one a minute, rose in three samples, and is within 5 % of its highest.
    pub is_growing: bool,
    /// It has been watched for five minutes, and changes by less than 0.2 a minute; a step changes nothing.
    pub is_flat: bool,
    /// CLOCK_MONOTONIC of the first sample that was looked at.
    pub since_ns: u64,
}

impl Growth {
    /// `moments`: of at most five minutes, oldest first. `None` when there are too few.
    pub(super) fn of(moments: &[Moment]) -> Option<Self> {
        if moments.len() < LEAST_SAMPLES {
            return None;
        }
        // What stood still before it began to change says nothing about how fast it changes.
        let first = moments[0].value;
        let still = moments.iter().take_while(|moment| moment.value == first).count();
        let begin = still.saturating_sub(1).min(moments.len() - LEAST_SAMPLES);
        let changing = &moments[begin..];
        let per_minute = slope(changing);
        let rises = changing.windows(2).filter(|pair| pair[1].value > pair[0].value).count();
        let highest = changing.iter().map(|moment| moment.value).max().unwrap_or(0);
        let last = moments[moments.len() - 1];
        let is_near = f64::from(last.value) >= NEAR_HIGHEST * f64::from(highest);
        let is_long = last.at_ns - moments[0].at_ns >= FLAT_NS;
        Some(Self {
            per_minute,
            is_growing: per_minute >= GROWING_PER_MINUTE && rises >= RISES && is_near,
            is_flat: is_long && per_minute.abs() < FLAT_PER_MINUTE,
            since_ns: changing[0].at_ns,
        })
    }
}

/// The median of the slopes between all pairs, per minute.
fn slope(moments: &[Moment]) -> f64 {
    let pairs = moments.iter().enumerate().flat_map(|(index, one)| {
        moments[index + 1..].iter().map(move |other| {
            let change = f64::from(other.value) - f64::from(one.value);
            change * 60e9 / (other.at_ns - one.at_ns).max(1) as f64
        })
    });
    let mut slopes: Vec<f64> = pairs.collect();
    if slopes.is_empty() {
        return 0.0;
    }
    let middle = slopes.len() / 2;
    *slopes.select_nth_unstable_by(middle, f64::total_cmp).1
}
