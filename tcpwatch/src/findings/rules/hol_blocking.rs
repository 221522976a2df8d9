//! `hol_blocking`: lost segments hold back what was sent behind them, again and again or for long.

use std::net::Ipv6Addr;

use rustc_hash::{FxHashMap, FxHashSet};
use tcpwatch_common::errno::ETIMEDOUT;

use crate::{
    findings::{
        Rule, Severity,
        evidence::OtherEnds,
        observation::{Evidence, Group, Observation, Observations, Subject, Ties, View, connections},
        rules::Spec,
        thresholds::Threshold,
    },
    model::{
        groups::Role,
        table::Conn,
        tracker::troubles::{KEPT_NS, LEAST_NS, Present, Stall, Trouble},
    },
    tcp::stall::Recovery,
};

const LONG_SECONDS: Threshold = Threshold {
    name: "hol_blocking.long_seconds",
    default: 0.2,
    reason: "the least retransmission time-out of the kernel (TCP_RTO_MIN); a fast recovery takes about two round trips, so \
             it counts only where it takes longer than that",
};
const MOMENTS: Threshold = Threshold {
    name: "hol_blocking.moments",
    default: 3.0,
    reason: "in a minute; stalls that begin within 50 ms count once, so a pause of the machine or of the whole network is one",
};
const SHARE_PERCENT: Threshold = Threshold {
    name: "hol_blocking.share_percent",
    default: 1.0,
    reason: "one request in a hundred feels it",
};
const PRESENT_SECONDS: Threshold = Threshold {
    name: "hol_blocking.present_seconds",
    default: 1.5,
    reason: "three time-outs unanswered: 0.2, 0.4 and 0.8 s",
};
const WARNING_PERCENT: Threshold = Threshold {
    name: "hol_blocking.warning_percent",
    default: 5.0,
    reason: "one request in twenty feels it",
};
const WARNING_SECONDS: Threshold = Threshold {
    name: "hol_blocking.warning_seconds",
    default: 3.0,
    reason: "the fourth time-out in a row, and longer than most people wait for a page",
};
const CRITICAL_PERCENT: Threshold = Threshold {
    name: "hol_blocking.critical_percent",
    default: 25.0,
    reason: "for a minute, on two connections or more: the path hardly works",
};
const CRITICAL_SECONDS: Threshold = Threshold {
    name: "hol_blocking.critical_seconds",
    default: 10.0,
    reason: "that all connections stand still: nothing gets through",
};
const CLIENTS_PERCENT: Threshold = Threshold {
    name: "hol_blocking.clients_percent",
    default: 50.0,
    reason: "of a server's connections: if fewer have stalls, it is the networks of those clients, and no fault here",
};

pub(super) const SPEC: Spec = Spec {
    rule: Rule::HolBlocking,
    observe,
    thresholds: &[
        &LONG_SECONDS,
        &MOMENTS,
        &SHARE_PERCENT,
        &PRESENT_SECONDS,
        &WARNING_PERCENT,
        &WARNING_SECONDS,
        &CRITICAL_PERCENT,
        &CRITICAL_SECONDS,
        &CLIENTS_PERCENT,
    ],
    signals: &["retransmit"],
    hold_seconds: 6,
    resolution_seconds: 2.0,
    evidence: &[
        "long_stalls",
        "moments",
        "stalled_share",
        "longest",
        "held",
        "retransmitted",
        "excess_over_round_trip",
        "by_timeout",
        "by_fast_recovery",
        "by_loss_probe",
        "received_side",
        "not_recovered",
        "standing_still_now",
    ],
    page: include_str!("../../../../docs/findings/hol_blocking.md"),
    explanation: "TCP delivers in order. While a lost segment is missing, all that was sent behind it waits in the receiver's \
                  kernel: every stream of a multiplexed connection (HTTP/2, AMQP, a redis client) stands still at once. \
                  Averages hide it.",
};

/// Stalls that begin this close to each other have one reason.
const MOMENT_NS: u64 = 50_000_000;
/// No stall for this long, or for three times the usual time between two: it is over.
const QUIET_NS: u64 = 4_000_000_000;
/// A stall that was reported this long ago and is not over is more than the tail of a pause.
const SETTLED_NS: u64 = 1_000_000_000;

fn observe(view: &View<'_>, out: &mut Observations) {
    let troubles = view.tracker.troubles();
    if troubles.values().all(|trouble| trouble.stalls.is_empty() && trouble.present.is_none()) {
        return;
    }
    let mut by_subject: FxHashMap<Subject, Found<'_>> = FxHashMap::default();
    let mut gone: FxHashSet<u64> = FxHashSet::default();
    for (cookie, trouble) in troubles {
        match view.tracker.table().find(*cookie) {
            Some(key) => add(
                view,
                &mut by_subject,
                Held { conn: view.tracker.table().get(key), trouble, ended_ns: None },
            ),
            None => drop(gone.insert(*cookie)),
        }
    }
    let lately = view.tracker.ended().iter().rev();
    let lately = lately.take_while(|ended| ended.ended_ns.saturating_add(KEPT_NS) >= view.now_ns);
    for ended in lately.take_while(|_| !gone.is_empty()).filter(|ended| gone.contains(&ended.conn.cookie)) {
        let trouble = &troubles[&ended.conn.cookie];
        add(view, &mut by_subject, Held { conn: &ended.conn, trouble, ended_ns: Some(ended.ended_ns) });
    }
    let wanted: Vec<(Subject, Found<'_>)> =
        by_subject.into_iter().filter(|(_, found)| found.is_open(view)).collect();
    let all = wanted.iter().flat_map(|(_, found)| &found.group.conns).copied();
    let other_ends = OtherEnds::find(view.tracker, all);
    for (subject, mut found) in wanted {
        found.group.conns.sort_unstable_by_key(|conn| (conn.opened_ns(), conn.cookie));
        out.push(found.observation(view, subject, &other_ends));
    }
}

/// A connection with stalls.
#[derive(Clone, Copy)]
struct Held<'a> {
    conn: &'a Conn,
    trouble: &'a Trouble,
    ended_ns: Option<u64>,
}

fn add<'a>(view: &View<'_>, by_subject: &mut FxHashMap<Subject, Found<'a>>, held: Held<'a>) {
    let Held { conn, trouble, ended_ns } = held;
    let least_ns = view.thresholds.nanos(&LONG_SECONDS);
    // Whom the kernel gave up on is another story than one of delays.
    let timed_out = ended_ns.is_some() && conn.error == ETIMEDOUT;
    let long = trouble.stalls.iter().filter(|stall| is_long(stall, trouble, least_ns) && !timed_out);
    let long: Vec<Stall> = long.copied().collect();
    let present = trouble
        .present
        .filter(|present| view.now_ns.saturating_sub(present.stalled.since_ns) >= least_ns.max(LEAST_NS));
    if long.is_empty() && present.is_none() {
        return;
    }
    let found = by_subject.entry(Subject::of(view.tracker, conn)).or_default();
    let window_ns = view.now_ns.saturating_sub(KEPT_NS);
    let until_ns = ended_ns.unwrap_or(view.now_ns);
    let span_ns = until_ns.saturating_sub(conn.opened_ns().max(window_ns)) as f64;
    let stalled_ns: u64 =
        long.iter().map(|stall| stall.ended_ns - stall.began_ns().max(window_ns).min(stall.ended_ns)).sum();
    let present_ns =
        present.map_or(0, |present| view.now_ns - present.stalled.since_ns.max(window_ns).min(view.now_ns));
    let stalled_ns = (stalled_ns + present_ns) as f64;
    found.stalled_ns += stalled_ns;
    found.exposed_ns += (span_ns * trouble.busy_share.unwrap_or(1.0)).max(stalled_ns);
    found.busy_is_known &= trouble.busy_share.is_some();
    found.unrecovered += long.iter().filter(|stall| Some(stall.ended_ns) == ended_ns).count();
    found.excess_ns += long.iter().map(|stall| stall.took_ns - trouble.min_rtt_ns.unwrap_or(0)).sum::<u64>();
    found.spurious += conn.retransmits.as_ref().map_or(0, |all| all.counted.spurious);
    found.retransmitted += conn.retransmits.as_ref().map_or(0, |all| all.counted.total());
    found.long.extend(long);
    found.present.extend(present);
    found.group.conns.push(conn);
}

/// Twice the round trip is what a fast recovery takes. Without knowing the round trip, none of those counts.
fn is_long(stall: &Stall, trouble: &Trouble, least_ns: u64) -> bool {
    match trouble.min_rtt_ns {
        Some(min_rtt_ns) => {
            let excess_ns = stall.took_ns.saturating_sub(min_rtt_ns);
            excess_ns >= least_ns.max(2 * min_rtt_ns)
        }
        None => stall.took_ns >= least_ns && stall.recovery != Recovery::Fast,
    }
}

/// The stalls of one subject.
#[derive(Default)]
struct Found<'a> {
    group: Group<'a>,
    long: Vec<Stall>,
    present: Vec<Present>,
    stalled_ns: f64,
    /// In which it could have stalled: the time in which it had something to send.
    exposed_ns: f64,
    busy_is_known: bool,
    /// Stalls that ended with their connections.
    unrecovered: usize,
    excess_ns: u64,
    retransmitted: u64,
    spurious: u64,
}

impl Found<'_> {
    fn share_percent(&self) -> f64 {
        100.0 * self.stalled_ns / self.exposed_ns.max(1.0)
    }

    /// When stalls began, those within [`MOMENT_NS`] once.
    fn moments(&self) -> Vec<u64> {
        let mut began: Vec<u64> = self.long.iter().map(Stall::began_ns).collect();
        began.extend(self.present.iter().map(|present| present.stalled.since_ns));
        began.sort_unstable();
        let mut last = None;
        began.retain(|at| last.replace(*at).is_none_or(|last| last + MOMENT_NS < *at));
        began
    }

    fn stands_still(&self, view: &View<'_>) -> impl Iterator<Item = &Present> {
        let (now_ns, least_ns) = (view.now_ns, view.thresholds.nanos(&PRESENT_SECONDS));
        self.present.iter().filter(move |present| {
            let age_ns = now_ns.saturating_sub(present.stalled.since_ns);
            let left = present.repeated > 0 || present.stalled.recovery == Recovery::Peer;
            age_ns >= least_ns && present.reported_ns + SETTLED_NS <= now_ns && left
        })
    }

    fn is_open(&self, view: &View<'_>) -> bool {
        self.stands_still(view).next().is_some() || self.comes_again(view)
    }

    fn comes_again(&self, view: &View<'_>) -> bool {
        let moments = self.moments();
        let (Some(first), Some(last)) = (moments.first(), moments.last()) else { return false };
        let usual_ns = (last - first) / (moments.len() as u64 - 1).max(1);
        let latest_ns = self.long.iter().map(|stall| stall.ended_ns).max().unwrap_or(*last);
        let goes_on =
            latest_ns.saturating_add(QUIET_NS.max(3 * usual_ns)) >= view.now_ns || !self.present.is_empty();
        let many = moments.len() >= view.thresholds.count(&MOMENTS);
        goes_on && many && self.share_percent() >= view.thresholds.get(&SHARE_PERCENT)
    }

    /// Segments overtake each other on the way; none is lost.
    fn is_reordering(&self) -> bool {
        self.retransmitted > 0 && 2 * self.spurious >= self.retransmitted
    }

    fn longest_ns(&self, view: &View<'_>) -> u64 {
        let ended = self.long.iter().map(|stall| stall.took_ns);
        let present = self.present.iter().map(|present| view.now_ns.saturating_sub(present.stalled.since_ns));
        ended.chain(present).max().unwrap_or(0)
    }

    /// The connections of the same group: process, role and peer.
    fn all_connections(&self, view: &View<'_>) -> u64 {
        let groups: FxHashSet<_> = self.group.conns.iter().filter_map(|conn| conn.group).collect();
        let live: u64 =
            groups.into_iter().map(|id| view.tracker.groups().get(id).counts.live.connections).sum();
        live.max(self.group.conns.len() as u64)
    }

    fn severity(&self, view: &View<'_>, role: Role) -> Severity {
        let limit = |threshold| view.thresholds.get(threshold);
        let count = self.group.conns.len() as u64;
        let all = self.all_connections(view);
        let few_clients =
            role == Role::Server && ((100 * count) as f64) < limit(&CLIENTS_PERCENT) * all as f64;
        // One client that went away while it was answered.
        let one_gone = role == Role::Server && !self.comes_again(view) && self.peers().len() == 1;
        if self.is_reordering() || few_clients || one_gone {
            return Severity::Info;
        }
        let share = self.share_percent();
        let since_ns = self.moments().first().copied().unwrap_or(view.now_ns);
        let long_since = view.now_ns.saturating_sub(since_ns) + 5_000_000_000 >= KEPT_NS;
        let dead_ns = view.thresholds.nanos(&CRITICAL_SECONDS);
        let dead =
            self.stands_still(view).filter(|one| view.now_ns - one.stalled.since_ns >= dead_ns).count();
        if (share >= limit(&CRITICAL_PERCENT) && long_since && count >= 2) || dead as u64 >= all {
            return Severity::Critical;
        }
        let long = self.longest_ns(view) >= view.thresholds.nanos(&WARNING_SECONDS);
        if share >= limit(&WARNING_PERCENT) || long { Severity::Warning } else { Severity::Info }
    }

    fn peers(&self) -> FxHashSet<Ipv6Addr> {
        self.group.conns.iter().map(|conn| conn.remote.addr).collect()
    }

    fn evidence(&self, view: &View<'_>) -> Vec<Evidence> {
        let stalls = self.long.len() + self.present.len();
        let of = |recovery| self.long.iter().filter(|stall| stall.recovery == recovery).count() as f64;
        let held: u64 = self.long.iter().map(|stall| stall.bytes).sum();
        let held = held + self.present.iter().map(|present| u64::from(present.stalled.bytes)).sum::<u64>();
        let mut evidence = vec![
            Evidence::new("long_stalls", stalls as f64, "stalls"),
            Evidence::new("moments", self.moments().len() as f64, "moments")
                .against(view.thresholds.get(&MOMENTS)),
            Evidence::new("stalled_share", self.share_percent(), "percent")
                .against(view.thresholds.get(&SHARE_PERCENT))
                .at_least(!self.busy_is_known),
            Evidence::new("longest", self.longest_ns(view) as f64 / 1e9, "seconds"),
            Evidence::new("held", held as f64, "bytes"),
            Evidence::new("retransmitted", self.retransmitted as f64, "segments"),
        ];
        if !self.long.is_empty() {
            let mean = self.excess_ns as f64 / 1e9 / self.long.len() as f64;
            evidence.push(Evidence::new("excess_over_round_trip", mean, "seconds"));
        }
        for (name, count) in [
            ("by_timeout", of(Recovery::Timeout)),
            ("by_fast_recovery", of(Recovery::Fast)),
            ("by_loss_probe", of(Recovery::Probe)),
            ("received_side", of(Recovery::Peer)),
            ("not_recovered", self.unrecovered as f64),
            ("standing_still_now", self.present.len() as f64),
        ] {
            if count > 0.0 {
                evidence.push(Evidence::new(name, count, "stalls"));
            }
        }
        evidence
    }

    fn observation(self, view: &View<'_>, subject: Subject, other_ends: &OtherEnds<'_>) -> Observation {
        let severity = self.severity(view, subject.role);
        let (summary, next_step) = self.words(view, &subject);
        let conns = &self.group.conns;
        Observation {
            rule: SPEC.rule,
            severity,
            since_ns: self.moments().first().copied().unwrap_or(view.now_ns),
            since_is_lower_bound: false,
            count: conns.len() as u64,
            evidence: self.evidence(view),
            summary,
            next_step,
            examples: self.group.examples(),
            members: self.group.members(view.tracker),
            ties: Ties {
                sockets: self.group.sockets(),
                other_ends: other_ends.cookies(conns),
                ..Ties::default()
            },
            subject,
        }
    }

    fn words(&self, view: &View<'_>, subject: &Subject) -> (String, String) {
        let (name, peer) = (subject.name(), subject.peer_text());
        let count = connections(self.group.conns.len());
        let longest = self.longest_ns(view) as f64 / 1e9;
        if self.is_reordering() {
            return (
                format!("Segments of {count} of {name} with {peer} arrive in another order than they were sent; nothing is lost."),
                "Several paths or queues of different length on the way. `nstat -az TcpExtTCPSACKReorder` counts it.".to_owned(),
            );
        }
        let now = self.stands_still(view).count();
        let summary = if self.comes_again(view) {
            format!(
                "Lost segments held back the data of {count} of {name} with {peer} {} times in the last minute, {longest:.1} s at the longest: {:.1} % of the time in which there was something to send.",
                self.long.len() + self.present.len(),
                self.share_percent(),
            )
        } else {
            format!(
                "{} of {name} with {peer} {} still since {longest:.1} s: what was lost was sent again, and nothing of that is acknowledged.",
                connections(now),
                if now == 1 { "stands" } else { "stand" },
            )
        };
        (
            summary,
            "Is it this peer, one network card, or all? `ss -tmi dst PEER` shows retransmits of each connection, `ethtool -S DEV` and \
             `tc -s qdisc` what this machine drops, `mtr -T -P PORT PEER` where the path loses. Several connections to the \
             peer instead of one make a loss hold back less."
                .to_owned(),
        )
    }
}
