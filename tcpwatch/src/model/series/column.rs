//! The values of one measure of one subject, in two rings.

use super::Step;

/// 16 minutes: a quarter of an hour, and the minute before it.
pub(super) const SAMPLES: usize = 96;
/// 6 hours.
pub(super) const MINUTES: usize = 360;

/// A value of each sample and of each minute, at their numbers modulo the size of the ring. What was before the first value
/// is zero.
pub(super) struct Column {
    samples: [u32; SAMPLES],
    minutes: [u32; MINUTES],
}

impl Default for Column {
    fn default() -> Self {
        Self { samples: [0; SAMPLES], minutes: [0; MINUTES] }
    }
}

impl Column {
    /// `begins`: the sample is the first of its minute. `is_count`: values add up, else the highest counts.
    pub(super) fn write(&mut self, sample: usize, minute: usize, begins: bool, value: u32, is_count: bool) {
        self.samples[sample % SAMPLES] = value;
        let of_minute = &mut self.minutes[minute % MINUTES];
        *of_minute = match (begins, is_count) {
            (true, _) => value,
            (false, true) => of_minute.saturating_add(value),
            (false, false) => value.max(*of_minute),
        };
    }

    pub(super) fn value(&self, step: Step, number: usize) -> u32 {
        match step {
            Step::Sample => self.samples[number % SAMPLES],
            Step::Minute => self.minutes[number % MINUTES],
        }
    }
}
