//! `keepalive_missing`: connections stand idle although the peer may be long gone, because nothing probes them, or too
//! seldom for what is on the way.

use rustc_hash::FxHashMap;

use crate::{
    findings::{
        Rule, Severity,
        evidence::OtherEnds,
        observation::{Evidence, Group, Member, Observation, Observations, Subject, Ties, View, connections},
        rules::Spec,
        thresholds::Threshold,
    },
    model::{
        table::Conn,
        tracker::silent::{Broken, Silent},
        workload::Workload,
    },
};

const SILENT: Threshold = Threshold {
    name: "keepalive_missing.silent_connections",
    default: 10.0,
    reason: "off and idle is no fault by itself; many for two hours (the kernel's own first probe) may be of peers that are gone",
};
const PROBED_SECONDS: Threshold = Threshold {
    name: "keepalive_missing.probed_seconds",
    default: 3600.0,
    reason: "a first probe within the hour would have been answered, or would have ended the connection",
};
const BROKEN: Threshold = Threshold {
    name: "keepalive_missing.broken_connections",
    default: 2.0,
    reason: "used in vain after a pause of a minute or more within the last hour: one may be a restart of the peer",
};

pub(super) const SPEC: Spec = Spec {
    rule: Rule::KeepaliveMissing,
    observe,
    thresholds: &[&SILENT, &PROBED_SECONDS, &BROKEN],
    signals: &[],
    hold_seconds: 10,
    resolution_seconds: 60.0,
    evidence: &["silent", "longest_silence", "broken", "broken_by_reset", "shortest_pause", "keepalive_off"],
    page: include_str!("../../../../docs/findings/keepalive_missing.md"),
    explanation: "A connection on which nothing is sent needs no packets: if the peer, or what a NAT, load balancer or firewall \
                  between remembers of it, is gone, this side does not know until it sends something. Then the request hangs until \
                  retransmits give up, a quarter of an hour by default, or is answered by a reset. Keep-alive probes find out earlier, \
                  and keep the state on the way alive, if they come more often than it forgets.",
};

#[derive(Default)]
struct Found<'a> {
    silent: Vec<(&'a Conn, Silent)>,
    broken: Vec<&'a Broken>,
}

fn observe(view: &View<'_>, out: &mut Observations) {
    let mut found: FxHashMap<Subject, Found<'_>> = FxHashMap::default();
    for (conn, silent) in silent(view) {
        found.entry(Subject::of(view.tracker, conn)).or_default().silent.push((conn, silent));
    }
    for broken in view.tracker.broken().filter(|one| one.at_ns + HOUR_NS > view.now_ns) {
        let workload = broken.process.as_ref().map(Workload::of);
        let Broken { netns, role, peer, .. } = *broken;
        found.entry(Subject { workload, netns, role, peer }).or_default().broken.push(broken);
    }
    for (subject, found) in found {
        let severity = if found.broken.len() >= view.thresholds.count(&BROKEN) {
            Severity::Warning
        } else if found.silent.len() >= view.thresholds.count(&SILENT) {
            Severity::Info
        } else {
            continue;
        };
        out.push(found.observation(view, subject, severity));
    }
}

const HOUR_NS: u64 = 3_600_000_000_000;

/// The silent connections whose other end is elsewhere and that nothing probes often enough.
fn silent<'a>(view: &View<'a>) -> Vec<(&'a Conn, Silent)> {
    let table = view.tracker.table();
    let probed = view.thresholds.get(&PROBED_SECONDS);
    let unprobed = |one: &&Silent| one.keepalive_seconds.is_none_or(|seconds| seconds as f64 > probed);
    let known = view.tracker.silent().iter().filter(unprobed);
    let all: Vec<(&Conn, Silent)> =
        known.filter_map(|one| Some((table.get(table.find(one.cookie)?), *one))).collect();
    if all.len() < view.thresholds.count(&SILENT) {
        return Vec::new();
    }
    let other_ends = OtherEnds::find(view.tracker, all.iter().map(|(conn, _)| *conn));
    let is_elsewhere =
        |conn: &Conn| !conn.remote.addr.to_canonical().is_loopback() && other_ends.of(conn).is_none();
    all.into_iter().filter(|(conn, _)| is_elsewhere(conn)).collect()
}

impl Found<'_> {
    fn observation(mut self, view: &View<'_>, subject: Subject, severity: Severity) -> Observation {
        self.silent.sort_unstable_by_key(|(conn, one)| (one.active_ns, conn.cookie));
        let group = Group { conns: self.silent.iter().map(|(conn, _)| *conn).collect() };
        let mut members = group.members(view.tracker);
        for member in self.broken.iter().filter_map(|one| one.process.as_ref()).map(Member::from) {
            if !members.contains(&member) {
                members.push(member);
            }
        }
        let resets = self.broken.iter().filter(|one| one.was_reset).count();
        let pause = self.broken.iter().map(|one| one.pause_ns).min();
        let mut evidence = Vec::new();
        if let Some((_, first)) = self.silent.first() {
            let off = self.silent.iter().filter(|(_, one)| one.keepalive_seconds.is_none()).count();
            evidence.extend([
                Evidence::new("silent", self.silent.len() as f64, "connections")
                    .against(view.thresholds.get(&SILENT)),
                Evidence::new("longest_silence", view.seconds_since(first.active_ns), "seconds"),
                Evidence::new("keepalive_off", off as f64, "connections"),
            ]);
        }
        if let Some(pause_ns) = pause {
            evidence.extend([
                Evidence::new("broken", self.broken.len() as f64, "connections")
                    .against(view.thresholds.get(&BROKEN)),
                Evidence::new("broken_by_reset", resets as f64, "connections"),
                Evidence::new("shortest_pause", pause_ns as f64 / 1e9, "seconds"),
            ]);
        }
        let (name, peer) = (subject.name().to_owned(), subject.peer_text());
        let summary = match pause.filter(|_| severity == Severity::Warning) {
            Some(pause_ns) => {
                let answer = match resets {
                    0 => "nothing answered",
                    all if all == self.broken.len() => "a reset answered",
                    _ => "a reset or nothing answered",
                };
                format!(
                    "{name} used {} to {peer} in vain after a pause of {:.0} s or more: {answer}. Something on the way, or the \
                     peer, had forgotten them.",
                    connections(self.broken.len()),
                    pause_ns as f64 / 1e9
                )
            }
            None => format!(
                "Nothing has come or gone on {} of {name} with {peer} for two hours, and no probe finds out whether the peers are \
                 there.",
                connections(self.silent.len())
            ),
        };
        let examples: Vec<u64> =
            self.broken.iter().rev().take(3).map(|one| one.id).chain(group.examples()).take(3).collect();
        let began_ns =
            self.broken.iter().map(|one| one.at_ns).chain(self.silent.iter().map(|(_, one)| one.active_ns));
        Observation {
            rule: SPEC.rule,
            severity,
            since_ns: began_ns.min().unwrap_or(view.now_ns),
            since_is_lower_bound: false,
            count: self.broken.len().max(self.silent.len()) as u64,
            evidence,
            summary,
            next_step: format!(
                "Let {name} probe more often than the shortest time-out on the way (cloud NAT and load balancers: 60 to 350 s): \
                 SO_KEEPALIVE with TCP_KEEPIDLE, or the protocol's own heartbeat; or close idle connections earlier. \
                 net.ipv4.tcp_keepalive_time works only for sockets with SO_KEEPALIVE."
            ),
            examples,
            members,
            ties: Ties { sockets: group.sockets(), ..Ties::default() },
            subject,
        }
    }
}
