//! `fin_wait2_pileup`: this side closed, the peer has acknowledged that and does not close its own side.

use crate::{
    findings::{
        Rule, Severity,
        evidence::{OtherEnd, OtherEnds},
        observation::{Evidence, Group, Observation, Observations, Subject, Ties, View, connections},
        rules::Spec,
        thresholds::Threshold,
    },
    model::table::{Conn, ConnFlags},
    tcp::{life::Cause, state::TcpState},
};

const SECONDS: Threshold = Threshold {
    name: "fin_wait2_pileup.seconds",
    default: 30.0,
    reason: "protocols that close one direction first are done within it; the kernel ends orphans after 60 s",
};
const CONNECTIONS: Threshold = Threshold {
    name: "fin_wait2_pileup.connections",
    default: 10.0,
    reason: "single ones are the background of every node that talks to the internet",
};
const HELD_SECONDS: Threshold = Threshold {
    name: "fin_wait2_pileup.held_seconds",
    default: 120.0,
    reason: "twice as long as the kernel would wait if the process had closed them",
};

/// How far back ends by the kernel's timer are counted: as long as an orphan lasts.
const TIMER_NS: u64 = 60_000_000_000;

pub(super) const SPEC: Spec = Spec {
    rule: Rule::FinWait2Pileup,
    observe,
    thresholds: &[&SECONDS, &CONNECTIONS, &HELD_SECONDS],
    signals: &[],
    hold_seconds: 10,
    resolution_seconds: 2.0,
    evidence: &["orphans", "held", "ended_by_timer_last_minute", "oldest"],
    page: include_str!("../../../../docs/findings/fin_wait2_pileup.md"),
    explanation: "This side closed the connection, and the peer acknowledged that; but the peer's application has not closed \
                  its own side. Where this process closed the socket the kernel drops it after net.ipv4.tcp_fin_timeout; where it \
                  only shut down its sending side it stands for as long as the peer likes. The peer is where to look.",
};

fn observe(view: &View<'_>, out: &mut Observations) {
    let Some(entered_by) = view.now_ns.checked_sub(view.thresholds.nanos(&SECONDS)) else { return };
    let standing = view.tracker.table().lingering(TcpState::FinWait2, entered_by);
    let groups = Group::by_subject(view.tracker, standing);
    if groups.is_empty() {
        return;
    }
    let timed_out = Group::by_subject(view.tracker, timed_out(view));
    let other_ends = OtherEnds::find(view.tracker, groups.values().flat_map(|group| &group.conns).copied());
    for (subject, group) in groups {
        let timed_out = timed_out.get(&subject).map_or(0, |group| group.conns.len());
        let ties = Ties {
            sockets: group.sockets(),
            other_ends: other_ends.cookies(&group.conns),
            ..Ties::default()
        };
        let other_end = other_ends.of_most(view.tracker, &group.conns);
        out.push(observation(view, subject, &group, timed_out, (ties, other_end)));
    }
}

/// Orphans that the kernel's timer ended lately.
fn timed_out<'a>(view: &View<'a>) -> impl Iterator<Item = &'a Conn> {
    let from_ns = view.now_ns.saturating_sub(TIMER_NS);
    let lately = view.tracker.ended().iter().rev().take_while(move |ended| ended.ended_ns >= from_ns);
    let by_timer =
        lately.filter(|ended| ended.cause == Cause::Timer && ended.conn.state() == TcpState::FinWait2);
    by_timer.map(|ended| &ended.conn)
}

fn observation(
    view: &View<'_>,
    subject: Subject,
    group: &Group<'_>,
    timed_out: usize,
    (ties, other_end): (Ties, Option<OtherEnd>),
) -> Observation {
    let limit = view.thresholds.count(&CONNECTIONS);
    let held = group.conns.iter().filter(|conn| !conn.is(ConnFlags::MINISOCK)).count();
    let orphans = group.conns.len() - held;
    let oldest = group.conns[0];
    let age = view.seconds_since(oldest.since_ns());
    let held_long = age >= view.thresholds.get(&HELD_SECONDS) && held >= limit;
    let severity = if orphans + timed_out >= limit || held_long { Severity::Warning } else { Severity::Info };
    let is_lower_bound = oldest.is(ConnFlags::STATE_OLDER);
    let (name, peer) = (subject.name(), subject.peer_text());
    let count = connections(group.conns.len());
    let did = if held == 0 { "closed" } else { "closed, or shut down its sending side of," };
    let summary =
        format!("{name} {did} {count} to {peer}, which has acknowledged that and does not close its side.");
    let culprit = other_end.filter(|other| other.process.is_some()).map_or(peer, |other| other.name());
    let next_step = format!(
        "Look at {culprit}: it is blocked before its close(), or slower than the patience of {name}. Its side of these \
         connections is in CLOSE_WAIT."
    );
    Observation {
        rule: SPEC.rule,
        severity,
        since_ns: oldest.since_ns(),
        since_is_lower_bound: is_lower_bound,
        count: group.conns.len() as u64,
        evidence: vec![
            Evidence::new("orphans", orphans as f64, "connections").against(limit as f64),
            Evidence::new("held", held as f64, "connections").against(limit as f64),
            Evidence::new("ended_by_timer_last_minute", timed_out as f64, "connections"),
            Evidence::new("oldest", age, "seconds")
                .against(view.thresholds.get(&SECONDS))
                .at_least(is_lower_bound),
        ],
        summary,
        next_step,
        examples: group.examples(),
        members: group.members(view.tracker),
        ties,
        subject,
    }
}
