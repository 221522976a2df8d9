//! `nagle_stall`: small data waits for an acknowledgement that the peer delays: 40 or 200 ms of nothing in each request.

use rustc_hash::FxHashMap;

use crate::{
    events::frame::SenderLook,
    findings::{
        Rule, Severity,
        evidence::OtherEnds,
        observation::{Evidence, Group, Observation, Observations, Subject, Ties, View, connections},
        rules::Spec,
        thresholds::Threshold,
    },
    model::{
        table::{Conn, ConnFlags},
        tracker::held_back::{Suspect, is_held_back},
    },
};

const LOOKS: Threshold = Threshold {
    name: "nagle_stall.looks",
    default: 2.0,
    reason: "that find data held back; one may be chance",
};
const SEGMENTS: Threshold = Threshold {
    name: "nagle_stall.segments",
    default: 20.0,
    reason: "sent between the looks: a peer acknowledges the first few of a connection at once",
};
const WARNING_STALLS: Threshold = Threshold {
    name: "nagle_stall.stalls_per_minute",
    default: 50.0,
    reason: "about one a second is no rare event any more",
};
const WARNING_PERCENT: Threshold = Threshold {
    name: "nagle_stall.stalled_percent",
    default: 10.0,
    reason: "of the time of the connection; it could be a tenth faster at least",
};

pub(super) const SPEC: Spec = Spec {
    rule: Rule::NagleStall,
    observe,
    thresholds: &[&LOOKS, &SEGMENTS, &WARNING_STALLS, &WARNING_PERCENT],
    signals: &["held"],
    hold_seconds: 10,
    resolution_seconds: 15.0,
    evidence: &[
        "stall_ms",
        "stalls_per_minute",
        "stalled_share",
        "held",
        "looks_held",
        "looks",
        "least_round_trip_ms",
    ],
    page: include_str!("../../../../docs/findings/nagle_stall.md"),
    explanation: "Nagle's algorithm lets a segment that is not full wait until all before it is acknowledged, and the peer delays \
                  the acknowledgement because it waits for the rest of the request: 40 ms (Linux) or up to 200 ms of nothing for \
                  each request that is written in two parts. Nothing is lost.",
};

/// How long the peer delays an acknowledgement, in ms: TCP_DELACK_MIN and TCP_DELACK_MAX of Linux (HZ/25 and HZ/5), with what
/// a tick and the scheduling add.
const DELAYS_MS: [(f64, f64); 2] = [(35.0, 50.0), (180.0, 220.0)];
/// Below this, what a segment takes is the network.
const QUIET_MS: f64 = 5.0;

/// What the looks at one connection say together.
struct Held<'a> {
    conn: &'a Conn,
    /// How long each stall took.
    stall_ms: f64,
    /// Seconds between the first and the last look, and stalls in them.
    seconds: f64,
    stalls: f64,
    busy_seconds: f64,
    bytes: u32,
    held: usize,
    looks: usize,
    min_rtt_ms: f64,
}

fn observe(view: &View<'_>, out: &mut Observations) {
    let tracker = view.tracker;
    let mut groups: FxHashMap<Subject, Vec<Held<'_>>> = FxHashMap::default();
    for (cookie, suspect) in tracker.suspects() {
        if let Some(key) = tracker.table().find(*cookie)
            && let Some(held) = held(view, tracker.table().get(key), suspect)
        {
            groups.entry(Subject::of(tracker, held.conn)).or_default().push(held);
        }
    }
    let other_ends = OtherEnds::find(tracker, groups.values().flatten().map(|held| held.conn));
    for (subject, mut all) in groups {
        all.sort_unstable_by_key(|held| (held.conn.opened_ns(), held.conn.cookie));
        out.push(observation(view, subject, &all, &other_ends));
    }
}

/// `None` where the looks do not show it.
fn held<'a>(view: &View<'_>, conn: &'a Conn, suspect: &Suspect) -> Option<Held<'a>> {
    let looks = &suspect.looks;
    let (first, last) = (looks.front()?, looks.back()?);
    let held = looks.iter().filter(|look| is_held_back(look)).count();
    let (busy_ms, segments) = between(first, last)?;
    let min_rtt_ms = f64::from(last.min_rtt_us?) / 1e3;
    let enough = held >= view.thresholds.count(&LOOKS) && segments >= view.thresholds.get(&SEGMENTS);
    // What is lost has another reason.
    if !enough || last.retransmitted != first.retransmitted || goes_on(looks.iter().rev().take(3)).is_none() {
        return None;
    }
    let (stall_ms, segments_a_stall) = stall(busy_ms / segments, min_rtt_ms)?;
    let largest = looks.iter().filter(|look| is_held_back(look)).map(|look| look.unsent_bytes).max();
    Some(Held {
        conn,
        stall_ms,
        seconds: last.time_ns.saturating_sub(first.time_ns) as f64 / 1e9,
        stalls: segments / segments_a_stall,
        busy_seconds: busy_ms / 1e3,
        bytes: largest.unwrap_or(0),
        held,
        looks: looks.len(),
        min_rtt_ms,
    })
}

/// Milliseconds in which something was to be sent or acknowledged, and segments with data sent.
fn between(first: &SenderLook, last: &SenderLook) -> Option<(f64, f64)> {
    let busy_ms = last.busy_us.checked_sub(first.busy_us)? as f64 / 1e3;
    let segments = f64::from(last.data_segments.checked_sub(first.data_segments)?);
    (segments > 0.0).then_some((busy_ms, segments))
}

/// Whether the latest looks, the last first, still show data that waits.
fn goes_on<'a>(mut latest: impl Iterator<Item = &'a SenderLook>) -> Option<()> {
    let last = latest.next()?;
    let before = latest.last()?;
    let (busy_ms, segments) = between(before, last)?;
    (busy_ms / segments >= QUIET_MS).then_some(())
}

/// How long a stall took if each segment is on its way for so long, and how many segments are sent for each: the first of a
/// request leaves at once, the second waits for its acknowledgement; or each one waits.
fn stall(segment_ms: f64, min_rtt_ms: f64) -> Option<(f64, f64)> {
    let excess_ms = segment_ms - min_rtt_ms;
    let fits = |ms: f64| DELAYS_MS.iter().any(|(least, most)| (*least..=*most).contains(&ms));
    if fits(2.0 * excess_ms) {
        Some((2.0 * segment_ms, 2.0))
    } else if fits(excess_ms) {
        Some((segment_ms, 1.0))
    } else {
        None
    }
}

fn observation(
    view: &View<'_>,
    subject: Subject,
    all: &[Held<'_>],
    other_ends: &OtherEnds<'_>,
) -> Observation {
    let group = Group { conns: all.iter().map(|held| held.conn).collect() };
    // Of the connection that it holds back the most.
    let most = |number: fn(&Held<'_>) -> f64| all.iter().map(number).fold(0.0, f64::max);
    let stall_ms = most(|held| held.stall_ms);
    let per_minute: f64 = all.iter().map(|held| 60.0 * held.stalls / held.seconds.max(1.0)).sum();
    let share = most(|held| 100.0 * held.busy_seconds / held.seconds.max(1.0)).min(100.0);
    let bytes = all.iter().map(|held| held.bytes).max().unwrap_or(0);
    let looks = |number: fn(&Held<'_>) -> usize| all.iter().map(number).sum::<usize>() as f64;
    let limit = |threshold| view.thresholds.get(threshold);
    let severity = if per_minute >= limit(&WARNING_STALLS) || share >= limit(&WARNING_PERCENT) {
        Severity::Warning
    } else {
        Severity::Info
    };
    let evidence = vec![
        Evidence::new("stall_ms", stall_ms, "milliseconds"),
        Evidence::new("stalls_per_minute", per_minute, "per_minute").against(limit(&WARNING_STALLS)),
        Evidence::new("stalled_share", share, "percent").against(limit(&WARNING_PERCENT)),
        Evidence::new("held", f64::from(bytes), "bytes"),
        Evidence::new("looks_held", looks(|held| held.held), "looks").against(limit(&LOOKS)),
        Evidence::new("looks", looks(|held| held.looks), "looks"),
        Evidence::new("least_round_trip_ms", most(|held| held.min_rtt_ms), "milliseconds"),
    ];
    let (name, peer) = (subject.name(), subject.peer_text());
    let summary = format!(
        "{name} writes to {peer} in small parts on {}: each time the second part waits {stall_ms:.0} ms for an acknowledgement \
         that the peer delays, {per_minute:.0} times a minute.",
        connections(all.len()),
    );
    let oldest = all[0].conn;
    Observation {
        rule: SPEC.rule,
        severity,
        since_ns: oldest.opened_ns(),
        since_is_lower_bound: oldest.is(ConnFlags::OLDER),
        count: all.len() as u64,
        evidence,
        summary,
        next_step: format!(
            "{name} should write header and body in one call (writev, a buffer), or set TCP_NODELAY, which Java, Python, Rust and C leave \
             off. `strace -f -e trace=write,writev,sendto -p PID -r` shows the two writes."
        ),
        examples: group.examples(),
        members: group.members(view.tracker),
        ties: Ties {
            sockets: group.sockets(),
            other_ends: other_ends.cookies(&group.conns),
            ..Ties::default()
        },
        subject,
    }
}
