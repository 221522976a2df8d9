//! `port_exhaustion`: no local port is left, or soon none, for connects from one address to one server.

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
        groups::{Peer, Role},
        table::Conn,
    },
    tcp::{connect_outcome::Outcome, state::TcpState},
};

const INFO_PERCENT: Threshold = Threshold {
    name: "port_exhaustion.info_percent",
    default: 50.0,
    reason: "connect() tries the ports of one parity first: from here on it searches half of the range in vain",
};
const WARNING_PERCENT: Threshold = Threshold {
    name: "port_exhaustion.warning_percent",
    default: 80.0,
    reason: "a peak of a quarter more fills it",
};
const CRITICAL_PERCENT: Threshold = Threshold {
    name: "port_exhaustion.critical_percent",
    default: 95.0,
    reason: "connects are slow already, and about to fail",
};
const SMALL_RANGE: Threshold = Threshold {
    name: "port_exhaustion.small_range_ports",
    default: 100.0,
    reason: "so few are set on purpose: only a connect that failed says that they are too few",
};

/// How far back connects that found no port are counted.
const FAILED_NS: u64 = 60_000_000_000;
/// How long after the last of them it is still said.
const LATELY_NS: u64 = 300_000_000_000;

pub(super) const SPEC: Spec = Spec {
    rule: Rule::PortExhaustion,
    observe,
    thresholds: &[&INFO_PERCENT, &WARNING_PERCENT, &CRITICAL_PERCENT, &SMALL_RANGE],
    signals: &[],
    hold_seconds: 30,
    resolution_seconds: 2.0,
    evidence: &[
        "ports_in_use",
        "ports_available",
        "percent",
        "failed_last_minute",
        "established",
        "time_wait",
        "close_wait",
    ],
    page: include_str!("../../../../docs/findings/port_exhaustion.md"),
    explanation: "Each connection from one address to one server needs a local port of its own, and keeps it through TIME_WAIT. \
                  The kernel chooses from net.ipv4.ip_local_port_range; when all of those are taken toward the server, connect() fails \
                  with EADDRNOTAVAIL. Which states the connections are in decides the cure.",
};

/// Network namespace, source and server.
type Path = (u32, Ipv6Addr, Peer);

#[derive(Default)]
struct Used<'a> {
    conns: Vec<&'a Conn>,
    failed: Vec<&'a Conn>,
    failed_last_ns: u64,
}

/// From so many connections on the table is looked through each 10 s only.
const MANY: usize = 100_000;
const SECOND_NS: u64 = 1_000_000_000;

fn observe(view: &View<'_>, out: &mut Observations) {
    if view.tracker.table().len() > MANY && view.now_ns / SECOND_NS % 10 >= 2 {
        return;
    }
    let failed = failed(view);
    let full = full_servers(view);
    if failed.is_empty() && full.is_empty() {
        return;
    }
    let peers: FxHashSet<Peer> = full.into_iter().chain(failed.iter().map(|(conn, _)| conn.peer())).collect();
    let mut paths: FxHashMap<Path, Used<'_>> = FxHashMap::default();
    for conn in view.tracker.table().iter().filter(|conn| conn.role == Role::Client && conn.local.port != 0) {
        let peer = conn.peer();
        let settings = view.tracker.namespace(conn.netns);
        if peers.contains(&peer) && settings.is_none_or(|settings| settings.is_local_port(conn.local.port)) {
            paths.entry((conn.netns, conn.local.addr, peer)).or_default().conns.push(conn);
        }
    }
    for (conn, ended_ns) in failed {
        for used in paths_of(&mut paths, conn) {
            used.failed_last_ns = used.failed_last_ns.max(ended_ns);
            if ended_ns + FAILED_NS > view.now_ns {
                used.failed.push(conn);
            }
        }
    }
    let mut worst: FxHashMap<Subject, Observation> = FxHashMap::default();
    for ((netns, source, _), used) in paths {
        let Some(observation) = observation(view, netns, source, used) else { continue };
        let rank = |one: &Observation| (one.severity, one.count);
        if worst.get(&observation.subject).is_none_or(|other| rank(other) < rank(&observation)) {
            worst.insert(observation.subject.clone(), observation);
        }
    }
    for one in worst.into_values() {
        out.push(one);
    }
}

/// Connects that found no port, and when: the source address of one that was not bound is not known.
fn failed<'a>(view: &View<'a>) -> Vec<(&'a Conn, u64)> {
    let any = view.tracker.groups().iter().any(|group| group.counts.connects[Outcome::NoPort as usize] > 0);
    if !any {
        return Vec::new();
    }
    let from_ns = view.now_ns.saturating_sub(LATELY_NS);
    let lately = view.tracker.ended().iter().rev().take_while(|ended| ended.ended_ns >= from_ns);
    let no_port = lately.filter(|ended| ended.conn.connect == Some(Outcome::NoPort));
    no_port.map(|ended| (&ended.conn, ended.ended_ns)).collect()
}

/// The servers to which there are enough connections for the smallest range of ports to be half full.
fn full_servers(view: &View<'_>) -> Vec<Peer> {
    let least = view.thresholds.count(&SMALL_RANGE);
    let ranges = view.tracker.all_settings().filter_map(NamespaceSettings::local_port_count);
    let Some(smallest) = ranges.filter(|count| *count >= least).min() else { return Vec::new() };
    let limit = (view.thresholds.get(&INFO_PERCENT) / 100.0 * smallest as f64) as usize;
    let mut held: FxHashMap<Peer, usize> = FxHashMap::default();
    for group in view.tracker.groups().iter().filter(|group| group.key.role == Role::Client) {
        *held.entry(group.key.peer).or_default() += group.held() as usize;
    }
    if view.tracker.groups().iter().any(|group| group.key.is_other() && group.held() as usize >= limit.max(1))
    {
        // What found no group of its own is to be counted here.
        held.clear();
        for conn in view.tracker.table().iter().filter(|conn| conn.role == Role::Client) {
            *held.entry(conn.peer()).or_default() += 1;
        }
    }
    held.into_iter().filter(|(_, count)| *count >= limit.max(1)).map(|(peer, _)| peer).collect()
}

/// The paths on which a connect failed: of that source or, where it had none yet, of each.
fn paths_of<'p, 'a>(
    paths: &'p mut FxHashMap<Path, Used<'a>>,
    conn: &'a Conn,
) -> impl Iterator<Item = &'p mut Used<'a>> + use<'p, 'a> {
    let (netns, local, peer) = (conn.netns, conn.local, conn.peer());
    paths.iter_mut().filter_map(move |((there, source, server), used)| {
        let same = (*there, *server) == (netns, peer) && (local.is_wildcard() || *source == local.addr);
        same.then_some(used)
    })
}

fn observation(view: &View<'_>, netns: u32, source: Ipv6Addr, used: Used<'_>) -> Option<Observation> {
    let Used { mut conns, failed, failed_last_ns } = used;
    conns.sort_unstable_by_key(|conn| (conn.opened_ns(), conn.cookie));
    let available = view.tracker.namespace(netns)?.local_port_count()?;
    let percent = 100.0 * conns.len() as f64 / available.max(1) as f64;
    let is_small = available < view.thresholds.count(&SMALL_RANGE);
    let has = |threshold| percent >= view.thresholds.get(threshold);
    let lately = failed_last_ns > 0 && failed_last_ns + LATELY_NS > view.now_ns;
    let severity = match () {
        () if (!failed.is_empty() && has(&INFO_PERCENT)) || (has(&CRITICAL_PERCENT) && !is_small) => {
            Severity::Critical
        }
        () if !failed.is_empty() || (lately && has(&INFO_PERCENT)) => Severity::Warning,
        () if is_small => return None,
        () if has(&WARNING_PERCENT) => Severity::Warning,
        () if has(&INFO_PERCENT) => Severity::Info,
        () => return None,
    };
    // Who holds most of them; a process that only failed is a victim.
    let holders = Group::by_subject(view.tracker, conns.iter().copied());
    let (subject, holder) = holders.into_iter().max_by_key(|(subject, group)| {
        (group.conns.len(), group.conns.first().map(|conn| conn.cookie), subject.netns)
    })?;
    let count = |state| conns.iter().filter(|conn| conn.state() == state).count();
    let states =
        [TcpState::Established, TcpState::TimeWait, TcpState::CloseWait].map(|state| (state, count(state)));
    let (most, _) = states.into_iter().max_by_key(|(_, count)| *count)?;
    let (name, peer, source) = (subject.name().to_owned(), subject.peer_text(), source.to_canonical());
    let failures = match failed.len() {
        0 => String::new(),
        1 => "; 1 connect has found none within a minute".to_owned(),
        count => format!("; {count} connects have found none within a minute"),
    };
    let in_use = conns.len();
    let is_full = has(&INFO_PERCENT);
    let summary = if is_full {
        format!(
            "{in_use} of {available} local ports ({percent:.0} %) are in use from {source} to {peer}, most of them by \
             {name}{failures}."
        )
    } else {
        format!(
            "Connects from {source} to {peer} find no port although {} are free{failures}: the sockets are bound before they \
             connect, or have a range of their own.",
            available - in_use
        )
    };
    let next_step = match most {
        _ if !is_full => {
            "See whether the client calls bind() before connect(): IP_BIND_ADDRESS_NO_PORT leaves the choice of the port to \
             connect(). /ports shows who has ports, toward whom."
                .to_owned()
        }
        TcpState::TimeWait => format!("Most are in TIME_WAIT: let {name} keep its connections instead of one for each request."),
        TcpState::CloseWait => format!("Most are in CLOSE_WAIT: {name} does not close what {peer} has closed."),
        _ => format!(
            "Most are open: {name} holds more connections than it may need. More ports (net.ipv4.ip_local_port_range), source or \
             destination addresses give room."
        ),
    };
    // When the range was half full.
    let half = (view.thresholds.get(&INFO_PERCENT) as usize * available / 100).saturating_sub(1);
    let since_ns = conns.get(half).filter(|_| is_full).map(|conn| conn.opened_ns());
    let destination = match subject.peer {
        Peer::Remote(addr, port) => Some((addr, port)),
        _ => None,
    };
    Some(Observation {
        rule: SPEC.rule,
        severity,
        since_ns: since_ns.unwrap_or(failed_last_ns),
        since_is_lower_bound: false,
        count: in_use as u64,
        evidence: vec![
            Evidence::new("ports_in_use", in_use as f64, "ports"),
            Evidence::new("ports_available", available as f64, "ports"),
            Evidence::new("percent", percent, "percent").against(view.thresholds.get(&WARNING_PERCENT)),
            Evidence::new("failed_last_minute", failed.len() as f64, "connects"),
            Evidence::new("established", states[0].1 as f64, "connections"),
            Evidence::new("time_wait", states[1].1 as f64, "connections"),
            Evidence::new("close_wait", states[2].1 as f64, "connections"),
        ],
        summary,
        next_step,
        examples: holder.examples(),
        members: holder.members(view.tracker),
        ties: Ties { sockets: holder.sockets(), destination, ..Ties::default() },
        subject,
    })
}
