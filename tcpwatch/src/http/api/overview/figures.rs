//! What there is now, beside what there was a minute, a quarter and an hour ago, and at worst.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    http::render::{
        figures::{COLUMNS, known, shortened, tenths},
        text::printable,
    },
    model::series::{DEFAULT_LOCAL_PORTS, Measure, Moment, Step, Subject},
    node::Node,
    tcp::{state::TcpState, time::Clock},
};

const MINUTE_NS: u64 = 60_000_000_000;

/// States that are always shown; others where there are connections in them.
const STATES: [TcpState; 5] =
    [TcpState::Established, TcpState::CloseWait, TcpState::FinWait2, TcpState::TimeWait, TcpState::SynSent];
const OTHER_STATES: [TcpState; 4] =
    [TcpState::SynRecv, TcpState::FinWait1, TcpState::LastAck, TcpState::Closing];

/// One number over time.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Figure {
    /// What is counted: a state, for connections in it, `opened`, `failed_connects`, `resets`, `retransmits` or
    /// `ports_in_use`, toward the destination with the most.
    name: &'static str,
    /// `connections`, `ports`, or `per_minute`, in the minute until then.
    unit: &'static str,
    /// Now; `null` in the first seconds.
    now: Option<f64>,
    /// A minute ago; `null` before there was a sample, as below.
    minute_ago: Option<f64>,
    /// A quarter of an hour ago.
    quarter_ago: Option<f64>,
    /// An hour ago: in that minute the highest, or of `per_minute` what was counted in it.
    hour_ago: Option<f64>,
    /// The worst minute of the last six hours.
    worst: Option<u32>,
    /// When that was.
    worst_at: Option<String>,
    /// The workload to which half of it or more belonged then, or of `ports_in_use` from where to where; `null` where there
    /// is none.
    worst_of: Option<String>,
    /// How many more there are a minute, where they grow; `null` where they do not.
    growth_per_minute: Option<f64>,
    #[serde(skip)]
    shown: Shown,
}

/// How a number is shown.
#[derive(Clone, Copy, Debug)]
enum Shown {
    Number,
    /// A minute's count as that of a second.
    Rate,
    /// One digit behind the point.
    Tenths,
    /// Of the ports that the kernel chooses from by default.
    Share,
}

impl Shown {
    fn of(measure: Measure) -> Self {
        match measure {
            Measure::State(_) | Measure::FailedConnects => Self::Number,
            Measure::Opened | Measure::Retransmits => Self::Rate,
            Measure::Resets => Self::Tenths,
            Measure::Ports => Self::Share,
        }
    }

    fn text(self, number: Option<f64>) -> String {
        match self {
            Self::Number => known(number),
            Self::Rate => tenths(number.map(|number| number / 60.0)),
            Self::Tenths => tenths(number),
            Self::Share => {
                let share = number.map(|ports| 100.0 * ports / f64::from(DEFAULT_LOCAL_PORTS));
                let percent = if share.is_some() { " %" } else { "" };
                tenths(share) + percent
            }
        }
    }
}

pub(super) fn figures(node: &Node, clock: Clock) -> Vec<Figure> {
    let others = OTHER_STATES.into_iter().filter(|state| node.tracker.table().count(*state) > 0);
    let states = STATES.into_iter().chain(others).map(Measure::State);
    let rest =
        [Measure::Opened, Measure::FailedConnects, Measure::Resets, Measure::Retransmits, Measure::Ports];
    states.chain(rest).map(|measure| figure(node, measure, clock)).collect()
}

fn figure(node: &Node, measure: Measure, clock: Clock) -> Figure {
    let series = &node.series;
    let ago =
        |minutes: u64| series.at(&Subject::Total, measure, clock.now_ns.checked_sub(minutes * MINUTE_NS)?);
    let now = match measure {
        Measure::State(state) => Some(node.tracker.table().count(state) as f64),
        _ => ago(0),
    };
    let since_ns = clock.now_ns.saturating_sub(360 * MINUTE_NS);
    let worst = series.most(&Subject::Total, measure, Step::Minute, since_ns);
    let worst_of = worst.and_then(|worst| worst_of(node, measure, worst));
    // Since the latest sample it may have become worse.
    let worst = match (measure, now, worst) {
        (Measure::State(_), Some(now), Some(worst)) if now > worst.value.into() => {
            Some(Moment { at_ns: clock.now_ns, value: now as u32 })
        }
        _ => worst,
    };
    let growth = match measure {
        Measure::State(_) | Measure::Ports => series.growth(&Subject::Total, measure, clock.now_ns),
        _ => None,
    };
    Figure {
        name: measure.name(),
        unit: match measure {
            Measure::State(_) => "connections",
            Measure::Ports => "ports",
            _ => "per_minute",
        },
        now,
        minute_ago: ago(1),
        quarter_ago: ago(15),
        hour_ago: ago(60),
        worst: worst.map(|worst| worst.value),
        worst_at: worst.map(|worst| clock.at(worst.at_ns).rfc3339()),
        worst_of,
        growth_per_minute: growth
            .filter(|growth| growth.is_growing)
            .map(|growth| (growth.per_minute * 10.0).round() / 10.0),
        shown: Shown::of(measure),
    }
}

fn worst_of(node: &Node, measure: Measure, worst: Moment) -> Option<String> {
    if measure == Measure::Ports {
        let (toward, _) = node.series.fullest(worst)?;
        return Some(toward.to_string());
    }
    let (workload, most) = node.series.who(measure, worst)?;
    (2 * u64::from(most) >= u64::from(worst.value)).then(|| workload.to_string())
}

impl Figure {
    fn label(&self) -> &'static str {
        match self.name {
            "opened" => "opened /s",
            "failed_connects" => "connects failed /min",
            "resets" => "resets /min",
            "retransmits" => "retransmits /s",
            "ports_in_use" => "fullest ports *",
            state => state,
        }
    }

    pub(super) fn cells(&self) -> [String; 7] {
        let shown = |number| self.shown.text(number);
        let worst = match (self.worst, &self.worst_at) {
            (Some(worst), Some(at)) if worst > 0 => {
                format!("{} {}", shown(Some(worst.into())), super::time_of(at))
            }
            (worst, _) => shown(worst.map(f64::from)) + "      ",
        };
        let note = match (self.growth_per_minute, &self.worst_of) {
            (Some(growth), _) => format!("<- growing, {growth:.1} a minute"),
            (None, Some(who)) if self.worst > Some(0) => printable(who),
            _ => String::new(),
        };
        [
            self.label().to_owned(),
            shown(self.now),
            shown(self.minute_ago),
            shown(self.quarter_ago),
            shown(self.hour_ago),
            worst,
            note,
        ]
    }
}

/// Right-aligned numbers, and behind them who it was.
pub(super) fn table(rows: &[[String; 7]]) -> String {
    const HEADER: [&str; 7] = ["", "now", "-1m", "-15m", "-1h", "worst of 6 h", ""];
    const LEAST: [usize; 6] = [20, 7, 7, 7, 7, 14];
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(LEAST[column]).max(HEADER[column].len())
    };
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    let mut line = |cells: [&str; 7]| {
        let mut line = format!("{:<width$}", cells[0], width = widths[0]);
        for column in 1..6 {
            let _ = write!(line, "  {:>width$}", cells[column], width = widths[column]);
        }
        let left = COLUMNS.saturating_sub(line.chars().count() + 2);
        let _ = write!(line, "  {}", shortened(cells[6], left));
        text += line.trim_end();
        text.push('\n');
    };
    line(HEADER);
    for row in rows {
        line(std::array::from_fn(|column| row[column].as_str()));
    }
    text + "* of the 28,232 local ports that the kernel chooses from by default; /ports asks for the real range\n"
}
