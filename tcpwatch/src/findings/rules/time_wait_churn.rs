//! `time_wait_churn`: a process opens a connection for each request to one server, and closes it first.

use std::net::Ipv6Addr;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    events::frame::NamespaceSettings,
    findings::{
        Rule, Severity,
        observation::{Evidence, Group, Observation, Observations, Subject, Ties, View},
        rules::Spec,
        thresholds::Threshold,
    },
    model::{
        groups::{Groups, Peer, Role},
        table::Conn,
        tracker::MINISOCK_NS,
    },
    tcp::{first_close::FirstClose, state::TcpState},
};

const TIME_WAITS: Threshold = Threshold {
    name: "time_wait_churn.time_waits",
    default: 200.0,
    reason: "3.4 connections a second, each for one request: a pool would spare their handshakes",
};
const LIFE_SECONDS: Threshold = Threshold {
    name: "time_wait_churn.life_seconds",
    default: 5.0,
    reason: "connections that are kept live longer",
};
const SHARE_PERCENT: Threshold = Threshold {
    name: "time_wait_churn.share_percent",
    default: 80.0,
    reason: "of the connections this side closed first: elsewhere the other side has the TIME_WAIT",
};
const PORTS_PERCENT: Threshold = Threshold {
    name: "time_wait_churn.ports_percent",
    default: 20.0,
    reason: "of the ports toward this server: a peak of five times as much fills them, and connects fail",
};

/// TIME_WAIT that are looked at: the oldest. Of more, the rest counts as those.
const MAX_LOOKED_AT: usize = 5_000;
const BURST_NS: u64 = 10_000_000_000;
const MILLISECOND_NS: u64 = 1_000_000;

pub(super) const SPEC: Spec = Spec {
    rule: Rule::TimeWaitChurn,
    observe,
    thresholds: &[&TIME_WAITS, &LIFE_SECONDS, &SHARE_PERCENT, &PORTS_PERCENT],
    signals: &[],
    hold_seconds: 20,
    resolution_seconds: 2.0,
    evidence: &["connections_per_second", "time_waits", "life", "ports_in_use", "ports_available", "needed"],
    page: include_str!("../../../../docs/findings/time_wait_churn.md"),
    explanation: "The process opens a connection for each request and closes it itself. The side that closes first keeps the \
                  connection in TIME_WAIT for a minute, and with it a local port toward that server. It costs a handshake for each \
                  request, and at a few hundred a second the ports run out.",
};

fn observe(view: &View<'_>, out: &mut Observations) {
    let table = view.tracker.table();
    let all = table.count(TcpState::TimeWait);
    let limit = view.thresholds.count(&TIME_WAITS);
    if all < limit {
        return;
    }
    let scale = all as f64 / all.min(MAX_LOOKED_AT) as f64;
    let life_ns = view.thresholds.nanos(&LIFE_SECONDS);
    let is_short = |conn: &&Conn| conn.role == Role::Client && life_ns_of(conn) <= life_ns;
    let looked_at = table.in_state(TcpState::TimeWait).take(MAX_LOOKED_AT).filter(is_short);
    for (subject, group) in Group::by_subject(view.tracker, looked_at) {
        if group.conns.len() as f64 * scale < limit as f64
            || closed_first_percent(view, &group) < view.thresholds.get(&SHARE_PERCENT)
        {
            continue;
        }
        out.push(observation(view, subject, &group, scale));
    }
}

/// From its beginning to its TIME_WAIT.
fn life_ns_of(conn: &Conn) -> u64 {
    conn.since_ns().saturating_sub(conn.opened_ns())
}

/// Of the connections of the same name and server that are over, those that this side closed first.
fn closed_first_percent(view: &View<'_>, group: &Group<'_>) -> f64 {
    let wanted: FxHashSet<_> = group.conns.iter().filter_map(|conn| conn.group).collect();
    let of_group = view.tracker.groups().ids().filter(|(id, _)| *id != Groups::OTHER && wanted.contains(id));
    let (local, closed) = of_group.fold((0, 0), |(local, closed), (_, group)| {
        (local + group.counts.closed[FirstClose::Local as usize], closed + group.counts.closed())
    });
    // Where they found no group of their own, their TIME_WAIT alone says who closed.
    if closed == 0 { 100.0 } else { 100.0 * local as f64 / closed as f64 }
}

fn observation(view: &View<'_>, subject: Subject, group: &Group<'_>, scale: f64) -> Observation {
    let time_waits = group.conns.len() as f64 * scale;
    let (oldest_ns, newest_ns) = (group.conns[0].since_ns(), group.conns[group.conns.len() - 1].since_ns());
    // Those that were not looked at came later. A burst is told as if it had lasted for a while.
    let least_ns = if scale > 1.0 { MILLISECOND_NS } else { BURST_NS };
    let span_ns = newest_ns.saturating_sub(oldest_ns).max(least_ns);
    let rate = (group.conns.len() - 1) as f64 * 1e9 / span_ns as f64;
    let mut lives: Vec<u64> = group.conns.iter().map(|conn| life_ns_of(conn)).collect();
    lives.sort_unstable();
    let life = lives[lives.len() / 2] as f64 / 1e9;
    let mean = lives.iter().sum::<u64>() as f64 / lives.len() as f64 / 1e9;
    // Connections that are open at a time (Little's law): a pool of that many would do.
    let needed = (rate * mean).ceil().max(1.0);
    let (in_use, source) = fullest(group);
    let in_use = in_use as f64 * scale;
    let settings = view.tracker.namespace(subject.netns);
    let available = settings.and_then(NamespaceSettings::local_port_count);
    let come_back = settings.and_then(|settings| settings.tw_reuse).is_some_and(|reuse| {
        reuse == 1 || (reuse == 2 && source.is_some_and(|source| source.to_canonical().is_loopback()))
    });
    let percent = available.map_or(0.0, |available| 100.0 * in_use / available.max(1) as f64);
    let is_scarce = percent >= view.thresholds.get(&PORTS_PERCENT) && !come_back;
    let mut evidence = vec![
        Evidence::new("connections_per_second", rate, "per_second"),
        Evidence::new("time_waits", time_waits, "connections").against(view.thresholds.get(&TIME_WAITS)),
        Evidence::new("life", life, "seconds"),
        Evidence::new("needed", needed, "connections"),
        Evidence::new("ports_in_use", in_use, "ports"),
    ];
    evidence.extend(available.map(|count| Evidence::new("ports_available", count as f64, "ports")));
    let (name, peer) = (subject.name().to_owned(), subject.peer_text());
    let ports = match available {
        Some(available) if is_scarce => {
            format!("; they take {percent:.0} % of the {available} ports toward it")
        }
        _ => String::new(),
    };
    let destination = match subject.peer {
        Peer::Remote(addr, port) => Some((addr, port)),
        _ => None,
    };
    Observation {
        rule: SPEC.rule,
        severity: if is_scarce { Severity::Warning } else { Severity::Info },
        since_ns: oldest_ns,
        // Before that their TIME_WAIT is over.
        since_is_lower_bound: view.now_ns.saturating_sub(oldest_ns) + BURST_NS > MINISOCK_NS,
        count: time_waits as u64,
        evidence,
        summary: format!(
            "{name} opens {rate:.1} connections a second to {peer}, each for {life:.2} s, and closes them first: {time_waits:.0} \
             are in TIME_WAIT{ports}."
        ),
        next_step: format!(
            "Keep connections: {needed:.0} would do for this rate. Read answers to their end before close, and let the HTTP client \
             keep as many idle ones (in Go, MaxIdleConnsPerHost is 2 by default)."
        ),
        examples: group.examples(),
        members: group.members(view.tracker),
        ties: Ties { destination, ..Ties::default() },
        subject,
    }
}

/// The most connections from one source address to the server, and that address.
fn fullest(group: &Group<'_>) -> (usize, Option<Ipv6Addr>) {
    let mut by_source: FxHashMap<Ipv6Addr, usize> = FxHashMap::default();
    for conn in &group.conns {
        *by_source.entry(conn.local.addr).or_default() += 1;
    }
    let most = by_source.into_iter().max_by_key(|(addr, count)| (*count, *addr));
    most.map_or((0, None), |(addr, count)| (count, Some(addr)))
}
