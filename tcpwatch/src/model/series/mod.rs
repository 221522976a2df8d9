//! A short memory: how many connections of each workload were in each state, what they did, and the local ports in use
//! toward the fullest destinations. Samples of every 10 s for 16 minutes, minutes for 6 hours.
//!
//! In: [`Tally`], what there is at one moment. Out: values at a time, the highest, and growth. Bounded by [`MAX_COLUMNS`].
//! Peaks between two samples are not seen.

mod column;
mod growth;
mod tally;

use std::{cmp::Reverse, collections::VecDeque, time::Duration};

use rustc_hash::FxHashMap;

use self::column::{Column, MINUTES, SAMPLES};
pub use self::{
    growth::Growth,
    tally::{Row, Tally},
};
use crate::{
    model::{table::PortUse, workload::Workload},
    tcp::state::TcpState,
};

/// Time between two samples.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
const INTERVAL_NS: u64 = SAMPLE_INTERVAL.as_nanos() as u64;
const MINUTE_NS: u64 = 60_000_000_000;

/// Columns that are kept: one for each measure of a subject that has ever been other than zero. 2 KiB each, so 4 MiB at most,
/// which are some 500 workloads.
const MAX_COLUMNS: usize = 2_048;
/// Destinations of ports that have a series, the fullest ones.
const MAX_DESTINATIONS: usize = 64;
/// Ports that the kernel chooses from by default: net.ipv4.ip_local_port_range is 32768 to 60999. The range of a namespace
/// is not known here; `/ports` asks the kernel for it.
pub const DEFAULT_LOCAL_PORTS: u32 = 60_999 - 32_768 + 1;
/// Ports in use from which on a destination has a series: one in a hundred.
const MANY_PORTS: u32 = DEFAULT_LOCAL_PORTS / 100;

/// What a series is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// The node.
    Total,
    /// One workload; `None` for connections whose process is not known.
    Workload(Option<Workload>),
    /// Local ports toward one destination.
    Ports(PortUse),
}

/// What is measured of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Connections in a state.
    State(TcpState),
    Opened,
    FailedConnects,
    Resets,
    Retransmits,
    /// Local ports in use toward a destination; of [`Subject::Total`] toward the fullest.
    Ports,
}

impl Measure {
    const COUNT: usize = TcpState::COUNT + 5;

    pub const ALL: [Self; 15] = [
        Self::State(TcpState::Established),
        Self::State(TcpState::CloseWait),
        Self::State(TcpState::FinWait1),
        Self::State(TcpState::FinWait2),
        Self::State(TcpState::TimeWait),
        Self::State(TcpState::LastAck),
        Self::State(TcpState::Closing),
        Self::State(TcpState::SynSent),
        Self::State(TcpState::SynRecv),
        Self::State(TcpState::Listen),
        Self::Opened,
        Self::FailedConnects,
        Self::Resets,
        Self::Retransmits,
        Self::Ports,
    ];

    const fn index(self) -> usize {
        match self {
            Self::State(state) => state.index(),
            Self::Opened => TcpState::COUNT,
            Self::FailedConnects => TcpState::COUNT + 1,
            Self::Resets => TcpState::COUNT + 2,
            Self::Retransmits => TcpState::COUNT + 3,
            Self::Ports => TcpState::COUNT + 4,
        }
    }

    /// Whether its values are counts of what happened since the value before, not of what there was.
    pub const fn is_count(self) -> bool {
        matches!(self, Self::Opened | Self::FailedConnects | Self::Resets | Self::Retransmits)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::State(state) => state.name(),
            Self::Opened => "opened",
            Self::FailedConnects => "failed_connects",
            Self::Resets => "resets",
            Self::Retransmits => "retransmits",
            Self::Ports => "ports_in_use",
        }
    }
}

/// One value and when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
    pub value: u32,
}

/// How finely values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Of every 10 s, for 16 minutes.
    Sample,
    /// Of every minute, for 6 hours: of a state the highest of its samples, of a count the sum.
    Minute,
}

#[derive(Default)]
pub struct Series {
    subjects: FxHashMap<Subject, Kept>,
    columns: usize,
    /// When each sample was taken, oldest first; the last one stands at `samples_taken - 1` in the columns' rings.
    sample_times: VecDeque<u64>,
    samples_taken: usize,
    /// When the last sample of each minute was taken; the last one is the minute under way.
    minute_times: VecDeque<u64>,
    minutes_begun: usize,
    /// When the minute under way began.
    minute_began_ns: u64,
    /// The fullest destination of each minute, beside `minute_times`.
    fullest: VecDeque<Option<(PortUse, u32)>>,
    first_sample_ns: Option<u64>,
    next_sample_ns: u64,
    /// Subjects that gave their place to others, in which more happens.
    pub evicted: u64,
    evicted_ns: u64,
    /// Subjects of the latest sample that found no place.
    pub left_out: usize,
}

/// When each subject was active last, and its size.
type Weakest = Vec<(u64, u32, Subject)>;

/// What is kept of a subject.
struct Kept {
    /// Number of the first sample and of the first minute in which it was kept.
    first_sample: usize,
    first_minute: usize,
    /// When it was last other than zero.
    active_ns: u64,
    /// Its connections or ports in the latest sample.
    size: u32,
    columns: [Option<Box<Column>>; Measure::COUNT],
}

impl Kept {
    fn columns(&self) -> usize {
        self.columns.iter().flatten().count()
    }
}

impl Series {
    /// Whether the next sample is due.
    pub fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.next_sample_ns
    }

    /// Takes a sample. `tally`: what there is at `now_ns`, and what has happened since the sample before.
    pub fn sample(&mut self, tally: Tally, now_ns: u64) {
        let late = now_ns.saturating_sub(self.next_sample_ns) >= INTERVAL_NS;
        let due = if late { now_ns } else { self.next_sample_ns };
        self.next_sample_ns = due.saturating_add(INTERVAL_NS);
        let begins_minute = self.begin_sample(now_ns);
        self.note_fullest(tally.fullest());
        let mut rows = tally.into_rows(MANY_PORTS, MAX_DESTINATIONS);
        self.forget_inactive(now_ns);
        let mut weakest = None;
        let evicted = self.evicted;
        self.make_room(&rows, &mut weakest);
        let mut subjects = std::mem::take(&mut self.subjects);
        for (subject, kept) in &mut subjects {
            let row = rows.remove(subject).unwrap_or_default();
            self.write(kept, &row, begins_minute, now_ns);
        }
        self.subjects = subjects;
        self.place(rows, weakest, now_ns);
        if self.evicted > evicted {
            self.evicted_ns = now_ns;
        }
    }

    /// Subjects of which nothing is left to show.
    fn forget_inactive(&mut self, now_ns: u64) {
        let columns = &mut self.columns;
        self.subjects.retain(|subject, kept| {
            let is_over = now_ns.saturating_sub(kept.active_ns) > MINUTES as u64 * MINUTE_NS;
            let stays = *subject == Subject::Total || !is_over;
            *columns -= if stays { 0 } else { kept.columns() };
            stays
        });
    }

    /// Makes room for the values of a sample. Returns whether it is the first of its minute.
    fn begin_sample(&mut self, now_ns: u64) -> bool {
        self.first_sample_ns.get_or_insert(now_ns);
        push(&mut self.sample_times, now_ns, SAMPLES);
        self.samples_taken += 1;
        let since_ns = now_ns.saturating_sub(self.minute_began_ns);
        // A sample may be taken a moment early or late.
        let begins = self.minute_times.is_empty() || since_ns > MINUTE_NS + INTERVAL_NS / 2;
        if begins {
            // What the sample counts happened since the one before.
            let before =
                self.sample_times.len().checked_sub(2).and_then(|index| self.sample_times.get(index));
            self.minute_began_ns = before.copied().unwrap_or_else(|| now_ns.saturating_sub(INTERVAL_NS));
            push(&mut self.minute_times, now_ns, MINUTES);
            push(&mut self.fullest, None, MINUTES);
            self.minutes_begun += 1;
        } else if let Some(last) = self.minute_times.back_mut() {
            *last = now_ns;
        }
        begins
    }

    fn note_fullest(&mut self, now: Option<(PortUse, u32)>) {
        if let Some(most) = self.fullest.back_mut()
            && now.is_some_and(|(_, ports)| most.is_none_or(|(_, before)| ports > before))
        {
            *most = now;
        }
    }

    /// Writes the values of a subject, for whose columns there is room.
    fn write(&mut self, kept: &mut Kept, row: &Row, begins_minute: bool, now_ns: u64) {
        let (sample, minute) = (self.samples_taken - 1, self.minutes_begun - 1);
        for measure in Measure::ALL {
            let value = row.value(measure);
            let column = &mut kept.columns[measure.index()];
            if column.is_none() && value > 0 {
                self.columns += 1;
                *column = Some(Box::default());
            }
            if let Some(column) = column {
                column.write(sample, minute, begins_minute, value, measure.is_count());
            }
        }
        kept.size = row.size();
        if !row.is_zero() {
            kept.active_ns = now_ns;
        }
    }

    /// Makes room for the columns that kept subjects need now.
    fn make_room(&mut self, rows: &FxHashMap<Subject, Row>, weakest: &mut Option<Weakest>) {
        let needs = |subject: &Subject, kept: &Kept| {
            let row = rows.get(subject).copied().unwrap_or_default();
            let is_new =
                |measure: &Measure| row.value(*measure) > 0 && kept.columns[measure.index()].is_none();
            Measure::ALL.iter().filter(|measure| is_new(measure)).count()
        };
        let mut needed: usize = self.subjects.iter().map(|(subject, kept)| needs(subject, kept)).sum();
        while self.columns + needed > MAX_COLUMNS {
            let weakest = weakest.get_or_insert_with(|| self.by_strength(rows));
            let Some((.., subject)) = weakest.pop() else { break };
            if let Some(kept) = self.evict(&subject) {
                needed -= needs(&subject, &kept);
            }
        }
    }

    fn evict(&mut self, subject: &Subject) -> Option<Kept> {
        let kept = self.subjects.remove(subject)?;
        self.columns -= kept.columns();
        self.evicted += 1;
        Some(kept)
    }

    /// Gives places to what has none yet, the largest first; where none are free, those of subjects that are not active or
    /// smaller.
    fn place(&mut self, rows: FxHashMap<Subject, Row>, mut weakest: Option<Weakest>, now_ns: u64) {
        let mut new: Vec<_> =
            rows.into_iter().filter(|(subject, row)| *subject == Subject::Total || !row.is_zero()).collect();
        new.sort_unstable_by_key(|(_, row)| Reverse(row.size()));
        self.left_out = 0;
        for (subject, row) in new {
            while self.columns + row.measures() > MAX_COLUMNS {
                let weakest = weakest.get_or_insert_with(|| self.by_strength(&FxHashMap::default()));
                let gives_way = |(active_ns, size, _): &mut (u64, u32, _)| {
                    *active_ns < now_ns || *size < row.size() || subject == Subject::Total
                };
                let Some((.., gone)) = weakest.pop_if(gives_way) else { break };
                self.evict(&gone);
            }
            if self.columns + row.measures() > MAX_COLUMNS {
                self.left_out += 1;
                continue;
            }
            let mut kept = Kept {
                first_sample: self.samples_taken - 1,
                first_minute: self.minutes_begun - 1,
                active_ns: now_ns,
                size: 0,
                columns: [const { None }; Measure::COUNT],
            };
            self.write(&mut kept, &row, true, now_ns);
            self.subjects.insert(subject, kept);
        }
    }

    /// What may give its place, the weakest last. `rows`: of this sample, where that is not written yet.
    fn by_strength(&self, rows: &FxHashMap<Subject, Row>) -> Weakest {
        let strength = |subject: &Subject, kept: &Kept| match rows.get(subject) {
            Some(row) if !row.is_zero() => (u64::MAX, row.size()),
            _ => (kept.active_ns, kept.size),
        };
        let all = self.subjects.iter().filter(|(subject, _)| **subject != Subject::Total);
        let mut all: Vec<_> = all
            .map(|(subject, kept)| {
                let (active_ns, size) = strength(subject, kept);
                (active_ns, size, subject.clone())
            })
            .collect();
        all.sort_unstable_by_key(|(active_ns, size, _)| Reverse((*active_ns, *size)));
        all
    }

    /// How many subjects gave their place to others, if one did in the time that is shown.
    pub fn recently_evicted(&self, now_ns: u64) -> Option<u64> {
        let is_recent = now_ns.saturating_sub(self.evicted_ns) <= MINUTES as u64 * MINUTE_NS;
        (self.evicted > 0 && is_recent).then_some(self.evicted)
    }

    /// What there are values of.
    pub fn subjects(&self) -> impl Iterator<Item = &Subject> {
        self.subjects.keys()
    }

    /// Connections or ports of the subject in the latest sample.
    pub fn size(&self, subject: &Subject) -> u32 {
        self.subjects.get(subject).map_or(0, |kept| kept.size)
    }

    /// When values were taken, oldest first.
    pub fn times(&self, step: Step) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator {
        match step {
            Step::Sample => self.sample_times.iter().copied(),
            Step::Minute => self.minute_times.iter().copied(),
        }
    }

    /// The values of a subject beside [`Series::times`]: `None` from before it was kept. Nothing if it is not kept.
    pub fn values(
        &self,
        subject: &Subject,
        measure: Measure,
        step: Step,
    ) -> Option<impl DoubleEndedIterator<Item = Option<u32>> + use<'_>> {
        let kept = self.subjects.get(subject)?;
        let column = kept.columns[measure.index()].as_deref();
        let (taken, times, since) = match step {
            Step::Sample => (self.samples_taken, self.sample_times.len(), kept.first_sample),
            Step::Minute => (self.minutes_begun, self.minute_times.len(), kept.first_minute),
        };
        Some((taken - times..taken).map(move |number| {
            let value = || column.map_or(0, |column| column.value(step, number));
            (number >= since).then(value)
        }))
    }

    /// Whether the subject had this measure at all.
    pub fn has(&self, subject: &Subject, measure: Measure) -> bool {
        self.subjects.get(subject).is_some_and(|kept| kept.columns[measure.index()].is_some())
    }

    /// The known values of a subject since a time, oldest first.
    fn since(
        &self,
        subject: &Subject,
        measure: Measure,
        step: Step,
        since_ns: u64,
    ) -> impl Iterator<Item = Moment> + use<'_> {
        let values = self.values(subject, measure, step).into_iter().flatten();
        let known =
            self.times(step).zip(values).filter_map(|(at_ns, value)| Some(Moment { at_ns, value: value? }));
        known.filter(move |moment| moment.at_ns >= since_ns)
    }

    /// The highest value since a time, and when that was first.
    pub fn most(&self, subject: &Subject, measure: Measure, step: Step, since_ns: u64) -> Option<Moment> {
        let moments = self.since(subject, measure, step, since_ns);
        moments.reduce(|most, next| if next.value > most.value { next } else { most })
    }

    /// The value at a time, or what was counted in the minute until then. `None` where no sample was taken then, or the
    /// subject was not kept.
    pub fn at(&self, subject: &Subject, measure: Measure, at_ns: u64) -> Option<f64> {
        let needed_ns = if measure.is_count() { at_ns.saturating_sub(MINUTE_NS) } else { at_ns };
        let tolerated_ns = needed_ns.saturating_add(INTERVAL_NS / 2);
        let has_samples = self.sample_times.front().is_some_and(|oldest| *oldest <= tolerated_ns);
        if has_samples || self.samples_taken <= SAMPLES {
            return self.at_sample(subject, measure, at_ns);
        }
        let is_watched =
            self.first_sample_ns.is_some_and(|first_ns| first_ns <= at_ns.saturating_add(INTERVAL_NS / 2));
        let mut minutes = self.since(subject, measure, Step::Minute, at_ns);
        let found = minutes
            .next()
            .filter(|moment| is_watched && moment.at_ns <= at_ns.saturating_add(MINUTE_NS + INTERVAL_NS))?;
        Some(found.value.into())
    }

    /// Of a count a mean of the samples around a minute's begin and end, which are rarely exactly a minute apart.
    fn at_sample(&self, subject: &Subject, measure: Measure, at_ns: u64) -> Option<f64> {
        let since_ns = at_ns.saturating_sub(MINUTE_NS + INTERVAL_NS / 2);
        let moments = self.since(subject, measure, Step::Sample, since_ns);
        let until: Vec<_> =
            moments.take_while(|moment| moment.at_ns <= at_ns.saturating_add(INTERVAL_NS / 2)).collect();
        let last = until.last().filter(|last| last.at_ns.abs_diff(at_ns) <= 2 * INTERVAL_NS)?;
        if !measure.is_count() {
            return Some(last.value.into());
        }
        let (first, counted) = until.split_first()?;
        let span_ns = last.at_ns - first.at_ns;
        let sum: u64 = counted.iter().map(|moment| u64::from(moment.value)).sum();
        (span_ns > 0).then(|| sum as f64 * MINUTE_NS as f64 / span_ns as f64)
    }

    /// The workload with the most of it in the minute whose value [`Series::most`] gave, and how much that was.
    pub fn who(&self, measure: Measure, minute: Moment) -> Option<(&Workload, u32)> {
        let back = self.minute_times.iter().rev().position(|time| *time == minute.at_ns)?;
        let number = self.minutes_begun - 1 - back;
        let workloads = self.subjects.iter().filter_map(|(subject, kept)| match subject {
            Subject::Workload(Some(workload)) if number >= kept.first_minute => Some((workload, kept)),
            _ => None,
        });
        let values = workloads.filter_map(|(workload, kept)| {
            let column = kept.columns[measure.index()].as_ref()?;
            Some((workload, column.value(Step::Minute, number)))
        });
        let most = values.max_by(|(a, one), (b, other)| one.cmp(other).then_with(|| b.cmp(a)));
        most.filter(|(_, value)| *value > 0)
    }

    /// Toward which destination the most ports were in use in the minute whose value [`Series::most`] gave.
    pub fn fullest(&self, minute: Moment) -> Option<(PortUse, u32)> {
        let index = self.minute_times.iter().position(|time| *time == minute.at_ns)?;
        *self.fullest.get(index)?
    }

    /// How the number changes; `None` before it has been watched for a minute.
    pub fn growth(&self, subject: &Subject, measure: Measure, now_ns: u64) -> Option<Growth> {
        let moments: Vec<_> =
            self.since(subject, measure, Step::Sample, now_ns.saturating_sub(growth::WINDOW_NS)).collect();
        Growth::of(&moments)
    }
}

fn push<T>(ring: &mut VecDeque<T>, value: T, limit: usize) {
    if ring.len() == limit {
        ring.pop_front();
    }
    ring.push_back(value);
}

#[cfg(test)]
mod tests;
