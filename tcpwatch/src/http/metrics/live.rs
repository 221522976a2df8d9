//! Gauges of the connections that processes hold, as the latest sweep summed them: of the groups that have such.

use tcpwatch_common::chrono;

use crate::{
    http::metrics::{escape, gauge},
    model::{
        groups::Group,
        live::{Live, OPTION_VALUES},
    },
};

const LIMITS: [(usize, &str); chrono::COUNT] =
    [(chrono::BUSY, "other"), (chrono::PEER_WINDOW, "peer_window"), (chrono::SEND_BUFFER, "send_buffer")];

pub(crate) fn write(text: &mut String, groups: &[(String, &Group)]) {
    let live = || {
        groups
            .iter()
            .map(|(labels, group)| (labels, &group.counts.live))
            .filter(|(_, live)| live.connections > 0)
    };
    // One line for each group.
    let mut one = |name, help, value: fn(&Live) -> u64| {
        gauge(text, name, help, live().map(|(labels, live)| (labels, value(live))));
    };
    one("tcpwatch_held_connections", "Connections that a process holds. As of the latest sweep.", |live| {
        live.connections
    });
    one(
        "tcpwatch_delivery_rate_bytes_per_second",
        "How fast these delivered what they sent, as each last measured it: their sum.",
        |live| live.delivery_rate,
    );
    one(
        "tcpwatch_window_probes",
        "Probes of the closed windows of their peers that are not answered.",
        |live| live.window_probes,
    );
    one(
        "tcpwatch_out_of_order_packets",
        "Segments received out of order by these, each since it began.",
        |live| live.out_of_order_packets,
    );
    let with_option = live().flat_map(|(labels, live)| {
        let some = live.options().filter(|(_, count)| *count > 0);
        some.map(move |(option, count)| (format!("{labels},option=\"{option}\""), count))
    });
    gauge(
        text,
        "tcpwatch_held_connections_by_option",
        "Connections that a process holds, with a socket option on.",
        with_option,
    );
    for (at, (name, meaning)) in OPTION_VALUES.iter().enumerate() {
        let ranges = live().filter_map(|(labels, live)| Some((labels, live.option_values[at]?)));
        let option_values = ranges.flat_map(|(labels, range)| {
            [("least", range.least), ("most", range.most)]
                .map(|(value, figure)| (format!("{labels},value=\"{value}\""), figure))
        });
        let help = format!("{meaning}, of held connections with the option on: the least and the most.");
        gauge(text, &format!("tcpwatch_{name}"), &help, option_values);
    }
    let by_algorithm = live().flat_map(|(labels, live)| {
        live.by_congestion.iter().map(move |(algorithm, count)| {
            (format!("{labels},algorithm=\"{}\"", escape(&algorithm.text())), count)
        })
    });
    gauge(
        text,
        "tcpwatch_held_connections_by_congestion_algorithm",
        "Connections that a process holds, by congestion control.",
        by_algorithm,
    );
    let buffers = live().flat_map(|(labels, live)| {
        [("send", live.send_buffer_bytes), ("receive", live.receive_buffer_bytes)]
            .map(|(buffer, bytes)| (format!("{labels},buffer=\"{buffer}\""), bytes))
    });
    gauge(
        text,
        "tcpwatch_socket_buffer_bytes",
        "How much the sockets of these may hold, unsent or unacknowledged, and not read.",
        buffers,
    );
    let sending = live().flat_map(|(labels, live)| {
        LIMITS.map(|(kind, limit)| (format!("{labels},limit=\"{limit}\""), live.limited_seconds(kind)))
    });
    gauge(
        text,
        "tcpwatch_sending_seconds",
        "How long these, each since it began, have had something to send or unacknowledged, by what limited it: the peer's \
         receive window, the send buffer, or neither: the congestion window or the application.",
        sending,
    );
    let round_trips = live().filter_map(|(labels, live)| Some((labels, live.round_trips.spread()?)));
    let round_trips = round_trips.flat_map(|(labels, rtt)| {
        [("least", rtt.least_seconds), ("mean", rtt.mean_seconds), ("most", rtt.most_seconds)]
            .map(|(value, seconds)| (format!("{labels},value=\"{value}\""), seconds))
    });
    gauge(
        text,
        "tcpwatch_round_trip_seconds",
        "The smoothed round-trip times of these: the least, the mean and the most.",
        round_trips,
    );
    gauge(
        text,
        "tcpwatch_min_round_trip_seconds",
        "The least round-trip time that any of these has had.",
        live().filter_map(|(labels, live)| Some((labels, live.least_round_trips.spread()?.least_seconds))),
    );
    gauge(
        text,
        "tcpwatch_round_trip_variation_seconds",
        "By how much the round-trip times of these deviate from the smoothed ones: the mean.",
        live().filter_map(|(labels, live)| Some((labels, live.variations.spread()?.mean_seconds))),
    );
}
