//! The rules: a file each. No rule reads a clock or does I/O; all see the same moment.

mod accept_queue_overflow;
mod close_wait_leak;
mod connection_pool_leak;
mod fin_wait2_pileup;
mod hol_blocking;
mod keepalive_missing;
mod keepalive_race;
mod nagle_stall;
pub mod network_cleared;
mod port_exhaustion;
mod retransmit_failed;
mod reuseport_imbalance;
mod socket_fd_leak;
mod stale_pooled_connection;
mod time_wait_churn;
mod unaccepted_connections;

use crate::findings::{
    Rule,
    observation::{Observations, View},
    thresholds::Threshold,
};

/// What the store of findings needs to know of a rule.
pub struct Spec {
    pub rule: Rule,
    /// Adds what it observes now.
    pub observe: fn(&View<'_>, &mut Observations),
    pub thresholds: &'static [&'static Threshold],
    /// The keys of the signals, as `--hook` calls them, without which it sees nothing.
    pub signals: &'static [&'static str],
    /// How long after it was observed last a finding ends. Of rules about states 10 s; of rules about events as long as it
    /// takes to say that they do not come any more.
    pub hold_seconds: u64,
    /// How old what it sees may be: that of sweeps, or of the evaluation.
    pub resolution_seconds: f64,
    /// The names of the evidence that it gives.
    pub evidence: &'static [&'static str],
    /// What such an incident is, in general.
    pub explanation: &'static str,
    /// Its page in docs/findings.
    pub page: &'static str,
}

/// All rules, in the order of [`Rule::ALL`].
pub const SPECS: [&Spec; Rule::ALL.len()] = [
    &close_wait_leak::SPEC,
    &unaccepted_connections::SPEC,
    &accept_queue_overflow::SPEC,
    &fin_wait2_pileup::SPEC,
    &time_wait_churn::SPEC,
    &port_exhaustion::SPEC,
    &socket_fd_leak::SPEC,
    &connection_pool_leak::SPEC,
    &stale_pooled_connection::SPEC,
    &keepalive_race::SPEC,
    &hol_blocking::SPEC,
    &reuseport_imbalance::SPEC,
    &keepalive_missing::SPEC,
    &nagle_stall::SPEC,
    &retransmit_failed::SPEC,
    &network_cleared::SPEC,
];

pub fn spec(rule: Rule) -> &'static Spec {
    SPECS[rule as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_has_its_place() {
        for (rule, spec) in Rule::ALL.iter().zip(SPECS) {
            assert_eq!(*rule, spec.rule);
            assert!(spec.explanation.ends_with('.'), "{}", rule.name());
        }
    }

    #[test]
    fn each_page_is_of_its_rule_and_names_its_evidence() {
        for spec in SPECS {
            let rule = spec.rule.name();
            assert!(spec.page.starts_with(&format!("# {rule}\n")), "{rule}");
            for part in ["**What you saw.**", "**What it is.**", "**False alarms.**", "**What to do.**"] {
                assert!(spec.page.contains(part), "{rule}: {part}");
            }
            for name in spec.evidence {
                assert!(spec.page.contains(&format!("`{name}`")), "{rule}: {name}");
            }
        }
    }
}
