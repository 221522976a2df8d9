//! Sums over connections and groups, as `/processes` and `/peers` show them.

use std::{cmp::Reverse, collections::BTreeMap};

use serde::Serialize;

use super::{ApiError, connections::DEFAULT_LIMIT, request::Params};
use crate::{
    aggregate::{Counts, Role},
    connect::Outcome,
    first_close::FirstClose,
    reset::{Direction, Reset},
    state::TcpState,
    table::Conn,
};

/// Connections of now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    states: [usize; TcpState::COUNT],
    roles: [usize; Role::ALL.len()],
}

impl Tally {
    pub(super) fn count(&mut self, conn: &Conn) {
        self.states[conn.state().index()] += 1;
        self.roles[conn.role as usize] += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.states.iter_mut().zip(other.states) {
            *mine += theirs;
        }
        for (mine, theirs) in self.roles.iter_mut().zip(other.roles) {
            *mine += theirs;
        }
    }

    pub(super) fn total(&self) -> usize {
        self.states.iter().sum()
    }

    pub(super) fn shown(&self) -> Now {
        let states = TcpState::ALL.iter().map(|state| (state.name(), self.states[state.index()]));
        let roles = Role::ALL.iter().map(|role| (role.name(), self.roles[*role as usize]));
        Now {
            total: self.total(),
            states: states.filter(|(_, count)| *count > 0).collect(),
            roles: roles.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

/// The same as JSON shows it: only states and roles that there are.
#[derive(Debug, Serialize)]
pub(super) struct Now {
    pub total: usize,
    pub states: BTreeMap<&'static str, usize>,
    pub roles: BTreeMap<&'static str, usize>,
}

impl Now {
    fn text(&self) -> String {
        states_text(&self.states)
    }
}

pub(super) fn states_text(states: &BTreeMap<&'static str, usize>) -> String {
    let states: Vec<_> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
    states.join(", ")
}

/// Counts since the start.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    opened: u64,
    closed: [u64; FirstClose::ALL.len()],
    retransmits: u64,
    resets: [u64; Reset::ALL.len()],
    attempts: u64,
    connects: [u64; Outcome::ALL.len()],
}

impl Sums {
    pub(super) fn add(&mut self, counts: &Counts) {
        self.opened += counts.opened;
        for (mine, theirs) in self.closed.iter_mut().zip(counts.closed) {
            *mine += theirs;
        }
        self.retransmits += counts.retransmitted.total();
        for (mine, theirs) in self.resets.iter_mut().zip(counts.resets) {
            *mine += theirs;
        }
        self.attempts += counts.attempts;
        for (mine, theirs) in self.connects.iter_mut().zip(counts.connects) {
            *mine += theirs;
        }
    }

    fn is_nothing(&self) -> bool {
        self.opened + self.retransmits + self.attempts + self.closed.iter().chain(&self.resets).sum::<u64>()
            == 0
    }

    fn resets(&self, direction: Direction) -> BTreeMap<&'static str, u64> {
        let all = Reset::ALL.iter().zip(self.resets);
        let those = all.filter(|(reset, count)| reset.direction() == direction && *count > 0);
        those.map(|(reset, count)| (reset.name(), count)).collect()
    }

    fn failed(&self) -> u64 {
        let all = Outcome::ALL.iter().zip(self.connects);
        all.filter(|(outcome, _)| outcome.is_failure()).map(|(_, count)| count).sum()
    }

    pub(super) fn shown(&self) -> Counted {
        Counted {
            opened: self.opened,
            closed: self.closed.iter().sum(),
            closed_first: FirstClose::ALL.iter().map(|first| first.name()).zip(self.closed).collect(),
            retransmits: self.retransmits,
            resets_sent: self.resets(Direction::Sent),
            resets_received: self.resets(Direction::Received),
            connect_attempts: self.attempts,
            connects: Outcome::ALL.iter().map(|outcome| outcome.name()).zip(self.connects).collect(),
        }
    }
}

/// The same as JSON shows it.
#[derive(Debug, Serialize)]
pub(super) struct Counted {
    pub opened: u64,
    pub closed: u64,
    /// By who closed first.
    pub closed_first: BTreeMap<&'static str, u64>,
    /// Segments.
    pub retransmits: u64,
    /// By reason; only those that there are.
    pub resets_sent: BTreeMap<&'static str, u64>,
    pub resets_received: BTreeMap<&'static str, u64>,
    pub connect_attempts: u64,
    /// By outcome.
    pub connects: BTreeMap<&'static str, u64>,
}

impl Counted {
    fn resets_text(&self) -> String {
        let sum = |resets: &BTreeMap<_, u64>| resets.values().sum::<u64>();
        let all = [(sum(&self.resets_sent), "sent"), (sum(&self.resets_received), "received")];
        let some: Vec<_> = all
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, direction)| format!("{count} {direction}"))
            .collect();
        some.join(", ")
    }

    fn connects_text(&self) -> String {
        let outcomes = Outcome::ALL.iter().map(|outcome| (outcome.name(), self.connects[outcome.name()]));
        let outcomes: Vec<_> = outcomes
            .filter(|(_, count)| *count > 0)
            .map(|(outcome, count)| format!("{count} {outcome}"))
            .collect();
        outcomes.join(", ")
    }
}

/// The columns of what both tables count, and under which names.
pub(super) const FIGURES: [&str; 7] =
    ["NOW", "OPENED", "CLOSED", "RETRANSMITS", "RESETS", "CONNECTS", "STATES NOW"];

pub(super) fn figures(now: &Now, counted: &Counted) -> [String; 7] {
    [
        now.total.to_string(),
        counted.opened.to_string(),
        counted.closed.to_string(),
        counted.retransmits.to_string(),
        counted.resets_text(),
        counted.connects_text(),
        now.text(),
    ]
}

/// What follows a table that `limit` cut.
pub(super) fn cut(shown: usize, total: usize) -> String {
    format!("\n{shown} of {total} shown; ?limit=0 shows all\n")
}

/// What rows are sorted by: the largest number first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Connections,
    Opened,
    Failed,
    Retransmits,
    Name,
}

/// How many rows, and which first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    sort: Sort,
    limit: usize,
}

impl Wanted {
    pub(super) const PARAMETERS: [&str; 2] = ["sort", "limit"];

    pub(super) fn take(params: &mut Params) -> Result<Self, ApiError> {
        let sort = match params.take("sort")?.as_deref() {
            None | Some("connections") => Sort::Connections,
            Some("opened") => Sort::Opened,
            Some("failed") => Sort::Failed,
            Some("retransmits") => Sort::Retransmits,
            Some("name") => Sort::Name,
            Some(other) => {
                let known = "connections, opened, failed, retransmits, name";
                return Err(ApiError::bad("sort", format!("`{other}` is not one of {known}")));
            }
        };
        Ok(Self { sort, limit: params.take_limit(DEFAULT_LIMIT)? })
    }

    /// Sorts and cuts; how many there were. Equal ones stand by name, and what has nothing to tell is left out.
    pub(super) fn apply<N: Ord, T>(&self, rows: &mut Vec<(N, Tally, Sums, T)>) -> usize {
        rows.retain(|(_, tally, sums, _)| tally.total() > 0 || !sums.is_nothing());
        let total = rows.len();
        rows.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        rows.sort_by_key(|(_, tally, sums, _)| {
            Reverse(match self.sort {
                Sort::Connections => tally.total() as u64,
                Sort::Opened => sums.opened,
                Sort::Failed => sums.failed(),
                Sort::Retransmits => sums.retransmits,
                Sort::Name => 0,
            })
        });
        rows.truncate(self.limit);
        total
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }
}
