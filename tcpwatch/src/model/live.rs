//! How the data of live connections goes, summed by group, as the latest sweep found it.
//!
//! The kernel keeps these values for each socket, and they end with it. Nothing is kept of them for each connection here, so
//! they are no counters: a connection that ends takes its share away.

use std::{borrow::Cow, collections::BTreeMap};

use rustc_hash::FxHashMap;
use schemars::JsonSchema;
use serde::Serialize;
use tcpwatch_common::{
    OPTION_CORK, OPTION_KEEPALIVE, OPTION_LINGER, OPTION_NODELAY, OPTION_USER_TIMEOUT, chrono,
};

use crate::{
    events::{decode::Comm, seen::Seen},
    model::groups::{GroupId, Groups},
    tcp::{socket_options::SocketOptions, ticks::TickRate, time},
};

/// The options of sockets that are counted, under the names that answers give them.
pub const OPTIONS: [(u16, &str); 5] = [
    (OPTION_KEEPALIVE, "keepalive"),
    (OPTION_NODELAY, "nodelay"),
    (OPTION_CORK, "cork"),
    (OPTION_LINGER, "linger"),
    (OPTION_USER_TIMEOUT, "user_timeout"),
];

pub const OPTION_NAMES: [&str; OPTIONS.len()] =
    [OPTIONS[0].1, OPTIONS[1].1, OPTIONS[2].1, OPTIONS[3].1, OPTIONS[4].1];

/// The values of options that take a time or a number, under the names that answers give them.
pub const OPTION_VALUES: [&str; 5] = [
    "keepalive_idle_seconds",
    "keepalive_interval_seconds",
    "keepalive_probes",
    "linger_seconds",
    "user_timeout_seconds",
];

/// Sums over connections that processes hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Live {
    pub connections: u64,
    /// Connections with each of `OPTIONS`.
    pub with_option: [u64; OPTIONS.len()],
    /// Of those that have the option on, by `OPTION_VALUES`.
    pub option_values: [Option<Range>; OPTION_VALUES.len()],
    /// Connections by congestion control.
    pub by_congestion: BTreeMap<Comm, u64>,
    /// Bytes that their sockets may hold to be sent, and to be read.
    pub send_buffer_bytes: u64,
    pub receive_buffer_bytes: u64,
    /// Bytes a second, as each last measured.
    pub delivery_rate: u64,
    /// Of closed windows, that peers have not answered.
    pub window_probes: u64,
    sending_ns: [u64; chrono::COUNT],
    pub out_of_order_packets: u64,
    /// Smoothed.
    pub round_trips: Times,
    /// The least of each connection.
    pub least_round_trips: Times,
    /// The mean deviation of each from the smoothed one.
    pub variations: Times,
}

impl Live {
    pub(crate) fn add_seen(&mut self, seen: &Seen, tick_rate: TickRate) {
        self.connections += 1;
        for (count, (option, _)) in self.with_option.iter_mut().zip(OPTIONS) {
            *count += u64::from(seen.options.flags & option != 0);
        }
        self.widen_option_values(
            option_values(&SocketOptions::new(&seen.options, tick_rate)).map(|figure| figure.map(Range::of)),
        );
        *self.by_congestion.entry(seen.congestion).or_default() += 1;
        self.send_buffer_bytes += u64::from(seen.send_buffer);
        self.receive_buffer_bytes += u64::from(seen.receive_buffer);
        self.delivery_rate = self.delivery_rate.saturating_add(seen.delivery_rate);
        self.window_probes += u64::from(seen.window_probes);
        for (sum, jiffies) in self.sending_ns.iter_mut().zip(seen.sending_jiffies) {
            *sum += tick_rate.nanos(jiffies);
        }
        self.out_of_order_packets += u64::from(seen.out_of_order);
        if let Some(rtt_ns) = seen.rtt_ns {
            self.round_trips.add(time::seconds(rtt_ns));
            self.variations.add(time::seconds(seen.rtt_variation_ns));
        }
        if let Some(min_rtt_ns) = seen.min_rtt_ns {
            self.least_round_trips.add(time::seconds(min_rtt_ns));
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        for (mine, theirs) in self.with_option.iter_mut().zip(other.with_option) {
            *mine += theirs;
        }
        self.widen_option_values(other.option_values);
        for (congestion, count) in &other.by_congestion {
            *self.by_congestion.entry(*congestion).or_default() += count;
        }
        self.send_buffer_bytes += other.send_buffer_bytes;
        self.receive_buffer_bytes += other.receive_buffer_bytes;
        self.delivery_rate = self.delivery_rate.saturating_add(other.delivery_rate);
        self.window_probes += other.window_probes;
        for (mine, theirs) in self.sending_ns.iter_mut().zip(other.sending_ns) {
            *mine += theirs;
        }
        self.out_of_order_packets += other.out_of_order_packets;
        self.round_trips.add_all(other.round_trips);
        self.least_round_trips.add_all(other.least_round_trips);
        self.variations.add_all(other.variations);
    }

    fn widen_option_values(&mut self, others: [Option<Range>; OPTION_VALUES.len()]) {
        for (mine, theirs) in self.option_values.iter_mut().zip(others) {
            *mine = mine.iter().copied().chain(theirs).reduce(Range::and);
        }
    }

    /// The `OPTION_VALUES` that are set on any connection.
    pub fn option_values(&self) -> impl Iterator<Item = (&'static str, Range)> {
        OPTION_VALUES.iter().zip(self.option_values).filter_map(|(name, range)| Some((*name, range?)))
    }

    /// How many have each of `OPTIONS` on.
    pub fn options(&self) -> impl Iterator<Item = (&'static str, u64)> {
        OPTION_NAMES.into_iter().zip(self.with_option)
    }

    /// Connections by the name of their congestion control. Names that read the same count together.
    pub fn congestion_algorithms(&self) -> BTreeMap<Cow<'_, str>, u64> {
        let mut algorithms = BTreeMap::new();
        for (algorithm, count) in &self.by_congestion {
            *algorithms.entry(algorithm.text()).or_default() += count;
        }
        algorithms
    }

    /// While there was something to send or unacknowledged, whatever limited it.
    pub fn busy_seconds(&self) -> f64 {
        time::seconds(self.sending_ns.iter().sum())
    }

    /// Of that, while this was the limit, one of `tcpwatch_common::chrono`.
    pub fn limited_seconds(&self, limit: usize) -> f64 {
        time::seconds(self.sending_ns[limit])
    }
}

fn option_values(options: &SocketOptions) -> [Option<f64>; OPTION_VALUES.len()] {
    let of_keepalive = |figure: u64| options.keepalive.on.then_some(figure as f64);
    [
        of_keepalive(options.keepalive.idle_seconds),
        of_keepalive(options.keepalive.interval_seconds),
        of_keepalive(options.keepalive.probes.into()),
        options.linger_seconds.map(|seconds| seconds as f64),
        options.user_timeout_seconds,
    ]
}

/// What an option is set to on several connections.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Range {
    /// The least value.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Range {
    fn of(figure: f64) -> Self {
        Self { least: figure, most: figure }
    }

    fn and(self, other: Self) -> Self {
        Self { least: self.least.min(other.least), most: self.most.max(other.most) }
    }
}

/// Times of several connections.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    count: u64,
    seconds: f64,
    least: f64,
    most: f64,
}

/// How times of several connections spread.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Spread {
    /// The least, in seconds.
    pub least_seconds: f64,
    /// The mean, in seconds.
    pub mean_seconds: f64,
    /// The most, in seconds.
    pub most_seconds: f64,
}

impl Times {
    pub fn add(&mut self, seconds: f64) {
        self.add_all(Self { count: 1, seconds, least: seconds, most: seconds });
    }

    fn add_all(&mut self, other: Self) {
        if other.count == 0 {
            return;
        }
        self.least = if self.count == 0 { other.least } else { self.least.min(other.least) };
        self.most = self.most.max(other.most);
        self.seconds += other.seconds;
        self.count += other.count;
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn most(&self) -> f64 {
        self.most
    }

    /// `None` when there are none.
    pub fn spread(&self) -> Option<Spread> {
        (self.count > 0).then(|| Spread {
            least_seconds: self.least,
            mean_seconds: self.seconds / self.count as f64,
            most_seconds: self.most,
        })
    }
}

/// What the sweep under way has found so far.
pub(crate) type Found = FxHashMap<GroupId, Live>;

impl Groups {
    /// At the end of a sweep.
    pub(crate) fn set_live(&mut self, mut found: Found) {
        for (id, counts) in self.all_counts() {
            counts.live = found.remove(&id).unwrap_or_default();
        }
    }
}
