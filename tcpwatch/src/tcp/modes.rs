//! The values that samples gather at: the time-outs behind idle times.
//!
//! In: samples of a time, each with its moment. Out: the modes, most frequent first. A histogram's buckets give no time-out;
//! a mean is none where several servers stand behind one address.

/// A measured time, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
    pub ms: u32,
}

/// A value that samples gather at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// The least of its samples: what delays a time-out (event loops, servers that look once a second) only adds to it.
    pub least_ms: u32,
    pub most_ms: u32,
    pub samples: usize,
}

impl Mode {
    /// Whether a time is within this share of the mode.
    pub fn is_near(&self, ms: u32, share: f64) -> bool {
        let (least, most, ms) = (f64::from(self.least_ms), f64::from(self.most_ms), f64::from(ms));
        least * (1.0 - share) <= ms && ms <= most * (1.0 + share)
    }
}

/// A mode has this many samples, and this share of those that no stronger mode has.
const MIN_SAMPLES: usize = 5;
const MIN_PERCENT: usize = 30;
/// And from this many moments: what a server closes as it ends it closes at one.
const MIN_MOMENTS: usize = 3;
const MOMENT_NS: u64 = 1_000_000_000;
const MAX_MODES: usize = 4;
/// Tries to find one more, the vain ones included.
const MAX_TRIES: usize = 8;

/// The modes of these samples. `tick_ms`: how exact they are.
pub fn modes(samples: impl IntoIterator<Item = Sample>, tick_ms: u32) -> Vec<Mode> {
    let mut left: Vec<Sample> = samples.into_iter().collect();
    left.sort_unstable_by_key(|sample| (sample.ms, sample.at_ns));
    let mut found = Vec::new();
    for _ in 0..MAX_TRIES {
        let (begin, end) = densest(&left, tick_ms);
        let inside = &left[begin..end];
        let share = 100 * inside.len() >= MIN_PERCENT * left.len();
        if inside.len() < MIN_SAMPLES || !share || found.len() == MAX_MODES {
            break;
        }
        if moments(inside) >= MIN_MOMENTS {
            let (least_ms, most_ms) = (inside[0].ms, inside[inside.len() - 1].ms);
            found.push(Mode { least_ms, most_ms, samples: inside.len() });
        }
        left.drain(begin..end);
    }
    found
}

/// The window with the most samples; of several the least value.
fn densest(sorted: &[Sample], tick_ms: u32) -> (usize, usize) {
    let (mut best, mut end) = ((0, 0), 0);
    for (begin, sample) in sorted.iter().enumerate() {
        let most = sample.ms.saturating_add(width_ms(sample.ms, tick_ms));
        while sorted.get(end).is_some_and(|sample| sample.ms <= most) {
            end += 1;
        }
        if end - begin > best.1 - best.0 {
            best = (begin, end);
        }
    }
    best
}

/// How far the samples of one time-out lie apart: servers look at their connections once a second, or when their event
/// loop comes to it.
fn width_ms(ms: u32, tick_ms: u32) -> u32 {
    (ms / 100 * 3).max((ms / 10).min(1200)).max(2 * tick_ms)
}

/// Times at least a second apart at which samples were taken.
fn moments(samples: &[Sample]) -> usize {
    let mut at: Vec<u64> = samples.iter().map(|sample| sample.at_ns).collect();
    at.sort_unstable();
    let mut last: Option<u64> = None;
    at.into_iter()
        .filter(|at| {
            let new = last.is_none_or(|last| last.saturating_add(MOMENT_NS) <= *at);
            if new {
                last = Some(*at);
            }
            new
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples taken ten seconds apart.
    fn apart(values: &[u32]) -> Vec<Sample> {
        (0..).zip(values).map(|(index, ms)| Sample { at_ns: index * 10 * MOMENT_NS, ms: *ms }).collect()
    }

    fn least(samples: Vec<Sample>) -> Vec<u32> {
        modes(samples, 4).into_iter().map(|mode| mode.least_ms).collect()
    }

    #[test]
    fn a_time_out_is_the_least_of_the_times_that_gather_and_stray_ones_do_not_count() {
        let found = modes(apart(&[5000, 5004, 5090, 5012, 5120, 31_000, 900]), 4);
        assert_eq!(found, [Mode { least_ms: 5000, most_ms: 5120, samples: 5 }]);
        assert!(
            found[0].is_near(5300, 0.05) && !found[0].is_near(5600, 0.05) && !found[0].is_near(4000, 0.1)
        );
    }

    #[test]
    fn several_servers_behind_one_address_are_several_modes() {
        let mut values = vec![2000; 9];
        values.extend([5000; 8]);
        values.extend([60_000; 6]);
        assert_eq!(least(apart(&values)), [2000, 5000, 60_000]);
    }

    #[test]
    fn too_few_samples_too_small_a_share_and_a_single_moment_are_no_mode() {
        assert!(least(apart(&[5000; 4])).is_empty());
        // Five of twenty.
        let mut values: Vec<u32> = (1..16).map(|index| 1 << index).collect();
        values.extend([70_000; 5]);
        assert!(least(apart(&values)).is_empty());
        let at_once: Vec<Sample> = (0..20).map(|index| Sample { at_ns: index, ms: 7000 }).collect();
        assert!(least(at_once.clone()).is_empty());
        // They do not hide the others.
        assert_eq!(least(at_once.into_iter().chain(apart(&[2000; 9])).collect()), [2000]);
    }

    #[test]
    fn a_server_that_looks_once_a_second_has_one_mode() {
        assert_eq!(least(apart(&[20_050, 20_900, 20_400, 20_990, 20_700])), [20_050]);
        assert_eq!(width_ms(600_000, 4), 18_000);
        assert_eq!(width_ms(20, 10), 20);
    }
}
