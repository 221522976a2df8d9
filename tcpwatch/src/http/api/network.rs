//! `/network`: whether TCP delivered everything between a process and a peer.
//!
//! What was counted since the start speaks of all connections; the kernel is asked about those of now, for segments and round
//! trips.

use std::{fmt::Write as _, net::IpAddr, sync::Arc};

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::{
    events::decode::Kind,
    findings::{
        life::Finding,
        rules::network_cleared::{Delivery, Judgement, Verdict, Way, is_delayed, judge},
    },
    http::{
        Api, ApiError, Render,
        api::transfer::{
            look::Look,
            totals::{Known, is_full},
        },
        filter::Chosen,
        parameters::{Value, parameters},
        render::{
            completeness::Completeness,
            text::{bytes, printable, round_trip, wrap},
        },
    },
    kernel::{netstat, sock_diag::Figures},
    model::{
        groups::{Group, Peer, Role},
        live::{Spread, Times},
    },
    node::Node,
    tcp::{reset_reason::ResetReason, time::Clock},
};

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Network")]
pub(crate) struct Answer {
    /// Name of the node.
    node: String,
    /// When the question was answered.
    generated_at: String,
    #[serde(flatten)]
    completeness: Completeness,
    /// `cleared`: TCP delivered everything, once, in order and without delay; `cleared_except`: but for the `reasons`, which
    /// nobody feels or which were no fault of the network; `not_cleared`: the `reasons` speak against it; `cannot_tell`: too
    /// little was seen.
    verdict: Verdict,
    /// Why, in words; empty where it is `cleared`.
    reasons: Vec<String>,
    /// When tcpwatch began to count.
    watched_since: String,
    /// Connections of now that the kernel was asked about, each since it began.
    connections: u64,
    /// Connections that ended since `watched_since`: their resets, retransmits and stalls count, their segments, round trips
    /// and packets out of order are not known any more.
    ended: u64,
    /// What went out on the connections of now.
    sent: Way,
    /// What came in on the connections of now.
    received: Way,
    /// Segments sent again, SYNs included.
    retransmitted: u64,
    /// Segments that the peer received twice.
    spurious: u64,
    /// Attempts to send again that failed on this machine.
    failed_retransmits: u64,
    /// Packets received before an earlier part of the data, on the connections of now.
    out_of_order: u64,
    /// Resets that no application caused, as far as is known.
    resets: u64,
    /// Resets by an application, or in answer to what came after a close.
    resets_of_applications: u64,
    /// Connects that failed.
    failed_connects: u64,
    /// Seconds that delivery stood still behind lost segments.
    stalled_seconds: f64,
    /// Segments with a wrong checksum that came to the network namespaces of the connections of now since those namespaces
    /// began, of whichever connection; `null` where that is not known.
    checksum_errors: Option<u64>,
    /// Smoothed round trips of the connections of now; `null` before the first measurement of any.
    rtt: Option<Spread>,
    /// The least round trip of each of them in the last minutes; `null` before the first measurement of any.
    least_rtt: Option<Spread>,
    /// What the verdict does not cover.
    not_looked_at: Vec<String>,
}

parameters! {
    #[derive(Clone, Debug)]
    pub(crate) struct With {
        /// only the connections with this server: its `ADDRESS:PORT` as clients dial it, or `:PORT` for a port of this node
        peer: Option<WantedPeer>,
        /// only of the process with this id, as far as connections of now are asked about; what was counted since the start
        /// is of all processes of its name
        pid: Option<u32>,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WantedPeer(Peer);

impl Value for WantedPeer {
    fn parse(text: &str) -> Result<Self, String> {
        let local = text.strip_prefix(':').and_then(|port| port.parse().ok()).map(Peer::LocalPort);
        let remote = text.parse().ok().map(|end: std::net::SocketAddr| {
            let addr = match end.ip().to_canonical() {
                IpAddr::V4(addr) => addr.to_ipv6_mapped(),
                IpAddr::V6(addr) => addr,
            };
            Peer::Remote(addr, end.port())
        });
        local.or(remote).map(Self).ok_or_else(|| "is neither ADDRESS:PORT nor :PORT".to_owned())
    }

    fn schema() -> serde_json::Value {
        json!({"type": "string", "format": "address-and-port-or-port"})
    }
}

/// Which connections are asked about.
#[derive(Clone)]
struct Wanted {
    chosen: Chosen,
    peer: Option<WantedPeer>,
    pid: Option<u32>,
}

impl Wanted {
    fn matches(&self, process: Option<&str>, role: Role, peer: Peer) -> bool {
        self.chosen.matches(process, role) && self.peer.is_none_or(|wanted| wanted.0 == peer)
    }
}

/// What the kernel says of the connections of now.
#[derive(Default)]
struct Now {
    known: Known,
    /// The name of the wanted process, where one is wanted by its id.
    process: Option<Arc<str>>,
    connections: u64,
    sent_segments: u64,
    received_segments: u64,
    sent_bytes: u64,
    received_bytes: u64,
    retransmitted: u64,
    spurious: u64,
    out_of_order: u64,
    delayed: u64,
    rtt: Times,
    least_rtt: Times,
}

impl Now {
    fn add(&mut self, node: &Node, wanted: &Wanted, part: &[Figures]) {
        for figures in part {
            let Some(conn) = self.known.find(node, figures) else { continue };
            let process = conn.process.map(|id| node.tracker.processes().get(id));
            let is_pid = |pid| process.is_some_and(|process| process.pid == pid);
            let name = process.map(|process| &*process.comm);
            if !wanted.matches(name, conn.role, conn.peer()) || !wanted.pid.is_none_or(is_pid) {
                continue;
            }
            self.process = wanted.pid.and(process).map(|process| Arc::clone(&process.comm));
            self.connections += 1;
            self.sent_segments += u64::from(figures.sent_segments);
            self.received_segments += u64::from(figures.received_segments);
            self.sent_bytes += figures.carried.sent_bytes;
            self.received_bytes += figures.carried.received_bytes;
            self.retransmitted += u64::from(figures.retransmitted_segments);
            self.spurious += u64::from(figures.spurious_segments);
            self.out_of_order += u64::from(figures.out_of_order_packets);
            if let Some(rtt) = figures.rtt_seconds {
                self.rtt.add(rtt);
            }
            if let Some(least) = figures.least_rtt_seconds {
                self.least_rtt.add(least);
            }
            if let (Some(rtt), Some(least)) = (figures.rtt_seconds, figures.least_rtt_seconds) {
                let delayed =
                    is_delayed(&node.settings.thresholds, rtt, least, figures.rtt_variation_seconds);
                self.delayed += u64::from(delayed);
            }
        }
    }
}

pub(crate) async fn answer(api: Api, (chosen, with): (Chosen, With)) -> Result<Answer, ApiError> {
    let wanted = Wanted { chosen, peer: with.peer, pid: with.pid };
    let (mut now, mut problems) = (Now::default(), Vec::new());
    let mut checksum_errors = None;
    if api.live {
        let mut look = Look::start(&api).await?;
        while let Some(part) = look.next().await {
            let wanted = wanted.clone();
            now = api
                .ask(false, move |node, _| {
                    now.add(node, &wanted, &part);
                    now
                })
                .await?;
        }
        problems.append(&mut look.problems);
        checksum_errors = ask_checksum_errors(&api, &wanted).await?;
    } else {
        problems.push("a recording does not have what only the kernel counts".to_owned());
    }
    api.ask(false, move |node, clock| Answer::of(node, clock, &wanted, &now, checksum_errors, problems)).await
}

/// `None` where one of the namespaces cannot be asked.
async fn ask_checksum_errors(api: &Api, wanted: &Wanted) -> Result<Option<u64>, ApiError> {
    let wanted = wanted.clone();
    let namespaces = move |node: &Node, _| {
        node.namespaces_of(|conn| {
            let process = conn.process.map(|id| &*node.tracker.processes().get(id).comm);
            is_full(conn) && wanted.matches(process, conn.role, conn.peer())
        })
    };
    let namespaces = api.ask(false, namespaces).await?;
    let asked = netstat::checksum_errors(namespaces).await.unwrap_or_default();
    Ok(asked.into_values().collect::<Result<Vec<u64>, String>>().ok().map(|counts| counts.iter().sum()))
}

/// Whether a reset may be the network's doing: in the middle of a connection, or in answer to a segment that fits none.
fn is_of_network(reason: ResetReason) -> bool {
    matches!(
        reason,
        ResetReason::Established
            | ResetReason::PolicyReceived
            | ResetReason::PolicySent
            | ResetReason::TimedOut
            | ResetReason::InvalidSegment
            | ResetReason::Other
    )
}

/// Rules whose findings speak against the network.
const AGAINST: [&str; 3] = ["hol_blocking", "retransmit_failed", "throughput_outlier"];

fn speaks_against(finding: &Finding, wanted: &Wanted) -> bool {
    let subject = &finding.latest.subject;
    let process = subject.workload.as_ref().map(|workload| &*workload.comm);
    let is_pid = |pid| finding.latest.members.iter().any(|member| member.pid == pid);
    wanted.pid.is_none_or(is_pid)
        && AGAINST.contains(&finding.id.rule.name())
        && wanted.matches(process, subject.role, subject.peer)
}

/// From this long on a stall is one of a time-out or of a long path: 0.1 s, a bound of the histogram.
const LONG_STALLS_FROM: usize = 3;

/// Counts of all wanted groups since the start, and of the connections of now.
fn delivery(node: &Node, wanted: &Wanted, now: &Now, checksum_errors: Option<u64>) -> (Delivery, u64) {
    let is_wanted = |group: &&Group| {
        let key = &group.key;
        wanted.matches(key.process.as_deref(), key.role, key.peer)
            && (wanted.pid.is_none() || (now.process.is_some() && key.process == now.process))
    };
    let mut delivery = Delivery { checksum_errors, delayed: now.delayed, ..Delivery::default() };
    let mut ended = 0;
    for Group { counts, .. } in node.tracker.groups().iter().filter(is_wanted) {
        ended += counts.closed();
        delivery.retransmitted += counts.retransmitted.total();
        delivery.fast += counts.retransmitted.segments[Kind::Fast as usize];
        delivery.spurious += counts.retransmitted.spurious;
        delivery.failed_retransmits += counts.failures.iter().sum::<u64>();
        delivery.failed_connects += counts.failed_connects();
        for (reason, count) in ResetReason::ALL.into_iter().zip(counts.resets) {
            // Those of connects are counted as failed connects.
            match reason {
                ResetReason::Connecting => {}
                reason if is_of_network(reason) => delivery.resets += count,
                _ => delivery.resets_of_applications += count,
            }
        }
        for stalls in counts.stalls.iter().flat_map(|stalls| stalls.iter()) {
            delivery.stalls += stalls.durations.buckets()[LONG_STALLS_FROM..].iter().sum::<u64>();
            delivery.stalled_seconds += stalls.durations.sum_seconds();
        }
    }
    // Those of before the start are known only of the connections of now.
    delivery.retransmitted = delivery.retransmitted.max(now.retransmitted);
    delivery.spurious = delivery.spurious.max(now.spurious);
    delivery.out_of_order = now.out_of_order;
    delivery.sent = Way::new(now.sent_segments, now.sent_bytes, delivery.retransmitted == 0);
    delivery.received = Way::new(now.received_segments, now.received_bytes, now.out_of_order == 0);
    let all = node.findings.open().into_iter().chain(node.findings.ended());
    delivery.findings =
        all.filter(|finding| speaks_against(finding, wanted)).map(|one| one.id.to_string()).collect();
    (delivery, ended)
}

/// What is true of every such answer.
const LIMITS: [&str; 4] = [
    "the last segment of a burst that came in may have been lost and sent again without being out of order here: only the \
     peer's own tcpwatch sees that",
    "TCP's checksum has 16 bits, and a network card may check it for the machine: whether data was changed on the way is not \
     known",
    "behind a proxy or a sidecar this covers the way to it, not beyond",
    "how long the applications took is not the network's",
];

impl Answer {
    fn of(
        node: &Node,
        clock: Clock,
        wanted: &Wanted,
        now: &Now,
        checksum_errors: Option<u64>,
        problems: Vec<String>,
    ) -> Self {
        let (mut delivery, ended) = delivery(node, wanted, now, checksum_errors);
        let gaps = node.gaps().into_iter().chain(node.count_gaps());
        delivery.gaps = gaps.map(|gap| gap.why).chain(problems.iter().cloned()).collect();
        let Judgement { verdict, reasons } = judge(&delivery, &node.settings.thresholds);
        Self {
            node: node.identity.node.clone(),
            generated_at: clock.rfc3339(),
            completeness: Completeness::of_counts(node).and("network", problems),
            verdict,
            reasons,
            watched_since: clock.at(node.identity.started_ns).rfc3339(),
            connections: now.connections,
            ended,
            sent: delivery.sent,
            received: delivery.received,
            retransmitted: delivery.retransmitted,
            spurious: delivery.spurious,
            failed_retransmits: delivery.failed_retransmits,
            out_of_order: delivery.out_of_order,
            resets: delivery.resets,
            resets_of_applications: delivery.resets_of_applications,
            failed_connects: delivery.failed_connects,
            stalled_seconds: delivery.stalled_seconds,
            checksum_errors,
            rtt: now.rtt.spread(),
            least_rtt: now.least_rtt.spread(),
            not_looked_at: not_looked_at(node, &delivery, ended),
        }
    }
}

fn not_looked_at(node: &Node, delivery: &Delivery, ended: u64) -> Vec<String> {
    let mut left = Vec::new();
    for signal in ["retransmit_failed", "congestion", "send_reset", "receive_reset"] {
        let report = node.hooks.signals.iter().find(|report| report.key.key() == signal);
        if let Some(lost) = report.filter(|report| report.hook.is_none()).and_then(|report| report.lost) {
            left.push(lost.to_owned());
        }
    }
    if ended > 0 {
        left.push(format!(
            "segments, round trips and packets out of order of {ended} connections that have ended"
        ));
    }
    for (way, name) in [(delivery.sent, "sent"), (delivery.received, "received")] {
        if way.segments < 300 {
            left.push(format!("what was {name}: {} segments with data say little", way.segments));
        }
    }
    if delivery.checksum_errors.is_none() {
        left.push("segments with a wrong checksum, which cannot be read here".to_owned());
    }
    left.extend(LIMITS.map(ToOwned::to_owned));
    left
}

/// The text form's width, and where the text beside the labels begins.
const COLUMNS: usize = 100;
const INDENT: usize = 15;

impl Render for Answer {
    fn text(&self) -> String {
        let verdict = self.verdict.name().replace('_', " ").to_uppercase();
        let mut text = format!("{}  {verdict}  {}\n\n", printable(&self.node), self.generated_at);
        let mut line = |label: &str, what: &str| {
            let _ = writeln!(text, "{label:<INDENT$}{}", wrap(&printable(what), COLUMNS, INDENT));
        };
        for reason in &self.reasons {
            line("", reason);
        }
        for (label, way) in [("sent", self.sent), ("received", self.received)] {
            let bound = way.loss_upper_bound_percent.map_or(String::new(), |percent| {
                format!(", none lost: less than {percent} % are, with 95 % certainty")
            });
            line(label, &format!("{} segments, {}{bound}", way.segments, bytes(way.bytes)));
        }
        line(
            "counted",
            &format!(
                "{} sent again, {} in vain, {} failed to be; {} out of order; {} resets, {} more by applications; {} failed \
                 connects; stood still for {:.1} s",
                self.retransmitted,
                self.spurious,
                self.failed_retransmits,
                self.out_of_order,
                self.resets,
                self.resets_of_applications,
                self.failed_connects,
                self.stalled_seconds
            ),
        );
        line("round trips", &format!("{}, least {}", round_trip(self.rtt), round_trip(self.least_rtt)));
        line(
            "looked at",
            &format!(
                "{} connections now, {} ended, since {}",
                self.connections, self.ended, self.watched_since
            ),
        );
        for left in &self.not_looked_at {
            line("not looked at", left);
        }
        text + &self.completeness.text()
    }
}
