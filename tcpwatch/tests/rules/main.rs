//! The rules of `/findings`: each opens at its threshold, says the right numbers, ends, and stays silent beside healthy
//! connections. A file a rule.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod accept_queue_overflow;
mod close_wait_leak;
mod connection_pool_leak;
mod hol_blocking;
mod keepalive_missing;
mod keepalive_race;
mod life;
mod listening;
mod meetings;
mod nagle_stall;
mod network_cleared;
mod port_exhaustion;
mod retransmit_failed;
mod reuseport_imbalance;
#[path = "../scenario/mod.rs"]
mod scenario;
mod socket_fd_leak;
mod stale_pooled_connection;
mod time_wait_churn;
mod unaccepted_connections;

use scenario::*;
use tcpwatch::findings::{Findings, life::Finding, thresholds::Thresholds};

/// Long after the machine started.
const THEN: u64 = 100_000 * SECOND;

/// The findings of a world whose time goes on.
#[derive(Default)]
struct Watched {
    findings: Findings,
    thresholds: Thresholds,
    now_ns: u64,
}

impl Watched {
    /// From here on every second is evaluated.
    fn from(now_ns: u64) -> Self {
        Self { now_ns, ..Self::default() }
    }

    /// Evaluates each second until then, the last included.
    fn until(&mut self, world: &World, then_ns: u64) -> &mut Self {
        while self.now_ns < then_ns {
            self.now_ns += SECOND;
            self.findings.evaluate(&world.tracker, &self.thresholds, self.now_ns);
        }
        self
    }

    fn open(&self) -> Vec<&Finding> {
        self.findings.open()
    }

    /// The only open one.
    fn only(&self) -> &Finding {
        let open = self.open();
        let [only] = &open[..] else { panic!("{open:#?}") };
        only
    }

    /// The only open one of this rule.
    fn find(&self, rule: &str) -> Option<&Finding> {
        let mut found = self.open().into_iter().filter(|finding| finding.id.rule.name() == rule);
        let first = found.next();
        assert!(found.next().is_none(), "several of {rule}");
        first
    }

    fn of(&self, rule: &str) -> &Finding {
        self.find(rule).unwrap_or_else(|| panic!("{:#?}", self.open()))
    }

    fn rules(&self) -> Vec<&'static str> {
        self.open().iter().map(|finding| finding.id.rule.name()).collect()
    }
}

fn evidence(finding: &Finding, name: &str) -> f64 {
    let found = finding.latest.evidence.iter().find(|evidence| evidence.name == name);
    found.unwrap_or_else(|| panic!("{name} in {:?}", finding.latest.evidence)).value
}
