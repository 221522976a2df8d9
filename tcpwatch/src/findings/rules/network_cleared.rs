//! `network_cleared`: no incident, but the answer to a question: whether TCP delivered everything between a process and a peer,
//! once, in order and without delay. It observes nothing by itself.

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    findings::{
        Rule,
        observation::{Observations, View},
        rules::Spec,
        thresholds::{Threshold, Thresholds},
    },
    tcp::serialized_by_name,
};

const SEGMENTS: Threshold = Threshold {
    name: "network_cleared.segments",
    default: 300.0,
    reason: "each way; without a loss among n segments, fewer than 3 of n are lost with a probability of 95 %: 1 % of 300",
};
const RTT_FACTOR: Threshold = Threshold {
    name: "network_cleared.round_trip_factor",
    default: 3.0,
    reason: "of the least round trip: a smoothed one above that says that segments wait on the way",
};
const RTT_SECONDS: Threshold = Threshold {
    name: "network_cleared.round_trip_seconds",
    default: 0.005,
    reason: "added to the least round trip: what the scheduling of two machines may take",
};
const LOSS_PERCENT: Threshold = Threshold {
    name: "network_cleared.excused_percent",
    default: 0.01,
    reason: "of the segments: so few losses, all made good by fast recoveries, nobody feels",
};

pub(super) const SPEC: Spec = Spec {
    rule: Rule::NetworkCleared,
    observe,
    thresholds: &[&SEGMENTS, &RTT_FACTOR, &RTT_SECONDS, &LOSS_PERCENT],
    signals: &["retransmit"],
    hold_seconds: 10,
    resolution_seconds: 0.0,
    evidence: &[],
    page: include_str!("../../../../docs/findings/network_cleared.md"),
    explanation: "Asked by `/network`: whether TCP delivered every byte between a process and a peer, once, in order and without \
                  delay. Then the fault is in one of the ends.",
};

/// Nobody is told what was not asked.
fn observe(_: &View<'_>, _: &mut Observations) {}

/// What is known of the connections between a process and a peer.
#[derive(Clone, Debug, Default)]
pub struct Delivery {
    pub sent: Way,
    pub received: Way,
    /// Segments that were sent again, SYNs included.
    pub retransmitted: u64,
    /// Of these, those that an acknowledgement asked for.
    pub fast: u64,
    /// Segments that were received twice by the peer.
    pub spurious: u64,
    /// Attempts to send again that failed here.
    pub failed_retransmits: u64,
    pub out_of_order: u64,
    /// Connections that a reset ended which no application caused, as far as is known.
    pub resets: u64,
    /// The same by applications, or in answer to what came after a close.
    pub resets_of_applications: u64,
    pub failed_connects: u64,
    /// Times that delivery stood still for 0.1 s or longer, and how long.
    pub stalls: u64,
    pub stalled_seconds: f64,
    /// Connections whose smoothed round trip says that segments wait on the way.
    pub delayed: u64,
    /// Segments with a wrong checksum in their network namespaces, of whichever connection; `None` where that is not known.
    pub checksum_errors: Option<u64>,
    /// Findings about the same processes and peer that speak against the network.
    pub findings: Vec<String>,
    /// Why nothing can be said.
    pub gaps: Vec<String>,
}

/// What went one way, on the connections of now.
#[derive(Clone, Copy, Debug, Default, Serialize, JsonSchema)]
pub struct Way {
    /// Segments with data, retransmitted ones included, since the connections began.
    pub segments: u64,
    /// Bytes of data, each once.
    pub bytes: u64,
    /// With a probability of 95 % fewer than this many percent of such segments are lost, as none of these was; `null` where some
    /// were, and where there are none.
    pub loss_upper_bound_percent: Option<f64>,
}

impl Way {
    pub fn new(segments: u64, bytes: u64, lossless: bool) -> Self {
        let bound = (lossless && segments > 0).then(|| (300_000.0 / segments as f64).round() / 1000.0);
        Self { segments, bytes, loss_upper_bound_percent: bound.map(|percent| percent.min(100.0)) }
    }
}

/// Whether a connection's round trips say that segments wait on the way: the smoothed one is far above the least. Where the
/// round trips vary much, peers that delay acknowledgements may be the reason: then nothing is said.
pub fn is_delayed(thresholds: &Thresholds, rtt: f64, least_rtt: f64, variation: f64) -> bool {
    let most = (least_rtt * thresholds.get(&RTT_FACTOR)).max(least_rtt + thresholds.get(&RTT_SECONDS));
    rtt > most && variation <= rtt / 2.0
}

/// What can be said of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It delivered everything.
    Cleared,
    /// It did, but for what is listed, which nobody feels or which was not its doing.
    ClearedExcept,
    /// It did not.
    NotCleared,
    /// Too little was seen.
    CannotTell,
}

impl Verdict {
    pub const ALL: [Self; 4] = [Self::Cleared, Self::ClearedExcept, Self::NotCleared, Self::CannotTell];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Cleared => "cleared",
            Self::ClearedExcept => "cleared_except",
            Self::NotCleared => "not_cleared",
            Self::CannotTell => "cannot_tell",
        }
    }
}

serialized_by_name!(Verdict);

/// A verdict, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    /// What speaks against the network, or why nothing can be said, or what is excepted.
    pub reasons: Vec<String>,
}

/// Judges what is known. What speaks against the network weighs more than what is not known.
pub fn judge(delivery: &Delivery, thresholds: &Thresholds) -> Judgement {
    let against = against(delivery, thresholds);
    if !against.is_empty() {
        return Judgement { verdict: Verdict::NotCleared, reasons: against };
    }
    let mut unknown = delivery.gaps.clone();
    let least = thresholds.count(&SEGMENTS) as u64;
    let most = delivery.sent.segments.max(delivery.received.segments);
    if most < least {
        unknown.push(format!(
            "{most} segments with data are too few to say anything: at least {least} are needed"
        ));
    }
    if !unknown.is_empty() {
        return Judgement { verdict: Verdict::CannotTell, reasons: unknown };
    }
    let except = excepted(delivery);
    let verdict = if except.is_empty() { Verdict::Cleared } else { Verdict::ClearedExcept };
    Judgement { verdict, reasons: except }
}

/// Whether the losses are so few, and were made good so fast, that nobody feels them.
fn is_excused(delivery: &Delivery, thresholds: &Thresholds) -> bool {
    let share = 100.0 * delivery.retransmitted as f64 / delivery.sent.segments.max(1) as f64;
    share <= thresholds.get(&LOSS_PERCENT) && delivery.fast == delivery.retransmitted && delivery.stalls == 0
}

fn against(delivery: &Delivery, thresholds: &Thresholds) -> Vec<String> {
    let excused = is_excused(delivery, thresholds);
    let counted = [
        (delivery.retransmitted, "segments were sent again", excused),
        (delivery.spurious, "segments were received twice by the peer", excused),
        (delivery.failed_retransmits, "attempts to send again failed on this machine", false),
        (delivery.out_of_order, "segments were received out of order", false),
        (delivery.resets, "resets that no application caused, as far as is known", false),
        (delivery.failed_connects, "connects failed", false),
        (delivery.delayed, "connections whose round trips are far above the least one", false),
    ];
    let counted = counted.into_iter().filter(|(count, _, excused)| *count > 0 && !excused);
    let mut reasons: Vec<String> = counted.map(|(count, what, _)| format!("{count} {what}")).collect();
    if delivery.stalls > 0 {
        reasons.push(format!(
            "delivery stood still {} times for 0.1 s or longer, {:.1} s together",
            delivery.stalls, delivery.stalled_seconds
        ));
    }
    reasons.extend(delivery.findings.iter().map(|id| format!("the finding {id}")));
    reasons
}

fn excepted(delivery: &Delivery) -> Vec<String> {
    let counted = [
        (delivery.retransmitted, "segments were sent again, all of them at once when the peer missed them"),
        (delivery.resets_of_applications, "resets by an application, or because one had closed"),
        (
            delivery.checksum_errors.unwrap_or(0),
            "segments with a wrong checksum came to the same network namespaces since those began, of whichever connection",
        ),
    ];
    let counted = counted.into_iter().filter(|(count, _)| *count > 0);
    counted.map(|(count, what)| format!("{count} {what}")).collect()
}
