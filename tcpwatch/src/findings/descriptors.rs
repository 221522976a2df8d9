//! How many descriptors the processes of a finding have open, how many they may, and when they will have that many.

use crate::findings::{
    observation::{Evidence, Member, View},
    trend::Trend,
};

/// A limit beyond this is none in practice: what containerd and Go set by default.
const PRACTICAL_LIMIT: u64 = 1 << 19;
/// How long descriptors must have been counted before anything is said of their growth.
const MIN_SECONDS: f64 = 120.0;

/// The descriptors of the process that is nearest to its limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Descriptors {
    pub(super) open: u64,
    pub(super) limit: u64,
    /// Until the limit is reached, where their number grows steadily.
    pub(super) seconds_to_limit: Option<f64>,
}

/// Of the processes of a finding whose descriptors are counted.
pub(super) fn of(view: &View<'_>, members: &[Member]) -> Option<Descriptors> {
    let known = members.iter().filter_map(|member| {
        let counts = view.tracker.descriptors((member.pid, member.start_ns))?;
        let latest = counts.back()?;
        let trend = Trend::of(counts.iter().map(|one| (one.at_ns, one.open)));
        let growth = trend.growth().filter(|_| trend.seconds() >= MIN_SECONDS);
        let left = latest.limit.saturating_sub(latest.open) as f64;
        Some(Descriptors {
            open: latest.open,
            limit: latest.limit,
            seconds_to_limit: growth.map(|growth| 60.0 * left / growth),
        })
    });
    known.max_by(|a, b| a.share().total_cmp(&b.share()))
}

impl Descriptors {
    fn share(&self) -> f64 {
        self.open as f64 / self.limit.max(1) as f64
    }

    pub(super) fn evidence(&self) -> Vec<Evidence> {
        let open = Evidence::new("descriptors", self.open as f64, "descriptors").against(self.limit as f64);
        let left = self.seconds_to_limit.map(|seconds| Evidence::new("seconds_to_limit", seconds, "seconds"));
        std::iter::once(open).chain(left).collect()
    }

    pub(super) fn sentence(&self) -> String {
        let limit = if self.limit >= PRACTICAL_LIMIT {
            format!("Its limit of {} descriptors is far.", self.limit)
        } else {
            format!("It has {} of {} descriptors open", self.open, self.limit)
        };
        match self.seconds_to_limit {
            _ if self.limit >= PRACTICAL_LIMIT => limit,
            Some(seconds) => format!("{limit}; in {:.0} min none is left.", seconds / 60.0),
            None => format!("{limit}."),
        }
    }
}
