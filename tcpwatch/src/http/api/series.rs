//! `/series`: what there was in the last minutes and hours, by workload and in total.

use std::{collections::BTreeMap, sync::Arc};

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::{
    http::{
        Api, ApiError, Render,
        api::history::Since,
        parameters::{Value, choices, parameters},
        render::{
            completeness::Completeness,
            figures::{COLUMNS, both_ends, known, table, tenths, thousands},
            text::{printable, wrap},
        },
    },
    model::{
        address::{Address, GroupAddress},
        series::{DEFAULT_LOCAL_PORTS, Measure, Moment, Series, Step, Subject},
        table::PortUse,
        workload::{Place, Workload},
    },
    node::Node,
    tcp::{state::TcpState, time::Clock},
};

/// Series that are shown at most.
const MAX_LIMIT: usize = 1000;
/// For how long back values are shown unless `since` says otherwise.
const QUARTER_NS: u64 = 900_000_000_000;

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Series")]
pub(crate) struct Answer {
    /// Name of the node.
    node: String,
    /// When the question was answered.
    generated_at: String,
    #[serde(flatten)]
    completeness: Completeness,
    /// Seconds between two values, but where a sample was late or missing.
    step_seconds: u16,
    /// When the values were taken, oldest first; with steps of a minute, when the last sample of each minute was.
    times: Vec<String>,
    /// How many series match, shown or not.
    total: usize,
    /// The node first, then the largest.
    series: Vec<OneSeries>,
}

/// What was measured of the node, of one workload, or of the ports toward one destination.
#[derive(Debug, Serialize, JsonSchema)]
struct OneSeries {
    /// What it is about: `total`, `workload` or `ports`.
    of: &'static str,
    /// The workload, as `workload` takes it: the name of its processes, and where they run; `null` where `of` is another, and
    /// for connections whose process is not known.
    workload: Option<String>,
    /// Name of its processes; `null` where `workload` is.
    comm: Option<Arc<str>>,
    /// Path of their executable; `null` where they are known by their container or unit, and where it is not known.
    exe: Option<Arc<str>>,
    /// Toward what local ports are in use; `null` where `of` is another.
    ports: Option<PortRange>,
    /// By what was measured: a state, for connections in it, `opened`, `failed_connects`, `resets`, `retransmits` or
    /// `ports_in_use`, of the node toward the destination with the most. What is absent was zero all the time.
    measures: BTreeMap<&'static str, Values>,
    #[serde(skip)]
    rates: [Option<f64>; 4],
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SeriesPorts")]
struct PortRange {
    /// Inode of the network namespace.
    netns: u32,
    /// The address that the connections come from; its port is `null`: each has another.
    local: GroupAddress,
    /// The destination.
    remote: Address,
    /// Local ports that the kernel chooses from by default, 32768 to 60999; `/ports` has the namespace's own range.
    available_by_default: u32,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SeriesValues")]
struct Values {
    /// What is counted: `connections` or `ports`, of which there are so many at each time, or `events` and `segments`, of
    /// which there were so many since the time before.
    unit: &'static str,
    /// One for each of `times`: with steps of a minute, of connections and ports the most of its samples, of the others the
    /// sum. `null` from before there was anything of it.
    values: Vec<Option<u32>>,
    /// The highest of `values`.
    most: Option<u32>,
    /// When it first was so high.
    most_at: Option<String>,
    /// Of connections and ports: how many more a minute, the median of the slopes between all samples since the first change
    /// of the last five minutes; `null` before they have been watched for a minute.
    growth_per_minute: Option<f64>,
    /// Whether they grow: by one a minute at least, in three samples at least, and they are within 5 % of their highest.
    is_growing: bool,
}

parameters! {
    #[derive(Clone, Debug)]
    pub(crate) struct Chosen {
        /// only of this workload, as answers show it: `orders (orders.service)`
        workload: Option<String>,
        /// only of workloads whose processes have exactly this name, as answers show it
        comm: Option<String>,
    }
}

parameters! {
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Span {
        /// only values after this time (`2026-01-31T12:00:00Z`), or in the time until now (`5m`); a quarter of an hour where it is absent, with steps of a minute six hours
        since: Option<Since>,
        /// how finely; where it is absent, `10s` if there are samples since then
        step: Option<Finely>,
        /// at most so many series
        limit: Limit,
    }
}

choices! {
    pub(crate) enum Finely {
        /// each sample of the last 16 minutes
        Samples = "10s",
        /// each minute of the last six hours
        Minutes = "1m",
    }
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Limit(usize);

impl Default for Limit {
    fn default() -> Self {
        Self(10)
    }
}

impl Value for Limit {
    fn parse(text: &str) -> Result<Self, String> {
        let limit = text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
        limit.map(Self).ok_or_else(|| format!("is not an integer from 1 to {MAX_LIMIT}"))
    }

    fn schema() -> serde_json::Value {
        json!({"type": "integer", "minimum": 1, "maximum": MAX_LIMIT})
    }
}

pub(crate) async fn answer(api: Api, (chosen, span): (Chosen, Span)) -> Result<Answer, ApiError> {
    api.ask(false, move |node, clock| series(node, clock, &chosen, span)).await
}

fn series(node: &Node, clock: Clock, chosen: &Chosen, span: Span) -> Answer {
    let series = &node.series;
    let (step, since_ns) = period(series, clock, span);
    let mut subjects: Vec<_> = series.subjects().filter(|subject| chosen.wants(subject)).collect();
    subjects.sort_by_cached_key(|subject| {
        (**subject != Subject::Total, std::cmp::Reverse(series.size(subject)), (*subject).clone())
    });
    let total = subjects.len();
    subjects.truncate(span.limit.0);
    let look = Look { series, clock, step, since_ns };
    Answer {
        node: node.identity.node.clone(),
        generated_at: clock.rfc3339(),
        completeness: completeness(node, clock),
        step_seconds: if step == Step::Sample { 10 } else { 60 },
        times: series.times(step).filter(|at| *at >= since_ns).map(|at| clock.at(at).rfc3339()).collect(),
        total,
        series: subjects.into_iter().map(|subject| look.at(subject)).collect(),
    }
}

/// How finely values are shown, and since when.
fn period(series: &Series, clock: Clock, span: Span) -> (Step, u64) {
    let since_ns = span.since.map(|since| since.begins_ns(clock));
    let has_samples =
        |since_ns: u64| series.times(Step::Sample).next().is_none_or(|oldest| oldest <= since_ns);
    let watched_less = || series.times(Step::Minute).len() <= 16;
    let step = match (span.step, since_ns) {
        (Some(Finely::Samples), _) | (None, None) => Step::Sample,
        (None, Some(since_ns)) if has_samples(since_ns) || watched_less() => Step::Sample,
        (Some(Finely::Minutes), _) | (None, Some(_)) => Step::Minute,
    };
    let default_ns = if step == Step::Sample { clock.now_ns.saturating_sub(QUARTER_NS) } else { 0 };
    (step, since_ns.unwrap_or(default_ns))
}

/// What values may lack beside what any count does.
fn completeness(node: &Node, clock: Clock) -> Completeness {
    let series = &node.series;
    let evicted = series.recently_evicted(clock.now_ns).map(|count| {
        format!("{count} workloads have given their place to larger ones, and their past was forgotten")
    });
    let left_out = (series.left_out > 0)
        .then(|| format!("{} workloads have no series: others are larger", series.left_out));
    let ports = node.tracker.table().ports_left_out();
    let ports = (ports > 0).then(|| {
        format!(
            "{ports} connections were not counted toward their destination, as there were too many of those"
        )
    });
    let why = [evicted, left_out, ports].into_iter().flatten();
    Completeness::of_counts(node).and("series", why)
}

impl Chosen {
    fn wants(&self, subject: &Subject) -> bool {
        let workload = match subject {
            Subject::Workload(Some(workload)) => workload,
            Subject::Total | Subject::Workload(None) | Subject::Ports(_) => {
                return self.workload.is_none() && self.comm.is_none();
            }
        };
        self.workload.as_ref().is_none_or(|wanted| workload.to_string() == *wanted)
            && self.comm.as_deref().is_none_or(|wanted| *workload.comm == *wanted)
    }
}

/// What values are looked at.
struct Look<'a> {
    series: &'a Series,
    clock: Clock,
    step: Step,
    since_ns: u64,
}

impl Look<'_> {
    fn at(&self, subject: &Subject) -> OneSeries {
        let measures = Measure::ALL.into_iter().filter(|measure| self.series.has(subject, *measure));
        let (of, workload, ports) = match subject {
            Subject::Total => ("total", None, None),
            Subject::Workload(workload) => ("workload", workload.as_ref(), None),
            Subject::Ports(toward) => ("ports", None, Some(port_range(toward))),
        };
        let rate = |measure| self.series.at(subject, measure, self.clock.now_ns);
        OneSeries {
            of,
            workload: workload.map(ToString::to_string),
            comm: workload.map(|workload| Arc::clone(&workload.comm)),
            exe: workload.and_then(exe),
            ports,
            measures: measures.map(|measure| (measure.name(), self.values(subject, measure))).collect(),
            rates: [Measure::Opened, Measure::FailedConnects, Measure::Resets, Measure::Retransmits]
                .map(rate),
        }
    }

    fn values(&self, subject: &Subject, measure: Measure) -> Values {
        let values = self.series.values(subject, measure, self.step).into_iter().flatten();
        let wanted = self.series.times(self.step).zip(values).filter(|(at_ns, _)| *at_ns >= self.since_ns);
        let growth =
            (!measure.is_count()).then(|| self.series.growth(subject, measure, self.clock.now_ns)).flatten();
        let most = self.series.most(subject, measure, self.step, self.since_ns);
        Values {
            unit: unit(measure),
            values: wanted.map(|(_, value)| value).collect(),
            most: most.map(|most| most.value),
            most_at: most.map(|Moment { at_ns, .. }| self.clock.at(at_ns).rfc3339()),
            growth_per_minute: growth.map(|growth| (growth.per_minute * 100.0).round() / 100.0),
            is_growing: growth.is_some_and(|growth| growth.is_growing),
        }
    }
}

fn exe(workload: &Workload) -> Option<Arc<str>> {
    match &workload.place {
        Place::Program(exe) => exe.clone(),
        Place::Container(_) | Place::Unit(_) => None,
    }
}

fn port_range(toward: &PortUse) -> PortRange {
    PortRange {
        netns: toward.netns,
        local: GroupAddress { addr: Some(toward.source.to_canonical()), port: None },
        remote: toward.destination.into(),
        available_by_default: DEFAULT_LOCAL_PORTS,
    }
}

fn unit(measure: Measure) -> &'static str {
    match measure {
        Measure::State(_) => "connections",
        Measure::Opened | Measure::FailedConnects | Measure::Resets => "events",
        Measure::Retransmits => "segments",
        Measure::Ports => "ports",
    }
}

impl OneSeries {
    fn name(&self) -> String {
        match (&self.workload, &self.ports) {
            (Some(workload), _) => printable(workload),
            (None, Some(ports)) => {
                let source = ports.local.addr.map_or_else(|| "-".to_owned(), |addr| addr.to_string());
                format!("{source} -> {} (namespace {})", ports.remote, ports.netns)
            }
            (None, None) if self.of == "total" => "total".to_owned(),
            (None, None) => "-".to_owned(),
        }
    }

    fn latest(&self, measure: &str) -> Option<f64> {
        let latest = |values: &Values| values.values.last().copied().flatten();
        self.measures.get(measure).map_or(Some(0), latest).map(f64::from)
    }
}

impl Render for Answer {
    fn text(&self) -> String {
        let what = if self.step_seconds == 10 { "samples of every 10 s" } else { "minutes" };
        let head = both_ends(&format!("{}  series, {what}", printable(&self.node)), &self.generated_at);
        let body = match &self.series[..] {
            [] => "nothing was measured of it\n".to_owned(),
            [one] => self.one_text(one),
            several => self.several_text(several),
        };
        let errors = self.completeness.text();
        let errors = errors.lines().map(|line| wrap(line, COLUMNS, 0) + "\n");
        head + "\n" + &body + &errors.collect::<String>()
    }
}

impl Answer {
    /// A row for each: what there is now, and what happened in the last minute.
    fn several_text(&self, series: &[OneSeries]) -> String {
        let states = [TcpState::Established, TcpState::CloseWait, TcpState::TimeWait].map(TcpState::name);
        let (ports, others): (Vec<_>, Vec<_>) = series.iter().partition(|one| one.ports.is_some());
        let rows: Vec<_> = others
            .iter()
            .map(|one| {
                let now = states.iter().map(|state| known(one.latest(state)));
                let rates = one.rates.iter().map(|rate| tenths(*rate));
                [one.name()].into_iter().chain(now).chain(rates).collect()
            })
            .collect();
        let mut text = String::new();
        if !rows.is_empty() {
            let header = [&["WORKLOAD"][..], &states, &["OPENED", "FAILED", "RESETS", "RETRANS"]].concat();
            text += &table(&header, &rows, 32);
            text += "OPENED, FAILED (connects), RESETS and RETRANS (segments) are of the last minute\n";
        }
        if !ports.is_empty() {
            let row = |one: &&OneSeries| vec![one.name(), known(one.latest(Measure::Ports.name()))];
            let rows: Vec<_> = ports.iter().map(row).collect();
            text += &format!("\n{}", table(&["PORTS TOWARD", "IN USE"], &rows, 84));
        }
        if self.total > series.len() {
            let more = thousands((self.total - series.len()) as u64);
            text += &format!("{more} more: ?limit={MAX_LIMIT}   one of them over time: ?comm=NAME\n");
        }
        text
    }

    /// A row for each time.
    fn one_text(&self, one: &OneSeries) -> String {
        let measures: Vec<_> =
            Measure::ALL.iter().filter_map(|all| one.measures.get_key_value(all.name())).collect();
        let rows: Vec<_> = self
            .times
            .iter()
            .enumerate()
            .map(|(index, time)| {
                let values = measures.iter().map(|(_, values)| values.values.get(index).copied().flatten());
                let clock = time.get(11..19).unwrap_or(time).to_owned();
                [clock].into_iter().chain(values.map(|value| known(value.map(f64::from)))).collect()
            })
            .collect();
        let header: Vec<&str> =
            std::iter::once("TIME").chain(measures.iter().map(|(name, _)| **name)).collect();
        let mut text = format!("{}\n", wrap(&one.name(), COLUMNS, 0)) + &table(&header, &rows, 8);
        for (name, values) in &measures {
            if let (true, Some(growth)) = (values.is_growing, values.growth_per_minute) {
                text += &format!("{name} grows by {growth:.1} a minute\n");
            }
        }
        text
    }
}
