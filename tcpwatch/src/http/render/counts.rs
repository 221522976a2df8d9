//! Sums over connections and groups, as `/processes` and `/peers` show them.

use std::{cmp::Reverse, collections::BTreeMap, fmt::Display};

use serde::Serialize;
use tcpwatch_common::chrono;

use crate::{
    events::decode::FAILURES,
    http::{
        Api, ApiError,
        render::{
            text::{bytes, duration, limits, printable, round_trip},
            view::{ShownBlocked, blocked, kinds},
        },
        request::{DEFAULT_LIMIT, Params},
        translations::{self, Translations},
    },
    model::{
        groups::{Closer, Counts, Role},
        live::{Live, Range, Spread},
        table::Conn,
    },
    tcp::{
        connect_outcome::Outcome,
        first_close::FirstClose,
        histogram::Histogram,
        reset_reason::{Direction, Discarded, ResetReason},
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
#[derive(Debug, Serialize)]
pub(crate) struct Now {
    pub total: usize,
    pub states: BTreeMap<&'static str, usize>,
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

fn resets(counts: &Counts, direction: Direction) -> BTreeMap<&'static str, u64> {
    let all = ResetReason::ALL.iter().zip(counts.resets);
    let those = all.filter(|(reset, count)| reset.direction() == direction && *count > 0);
    those.map(|(reset, count)| (reset.name(), count)).collect()
}

fn failed(counts: &Counts) -> u64 {
    let all = Outcome::ALL.iter().zip(counts.connects);
    all.filter(|(outcome, _)| outcome.is_failure()).map(|(_, count)| count).sum()
}

fn blocked_nanos(counts: &Counts) -> u64 {
    counts.stalls.iter().flat_map(|stalls| stalls.iter()).map(|one| one.durations.sum_ns()).sum()
}

/// Counts since the start, as JSON shows them.
#[derive(Debug, Serialize)]
pub(crate) struct CountsView {
    pub opened: u64,
    pub closed: u64,
    /// By who closed first.
    pub closed_first: BTreeMap<&'static str, u64>,
    /// Of those that had been idle before it, by who closed.
    pub idle_before_close: BTreeMap<&'static str, Durations>,
    /// Data of those that ended, and of those that live as of the latest sweep, each byte once.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Of it, received after the local side first closed, and sent after the peer did.
    pub received_after_close_bytes: u64,
    pub sent_after_close_bytes: u64,
    /// Segments.
    pub retransmits: u64,
    /// By the kernel's reason; only those that there are.
    pub retransmits_by_kind: BTreeMap<&'static str, u64>,
    pub retransmitted_bytes: u64,
    /// Segments that the peer said it had twice.
    pub spurious_retransmits: u64,
    /// By errno; only those that there are.
    pub retransmits_failed: BTreeMap<&'static str, u64>,
    /// Head-of-line blocking, by what made the lost segment good; only those that there are.
    pub blocked: BTreeMap<&'static str, ShownBlocked>,
    /// How long clients waited for answers, sampled; `null` without samples.
    pub answers: Option<ShownAnswers>,
    /// Of those that processes held at the latest sweep, each since it began; `null` when there were none.
    pub live: Option<ShownLive>,
    /// By reason; only those that there are.
    pub resets_sent: BTreeMap<&'static str, u64>,
    pub resets_received: BTreeMap<&'static str, u64>,
    /// What these threw away.
    pub reset_discarded: Discarded,
    pub connect_attempts: u64,
    /// By outcome.
    pub connects: BTreeMap<&'static str, u64>,
    /// From connect() to the peer's answer, of those that it accepted; `null` when there were none.
    pub connect_durations: Option<Durations>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Durations {
    pub count: u64,
    pub mean_seconds: f64,
}

impl Durations {
    /// `None` when there are none.
    fn of(histogram: &Histogram) -> Option<Self> {
        let count = histogram.count();
        (count > 0).then(|| Self { count, mean_seconds: histogram.sum_seconds() / count as f64 })
    }
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct ShownAnswers {
    #[serde(flatten)]
    pub waited: Durations,
    /// The mean of the round-trip times at the same moments; `null` where none was measured.
    pub mean_rtt_seconds: Option<f64>,
}

/// Partly the same sums as `/transfer` asks the kernel for now.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ShownLive {
    pub connections: u64,
    /// Of these, with each option on.
    pub options: BTreeMap<&'static str, u64>,
    /// What those are set to; only those that there are.
    pub option_values: BTreeMap<&'static str, Range>,
    /// Of these, by the name of their congestion control.
    pub congestion_algorithms: BTreeMap<String, u64>,
    /// How much their sockets may hold, unsent or unacknowledged, and not read.
    pub send_buffer_bytes: u64,
    pub receive_buffer_bytes: u64,
    pub delivery_bytes_per_second: u64,
    pub window_probes: u64,
    pub busy_seconds: f64,
    pub peer_window_limited_seconds: f64,
    pub buffer_limited_seconds: f64,
    pub out_of_order_packets: u64,
    /// Of the smoothed round-trip times; `null` before the first measurement of any.
    pub rtt: Option<Spread>,
    /// The least of their least ones; `null` before the first measurement of any.
    pub min_rtt_seconds: Option<f64>,
    /// The mean of their mean deviations; `null` in the same case.
    pub mean_rtt_variation_seconds: Option<f64>,
}

impl ShownLive {
    fn of(live: &Live) -> Option<Self> {
        (live.connections > 0).then(|| Self {
            connections: live.connections,
            options: live.options().collect(),
            option_values: live.option_values().collect(),
            congestion_algorithms: live
                .by_congestion
                .iter()
                .map(|(name, count)| (name.text().into_owned(), *count))
                .collect(),
            send_buffer_bytes: live.send_buffer_bytes,
            receive_buffer_bytes: live.receive_buffer_bytes,
            delivery_bytes_per_second: live.delivery_rate,
            window_probes: live.window_probes,
            busy_seconds: live.busy_seconds(),
            peer_window_limited_seconds: live.limited_seconds(chrono::PEER_WINDOW),
            buffer_limited_seconds: live.limited_seconds(chrono::SEND_BUFFER),
            out_of_order_packets: live.out_of_order_packets,
            rtt: live.round_trips.spread(),
            min_rtt_seconds: live.least_round_trips.spread().map(|least| least.least_seconds),
            mean_rtt_variation_seconds: live.variations.spread().map(|variation| variation.mean_seconds),
        })
    }

    /// The option with what it is set to: "keepalive (2h 00m + 9 × 1m 15s)".
    fn option_text(&self, option: &str) -> String {
        let figure = |name: &str, text: fn(f64) -> String| {
            self.option_values.get(name).map_or(String::new(), |range| {
                match (text(range.least), text(range.most)) {
                    (least, most) if least == most => least,
                    (least, most) => format!("{least} to {most}"),
                }
            })
        };
        let cells = match option {
            "keepalive" => {
                let [idle, interval] = ["keepalive_idle_seconds", "keepalive_interval_seconds"]
                    .map(|name| figure(name, duration));
                format!(
                    " ({idle} + {} × {interval})",
                    figure("keepalive_probes", |probes| probes.to_string())
                )
            }
            "linger" | "user_timeout" => format!(" ({})", figure(&format!("{option}_seconds"), duration)),
            _ => String::new(),
        };
        format!("{option}{cells}")
    }
}

impl CountsView {
    pub(crate) fn of(counts: &Counts) -> Self {
        let idle = Closer::ALL.iter().zip(&counts.idle);
        let failures = FAILURES.iter().copied().zip(counts.failures);
        Self {
            opened: counts.opened,
            closed: counts.closed(),
            closed_first: FirstClose::ALL.iter().map(|first| first.name()).zip(counts.closed).collect(),
            idle_before_close: idle
                .filter_map(|(closer, idle)| Some((closer.name(), Durations::of(idle.as_deref()?)?)))
                .collect(),
            sent_bytes: counts.traffic.sent_bytes,
            received_bytes: counts.traffic.received_bytes,
            received_after_close_bytes: counts.after_close.received_bytes,
            sent_after_close_bytes: counts.after_close.sent_bytes,
            retransmits: counts.retransmitted.total(),
            retransmits_by_kind: kinds(&counts.retransmitted.segments),
            retransmitted_bytes: counts.retransmitted.bytes,
            spurious_retransmits: counts.retransmitted.spurious,
            retransmits_failed: failures.filter(|(_, count)| *count > 0).collect(),
            blocked: counts.stalls.as_deref().map(blocked).unwrap_or_default(),
            answers: counts.answers.as_deref().and_then(|answers| {
                Some(ShownAnswers {
                    waited: Durations::of(&answers.seconds)?,
                    mean_rtt_seconds: Durations::of(&answers.round_trips).map(|rtt| rtt.mean_seconds),
                })
            }),
            live: ShownLive::of(&counts.live),
            resets_sent: resets(counts, Direction::Sent),
            resets_received: resets(counts, Direction::Received),
            reset_discarded: counts.discarded,
            connect_attempts: counts.attempts,
            connects: Outcome::ALL.iter().map(|outcome| outcome.name()).zip(counts.connects).collect(),
            connect_durations: counts.durations[TcpState::SynSent.index()].as_deref().and_then(Durations::of),
        }
    }

    fn round_trip_text(&self) -> String {
        round_trip(self.live.as_ref().and_then(|live| live.rtt))
    }

    fn limits_text(&self) -> String {
        self.live.as_ref().map_or(String::new(), |live| {
            limits(live.busy_seconds, live.peer_window_limited_seconds, live.buffer_limited_seconds)
        })
    }

    fn congestion_text(&self) -> String {
        let algorithms = self.live.iter().flat_map(|live| &live.congestion_algorithms);
        counted_text(algorithms.map(|(algorithm, count)| (printable(algorithm), *count)))
    }

    fn options_text(&self) -> String {
        self.live.as_ref().map_or(String::new(), |live| {
            counted_text(live.options.iter().map(|(option, count)| (live.option_text(option), *count)))
        })
    }

    fn retransmits_text(&self) -> String {
        let kinds = counted_text(self.retransmits_by_kind.iter().map(|(kind, count)| (*kind, *count)));
        if kinds.is_empty() { "0".to_owned() } else { format!("{} ({kinds})", self.retransmits) }
    }

    /// How often and how long delivery stood still.
    fn blocked_text(&self) -> String {
        let count: u64 = self.blocked.values().map(|one| one.count).sum();
        if count == 0 {
            return String::new();
        }
        let seconds = self.blocked.values().map(|one| one.duration_seconds).sum();
        format!("{} in {count}", duration(seconds))
    }

    fn resets_text(&self) -> String {
        let sum = |resets: &BTreeMap<_, u64>| resets.values().sum::<u64>();
        let mut text =
            counted_text([("sent", sum(&self.resets_sent)), ("received", sum(&self.resets_received))]);
        if self.reset_discarded.total() > 0 {
            text += &format!(", {} discarded", bytes(self.reset_discarded.total()));
        }
        text
    }

    fn connects_text(&self) -> String {
        // How long it took stands with those that it was measured of.
        let shown = |outcome: &Outcome| match (outcome, self.connect_durations) {
            (Outcome::Established, Some(took)) => {
                format!("{} ({:.3}ms)", outcome.name(), took.mean_seconds * 1e3)
            }
            _ => outcome.name().to_owned(),
        };
        counted_text(Outcome::ALL.iter().map(|outcome| (shown(outcome), self.connects[outcome.name()])))
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
        counted.opened.to_string(),
        counted.closed.to_string(),
        bytes(counted.sent_bytes),
        bytes(counted.received_bytes),
        counted.retransmits_text(),
        counted.blocked_text(),
        counted.round_trip_text(),
        counted.limits_text(),
        counted.congestion_text(),
        counted.options_text(),
        now.translated_text(),
        counted.resets_text(),
        counted.connects_text(),
        now.text(),
    ]
}

/// What follows a table: nothing, unless `limit` cut it.
pub(crate) fn cut(shown: usize, total: usize) -> String {
    if shown == total { String::new() } else { format!("\n{shown} of {total} shown; ?limit=0 shows all\n") }
}

/// What rows are sorted by: the largest number first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    Connections,
    Opened,
    Failed,
    Bytes,
    Retransmits,
    Blocked,
    Name,
}

/// How many rows, and which first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    sort: Sort,
    limit: usize,
    /// To be asked of connection tracking too.
    nat: bool,
}

impl Wanted {
    pub(crate) const PARAMETERS: [&str; 3] = ["sort", "limit", "nat"];

    pub(crate) fn take(params: &mut Params) -> Result<Self, ApiError> {
        let sort = match params.take("sort")?.as_deref() {
            None | Some("connections") => Sort::Connections,
            Some("opened") => Sort::Opened,
            Some("failed") => Sort::Failed,
            Some("bytes") => Sort::Bytes,
            Some("retransmits") => Sort::Retransmits,
            Some("blocked") => Sort::Blocked,
            Some("name") => Sort::Name,
            Some(other) => {
                let known = "connections, opened, failed, bytes, retransmits, blocked, name";
                return Err(ApiError::bad("sort", format!("`{other}` is not one of {known}")));
            }
        };
        Ok(Self { sort, limit: params.take_limit(DEFAULT_LIMIT)?, nat: translations::take(params)? })
    }

    /// What is translated now, if that is wanted.
    pub(crate) async fn translations(&self, api: &Api) -> Result<Translations, ApiError> {
        translations::ask(api, self.nat).await
    }

    /// Sorts and cuts; how many there were. Equal ones stand by name, and what has nothing to tell is left out.
    pub(crate) fn apply<N: Ord, T>(&self, rows: &mut Vec<(N, ConnectionCounts, Counts, T)>) -> usize {
        rows.retain(|(_, tally, counts, _)| tally.total() > 0 || !is_nothing(counts));
        let total = rows.len();
        rows.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        rows.sort_by_key(|(_, tally, counts, _)| {
            Reverse(match self.sort {
                Sort::Connections => tally.total() as u64,
                Sort::Opened => counts.opened,
                Sort::Failed => failed(counts),
                Sort::Bytes => counts.traffic.total(),
                Sort::Retransmits => counts.retransmitted.total(),
                Sort::Blocked => blocked_nanos(counts),
                Sort::Name => 0,
            })
        });
        rows.truncate(self.limit);
        total
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }
}
