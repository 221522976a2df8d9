//! Sums over connections and groups, as `/processes` and `/peers` show them.

use std::{cmp::Reverse, collections::BTreeMap, fmt::Display};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, Serializer, de::DeserializeOwned};
use tcpwatch_common::chrono;

use crate::{
    events::decode::Kind,
    http::{
        ApiError,
        metrics::sums,
        page::{Cut, Page},
        parameters::{choices, parameters},
        render::text::{bytes, duration, limits, printable, round_trip},
        translations::Translations,
    },
    model::{
        groups::{Counts, Role},
        live::Live,
        table::Conn,
    },
    tcp::{
        connect_outcome::Outcome,
        reset_reason::{Direction, ResetReason},
        state::TcpState,
    },
};

/// Connections of now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConnectionCounts {
    states: [usize; TcpState::COUNT],
    roles: [usize; Role::ALL.len()],
    /// `None` where that is not known.
    translated: Option<usize>,
}

impl ConnectionCounts {
    pub(crate) fn count(&mut self, conn: &Conn) {
        self.states[conn.state().index()] += 1;
        self.roles[conn.role as usize] += 1;
    }

    pub(crate) fn count_with(&mut self, conn: &Conn, translations: &Translations) {
        self.count(conn);
        if let Some(is_translated) = translations.has(conn) {
            *self.translated.get_or_insert(0) += usize::from(is_translated);
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.states.iter_mut().zip(other.states) {
            *mine += theirs;
        }
        for (mine, theirs) in self.roles.iter_mut().zip(other.roles) {
            *mine += theirs;
        }
        if let Some(translated) = other.translated {
            *self.translated.get_or_insert(0) += translated;
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.states.iter().sum()
    }

    pub(crate) fn shown(&self) -> Now {
        let states = TcpState::ALL.iter().map(|state| (state.name(), self.states[state.index()]));
        let roles = Role::ALL.iter().map(|role| (role.name(), self.roles[*role as usize]));
        Now {
            total: self.total(),
            states: states.filter(|(_, count)| *count > 0).collect(),
            roles: roles.filter(|(_, count)| *count > 0).collect(),
            translated: self.translated,
        }
    }
}

/// The same as JSON shows it: only states and roles that there are.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ConnectionCounts")]
pub(crate) struct Now {
    /// All of them.
    pub total: usize,
    /// By state; states without a connection are absent.
    pub states: BTreeMap<&'static str, usize>,
    /// By role; roles without a connection are absent.
    pub roles: BTreeMap<&'static str, usize>,
    /// Whose addresses are translated on the way; only where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub translated: Option<usize>,
}

impl Now {
    fn text(&self) -> String {
        counted_text(self.states.iter().map(|(state, count)| (*state, *count)))
    }

    fn translated_text(&self) -> String {
        self.translated.map_or(String::new(), |count| count.to_string())
    }
}

/// "2 ESTABLISHED, 1 LISTEN": those that there are.
pub(crate) fn counted_text<N: Display + Default + PartialEq>(
    counts: impl IntoIterator<Item = (impl Display, N)>,
) -> String {
    let some = counts.into_iter().filter(|(_, count)| *count != N::default());
    some.map(|(what, count)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
}

fn is_nothing(counts: &Counts) -> bool {
    let Counts { opened, attempts, closed, resets, traffic, retransmitted, failures, stalls, .. } = counts;
    let all = closed.iter().chain(resets).chain(failures).sum::<u64>();
    opened + attempts + traffic.total() + retransmitted.total() + all == 0 && stalls.is_none()
}

fn blocked_nanos(counts: &Counts) -> u64 {
    counts.stalls.iter().flat_map(|stalls| stalls.iter()).map(|one| one.durations.sum_ns()).sum()
}

/// What was counted, summed over label sets. Its JSON comes from the table of metric families.
#[derive(Debug)]
pub(crate) struct CountsView(Counts);

impl Serialize for CountsView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        sums::of(&self.0).serialize(serializer)
    }
}

impl JsonSchema for CountsView {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Counts".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        sums::schema()
    }
}

/// The option with the values it is set to: "keepalive (2h 00m + 9 × 1m 15s)".
fn option_text(live: &Live, option: &str) -> String {
    let value = |name: &str, text: fn(f64) -> String| {
        let range = live.option_values().find(|(known, _)| *known == name);
        range.map_or(String::new(), |(_, range)| match (text(range.least), text(range.most)) {
            (least, most) if least == most => least,
            (least, most) => format!("{least} to {most}"),
        })
    };
    let cells = match option {
        "keepalive" => {
            let [idle, interval] =
                ["keepalive_idle_seconds", "keepalive_interval_seconds"].map(|name| value(name, duration));
            format!(" ({idle} + {} × {interval})", value("keepalive_probes", |probes| probes.to_string()))
        }
        "linger" | "user_timeout" => format!(" ({})", value(&format!("{option}_seconds"), duration)),
        _ => String::new(),
    };
    format!("{option}{cells}")
}

impl CountsView {
    pub(crate) fn of(counts: Counts) -> Self {
        Self(counts)
    }

    fn limits_text(&self) -> String {
        let live = &self.0.live;
        if live.connections == 0 {
            return String::new();
        }
        limits(
            live.busy_seconds(),
            live.limited_seconds(chrono::PEER_WINDOW),
            live.limited_seconds(chrono::SEND_BUFFER),
        )
    }

    fn congestion_text(&self) -> String {
        let algorithms = self.0.live.congestion_algorithms();
        counted_text(algorithms.iter().map(|(algorithm, count)| (printable(algorithm), *count)))
    }

    fn options_text(&self) -> String {
        let live = &self.0.live;
        counted_text(live.options().map(|(option, count)| (option_text(live, option), count)))
    }

    fn retransmits_text(&self) -> String {
        let retransmitted = &self.0.retransmitted;
        let kinds = Kind::ALL.iter().map(|kind| kind.name()).zip(retransmitted.segments);
        let kinds = counted_text(kinds);
        if kinds.is_empty() { "0".to_owned() } else { format!("{} ({kinds})", retransmitted.total()) }
    }

    /// How often and how long delivery stood still.
    fn blocked_text(&self) -> String {
        let stalls = || self.0.stalls.iter().flat_map(|stalls| stalls.iter());
        let count: u64 = stalls().map(|one| one.durations.count()).sum();
        if count == 0 {
            return String::new();
        }
        let seconds = stalls().map(|one| one.durations.sum_seconds()).sum();
        format!("{} in {count}", duration(seconds))
    }

    fn resets_text(&self) -> String {
        let sum = |direction: Direction| {
            let resets = ResetReason::ALL.iter().zip(self.0.resets);
            resets.filter(|(reset, _)| reset.direction() == direction).map(|(_, count)| count).sum::<u64>()
        };
        let mut text = counted_text([("sent", sum(Direction::Sent)), ("received", sum(Direction::Received))]);
        if self.0.discarded.total() > 0 {
            text += &format!(", {} discarded", bytes(self.0.discarded.total()));
        }
        text
    }

    fn connects_text(&self) -> String {
        // How long it took stands with those that it was measured of.
        let shown = |outcome: &Outcome| match (outcome, &self.0.connected) {
            (Outcome::Established, Some(took)) => {
                let mean_seconds = took.sum_seconds() / took.count() as f64;
                format!("{} ({:.3}ms)", outcome.name(), mean_seconds * 1e3)
            }
            _ => outcome.name().to_owned(),
        };
        counted_text(Outcome::ALL.iter().zip(self.0.connects).map(|(outcome, count)| (shown(outcome), count)))
    }
}

/// The columns of what both tables count, and under which names.
pub(crate) const COLUMNS: [&str; 15] = [
    "NOW",
    "OPENED",
    "CLOSED",
    "SENT",
    "RECEIVED",
    "RETRANSMITS",
    "BLOCKED",
    "ROUND TRIP",
    "LIMITED BY",
    "CONGESTION",
    "OPTIONS",
    "NAT",
    "RESETS",
    "CONNECTS",
    "STATES NOW",
];

pub(crate) fn cells(now: &Now, counted: &CountsView) -> [String; COLUMNS.len()] {
    [
        now.total.to_string(),
        counted.0.opened.to_string(),
        counted.0.closed().to_string(),
        bytes(counted.0.traffic.sent_bytes),
        bytes(counted.0.traffic.received_bytes),
        counted.retransmits_text(),
        counted.blocked_text(),
        round_trip(counted.0.live.round_trips.spread()),
        counted.limits_text(),
        counted.congestion_text(),
        counted.options_text(),
        now.translated_text(),
        counted.resets_text(),
        counted.connects_text(),
        now.text(),
    ]
}

/// What follows a table: nothing, unless it is a page of a longer list.
pub(crate) fn cut(shown: usize, total: usize) -> String {
    if shown == total {
        return String::new();
    }
    format!(
        "\n{shown} of {total} shown; ?limit=10000 shows more, ?format=ndjson all; `/help` lists the parameters\n"
    )
}

choices! {
    pub(crate) enum Sort {
        /// the most connections first
        Connections = "connections",
        /// those that opened the most connections first
        Opened = "opened",
        /// those with the most connects first that failed by no wish of the application
        Failed = "failed",
        /// those that sent and received the most bytes first
        Bytes = "bytes",
        /// the most segments retransmitted first
        Retransmits = "retransmits",
        /// the longest head-of-line blocking first
        Blocked = "blocked",
        /// by name
        Name = "name",
    }
}

parameters! {
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Order {
        /// which rows come first
        sort: Sort,
    }
}

/// What the rows of `/processes` and `/peers` are made of: a name, connections of now, counts since the start, and more.
pub(crate) type Sums<N, T> = (N, ConnectionCounts, Counts, T);

impl Order {
    /// The page. Rows with equal counts are sorted by name; those without connections and counts are left out.
    ///
    /// # Errors
    /// When the cursor is malformed.
    pub(crate) fn page<N: Ord + Clone + Serialize + DeserializeOwned, T>(
        self,
        page: &Page,
        mut rows: Vec<Sums<N, T>>,
    ) -> Result<Cut<Sums<N, T>>, ApiError> {
        rows.retain(|(_, tally, counts, _)| tally.total() > 0 || !is_nothing(counts));
        page.cut(self.sort.word(), rows, |(name, tally, counts, _)| {
            let number = match self.sort {
                Sort::Connections => tally.total() as u64,
                Sort::Opened => counts.opened,
                Sort::Failed => counts.failed_connects(),
                Sort::Bytes => counts.traffic.total(),
                Sort::Retransmits => counts.retransmitted.total(),
                Sort::Blocked => blocked_nanos(counts),
                Sort::Name => 0,
            };
            (Reverse(number), name.clone())
        })
    }
}
