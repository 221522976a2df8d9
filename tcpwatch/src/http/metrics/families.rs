//! The table of metric families. `/metrics`, the JSON sums of `/processes` and `/peers`, and docs/metrics.md come from it: a
//! new counter is one row here. It is one file however long: where a row is, nobody has to ask.

use std::{collections::BTreeMap, time::UNIX_EPOCH};

use tcpwatch_common::chrono;

use crate::{
    events::decode::{FAILURES, Kind as RetransmitKind},
    findings::{Rule, Severity, leaks::lingering},
    http::metrics::family::{Emit, EmitOfSet, Family, Json, Label, LabelValues, Part, Sample, Scrape, View},
    model::{
        groups::{Closer, Counts, Role},
        live::{Live, OPTION_NAMES, Range},
    },
    tcp::{
        connect_outcome::Outcome,
        first_close::FirstClose,
        reset_reason::{Direction, ResetReason},
        stall::Recovery,
        state::TcpState,
    },
};

use super::family::Collector::{
    Answers, Closes, Connects, Daemon, Nat, Resets, Retransmits, Sockets, Stalls, States, Summary, Transfer,
};

/// The names of all variants, in their order.
macro_rules! names {
    ($of:ty) => {{
        const COUNT: usize = <$of>::ALL.len();
        const NAMES: [&str; COUNT] = {
            let mut names = [""; COUNT];
            let mut at = 0;
            while at < COUNT {
                names[at] = <$of>::ALL[at].name();
                at += 1;
            }
            names
        };
        &NAMES
    }};
}

const fn label(name: &'static str, values: &'static [&'static str]) -> Label {
    Label { name, values: LabelValues::Fixed(values) }
}

const fn open(name: &'static str, values: &'static str) -> Label {
    Label { name, values: LabelValues::Open(values) }
}

const STATE: Label = label("state", &STATES);
/// All in which a connection can be: CLOSE ends it.
const STATES: [&str; TcpState::ALL.len() - 1] = {
    let mut names = [""; TcpState::ALL.len() - 1];
    let (mut at, mut next) = (0, 0);
    while at < TcpState::ALL.len() {
        if !matches!(TcpState::ALL[at], TcpState::Close) {
            names[next] = TcpState::ALL[at].name();
            next += 1;
        }
        at += 1;
    }
    names
};
const RECOVERY: Label = label("recovery", names!(Recovery));
const DIRECTIONS: &[&str] = names!(Direction);
const RULE: Label = label("rule", Rule::NAMES);

pub static FAMILIES: &[Family] = &[
    // How many connections there are, what they carry, and what fails: for every fleet, so few series.
    Family::gauge(Summary, "tcpwatch_connections", "Connections now, by TCP state.")
        .labels(&[STATE])
        .of_node(|scrape, emit| {
            for state in TcpState::ALL.iter().filter(|state| **state != TcpState::Close) {
                emit(&[state.name()], count(scrape.node.tracker.table().count(*state)));
            }
        }),
    Family::gauge(
        Summary,
        "tcpwatch_lingering_connections",
        "Connections that stand longer than their limit in a state that should be short. Non-zero only.",
    )
    .labels(&[STATE])
    .of_sets(|scrape, emit| {
        for ((state, group), lingering) in
            lingering::counts(&scrape.node.tracker, &scrape.node.settings.linger, scrape.clock.now_ns)
        {
            emit(group, &[state.name()], count(lingering));
        }
    }),
    Family::gauge(
        Summary,
        "tcpwatch_findings",
        "Open findings, as /findings lists them, by rule and severity. Non-zero only.",
    )
    .labels(&[RULE, label("severity", names!(Severity))])
    .of_node(|scrape, emit| {
        let mut open: BTreeMap<_, usize> = BTreeMap::new();
        for finding in scrape.node.findings.open() {
            *open.entry((finding.id.rule, finding.severity)).or_default() += 1;
        }
        for ((rule, severity), number) in open {
            emit(&[rule.name(), severity.name()], count(number));
        }
    }),
    Family::counter(Summary, "tcpwatch_findings_opened_total", "Findings opened, by rule.")
        .labels(&[RULE])
        .of_node(|scrape, emit| {
            for rule in Rule::ALL {
                emit(&[rule.name()], Sample::Int(scrape.node.findings.opened(*rule).into()));
            }
        }),
    Family::gauge(
        Summary,
        "tcpwatch_held_connections",
        "Connections that processes held at the latest sweep.",
    )
    .value(|counts| counts.live.connections)
    .json(&[Json::at("live.connections").sparse()]),
    Family::counter(
        Summary,
        "tcpwatch_connections_opened_total",
        "Connections that reached ESTABLISHED.",
    )
    .value(|counts| counts.opened)
    .json(&[Json::at("opened")]),
    Family::counter(
        Summary,
        "tcpwatch_connections_closed_total",
        "Connections that had been ESTABLISHED and reached CLOSE. The kernel may keep their TIME_WAIT.",
    )
    .value(Counts::closed)
    .json(&[Json::at("closed")]),
    Family::counter(
        Summary,
        "tcpwatch_connect_attempts_total",
        "Connects that began, and those from before the start of tcpwatch that are over.",
    )
    .of_clients()
    .value(|counts| counts.attempts)
    .json(&[Json::at("connect_attempts")]),
    Family::counter(
        Summary,
        "tcpwatch_connects_failed_total",
        "Connects that failed, without those that the application gave up and those whose end was not seen.",
    )
    .of_clients()
    .value(Counts::failed_connects),
    Family::counter(
        Summary,
        "tcpwatch_sent_bytes_total",
        "Data sent, each byte once: by connections that ended, and by live ones as of the latest sweep.",
    )
    .value(|counts| counts.traffic.sent_bytes)
    .json(&[Json::at("sent_bytes")]),
    Family::counter(
        Summary,
        "tcpwatch_received_bytes_total",
        "Data received, each byte once: by connections that ended, and by live ones as of the latest sweep.",
    )
    .value(|counts| counts.traffic.received_bytes)
    .json(&[Json::at("received_bytes")]),
    Family::counter(Summary, "tcpwatch_retransmits_total", "Segments retransmitted.")
        .value(|counts| counts.retransmitted.total())
        .json(&[Json::at("retransmits")]),
    Family::counter(Summary, "tcpwatch_resets_total", "Resets of connections, by who sent them.")
        .labels(&[label("direction", DIRECTIONS)])
        .each(|counts, emit| {
            for direction in Direction::ALL {
                let resets = ResetReason::ALL.iter().zip(counts.resets);
                let those = resets.filter(|(reset, _)| reset.direction() == direction);
                emit(&[direction.name()], Sample::Int(those.map(|(_, count)| count).sum()));
            }
        }),
    // A client's connections each hold one, also in TIME_WAIT.
    Family::gauge(
        Summary,
        "tcpwatch_local_ports_in_use",
        "Local ports that clients hold toward the peer, those of TIME_WAIT included, from all source addresses and in all \
         network namespaces; /ports shows them apart.",
    )
    .of_clients()
    .of_group(|group| (group.key.role == Role::Client).then(|| group.held().into())),
    Family::gauge(
        Summary,
        "tcpwatch_local_ports_available",
        "Local ports that the kernel chooses from in tcpwatch's own network namespace. Other namespaces may have their \
         own, see /ports.",
    )
    .of_node(|scrape, emit| {
        if let Some(ports) = scrape.local_ports {
            emit(&[], Sample::Int(ports));
        }
    }),
    Family::counter(
        Summary,
        "tcpwatch_resets_without_connection_total",
        "Resets sent in answer to segments of no connection. Before Linux 6.10 the kernel does not report no_socket.",
    )
    .labels(&[label("reason", &["no_socket", "listener", "policy"])])
    .of_node(|scrape, emit| {
        let unrecorded = &scrape.node.records.unrecorded;
        emit(&["no_socket"], Sample::Int(unrecorded.no_socket_resets));
        emit(&["listener"], Sample::Int(unrecorded.listener_resets));
        emit(&["policy"], Sample::Int(unrecorded.policy_resets));
    }),
    // How tcpwatch itself does.
    Family::counter(
        Daemon,
        "tcpwatch_records_received_total",
        "Records read from the kernel's queues and ring buffer.",
    )
    .of_node(|scrape, emit| emit(&[], Sample::Int(scrape.node.records.received))),
    Family::counter(Daemon, "tcpwatch_records_malformed_total", "Records that could not be decoded.")
        .of_node(|scrape, emit| emit(&[], Sample::Int(scrape.node.records.malformed))),
    Family::counter(Daemon, "tcpwatch_records_lost_total", "Records lost in the kernel, by cause.")
        .labels(&[label("cause", &["ring_full", "run_skipped"])])
        .of_node(|scrape, emit| {
            emit(&["ring_full"], Sample::Int(scrape.node.records.lost.ring_full));
            emit(&["run_skipped"], Sample::Int(scrape.node.records.lost.run_skipped));
        }),
    Family::counter(
        Daemon,
        "tcpwatch_records_held_back_total",
        "Records of retransmits and stalls that were not written because the same socket had one a moment before. What \
         they would have reported is counted.",
    )
    .of_node(|scrape, emit| emit(&[], Sample::Int(scrape.node.records.unrecorded.held_back))),
    Family::counter(
        Daemon,
        "tcpwatch_repairs_total",
        "Entries that a sweep of all sockets put right because no record reported the change.",
    )
    .labels(&[label("kind", &["appeared", "changed", "vanished"])])
    .of_node(|scrape, emit| {
        let repairs = scrape.node.tracker.repairs();
        emit(&["appeared"], Sample::Int(repairs.appeared));
        emit(&["changed"], Sample::Int(repairs.changed));
        emit(&["vanished"], Sample::Int(repairs.vanished));
    }),
    Family::counter(Daemon, "tcpwatch_sweeps_total", "Sweeps of all sockets.")
        .of_node(|scrape, emit| emit(&[], Sample::Int(scrape.node.sweeps.done))),
    Family::counter(
        Daemon,
        "tcpwatch_sweep_cpu_seconds_total",
        "Processor time that sweeps of all sockets took in the kernel.",
    )
    .of_node(|scrape, emit| emit(&[], Sample::Float(scrape.node.sweeps.cost.as_secs_f64()))),
    Family::gauge(
        Daemon,
        "tcpwatch_last_sweep_timestamp_seconds",
        "When the latest sweep of all sockets ended, in seconds since the Unix epoch.",
    )
    .of_node(|scrape, emit| {
        if let Some(ended_ns) = scrape.node.sweeps.ended_ns
            && let Ok(since_epoch) = scrape.clock.at(ended_ns).wall.duration_since(UNIX_EPOCH)
        {
            emit(&[], Sample::Float(since_epoch.as_secs_f64()));
        }
    }),
    Family::gauge(
        Daemon,
        "tcpwatch_last_sweep_duration_seconds",
        "Time from the beginning of the latest sweep of all sockets to its end.",
    )
    .of_node(|scrape, emit| {
        if scrape.node.sweeps.ended_ns.is_some() {
            emit(&[], Sample::Float(scrape.node.sweeps.took.as_secs_f64()));
        }
    }),
    Family::counter(
        Daemon,
        "tcpwatch_owner_busy_seconds_total",
        "Time that the task which owns the state spent on records, sweeps and questions. Its rate is the share of one \
         processor; at 1 tcpwatch falls behind.",
    )
    .of_node(|scrape, emit| emit(&[], Sample::Float(scrape.node.owner.busy.as_secs_f64()))),
    Family::histogram(
        Daemon,
        "tcpwatch_question_duration_seconds",
        "Time that the task which owns the state spent on each question of an HTTP answer.",
    )
    .of_node(|scrape, emit| {
        emit(&[], Sample::Histogram(View::of(Some(&scrape.node.owner.questions))));
    }),
    Family::gauge(Daemon, "tcpwatch_followers", "Clients that follow /events now.")
        .of_node(|scrape, emit| emit(&[], count(scrape.node.transitions.receiver_count()))),
    Family::gauge(
        Daemon,
        "tcpwatch_label_sets",
        "Label sets of process, role and peer in use; --max-label-sets bounds them.",
    )
    .of_node(|scrape, emit| {
        // Without ~other.
        emit(&[], count(scrape.node.tracker.groups().iter().count().saturating_sub(1)));
    }),
    Family::counter(
        Daemon,
        "tcpwatch_label_sets_evicted_total",
        "Label sets that had no connection for ten minutes and gave their place to another: their series ended.",
    )
    .of_node(|scrape, emit| emit(&[], Sample::Int(scrape.node.tracker.groups().evicted))),
    Family::counter(
        Daemon,
        "tcpwatch_label_sets_folded_total",
        "Times that a connection was counted in ~other because all label sets were in use.",
    )
    .of_node(|scrape, emit| emit(&[], Sample::Int(scrape.node.tracker.groups().folded))),
    Family::gauge(Daemon, "tcpwatch_build_info", "Always 1; the labels say which version runs on which kernel.")
        .labels(&[open("version", "of tcpwatch"), open("kernel", "its release")])
        .of_node(|scrape, emit| {
            emit(&[env!("CARGO_PKG_VERSION"), &scrape.node.identity.kernel], Sample::Int(1));
        }),
    Family::histogram(Daemon, "tcpwatch_http_request_duration_seconds", HTTP_HELP)
        .labels(&[open("path", "of the [endpoint](http-api.md), or `other`")]),
    Family::counter(Daemon, "process_cpu_seconds_total", CPU_HELP),
    Family::gauge(Daemon, "process_max_fds", "Maximum number of open file descriptors."),
    Family::gauge(Daemon, "process_open_fds", "Number of open file descriptors."),
    Family::gauge(Daemon, "process_resident_memory_bytes", "Resident memory size in bytes."),
    Family::gauge(
        Daemon,
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
    ),
    Family::gauge(Daemon, "process_threads", "Number of OS threads in the process."),
    Family::gauge(Daemon, "process_virtual_memory_bytes", "Virtual memory size in bytes."),
    // What becomes of connects.
    Family::counter(Connects, "tcpwatch_connects_total", "Connects that are over, by what became of them.")
        .labels(&[label("outcome", names!(Outcome))])
        .of_clients()
        .by(|counts| &counts.connects)
        .json(&[Json::at("connects.{outcome}")]),
    Family::histogram(
        Connects,
        "tcpwatch_connect_duration_seconds",
        "From connect() to the peer's answer, of connects that it accepted; only where both ends were seen.",
    )
    .of_clients()
    .each(|counts, emit| emit(&[], histogram(View::of(counts.connected.as_deref()))))
    .json(&[
        Json::part("connect_durations.count", Part::Count),
        Json::part("connect_durations.mean_seconds", Part::MeanSeconds),
    ]),
    // Who closes.
    Family::counter(
        Closes,
        "tcpwatch_connections_closed_by_first_total",
        "Connections that had been ESTABLISHED and reached CLOSE, by who closed first. Their sum is \
         tcpwatch_connections_closed_total.",
    )
    .labels(&[label("first", names!(FirstClose))])
    .by(|counts| &counts.closed)
    .json(&[Json::at("closed_first.{first}")]),
    Family::histogram(
        Closes,
        "tcpwatch_idle_before_close_seconds",
        "How long idle connections had been idle when one side closed them, by which side; a farewell that it sent just \
         before does not count. Of connections that had been idle for 32 ticks of the kernel or more.",
    )
    .labels(&[label("closed", names!(Closer))])
    .each(|counts, emit| {
        for (closer, idle) in Closer::ALL.iter().zip(&counts.idle) {
            emit(&[closer.name()], histogram(View::of(idle.as_deref())));
        }
    })
    .json(&[
        Json::part("idle_before_close.{closed}.count", Part::Count),
        Json::part("idle_before_close.{closed}.mean_seconds", Part::MeanSeconds),
    ]),
    Family::counter(
        Closes,
        "tcpwatch_after_close_bytes_total",
        "Data received after the local side's FIN, and sent after the peer's.",
    )
    .labels(&[label("direction", &["sent", "received"])])
    .each(|counts, emit| {
        emit(&["sent"], Sample::Int(counts.after_close.sent_bytes));
        emit(&["received"], Sample::Int(counts.after_close.received_bytes));
    })
    .json(&[Json::at("{direction}_after_close_bytes")]),
    // Why connections are reset.
    Family::counter(
        Resets,
        "tcpwatch_resets_by_reason_total",
        "Resets of connections, by who sent them and why. Their sum is tcpwatch_resets_total.",
    )
    .labels(&[label("direction", DIRECTIONS), label("reason", names!(ResetReason))])
    .each(|counts, emit| {
        for (reset, count) in ResetReason::ALL.iter().zip(counts.resets) {
            emit(&[reset.direction().name(), reset.name()], Sample::Int(count));
        }
    })
    .json(&[Json::at("resets_{direction}.{reason}").sparse()]),
    Family::counter(
        Resets,
        "tcpwatch_reset_discarded_bytes_total",
        "Data that resets discarded on this side: received and not read, written and not sent, sent and not acknowledged.",
    )
    .labels(&[label("data", &["unread", "unsent", "unacknowledged"])])
    .each(|counts, emit| {
        for (data, bytes) in counts.discarded.parts() {
            emit(&[data], Sample::Int(bytes));
        }
    })
    .json(&[Json::at("reset_discarded.{data}_bytes")]),
    // Why segments are sent again.
    Family::counter(
        Retransmits,
        "tcpwatch_retransmits_by_kind_total",
        "Segments retransmitted, by the kernel's reason. Their sum is tcpwatch_retransmits_total.",
    )
    .labels(&[label("kind", names!(RetransmitKind))])
    .by(|counts| &counts.retransmitted.segments)
    .json(&[Json::at("retransmits_by_kind.{kind}").sparse()]),
    Family::counter(
        Retransmits,
        "tcpwatch_retransmitted_bytes_total",
        "Bytes retransmitted, without headers.",
    )
    .value(|counts| counts.retransmitted.bytes)
    .json(&[Json::at("retransmitted_bytes")]),
    Family::counter(
        Retransmits,
        "tcpwatch_spurious_retransmits_total",
        "Segments that the peer said it had received twice.",
    )
    .value(|counts| counts.retransmitted.spurious)
    .json(&[Json::at("spurious_retransmits")]),
    Family::counter(
        Retransmits,
        "tcpwatch_retransmits_failed_total",
        "Times that the kernel tried to retransmit and could not send, by errno.",
    )
    .labels(&[label("errno", &FAILURES)])
    .by(|counts| &counts.failures)
    .json(&[Json::at("retransmits_failed.{errno}").sparse()]),
    // How long delivery stands still.
    Family::histogram(
        Stalls,
        "tcpwatch_hol_blocked_seconds",
        "How long delivery stood still behind a lost segment, by what made it good; counted when it was. Of data sent: \
         from the segment's first sending until it was acknowledged. Of data received (recovery=\"peer\"): how long data \
         waited in the out-of-order queue.",
    )
    .labels(&[RECOVERY])
    .each(|counts, emit| {
        for recovery in Recovery::ALL {
            let stalls = counts.stalls.as_deref().map(|stalls| &stalls[recovery as usize].durations);
            emit(&[recovery.name()], histogram(View::of(stalls)));
        }
    })
    .json(&[
        Json::part("blocked.{recovery}.count", Part::Count),
        Json::part("blocked.{recovery}.duration_seconds", Part::SumSeconds),
    ]),
    Family::counter(
        Stalls,
        "tcpwatch_hol_blocked_bytes_total",
        "Data that waited behind lost segments while delivery stood still, by what made the segment good.",
    )
    .labels(&[RECOVERY])
    .each(|counts, emit| {
        for recovery in Recovery::ALL {
            let bytes = counts.stalls.as_deref().map_or(0, |stalls| stalls[recovery as usize].bytes);
            emit(&[recovery.name()], Sample::Int(bytes));
        }
    })
    // A stall may have kept nothing waiting.
    .json(&[Json::at("blocked.{recovery}.waiting_bytes").within()]),
    // How long clients wait.
    Family::histogram(
        Answers,
        "tcpwatch_answer_seconds",
        "From the last data that a client sent to the last that it received in answer, sampled by the sweeps; of answers \
         that took a tick of the kernel or more.",
    )
    .of_clients()
    .each(|counts, emit| {
        emit(&[], histogram(View::of(counts.answers.as_deref().map(|answers| &answers.seconds))));
    })
    .json(&[
        Json::part("answers.count", Part::Count),
        Json::part("answers.mean_seconds", Part::MeanSeconds),
    ]),
    Family::histogram(
        Answers,
        "tcpwatch_answer_round_trip_seconds",
        "The smoothed round-trip time of the connections sampled for tcpwatch_answer_seconds, at that moment.",
    )
    .of_clients()
    .each(|counts, emit| {
        emit(&[], histogram(View::of(counts.answers.as_deref().map(|answers| &answers.round_trips))));
    })
    .json(&[Json::part("answers.mean_rtt_seconds", Part::MeanSeconds).nullable()]),
    // How long connections stay in each state.
    Family::histogram(
        States,
        "tcpwatch_state_duration_seconds",
        "How long connections stood in a state after the handshake, counted when they left it; only where both ends were \
         seen.",
    )
    .labels(&[label(
        "state",
        &["ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE_WAIT", "LAST_ACK", "CLOSING"],
    )])
    .each(|counts, emit| {
        for state in TcpState::ALL.iter().filter(|state| state.follows_established()) {
            emit(&[state.name()], histogram(View::of(counts.durations[state.index()].as_deref())));
        }
    }),
    Family::histogram(
        States,
        "tcpwatch_handshake_duration_seconds",
        "How long connections stood in a state of the handshake, counted when they left it, whatever came after; only \
         where both ends were seen.",
    )
    .labels(&[label("state", &["SYN_SENT", "SYN_RECV"])])
    .each(|counts, emit| {
        for state in [TcpState::SynSent, TcpState::SynRecv] {
            emit(&[state.name()], histogram(View::of(counts.handshake(state).as_deref())));
        }
    }),
    // What the sockets are set to.
    Family::gauge(
        Sockets,
        "tcpwatch_held_connections_by_option",
        "Connections that processes held at the latest sweep and that have a socket option on.",
    )
    .labels(&[label("option", &OPTION_NAMES)])
    .each(|counts, emit| {
        if counts.live.connections > 0 {
            for (option, count) in counts.live.options() {
                emit(&[option], Sample::Int(count));
            }
        }
    })
    .json(&[Json::at("live.options.{option}")]),
    Family::gauge(
        Sockets,
        "tcpwatch_held_connections_by_congestion_algorithm",
        "Connections that processes held at the latest sweep, by congestion control.",
    )
    .labels(&[open("algorithm", "as `ss -i` names it: `cubic`, `bbr`, ...")])
    .each(|counts, emit| {
        for (algorithm, count) in counts.live.congestion_algorithms() {
            emit(&[&algorithm], Sample::Int(count));
        }
    })
    .json(&[Json::at("live.congestion_algorithms.{algorithm}")]),
    Family::gauge(
        Sockets,
        "tcpwatch_keepalive_idle_min_seconds",
        "The shortest time without data before keep-alive probes, of held connections with the option on.",
    )
    .each(|counts, emit| least(&counts.live, 0, emit))
    .json(&[Json::number("live.option_values.keepalive_idle_seconds?.least")]),
    Family::gauge(
        Sockets,
        "tcpwatch_keepalive_idle_max_seconds",
        "The longest time without data before keep-alive probes, of held connections with the option on.",
    )
    .each(|counts, emit| most(&counts.live, 0, emit))
    .json(&[Json::number("live.option_values.keepalive_idle_seconds?.most")]),
    Family::gauge(
        Sockets,
        "tcpwatch_keepalive_interval_min_seconds",
        "The shortest time between keep-alive probes, of held connections with the option on.",
    )
    .each(|counts, emit| least(&counts.live, 1, emit))
    .json(&[Json::number("live.option_values.keepalive_interval_seconds?.least")]),
    Family::gauge(
        Sockets,
        "tcpwatch_keepalive_interval_max_seconds",
        "The longest time between keep-alive probes, of held connections with the option on.",
    )
    .each(|counts, emit| most(&counts.live, 1, emit))
    .json(&[Json::number("live.option_values.keepalive_interval_seconds?.most")]),
    Family::gauge(
        Sockets,
        "tcpwatch_keepalive_probes_min",
        "The lowest number of unanswered keep-alive probes that end a connection, of held connections with the option on.",
    )
    .each(|counts, emit| least(&counts.live, 2, emit))
    .json(&[Json::number("live.option_values.keepalive_probes?.least")]),
    Family::gauge(
        Sockets,
        "tcpwatch_keepalive_probes_max",
        "The highest number of unanswered keep-alive probes that end a connection, of held connections with the option on.",
    )
    .each(|counts, emit| most(&counts.live, 2, emit))
    .json(&[Json::number("live.option_values.keepalive_probes?.most")]),
    Family::gauge(
        Sockets,
        "tcpwatch_linger_min_seconds",
        "The shortest time that close() waits for the peer to acknowledge all data, of held connections with SO_LINGER on.",
    )
    .each(|counts, emit| least(&counts.live, 3, emit))
    .json(&[Json::number("live.option_values.linger_seconds?.least")]),
    Family::gauge(
        Sockets,
        "tcpwatch_linger_max_seconds",
        "The longest time that close() waits for the peer to acknowledge all data, of held connections with SO_LINGER on.",
    )
    .each(|counts, emit| most(&counts.live, 3, emit))
    .json(&[Json::number("live.option_values.linger_seconds?.most")]),
    Family::gauge(
        Sockets,
        "tcpwatch_user_timeout_min_seconds",
        "The shortest time that data may stay unacknowledged before the connection ends, of held connections with \
         TCP_USER_TIMEOUT set.",
    )
    .each(|counts, emit| least(&counts.live, 4, emit))
    .json(&[Json::number("live.option_values.user_timeout_seconds?.least")]),
    Family::gauge(
        Sockets,
        "tcpwatch_user_timeout_max_seconds",
        "The longest time that data may stay unacknowledged before the connection ends, of held connections with \
         TCP_USER_TIMEOUT set.",
    )
    .each(|counts, emit| most(&counts.live, 4, emit))
    .json(&[Json::number("live.option_values.user_timeout_seconds?.most")]),
    Family::gauge(
        Sockets,
        "tcpwatch_socket_buffer_bytes",
        "Size of the buffers of held connections: for data that is unsent or unacknowledged, and for data that is not read.",
    )
    .labels(&[label("buffer", &["send", "receive"])])
    .each(|counts, emit| {
        if counts.live.connections > 0 {
            emit(&["send"], Sample::Int(counts.live.send_buffer_bytes));
            emit(&["receive"], Sample::Int(counts.live.receive_buffer_bytes));
        }
    })
    .json(&[Json::at("live.{buffer}_buffer_bytes")]),
    // How the data of live connections goes.
    Family::gauge(
        Transfer,
        "tcpwatch_delivery_rate_bytes_per_second",
        "Sum of the rates at which held connections delivered what they sent, as each last measured it.",
    )
    .each(|counts, emit| of_live(&counts.live, counts.live.delivery_rate, emit))
    .json(&[Json::at("live.delivery_bytes_per_second")]),
    Family::gauge(
        Transfer,
        "tcpwatch_window_probes",
        "Probes of closed windows that the peers of held connections have not answered.",
    )
    .each(|counts, emit| of_live(&counts.live, counts.live.window_probes, emit))
    .json(&[Json::at("live.window_probes")]),
    Family::gauge(
        Transfer,
        "tcpwatch_round_trip_min_seconds",
        "The lowest round-trip time that any held connection has measured.",
    )
    .each(|counts, emit| {
        maybe(counts.live.least_round_trips.spread().map(|least| least.least_seconds), emit);
    })
    .json(&[Json::number("live.min_rtt_seconds").nullable()]),
    Family::json_only("The lowest smoothed round-trip time of held connections.")
        .each(|counts, emit| maybe(counts.live.round_trips.spread().map(|rtt| rtt.least_seconds), emit))
        .json(&[Json::number("live.rtt.least_seconds")]),
    Family::gauge(
        Transfer,
        "tcpwatch_round_trip_mean_seconds",
        "The mean of the smoothed round-trip times of held connections.",
    )
    .each(|counts, emit| maybe(counts.live.round_trips.spread().map(|rtt| rtt.mean_seconds), emit))
    .json(&[Json::number("live.rtt.mean_seconds")]),
    Family::gauge(
        Transfer,
        "tcpwatch_round_trip_max_seconds",
        "The highest smoothed round-trip time of held connections.",
    )
    .each(|counts, emit| maybe(counts.live.round_trips.spread().map(|rtt| rtt.most_seconds), emit))
    .json(&[Json::number("live.rtt.most_seconds")]),
    Family::gauge(
        Transfer,
        "tcpwatch_round_trip_variation_mean_seconds",
        "The mean of the deviations of round-trip times from the smoothed ones, of held connections.",
    )
    .each(|counts, emit| maybe(counts.live.variations.spread().map(|variation| variation.mean_seconds), emit))
    .json(&[Json::number("live.mean_rtt_variation_seconds").nullable()]),
    // Sums since each connection began, which fall when one ends: no counters, and useless as gauges.
    Family::json_only(
        "How long held connections, each since it began, had something to send or unacknowledged.",
    )
    .each(|counts, emit| {
        if counts.live.connections > 0 {
            emit(&[], Sample::Float(counts.live.busy_seconds()));
        }
    })
    .json(&[Json::number("live.busy_seconds")]),
    Family::json_only("The part of `busy_seconds` in which the peer's receive window was the limit.")
        .each(|counts, emit| limited(&counts.live, chrono::PEER_WINDOW, emit))
        .json(&[Json::number("live.peer_window_limited_seconds")]),
    Family::json_only("The part of `busy_seconds` in which the send buffer was the limit.")
        .each(|counts, emit| limited(&counts.live, chrono::SEND_BUFFER, emit))
        .json(&[Json::number("live.buffer_limited_seconds")]),
    Family::json_only("Segments that held connections received out of order, each since it began.")
        .each(|counts, emit| of_live(&counts.live, counts.live.out_of_order_packets, emit))
        .json(&[Json::at("live.out_of_order_packets")]),
    // Only when asked for: connection tracking has to walk through all of its buckets.
    Family::gauge(
        Nat,
        "tcpwatch_translated_connections",
        "Connections now whose addresses are translated on the way (NAT).",
    )
    .of_sets(translated),
];

/// The registry's families need their help when it is built, before any scrape.
pub(super) const HTTP_HELP: &str = "Time from an HTTP request to the beginning of its answer.";
pub(super) const CPU_HELP: &str = "Total user and system CPU time spent in seconds.";

fn count(count: usize) -> Sample<'static> {
    Sample::Int(count as u64)
}

fn histogram(view: View<'_>) -> Sample<'_> {
    Sample::Histogram(view)
}

fn maybe(value: Option<f64>, emit: &mut Emit<'_>) {
    if let Some(value) = value {
        emit(&[], Sample::Float(value));
    }
}

fn of_live(live: &Live, value: u64, emit: &mut Emit<'_>) {
    if live.connections > 0 {
        emit(&[], Sample::Int(value));
    }
}

fn limited(live: &Live, limit: usize, emit: &mut Emit<'_>) {
    if live.connections > 0 {
        emit(&[], Sample::Float(live.limited_seconds(limit)));
    }
}

fn least(live: &Live, option: usize, emit: &mut Emit<'_>) {
    maybe(live.option_values[option].map(|Range { least, .. }| least), emit);
}

fn most(live: &Live, option: usize, emit: &mut Emit<'_>) {
    maybe(live.option_values[option].map(|Range { most, .. }| most), emit);
}

fn translated(scrape: &Scrape<'_>, emit: &mut EmitOfSet<'_>) {
    let mut counts = BTreeMap::new();
    for conn in scrape.node.tracker.table().iter() {
        if let (Some(group), Some(is_translated)) = (conn.group, scrape.translations.has(conn)) {
            *counts.entry(group).or_default() += usize::from(is_translated);
        }
    }
    for (group, translated) in counts {
        emit(group, &[], count(translated));
    }
}
