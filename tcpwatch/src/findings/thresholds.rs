//! The limits that rules hold numbers against, each with its reason; users may set others.

use std::collections::BTreeMap;

use crate::findings::rules::SPECS;

/// A limit of a rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// The rule's name, a point, and what is limited, with the unit: `close_wait_leak.stuck_seconds`.
    pub name: &'static str,
    pub default: f64,
    /// Why the default is what it is.
    pub reason: &'static str,
}

/// All limits, in the order of the rules.
pub fn all() -> impl Iterator<Item = &'static Threshold> {
    SPECS.iter().flat_map(|spec| spec.thresholds.iter().copied())
}

/// The limits in force.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Thresholds(BTreeMap<&'static str, f64>);

impl Thresholds {
    pub fn get(&self, threshold: &Threshold) -> f64 {
        self.0.get(threshold.name).copied().unwrap_or(threshold.default)
    }

    /// The same for a limit in seconds.
    pub fn nanos(&self, threshold: &Threshold) -> u64 {
        (self.get(threshold) * 1e9) as u64
    }

    /// The same for a limit of a number of things.
    pub fn count(&self, threshold: &Threshold) -> usize {
        self.get(threshold) as usize
    }

    /// Sets a limit.
    ///
    /// # Errors
    /// For a name that no limit has, and for a value that is no number from 0 on.
    pub fn set(&mut self, name: &str, value: f64) -> Result<(), String> {
        let Some(known) = all().find(|threshold| threshold.name == name) else {
            return Err(format!("no rule has a threshold `{name}`; docs/thresholds.md lists them"));
        };
        if !value.is_finite() || value < 0.0 {
            return Err(format!("{value} is no threshold: a number from 0 on is"));
        }
        self.0.insert(known.name, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_belongs_to_its_rule_has_one_name_and_a_reason() {
        let mut names: Vec<_> = all().map(|threshold| threshold.name).collect();
        for spec in SPECS {
            for threshold in spec.thresholds {
                let (rule, what) = threshold.name.split_once('.').unwrap();
                assert_eq!((rule, what.is_empty()), (spec.rule.name(), false), "{threshold:?}");
                assert!(threshold.reason.len() > 10, "{threshold:?}");
            }
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().count());
    }

    #[test]
    fn a_threshold_is_as_set() {
        let mut thresholds = Thresholds::default();
        let first = all().next().unwrap();
        assert!((thresholds.get(first) - first.default).abs() < f64::EPSILON);
        thresholds.set(first.name, 1.5).unwrap();
        assert!((thresholds.get(first) - 1.5).abs() < f64::EPSILON);
        assert_eq!(thresholds.nanos(first), 1_500_000_000);
        for (name, value) in [("nothing", 1.0), (first.name, -1.0), (first.name, f64::NAN)] {
            assert!(thresholds.set(name, value).is_err(), "{name} {value}");
        }
    }
}
