//! Findings: observations that open, change and end, each with an id.

use std::collections::{BTreeMap, VecDeque};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    findings::{
        Rule, Severity, causes,
        observation::{Observation, Observations, Subject, View},
        rules::{SPECS, spec},
        thresholds::Thresholds,
        trend::Trends,
    },
    model::tracker::Tracker,
};

/// Time between two evaluations of the rules.
const INTERVAL_NS: u64 = 2_000_000_000;
/// How long ended findings can be asked for, and how many at most.
const KEPT_NS: u64 = 24 * 3600 * SECOND_NS;
const MAX_ENDED: usize = 1000;
/// Findings open at once: the most severe.
pub const MAX_OPEN: usize = 1000;
/// One that ended this short a time ago goes on under its id.
const REOPENS_NS: u64 = 300 * SECOND_NS;
/// How long a lower severity must have lasted before it is said.
const CALMS_NS: u64 = 60 * SECOND_NS;
const SECOND_NS: u64 = 1_000_000_000;

/// The rules whose processes may run out of descriptors.
const HOLDING: [Rule; 4] =
    [Rule::CloseWaitLeak, Rule::UnacceptedConnections, Rule::SocketFdLeak, Rule::ConnectionPoolLeak];

/// `close_wait_leak.3`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FindingId {
    pub rule: Rule,
    pub number: u32,
}

impl std::fmt::Display for FindingId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.rule.name(), self.number)
    }
}

/// The worst moment of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worst {
    pub severity: Severity,
    pub count: u64,
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
}

/// A finding, open or ended. Times are of CLOCK_MONOTONIC.
#[derive(Clone, Debug)]
pub struct Finding {
    pub id: FindingId,
    /// As it was observed last.
    pub latest: Observation,
    /// At which it is said: it falls only when a lower one has lasted for a minute.
    pub severity: Severity,
    /// When it was last observed with this severity or a higher one.
    severe_ns: u64,
    pub opened_ns: u64,
    pub last_seen_ns: u64,
    pub ended_ns: Option<u64>,
    pub worst: Worst,
    /// How many times it was observed again within five minutes of its end.
    pub reopened: u32,
    pub caused_by: Vec<FindingId>,
    pub effects: Vec<FindingId>,
}

impl Finding {
    fn open(id: FindingId, latest: Observation, now_ns: u64) -> Self {
        let severity = latest.severity;
        Self {
            id,
            severity,
            severe_ns: now_ns,
            opened_ns: now_ns,
            last_seen_ns: now_ns,
            ended_ns: None,
            worst: Worst { severity, count: latest.count, at_ns: now_ns },
            reopened: 0,
            caused_by: Vec::new(),
            effects: Vec::new(),
            latest,
        }
    }

    fn observe(&mut self, mut latest: Observation, now_ns: u64) {
        // The condition began when it first did.
        latest.since_ns = latest.since_ns.min(self.latest.since_ns);
        if latest.severity >= self.severity || self.severe_ns.saturating_add(CALMS_NS) <= now_ns {
            self.severity = latest.severity;
            self.severe_ns = now_ns;
        }
        if (latest.severity, latest.count) > (self.worst.severity, self.worst.count) {
            self.worst = Worst { severity: latest.severity, count: latest.count, at_ns: now_ns };
        }
        self.last_seen_ns = now_ns;
        self.latest = latest;
    }
}

/// What became of a finding in an evaluation, for the log and for those who are notified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Opened(FindingId),
    Worsened(FindingId),
    Ended(FindingId),
}

type Key = (Rule, Subject);

/// The findings of now and of the last day.
#[derive(Default)]
pub struct Findings {
    open: FxHashMap<Key, Finding>,
    /// Latest end last.
    ended: VecDeque<Finding>,
    /// Findings opened so far.
    opened: BTreeMap<Rule, u32>,
    trends: Trends,
    watched_since_ns: Option<u64>,
    next_ns: u64,
    /// Observations that found no room, in the latest evaluation.
    pub unkept: usize,
    /// Whether a rule has to know what only a sweep shows.
    pub wants_sweep: bool,
}

impl Findings {
    /// Evaluates the rules, if it is time to.
    pub fn evaluate(&mut self, tracker: &Tracker, thresholds: &Thresholds, now_ns: u64) -> Vec<Change> {
        if now_ns < self.next_ns {
            return Vec::new();
        }
        self.next_ns = now_ns.saturating_add(INTERVAL_NS);
        let watched_since_ns = *self.watched_since_ns.get_or_insert(now_ns);
        let view = View { tracker, thresholds, now_ns, watched_since_ns, trends: &self.trends };
        let mut observations = Observations::default();
        for spec in SPECS {
            (spec.observe)(&view, &mut observations);
        }
        let Observations { all, counts, wants_sweep } = observations;
        self.wants_sweep = wants_sweep;
        for (rule, subject, count) in counts {
            self.trends.sample(rule, &subject, count, now_ns);
        }
        self.trends.expire(now_ns);
        self.take(all, now_ns)
    }

    fn take(&mut self, mut observations: Vec<Observation>, now_ns: u64) -> Vec<Change> {
        observations.sort_by_key(|one| std::cmp::Reverse((one.severity, one.count)));
        self.unkept = observations.len().saturating_sub(MAX_OPEN);
        observations.truncate(MAX_OPEN);
        let mut changes = Vec::new();
        for observation in observations {
            changes.extend(self.observe(observation, now_ns));
        }
        changes.extend(self.end_unseen(now_ns));
        self.link();
        changes
    }

    fn observe(&mut self, observation: Observation, now_ns: u64) -> Option<Change> {
        debug_assert!(
            observation.evidence.iter().all(|one| spec(observation.rule).evidence.contains(&one.name)),
            "{:?}",
            observation.evidence
        );
        let key = (observation.rule, observation.subject.clone());
        if let Some(finding) = self.open.get_mut(&key) {
            let before = finding.severity;
            finding.observe(observation, now_ns);
            return (finding.severity > before).then_some(Change::Worsened(finding.id));
        }
        if let Some(finding) = self.reopen(&key, now_ns) {
            let mut finding = Finding { ended_ns: None, reopened: finding.reopened + 1, ..finding };
            finding.observe(observation, now_ns);
            self.open.insert(key, finding);
            return None;
        }
        let number = self.opened.entry(observation.rule).or_default();
        *number += 1;
        let id = FindingId { rule: observation.rule, number: *number };
        self.open.insert(key, Finding::open(id, observation, now_ns));
        Some(Change::Opened(id))
    }

    fn reopen(&mut self, key: &Key, now_ns: u64) -> Option<Finding> {
        let is_recent = |finding: &Finding| {
            finding.ended_ns.is_some_and(|ended_ns| ended_ns.saturating_add(REOPENS_NS) > now_ns)
        };
        let recent = self.ended.iter().enumerate().rev().take_while(|(_, finding)| is_recent(finding));
        let same = |finding: &Finding| (finding.id.rule, &finding.latest.subject) == (key.0, &key.1);
        let place = recent.into_iter().find(|(_, finding)| same(finding)).map(|(place, _)| place)?;
        self.ended.remove(place)
    }

    fn end_unseen(&mut self, now_ns: u64) -> Vec<Change> {
        let is_over = |finding: &Finding| {
            let hold_ns = spec(finding.id.rule).hold_seconds * SECOND_NS;
            finding.last_seen_ns.saturating_add(hold_ns) <= now_ns
        };
        let mut over: Vec<Finding> =
            self.open.extract_if(|_, finding| is_over(finding)).map(|(_, one)| one).collect();
        over.sort_by_key(|finding| finding.id);
        let changes = over.iter().map(|finding| Change::Ended(finding.id)).collect();
        self.ended.extend(over.into_iter().map(|finding| Finding { ended_ns: Some(now_ns), ..finding }));
        let is_old = |finding: &Finding| {
            finding.ended_ns.is_some_and(|ended_ns| ended_ns.saturating_add(KEPT_NS) < now_ns)
        };
        while self.ended.len() > MAX_ENDED || self.ended.front().is_some_and(is_old) {
            self.ended.pop_front();
        }
        changes
    }

    /// Says of each open finding what caused it. An ended one keeps what was said last.
    fn link(&mut self) {
        let open: Vec<&Finding> = self.open.values().collect();
        let edges = causes::edges(&open);
        for finding in self.open.values_mut() {
            let [caused_by, effects] = [&mut finding.caused_by, &mut finding.effects];
            *caused_by =
                edges.iter().filter(|edge| edge.effect == finding.id).map(|edge| edge.cause).collect();
            *effects = edges.iter().filter(|edge| edge.cause == finding.id).map(|edge| edge.effect).collect();
            effects.sort_unstable();
        }
    }

    /// The open ones, worst first; those without a cause before those with one.
    pub fn open(&self) -> Vec<&Finding> {
        let mut open: Vec<_> = self.open.values().collect();
        open.sort_by(|a, b| {
            let worst = b
                .severity
                .cmp(&a.severity)
                .then(a.caused_by.is_empty().cmp(&b.caused_by.is_empty()).reverse());
            worst.then(b.latest.count.cmp(&a.latest.count)).then(a.id.cmp(&b.id))
        });
        open
    }

    /// Processes whose descriptors matter to open findings, by pid and start, at most so many.
    pub fn holders(&self, limit: usize) -> Vec<(u32, u64)> {
        let open = self.open();
        let members = open.iter().filter(|finding| HOLDING.contains(&finding.id.rule));
        let mut holders: Vec<_> =
            members.flat_map(|finding| &finding.latest.members).map(|one| (one.pid, one.start_ns)).collect();
        let mut seen = FxHashSet::default();
        holders.retain(|one| seen.insert(*one));
        holders.truncate(limit);
        holders
    }

    /// The ended ones, latest end first.
    pub fn ended(&self) -> impl Iterator<Item = &Finding> {
        self.ended.iter().rev()
    }

    pub fn find(&self, id: FindingId) -> Option<&Finding> {
        self.open.values().chain(&self.ended).find(|finding| finding.id == id)
    }

    /// Findings opened since the start, of each rule that opened any.
    pub fn opened(&self, rule: Rule) -> u32 {
        self.opened.get(&rule).copied().unwrap_or(0)
    }

    /// Those whose causes are not open, with their effects behind them, each once: the order of a story.
    pub fn stories(&self) -> Vec<(usize, &Finding)> {
        let open = self.open();
        let by_id: FxHashMap<FindingId, &Finding> =
            open.iter().map(|finding| (finding.id, *finding)).collect();
        let mut told = FxHashSet::default();
        let mut stories = Vec::new();
        // Roots first, by the worst of all that hangs under them; nothing is left out, whatever the links are.
        let worst_below = |root: &Finding| {
            let mut worst = root.severity;
            let mut left = root.effects.clone();
            let mut seen = FxHashSet::default();
            while let Some(id) = left.pop() {
                if seen.insert(id)
                    && let Some(finding) = by_id.get(&id)
                {
                    worst = worst.max(finding.severity);
                    left.extend(&finding.effects);
                }
            }
            worst
        };
        let mut roots: Vec<_> = open.iter().filter(|finding| finding.caused_by.is_empty()).collect();
        roots.sort_by_key(|root| std::cmp::Reverse(worst_below(root)));
        for finding in roots.into_iter().chain(&open) {
            let mut left = vec![(0, finding.id)];
            while let Some((depth, id)) = left.pop() {
                if let Some(finding) = by_id.get(&id)
                    && told.insert(id)
                {
                    stories.push((depth, *finding));
                    left.extend(finding.effects.iter().rev().map(|effect| (depth + 1, *effect)));
                }
            }
        }
        stories
    }
}
