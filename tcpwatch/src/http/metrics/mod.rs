//! `/metrics`: everything as numbers, in the Prometheus text format.
//!
//! The families that can be large are written here, straight from the counts; the daemon's own go through
//! the `prometheus` crate.

mod live;

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
};

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use prometheus::{
    Encoder as _, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::{
    events::decode::{FAILURES, Kind, Traffic},
    findings::lingering,
    http::{
        Api, ApiError,
        translations::{self, Nat, Translations},
    },
    kernel::{local_ports::LocalPorts, procfs},
    model::groups::{Closer, Group, GroupId, GroupKey, Role},
    node::{Node, RecordCounts},
    tcp::{
        connect_outcome::Outcome,
        first_close::FirstClose,
        histogram::{DURATION_BUCKETS, Histogram},
        reset_reason::ResetReason,
        stall::Recovery,
        state::TcpState,
        time::Clock,
    },
};

pub(crate) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(crate) async fn answer(api: Api, asked: Nat) -> Result<Response, ApiError> {
    let (text, records, kernel) = encoded(&api, asked.nat).await?;
    let own = own_metrics(records, &kernel, api.live).map_err(|error| ApiError::internal(&error))?;
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE)], text + &own).into_response())
}

async fn encoded(api: &Api, nat: bool) -> Result<(String, RecordCounts, String), ApiError> {
    let translations = translations::ask(api, nat).await?;
    if !translations.problems.is_empty() {
        tracing::debug!(problems = ?translations.problems, "what is translated is not in the metrics, or not all of it");
    }
    api.ask(false, move |node, clock| encode(node, clock, &translations)).await
}

fn encode(node: &Node, clock: Clock, translations: &Translations) -> (String, RecordCounts, String) {
    let mut text = String::with_capacity(1 << 16);
    let tracker = &node.tracker;

    family(&mut text, "tcpwatch_connections", "gauge", "Connections now, by TCP state.");
    for state in TcpState::ALL.iter().filter(|state| **state != TcpState::Close) {
        let _ = writeln!(text, "tcpwatch_connections{{state=\"{state}\"}} {}", tracker.table().count(*state));
    }

    family(
        &mut text,
        "tcpwatch_lingering_connections",
        "gauge",
        "Connections that stand longer than their limit in a state that should be short.",
    );
    for ((state, group), count) in lingering::counts(tracker, &node.linger, clock.now_ns) {
        let labels = labels(tracker.groups().key(group));
        let _ = writeln!(text, "tcpwatch_lingering_connections{{{labels},state=\"{state}\"}} {count}");
    }

    let groups: Vec<(String, &Group)> =
        tracker.groups().iter().map(|group| (labels(&group.key), group)).collect();
    counter(
        &mut text,
        &groups,
        "tcpwatch_connections_opened_total",
        "Connections that reached ESTABLISHED.",
        |group| group.counts.opened,
    );
    write_closes(&mut text, &groups);
    write_idle(&mut text, &groups);
    write_connects(&mut text, &groups);
    write_resets(&mut text, &groups);
    write_discarded(&mut text, &groups);
    write_traffic(&mut text, &groups);
    counter(&mut text, &groups, "tcpwatch_retransmits_total", "Segments retransmitted.", |group| {
        group.counts.retransmitted.total()
    });
    counter(
        &mut text,
        &groups,
        "tcpwatch_retransmitted_bytes_total",
        "Bytes retransmitted, without headers.",
        |group| group.counts.retransmitted.bytes,
    );
    counter(
        &mut text,
        &groups,
        "tcpwatch_spurious_retransmits_total",
        "Segments that the peer said it had received twice.",
        |group| group.counts.retransmitted.spurious,
    );
    family(
        &mut text,
        "tcpwatch_retransmits_by_kind_total",
        "counter",
        "Segments retransmitted, by the kernel's reason; together the same as tcpwatch_retransmits_total.",
    );
    for (labels, group) in &groups {
        for (kind, count) in Kind::ALL.iter().zip(group.counts.retransmitted.segments) {
            if count > 0 {
                let kind = kind.name();
                let _ =
                    writeln!(text, "tcpwatch_retransmits_by_kind_total{{{labels},kind=\"{kind}\"}} {count}");
            }
        }
    }

    write_failures(&mut text, &groups);
    write_stalls(&mut text, &groups);
    write_answers(&mut text, &groups);
    live::write(&mut text, &groups);
    write_local_ports(&mut text, &groups);

    family(
        &mut text,
        "tcpwatch_state_duration_seconds",
        "histogram",
        "How long connections stood in a state, counted when they left it; only where both ends were seen.",
    );
    for (labels, group) in &groups {
        for state in TcpState::ALL {
            if let Some(histogram) = group.counts.duration(*state) {
                let labels = format!("{labels},state=\"{state}\"");
                write_histogram(&mut text, "tcpwatch_state_duration_seconds", &labels, &histogram);
            }
        }
    }
    family(
        &mut text,
        "tcpwatch_label_sets_folded_total",
        "counter",
        "Sets of process, role and peer that found no place of their own and are summed in ~other.",
    );
    let _ = writeln!(text, "tcpwatch_label_sets_folded_total {}", tracker.groups().folded);

    if !translations.is_empty() {
        write_translated(&mut text, node, translations);
    }
    write_sweeps(&mut text, node);
    (text, node.records, node.identity.kernel.clone())
}

fn write_translated(text: &mut String, node: &Node, translations: &Translations) {
    let tracker = &node.tracker;
    let mut counts: BTreeMap<GroupId, usize> = BTreeMap::new();
    for conn in tracker.table().iter() {
        if let (Some(group), Some(is_translated)) = (conn.group, translations.has(conn)) {
            *counts.entry(group).or_default() += usize::from(is_translated);
        }
    }
    gauge(
        text,
        "tcpwatch_translated_connections",
        "Connections now whose addresses are translated on the way (NAT).",
        counts.into_iter().map(|(group, count)| (labels(tracker.groups().key(group)), count)),
    );
}

fn write_sweeps(text: &mut String, node: &Node) {
    family(
        text,
        "tcpwatch_repairs_total",
        "counter",
        "Entries that a sweep of all sockets put right because no record told of the change.",
    );
    let repairs = node.tracker.repairs();
    for (kind, count) in
        [("appeared", repairs.appeared), ("changed", repairs.changed), ("vanished", repairs.vanished)]
    {
        let _ = writeln!(text, "tcpwatch_repairs_total{{kind=\"{kind}\"}} {count}");
    }
    family(text, "tcpwatch_sweeps_total", "counter", "Sweeps of all sockets.");
    let _ = writeln!(text, "tcpwatch_sweeps_total {}", node.sweeps.done);
    family(
        text,
        "tcpwatch_sweep_cpu_seconds_total",
        "counter",
        "Processor time that the sweeps took to look at all sockets.",
    );
    let _ = writeln!(text, "tcpwatch_sweep_cpu_seconds_total {}", node.sweeps.cost.as_secs_f64());
}

fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn counter(
    text: &mut String,
    groups: &[(String, &Group)],
    name: &str,
    help: &str,
    value: impl Fn(&Group) -> u64,
) {
    family(text, name, "counter", help);
    for (labels, group) in groups {
        let _ = writeln!(text, "{name}{{{labels}}} {}", value(group));
    }
}

fn gauge(
    text: &mut String,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (impl Display, impl Display)>,
) {
    family(text, name, "gauge", help);
    for (labels, value) in values {
        let _ = writeln!(text, "{name}{{{labels}}} {value}");
    }
}

fn write_closes(text: &mut String, groups: &[(String, &Group)]) {
    let name = "tcpwatch_connections_closed_total";
    let help = "Connections that had been ESTABLISHED and reached CLOSE, by who closed first; the kernel may keep their \
                TIME_WAIT.";
    family(text, name, "counter", help);
    for (labels, group) in groups {
        for (first, count) in FirstClose::ALL.iter().zip(group.counts.closed) {
            let _ = writeln!(text, "{name}{{{labels},first=\"{}\"}} {count}", first.name());
        }
    }
}

/// Only those that there are. So of failures, stalls, answers and resets.
fn write_idle(text: &mut String, groups: &[(String, &Group)]) {
    let name = "tcpwatch_idle_before_close_seconds";
    let help = "How long connections that had been idle for 32 ticks of the kernel had neither sent nor received data \
                when one side closed them.";
    family(text, name, "histogram", help);
    for (labels, group) in groups {
        for (closer, idle) in Closer::ALL.iter().zip(&group.counts.idle) {
            if let Some(idle) = idle {
                write_histogram(text, name, &format!("{labels},closed=\"{}\"", closer.name()), idle);
            }
        }
    }
}

fn write_traffic(text: &mut String, groups: &[(String, &Group)]) {
    let help = "Data sent, each byte once: by connections that ended, and by those that live as of the latest sweep.";
    counter(text, groups, "tcpwatch_sent_bytes_total", help, |group| group.counts.traffic.sent_bytes);
    let help = "Data received, in the same way.";
    counter(text, groups, "tcpwatch_received_bytes_total", help, |group| group.counts.traffic.received_bytes);
    let name = "tcpwatch_after_close_bytes_total";
    let help = "Of these, received after the local side's FIN, and sent after the peer's.";
    family(text, name, "counter", help);
    for (labels, group) in groups {
        let Traffic { sent_bytes, received_bytes } = group.counts.after_close;
        for (direction, bytes) in [("sent", sent_bytes), ("received", received_bytes)] {
            if bytes > 0 {
                let _ = writeln!(text, "{name}{{{labels},direction=\"{direction}\"}} {bytes}");
            }
        }
    }
}

fn write_failures(text: &mut String, groups: &[(String, &Group)]) {
    let name = "tcpwatch_retransmits_failed_total";
    let help = "Times that the kernel tried to retransmit and could not send, by errno.";
    family(text, name, "counter", help);
    for (labels, group) in groups {
        for (errno, count) in FAILURES.iter().zip(group.counts.failures).filter(|(_, count)| *count > 0) {
            let _ = writeln!(text, "{name}{{{labels},errno=\"{errno}\"}} {count}");
        }
    }
}

fn write_stalls(text: &mut String, groups: &[(String, &Group)]) {
    let stalls = || {
        groups.iter().filter_map(|(labels, group)| Some((labels, group.counts.stalls.as_ref()?))).flat_map(
            |(labels, stalls)| {
                let some = Recovery::ALL.iter().zip(&**stalls).filter(|(_, one)| one.durations.count() > 0);
                some.map(move |(recovery, one)| (format!("{labels},recovery=\"{}\"", recovery.name()), one))
            },
        )
    };
    let name = "tcpwatch_hol_blocked_seconds";
    let help = "How long delivery stood still behind a lost segment, by what made it good; counted when it was. Of what \
                was sent: from the segment's first sending until it was acknowledged. Of what was received \
                (recovery=\"peer\"): how long data waited in the out-of-order queue.";
    family(text, name, "histogram", help);
    for (labels, blocked) in stalls() {
        write_histogram(text, name, &labels, &blocked.durations);
    }
    let name = "tcpwatch_hol_blocked_bytes_total";
    family(text, name, "counter", "Bytes behind the lost segments of these, which waited.");
    for (labels, blocked) in stalls() {
        let _ = writeln!(text, "{name}{{{labels}}} {}", blocked.bytes);
    }
}

fn write_answers(text: &mut String, groups: &[(String, &Group)]) {
    let answers =
        || groups.iter().filter_map(|(labels, group)| Some((labels, group.counts.answers.as_ref()?)));
    let name = "tcpwatch_answer_seconds";
    let help = "From the last data that a client sent to the last that it received in answer, sampled by the sweeps; \
                those of a tick of the kernel or more.";
    family(text, name, "histogram", help);
    for (labels, answers) in answers() {
        write_histogram(text, name, labels, &answers.seconds);
    }
    let name = "tcpwatch_answer_round_trip_seconds";
    let help = "The smoothed round-trip time of the connections sampled for tcpwatch_answer_seconds, at that moment.";
    family(text, name, "histogram", help);
    for (labels, answers) in answers() {
        write_histogram(text, name, labels, &answers.round_trips);
    }
}

/// A client's connections each hold one, also in TIME_WAIT.
fn write_local_ports(text: &mut String, groups: &[(String, &Group)]) {
    let name = "tcpwatch_local_ports_in_use";
    let help = "Local ports that clients hold toward the peer, those of TIME_WAIT included, from all source addresses \
                and in all network namespaces; /ports tells them apart.";
    let clients = groups.iter().filter(|(_, group)| group.key.role == Role::Client);
    gauge(text, name, help, clients.map(|(labels, group)| (labels, group.held())));
}

fn write_resets(text: &mut String, groups: &[(String, &Group)]) {
    let name = "tcpwatch_resets_total";
    family(text, name, "counter", "Resets of connections sent and received, by reason.");
    for (labels, group) in groups {
        for (reset, count) in ResetReason::ALL.iter().zip(group.counts.resets).filter(|(_, count)| *count > 0)
        {
            let (direction, reason) = (reset.direction().name(), reset.name());
            let _ =
                writeln!(text, "{name}{{{labels},direction=\"{direction}\",reason=\"{reason}\"}} {count}");
        }
    }
}

fn write_discarded(text: &mut String, groups: &[(String, &Group)]) {
    let name = "tcpwatch_reset_discarded_bytes_total";
    let help =
        "Data that these threw away: received and not read, written and not sent, sent and not acknowledged.";
    family(text, name, "counter", help);
    for (labels, group) in groups {
        for (data, bytes) in group.counts.discarded.parts() {
            if bytes > 0 {
                let _ = writeln!(text, "{name}{{{labels},data=\"{data}\"}} {bytes}");
            }
        }
    }
}

/// Of the groups that connect.
fn write_connects(text: &mut String, groups: &[(String, &Group)]) {
    let connecting = || groups.iter().filter(|(_, group)| group.counts.attempts > 0);
    family(
        text,
        "tcpwatch_connect_attempts_total",
        "counter",
        "Connects that began, and those from before the start that are over.",
    );
    for (labels, group) in connecting() {
        let _ = writeln!(text, "tcpwatch_connect_attempts_total{{{labels}}} {}", group.counts.attempts);
    }
    family(text, "tcpwatch_connects_total", "counter", "Connects that are over, by what became of them.");
    for (labels, group) in connecting() {
        for (outcome, count) in Outcome::ALL.iter().zip(group.counts.connects) {
            let name = outcome.name();
            let _ = writeln!(text, "tcpwatch_connects_total{{{labels},outcome=\"{name}\"}} {count}");
        }
    }
    family(
        text,
        "tcpwatch_connect_duration_seconds",
        "histogram",
        "From connect() to the peer's answer, of those it accepted; only where both ends were seen.",
    );
    for (labels, group) in connecting() {
        if let Some(histogram) = &group.counts.durations[TcpState::SynSent.index()] {
            write_histogram(text, "tcpwatch_connect_duration_seconds", labels, histogram);
        }
    }
}

fn write_histogram(text: &mut String, name: &str, labels: &str, histogram: &Histogram) {
    let mut below = 0;
    for (index, count) in histogram.buckets.iter().enumerate() {
        below += count;
        let _ = match DURATION_BUCKETS.get(index) {
            Some(bound) => writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}"),
            None => writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {below}"),
        };
    }
    let _ = writeln!(text, "{name}_sum{{{labels}}} {}", histogram.sum_seconds());
    let _ = writeln!(text, "{name}_count{{{labels}}} {below}");
}

fn labels(key: &GroupKey) -> String {
    let process = escape(key.process.as_deref().unwrap_or(""));
    format!("process=\"{process}\",role=\"{}\",peer=\"{}\"", key.role, key.peer)
}

/// As the text format wants label values.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The daemon's own metrics, made from the present counts: the counting itself happens elsewhere.
fn own_metrics(records: RecordCounts, kernel: &str, live: bool) -> Result<String, prometheus::Error> {
    let registry = Registry::new();
    let counter = |name: &str, help: &str, value: u64| {
        let counter = IntCounter::new(name, help)?;
        counter.inc_by(value);
        registry.register(Box::new(counter))
    };
    counter(
        "tcpwatch_records_received_total",
        "Records read from the kernel's ring buffer.",
        records.received,
    )?;
    counter("tcpwatch_records_malformed_total", "Records that could not be decoded.", records.malformed)?;

    let lost = IntCounterVec::new(
        Opts::new("tcpwatch_records_lost_total", "Records lost in the kernel, by cause."),
        &["cause"],
    )?;
    lost.with_label_values(&["ring_full"]).inc_by(records.lost.ring_full);
    lost.with_label_values(&["run_skipped"]).inc_by(records.lost.run_skipped);
    registry.register(Box::new(lost))?;
    counter(
        "tcpwatch_records_held_back_total",
        "Records of retransmits and stalls not written because that socket's had been told of a moment ago; none is \
         uncounted.",
        records.unrecorded.held_back,
    )?;

    let resets = IntCounterVec::new(
        Opts::new(
            "tcpwatch_resets_without_connection_total",
            "Resets sent in answer to segments of no connection. Before Linux 6.10 the kernel tells of no_socket none.",
        ),
        &["reason"],
    )?;
    resets.with_label_values(&["no_socket"]).inc_by(records.unrecorded.no_socket_resets);
    resets.with_label_values(&["listener"]).inc_by(records.unrecorded.listener_resets);
    resets.with_label_values(&["policy"]).inc_by(records.unrecorded.policy_resets);
    registry.register(Box::new(resets))?;

    if let Some(ports) = live.then(LocalPorts::read).and_then(Result::ok) {
        let available = IntGauge::new(
            "tcpwatch_local_ports_available",
            "Local ports that the kernel chooses from in tcpwatch's own network namespace; others may have their own, \
             see /ports.",
        )?;
        available.set(i64::try_from(ports.count()).unwrap_or(i64::MAX));
        registry.register(Box::new(available))?;
    }

    let build = IntGaugeVec::new(
        Opts::new("tcpwatch_build_info", "Always 1; the labels say what runs where."),
        &["version", "kernel"],
    )?;
    build.with_label_values(&[env!("CARGO_PKG_VERSION"), kernel]).set(1);
    registry.register(Box::new(build))?;

    if let Ok(usage) = procfs::own_usage() {
        let rss = IntGauge::new("process_resident_memory_bytes", "Resident memory of tcpwatch.")?;
        rss.set(i64::try_from(usage.rss_bytes).unwrap_or(i64::MAX));
        registry.register(Box::new(rss))?;
        let cpu = prometheus::Counter::new("process_cpu_seconds_total", "User and system time of tcpwatch.")?;
        cpu.inc_by(usage.cpu_seconds);
        registry.register(Box::new(cpu))?;
    }
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_process_name_cannot_break_the_format() {
        assert_eq!(escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
