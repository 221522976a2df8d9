//! What there is at one moment, and what has happened since the one before.

use std::cmp::Reverse;

use rustc_hash::FxHashMap;

use super::{Measure, Subject};
use crate::{
    model::{
        processes::Activity,
        table::{PortUse, StateCounts},
        tracker::Tracker,
        workload::Workload,
    },
    tcp::state::TcpState,
};

/// The values of one subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    pub states: StateCounts,
    pub activity: Activity,
    pub ports: u32,
}

impl Row {
    pub(super) fn value(&self, measure: Measure) -> u32 {
        match measure {
            Measure::State(state) => self.states[state.index()],
            Measure::Opened => self.activity.opened,
            Measure::FailedConnects => self.activity.failed_connects,
            Measure::Resets => self.activity.resets,
            Measure::Retransmits => self.activity.retransmits,
            Measure::Ports => self.ports,
        }
    }

    fn add(&mut self, states: StateCounts, activity: Activity) {
        for (mine, theirs) in self.states.iter_mut().zip(states) {
            *mine += theirs;
        }
        self.activity.add(activity);
    }

    /// Connections, or ports where there are only ports.
    pub(super) fn size(&self) -> u32 {
        self.states.iter().sum::<u32>().max(self.ports)
    }

    pub(super) fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// How many columns it needs.
    pub(super) fn measures(&self) -> usize {
        Measure::ALL.into_iter().filter(|measure| self.value(*measure) > 0).count()
    }
}

/// What a sample is made of.
#[derive(Debug, Default)]
pub struct Tally {
    pub total: Row,
    pub workloads: FxHashMap<Option<Workload>, Row>,
    /// Local ports in use, by what they are in use toward.
    pub ports: Vec<(PortUse, u32)>,
}

impl Tally {
    fn add(&mut self, workload: Option<&Workload>, states: StateCounts, activity: Activity) {
        self.total.activity.add(activity);
        if activity == Activity::default() && states == StateCounts::default() {
            return;
        }
        // Cloned only where it is new.
        let key = workload.cloned();
        self.workloads.entry(key).or_default().add(states, activity);
    }

    pub(super) fn fullest(&self) -> Option<(PortUse, u32)> {
        self.ports.iter().copied().max_by_key(|(_, count)| *count)
    }

    /// The rows by subject; of the ports those toward the `most` fullest destinations with at least `many` in use.
    pub(super) fn into_rows(mut self, many: u32, most: usize) -> FxHashMap<Subject, Row> {
        self.total.ports = self.fullest().map_or(0, |(_, count)| count);
        self.ports.retain(|(_, count)| *count >= many);
        if self.ports.len() > most {
            self.ports.select_nth_unstable_by_key(most, |(_, count)| Reverse(*count));
            self.ports.truncate(most);
        }
        let workloads = self.workloads.into_iter().map(|(key, row)| (Subject::Workload(key), row));
        let row = |ports| Row { ports, ..Row::default() };
        let ports = self.ports.into_iter().map(|(toward, ports)| (Subject::Ports(toward), row(ports)));
        workloads.chain(ports).chain([(Subject::Total, self.total)]).collect()
    }
}

impl Tracker {
    /// What there is now. What has happened is counted from here on anew.
    pub fn tally(&mut self) -> Tally {
        let mut tally = Tally::default();
        let (table, processes) = self.tally_sources();
        for state in TcpState::ALL {
            tally.total.states[state.index()] = u32::try_from(table.count(*state)).unwrap_or(u32::MAX);
        }
        processes.take_activity(|process, workload, activity| {
            let has_states = process.is_some() || workload.is_none();
            let states = if has_states { table.states_of(process) } else { StateCounts::default() };
            tally.add(workload, states, activity);
        });
        tally.ports = table.ports().map(|(toward, count)| (*toward, count)).collect();
        tally
    }
}
