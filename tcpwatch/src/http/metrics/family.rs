//! What a row of the table of metric families says, and how its values are read.

use crate::{
    http::translations::Translations,
    model::groups::{Counts, Group, GroupId, GroupKey, Role},
    node::Node,
    tcp::{
        histogram::{Histogram, Layout},
        time::Clock,
    },
};

/// Families that are scraped together: what `?collect[]=` and `?exclude[]=` name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Collector {
    Summary,
    Daemon,
    Connects,
    Closes,
    Resets,
    Retransmits,
    Stalls,
    Answers,
    States,
    Sockets,
    Transfer,
    Nat,
}

impl Collector {
    pub const ALL: [Self; 12] = [
        Self::Summary,
        Self::Daemon,
        Self::Connects,
        Self::Closes,
        Self::Resets,
        Self::Retransmits,
        Self::Stalls,
        Self::Answers,
        Self::States,
        Self::Sockets,
        Self::Transfer,
        Self::Nat,
    ];

    /// What a scrape without parameters collects.
    pub const DEFAULT: [Self; 2] = [Self::Summary, Self::Daemon];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Summary => "summary",
            Self::Daemon => "daemon",
            Self::Connects => "connects",
            Self::Closes => "closes",
            Self::Resets => "resets",
            Self::Retransmits => "retransmits",
            Self::Stalls => "stalls",
            Self::Answers => "answers",
            Self::States => "states",
            Self::Sockets => "sockets",
            Self::Transfer => "transfer",
            Self::Nat => "nat",
        }
    }

    /// The question that its families answer.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Summary => "how many connections there are, what they carry, and what fails",
            Self::Daemon => "how tcpwatch itself does",
            Self::Connects => "what becomes of connects, and how long they take",
            Self::Closes => "who closes first, and how long connections had been idle by then",
            Self::Resets => "why connections are reset, and what data that costs",
            Self::Retransmits => "why segments are sent again, and where even that fails",
            Self::Stalls => "how long delivery stands still behind a lost segment",
            Self::Answers => "how long clients wait for answers",
            Self::States => "how long connections stay in each state",
            Self::Sockets => "which options, buffers and congestion control the sockets have",
            Self::Transfer => "how the data of live connections goes now",
            Self::Nat => "how many connections are translated on the way; asks connection tracking",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|collector| collector.name() == name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A label of a family beside `process`, `role` and `peer`.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    pub name: &'static str,
    pub values: LabelValues,
}

#[derive(Clone, Copy, Debug)]
pub enum LabelValues {
    /// These and no others.
    Fixed(&'static [&'static str]),
    /// Any: described for people.
    Open(&'static str),
}

/// Which label sets have the family from their first moment; another one has it once it has something to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sets {
    All,
    /// Those of clients, and `~other`, which may have counts of some.
    Clients,
}

impl Sets {
    pub fn has(self, key: &GroupKey) -> bool {
        self == Self::All || key.role == Role::Client || key.is_other()
    }
}

/// One number, or one histogram.
#[derive(Clone, Copy, Debug)]
pub enum Sample<'a> {
    Int(u64),
    Float(f64),
    Histogram(View<'a>),
}

impl Sample<'_> {
    pub fn is_zero(&self) -> bool {
        match self {
            Self::Int(value) => *value == 0,
            Self::Float(value) => *value == 0.0,
            Self::Histogram(view) => view.count() == 0,
        }
    }
}

/// A histogram of any layout.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub bounds_ns: &'static [u64],
    /// `None` when nothing was observed.
    buckets: Option<&'a [u64]>,
    sum_ns: u64,
}

impl<'a> View<'a> {
    pub fn of<L: Layout>(histogram: Option<&'a Histogram<L>>) -> Self {
        Self {
            bounds_ns: L::BOUNDS_NS,
            buckets: histogram.map(Histogram::buckets),
            sum_ns: histogram.map_or(0, Histogram::sum_ns),
        }
    }

    /// The count of a bucket; the last is the one after the last bound.
    pub fn bucket(&self, at: usize) -> u64 {
        self.buckets.map_or(0, |buckets| buckets[at])
    }

    pub fn count(&self) -> u64 {
        self.buckets.unwrap_or_default().iter().sum()
    }

    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }
}

/// Takes a sample with the values of the family's own labels, in their order.
pub type Emit<'a> = dyn FnMut(&[&str], Sample<'_>) + 'a;

/// The same, of one of the label sets.
pub type EmitOfSet<'a> = dyn FnMut(GroupId, &[&str], Sample<'_>) + 'a;

/// What a scrape reads.
pub struct Scrape<'a> {
    pub node: &'a Node,
    pub clock: Clock,
    pub(crate) translations: &'a Translations,
    /// Local ports that the kernel chooses from; `None` where that is not known.
    pub local_ports: Option<u64>,
}

/// Where the values of a family are.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// One number of each label set.
    Of(fn(&Counts) -> u64),
    /// One number for each value of the only label, in the label's order.
    By(fn(&Counts) -> &[u64]),
    /// Any samples of each label set.
    Each(fn(&Counts, &mut Emit<'_>)),
    /// One number of each label set that its counts do not have.
    OfGroup(fn(&Group) -> Option<u64>),
    /// Any samples of label sets, found by a walk through the connections.
    OfSets(fn(&Scrape<'_>, &mut EmitOfSet<'_>)),
    /// Any samples of the node as a whole.
    OfNode(fn(&Scrape<'_>, &mut Emit<'_>)),
    /// The registry of the `prometheus` crate has them.
    Registered,
}

/// One number of a sample in the JSON sums of `/processes` and `/peers`.
#[derive(Clone, Copy, Debug)]
pub struct Json {
    /// Keys from the outermost, between dots. `{label}` stands for the label's value. Where there is no sample, a key is
    /// `null`, or an empty object if a `{label}` or a key with `?` follows; these are absent.
    pub path: &'static str,
    pub part: Part,
    /// Zeros are left out.
    pub sparse: bool,
    /// `null` may stand for the number.
    pub nullable: bool,
    /// Left out unless a row above made the object around it.
    pub within: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A whole number.
    Value,
    /// A number.
    Number,
    /// Of a histogram: observations, their sum and their mean.
    Count,
    SumSeconds,
    MeanSeconds,
}

impl Json {
    pub(super) const fn at(path: &'static str) -> Self {
        Self { path, part: Part::Value, sparse: false, nullable: false, within: false }
    }

    pub(super) const fn part(path: &'static str, part: Part) -> Self {
        Self { part, sparse: true, ..Self::at(path) }
    }

    pub(super) const fn sparse(self) -> Self {
        Self { sparse: true, ..self }
    }

    pub(super) const fn number(path: &'static str) -> Self {
        Self { part: Part::Number, ..Self::at(path) }
    }

    pub(super) const fn nullable(self) -> Self {
        Self { nullable: true, ..self }
    }

    pub(super) const fn within(self) -> Self {
        Self { within: true, ..self }
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Empty for what only the JSON sums show.
    pub name: &'static str,
    pub kind: Kind,
    /// `None` for what only the JSON sums show.
    pub collector: Option<Collector>,
    pub help: &'static str,
    pub labels: &'static [Label],
    pub sets: Sets,
    pub value: Value,
    pub json: &'static [Json],
}

impl Family {
    const fn new(collector: Option<Collector>, kind: Kind, name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            kind,
            collector,
            help,
            labels: &[],
            sets: Sets::All,
            value: Value::Registered,
            json: &[],
        }
    }

    pub(super) const fn counter(collector: Collector, name: &'static str, help: &'static str) -> Self {
        Self::new(Some(collector), Kind::Counter, name, help)
    }

    pub(super) const fn gauge(collector: Collector, name: &'static str, help: &'static str) -> Self {
        Self::new(Some(collector), Kind::Gauge, name, help)
    }

    pub(super) const fn histogram(collector: Collector, name: &'static str, help: &'static str) -> Self {
        Self::new(Some(collector), Kind::Histogram, name, help)
    }

    /// What only the JSON sums show.
    pub(super) const fn json_only(help: &'static str) -> Self {
        Self::new(None, Kind::Gauge, "", help)
    }

    pub(super) const fn labels(self, labels: &'static [Label]) -> Self {
        Self { labels, ..self }
    }

    pub(super) const fn of_clients(self) -> Self {
        Self { sets: Sets::Clients, ..self }
    }

    pub(super) const fn json(self, json: &'static [Json]) -> Self {
        Self { json, ..self }
    }

    pub(super) const fn value(self, value: fn(&Counts) -> u64) -> Self {
        Self { value: Value::Of(value), ..self }
    }

    pub(super) const fn by(self, value: fn(&Counts) -> &[u64]) -> Self {
        Self { value: Value::By(value), ..self }
    }

    pub(super) const fn each(self, value: fn(&Counts, &mut Emit<'_>)) -> Self {
        Self { value: Value::Each(value), ..self }
    }

    pub(super) const fn of_group(self, value: fn(&Group) -> Option<u64>) -> Self {
        Self { value: Value::OfGroup(value), ..self }
    }

    pub(super) const fn of_sets(self, value: fn(&Scrape<'_>, &mut EmitOfSet<'_>)) -> Self {
        Self { value: Value::OfSets(value), ..self }
    }

    pub(super) const fn of_node(self, value: fn(&Scrape<'_>, &mut Emit<'_>)) -> Self {
        Self { value: Value::OfNode(value), ..self }
    }

    /// Whether each label set has its own series.
    pub fn is_of_groups(&self) -> bool {
        !matches!(self.value, Value::OfNode(_) | Value::Registered)
    }

    /// The samples of counts, whether of one label set or summed; none of what is not in the counts.
    pub fn samples(&self, counts: &Counts, emit: &mut Emit<'_>) {
        match self.value {
            Value::Of(value) => emit(&[], Sample::Int(value(counts))),
            Value::By(values) => {
                let Some(LabelValues::Fixed(names)) = self.labels.first().map(|label| label.values) else {
                    return;
                };
                for (name, value) in names.iter().zip(values(counts)) {
                    emit(&[name], Sample::Int(*value));
                }
            }
            Value::Each(samples) => samples(counts, emit),
            Value::OfGroup(_) | Value::OfSets(_) | Value::OfNode(_) | Value::Registered => {}
        }
    }
}
