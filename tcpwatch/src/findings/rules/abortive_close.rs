//! `abortive_close`: a process ends connections with a reset, and data is lost by it.

use std::ops::RangeInclusive;

use rustc_hash::FxHashMap;

use crate::{
    findings::{
        Rule, Severity,
        observation::{Evidence, Group, Observation, Observations, Subject, Ties, View, connections},
        rules::Spec,
        share,
        thresholds::Threshold,
    },
    model::{groups::Role, table::Conn, tracker::kept_ends::KeptEnd},
    tcp::reset_reason::{Discarded, ResetReason},
};

const CLOSES: Threshold = Threshold {
    name: "abortive_close.closes",
    default: 5.0,
    reason: "within a minute; single ones are callers that were cancelled",
};
const SHARE_PERCENT: Threshold = Threshold {
    name: "abortive_close.share_percent",
    default: 2.0,
    reason: "of the closes, with 95 % confidence: below it they are errors, not a habit",
};
const UNREAD_BYTES: Threshold = Threshold {
    name: "abortive_close.unread_bytes",
    default: 64.0,
    reason: "a TLS close_notify that nobody reads has 24 or 31",
};
const LARGE_BYTES: Threshold = Threshold {
    name: "abortive_close.large_bytes",
    default: 65_536.0,
    reason: "written, and not delivered: one such close is a truncated answer",
};

/// Session tickets that a TLS server sends behind the handshake, and a client that only writes never reads.
const TICKET_BYTES: RangeInclusive<u64> = 200..=1000;
const WINDOW_NS: u64 = 60_000_000_000;
/// Observed anew while the latest is this young.
const FRESH_NS: u64 = 12_000_000_000;

pub(super) const SPEC: Spec = Spec {
    rule: Rule::AbortiveClose,
    observe,
    thresholds: &[&CLOSES, &SHARE_PERCENT, &UNREAD_BYTES, &LARGE_BYTES],
    signals: &["send_reset"],
    hold_seconds: 60,
    resolution_seconds: 2.0,
    evidence: &[
        "lossy",
        "harmless",
        "share_of_closes_percent",
        "unread_data",
        "zero_linger",
        "disconnect",
        "process_exited",
        "unread",
        "unsent",
        "unacknowledged",
        "largest",
    ],
    explanation: "The process closed connections in a way that sends a reset and throws data away: it closed with received data \
                  unread, or with a linger time of zero, or disconnected. The peer sees \"connection reset by peer\", and may lose an \
                  answer that was already on its way.",
    page: include_str!("../../../../docs/findings/abortive_close.md"),
};

fn observe(view: &View<'_>, out: &mut Observations) {
    let aborted = view.tracker.kept_ends().aborted();
    let from = |ns| view.now_ns.saturating_sub(ns);
    if aborted.back().is_none_or(|end| end.ended_ns < from(FRESH_NS)) {
        return;
    }
    let mut by_subject: FxHashMap<Subject, Vec<&KeptEnd>> = FxHashMap::default();
    for end in aborted.iter().rev().take_while(|end| end.ended_ns >= from(WINDOW_NS)) {
        by_subject.entry(Subject::of(view.tracker, &end.conn)).or_default().push(end);
    }
    for (subject, mut ends) in by_subject {
        ends.reverse();
        if ends.last().is_some_and(|last| last.ended_ns >= from(FRESH_NS))
            && let Some(observation) = Found::new(view, &ends).observation(view, subject)
        {
            out.push(observation);
        }
    }
}

/// The aborted connections of one subject within the window, oldest first.
struct Found<'a> {
    lossy: Vec<&'a KeptEnd>,
    harmless: Vec<&'a KeptEnd>,
    /// In percent, with 95 % confidence.
    share: f64,
}

impl<'a> Found<'a> {
    fn new(view: &View<'_>, ends: &[&'a KeptEnd]) -> Self {
        let (lossy, harmless): (Vec<_>, Vec<_>) =
            ends.iter().copied().partition(|end| loses(view, &end.conn));
        let closes = ends
            .last()
            .map_or(0, |last| view.tracker.closes_since(&last.conn, view.now_ns.saturating_sub(WINDOW_NS)));
        let share = 100.0 * share::at_least(lossy.len() as u64, closes.max(ends.len()) as u64);
        Self { lossy, harmless, share }
    }

    fn severity(&self, view: &View<'_>) -> Option<Severity> {
        let many = |count| count >= view.thresholds.count(&CLOSES);
        let exited = |end: &&&KeptEnd| end.conn.reset().is_some_and(|reset| reset.exiting);
        let alive = self.lossy.len() - self.lossy.iter().filter(exited).count();
        let large = |end: &&KeptEnd| {
            let lost = discarded(&end.conn);
            let undelivered = lost.unsent_bytes + lost.unacknowledged_bytes;
            undelivered as f64 >= view.thresholds.get(&LARGE_BYTES)
                && end.conn.reset().is_some_and(|reset| !reset.exiting)
        };
        let is_habit = many(alive) && self.share >= view.thresholds.get(&SHARE_PERCENT);
        if is_habit || self.lossy.iter().any(large) {
            return Some(Severity::Warning);
        }
        many(self.lossy.len() + self.harmless.len()).then_some(Severity::Info)
    }

    fn observation(&self, view: &View<'_>, subject: Subject) -> Option<Observation> {
        let severity = self.severity(view)?;
        let about = if self.lossy.is_empty() { &self.harmless } else { &self.lossy };
        let of_reason = |reason| about.iter().filter(|end| reset_reason(end) == Some(reason)).count();
        let sum =
            |bytes: fn(Discarded) -> u64| about.iter().map(|end| bytes(discarded(&end.conn))).sum::<u64>();
        let largest = about.iter().map(|end| discarded(&end.conn).total()).max().unwrap_or(0);
        let exited = about.iter().filter(|end| end.conn.reset().is_some_and(|reset| reset.exiting)).count();
        let count = |name, count: usize| Evidence::new(name, count as f64, "connections");
        let bytes = |name, bytes: u64| Evidence::new(name, bytes as f64, "bytes");
        let evidence = vec![
            count("lossy", self.lossy.len()).against(view.thresholds.get(&CLOSES)),
            count("harmless", self.harmless.len()),
            Evidence::new("share_of_closes_percent", self.share, "percent")
                .against(view.thresholds.get(&SHARE_PERCENT))
                .at_least(true),
            count("unread_data", of_reason(ResetReason::UnreadData)),
            count("zero_linger", of_reason(ResetReason::ZeroLinger)),
            count("disconnect", of_reason(ResetReason::Disconnect)),
            count("process_exited", exited),
            bytes("unread", sum(|lost| lost.unread_bytes)),
            bytes("unsent", sum(|lost| lost.unsent_bytes)),
            bytes("unacknowledged", sum(|lost| lost.unacknowledged_bytes)),
            bytes("largest", largest),
        ];
        let kinds = [ResetReason::UnreadData, ResetReason::ZeroLinger, ResetReason::Disconnect];
        let most = kinds.into_iter().rev().max_by_key(|kind| of_reason(*kind));
        let (summary, next_step) =
            self.words(&subject, most.unwrap_or(ResetReason::UnreadData), exited == about.len());
        let group = Group { conns: about.iter().map(|end| &end.conn).collect() };
        Some(Observation {
            rule: SPEC.rule,
            severity,
            since_ns: about.first()?.ended_ns,
            since_is_lower_bound: false,
            count: about.len() as u64,
            evidence,
            summary,
            next_step,
            examples: group.examples(),
            members: group.members(view.tracker),
            ties: Ties { sockets: group.sockets(), ..Ties::default() },
            subject,
        })
    }

    fn words(&self, subject: &Subject, most: ResetReason, exited: bool) -> (String, String) {
        let (name, peer) = (subject.name(), subject.peer_text());
        let about = if self.lossy.is_empty() { &self.harmless } else { &self.lossy };
        let count = connections(about.len());
        let how = match most {
            ResetReason::UnreadData => "it closed with received data unread",
            ResetReason::ZeroLinger => "it closed with a linger time of zero (SO_LINGER)",
            _ => "it disconnected them",
        };
        if self.lossy.is_empty() {
            return (
                format!("{name} ended {count} with {peer} by a reset: {how}. Nothing was lost by it."),
                "Health checks and benchmarks do so on purpose.".to_owned(),
            );
        }
        let next_step = match most {
            _ if exited => format!("{name} ended; let it finish its connections before it exits."),
            ResetReason::UnreadData => format!(
                "Let {name} read to the end before it closes (Go: io.Copy(io.Discard, body); nginx: lingering_close), or shut down \
                 its sending side and wait for the peer's close."
            ),
            ResetReason::ZeroLinger => format!(
                "Find where {name} sets SO_LINGER to zero: `strace -f -e trace=setsockopt`; Java: setSoLinger(true, 0)."
            ),
            _ => format!("Find where {name} disconnects sockets, by connect() to AF_UNSPEC."),
        };
        (format!("{name} ended {count} with {peer} by a reset, and data was lost: {how}."), next_step)
    }
}

fn reset_reason(end: &KeptEnd) -> Option<ResetReason> {
    end.conn.reset().map(|reset| reset.reason)
}

fn discarded(conn: &Conn) -> Discarded {
    conn.reset().map(|reset| reset.discarded).unwrap_or_default()
}

/// Whether somebody may miss what the reset threw away.
fn loses(view: &View<'_>, conn: &Conn) -> bool {
    let lost = discarded(conn);
    if lost.unsent_bytes + lost.unacknowledged_bytes > 0 {
        return true;
    }
    let is_ticket = conn.role == Role::Client
        && TICKET_BYTES.contains(&lost.unread_bytes)
        && conn.traffic().is_some_and(|traffic| traffic.sent_bytes > traffic.received_bytes);
    lost.unread_bytes as f64 > view.thresholds.get(&UNREAD_BYTES) && !is_ticket
}
