//! `close_wait_leak`: peers have closed, and the process still holds the connections and does nothing with them.

use rustc_hash::FxHashMap;

use crate::{
    findings::{
        Rule, Severity,
        evidence::{self, OtherEnds},
        observation::{Evidence, Group, Observation, Observations, Subject, Ties, View, connections},
        rules::Spec,
        thresholds::Threshold,
    },
    model::{
        groups::Role,
        table::{Conn, ConnFlags},
    },
    tcp::state::TcpState,
};

const STUCK_SECONDS: Threshold = Threshold {
    name: "close_wait_leak.stuck_seconds",
    default: 30.0,
    reason: "an answer is finished well within it, and half of what conntrack keeps of such a connection (60 s) is over",
};
const STUCK: Threshold = Threshold {
    name: "close_wait_leak.stuck_connections",
    default: 3.0,
    reason: "one or two may be a slow handler; three at once are a habit",
};
const ONE_SECONDS: Threshold = Threshold {
    name: "close_wait_leak.one_seconds",
    default: 300.0,
    reason: "no handler that somebody waits for works for five minutes after its client has gone",
};
const WORKER_SECONDS: Threshold = Threshold {
    name: "close_wait_leak.worker_seconds",
    default: 900.0,
    reason: "processes that serve one connection each (a database's backends) do not look at it while they work, which takes minutes",
};
const CRITICAL: Threshold = Threshold {
    name: "close_wait_leak.critical_connections",
    default: 100.0,
    reason: "the kernel never frees them; descriptors run out at a thousand or a few",
};
const CRITICAL_GROWING: Threshold = Threshold {
    name: "close_wait_leak.critical_growing_connections",
    default: 10.0,
    reason: "ten, and more each minute: it will not end by itself",
};
const IDLE_SECONDS: Threshold = Threshold {
    name: "close_wait_leak.idle_seconds",
    default: 600.0,
    reason: "pools look at idle connections when they want one, which takes minutes in quiet hours",
};

pub(super) const SPEC: Spec = Spec {
    rule: Rule::CloseWaitLeak,
    observe,
    thresholds: &[
        &STUCK_SECONDS,
        &STUCK,
        &ONE_SECONDS,
        &WORKER_SECONDS,
        &CRITICAL,
        &CRITICAL_GROWING,
        &IDLE_SECONDS,
    ],
    signals: &[],
    hold_seconds: 10,
    resolution_seconds: 2.0,
    evidence: &["stuck", "oldest", "unread", "idle_when_closed", "growth"],
    page: include_str!("../../../../docs/findings/close_wait_leak.md"),
    explanation: "The peer has closed the connection; the process has not called close(). The kernel has no timer for this \
                  state, so the connection and its descriptor last until the process closes them or ends. It is a bug of the \
                  process that holds it: a handler that is blocked, or a path that forgets the close.",
};

fn observe(view: &View<'_>, out: &mut Observations) {
    let stuck_ns = view.thresholds.nanos(&STUCK_SECONDS);
    let Some(entered_by) = view.now_ns.checked_sub(stuck_ns) else { return };
    // Not yet accepted, as far as is known: `unaccepted_connections` speaks of them.
    let accepted = |conn: &&Conn| conn.accepted() == Some(true);
    let conns = view.tracker.table().lingering(TcpState::CloseWait, entered_by).filter(accepted);
    // Who accepted a connection may show at the next sweep only.
    let (known, unknown): (Vec<&Conn>, Vec<&Conn>) =
        conns.partition(|conn| conn.process.is_some() || conn.swept > 0);
    if !unknown.is_empty() {
        out.want_sweep();
    }
    let groups = Group::by_subject(view.tracker, known.into_iter());
    let shut_down =
        if groups.is_empty() { FxHashMap::default() } else { evidence::shut_down_by_process(view.tracker) };
    let all = groups.values().flat_map(|group| &group.conns).chain(shut_down.values().flatten());
    let other_ends = OtherEnds::find(view.tracker, all.copied());
    for (subject, group) in groups {
        let (idle, rest): (Vec<&Conn>, Vec<&Conn>) = group
            .conns
            .into_iter()
            .filter(|conn| !is_busy(conn, view.now_ns))
            .partition(|conn| evidence::of(conn, view.now_ns) == evidence::Evidence::Idle);
        out.count(SPEC.rule, &subject, (idle.len() + rest.len()) as u64);
        let members = Group { conns: if rest.is_empty() { idle.clone() } else { rest.clone() } };
        let Some(oldest) = members.conns.first() else { continue };
        let waits_for: Vec<&Conn> = oldest
            .process
            .and_then(|process| shut_down.get(&process))
            .map_or_else(Vec::new, |shut_down| evidence::waits_for(&members.conns, shut_down));
        let relays = 2 * waits_for.len() > members.conns.len();
        let found = Found { subject: &subject, stuck: rest.len(), idle: idle.len(), group: &members, relays };
        let Some(severity) = found.severity(view) else { continue };
        let ties = Ties {
            sockets: members.sockets(),
            other_ends: other_ends.cookies(&members.conns),
            waits_for: if relays { other_ends.cookies(&waits_for) } else { Vec::new() },
            ..Ties::default()
        };
        out.push(found.observation(view, severity, ties));
    }
}

fn is_busy(conn: &Conn, now_ns: u64) -> bool {
    evidence::of(conn, now_ns) == evidence::Evidence::Sending
}

/// What stands in CLOSE_WAIT of one subject.
struct Found<'a> {
    subject: &'a Subject,
    stuck: usize,
    /// Idle when the peer closed: a pool closes such ones when it next looks at them.
    idle: usize,
    /// The stuck ones, or the idle ones where there are no others.
    group: &'a Group<'a>,
    /// The process has passed most of the closes on, and waits itself.
    relays: bool,
}

impl Found<'_> {
    fn growth(&self, view: &View<'_>) -> Option<f64> {
        view.trend(SPEC.rule, self.subject)?.growth()
    }

    fn severity(&self, view: &View<'_>) -> Option<Severity> {
        let limit = |threshold| view.thresholds.count(threshold);
        let oldest_ns = view.now_ns.saturating_sub(self.group.conns.first()?.since_ns());
        let older_than = |threshold| oldest_ns >= view.thresholds.nanos(threshold);
        let grows = self.growth(view).is_some();
        let many = |count| count >= limit(&CRITICAL) || (count >= limit(&CRITICAL_GROWING) && grows);
        if self.stuck == 0 {
            // A pool's: its number says whether it is a leak.
            return if grows && self.idle >= limit(&CRITICAL_GROWING) {
                Some(Severity::Warning)
            } else {
                older_than(&IDLE_SECONDS).then_some(Severity::Info)
            };
        }
        let processes = self.group.members(view.tracker).len();
        if self.relays || (processes > 1 && processes == self.stuck && !older_than(&WORKER_SECONDS)) {
            return Some(Severity::Info);
        }
        Some(match self.stuck {
            stuck if many(stuck) => Severity::Critical,
            stuck if stuck >= limit(&STUCK) || older_than(&ONE_SECONDS) => Severity::Warning,
            _ => Severity::Info,
        })
    }

    fn observation(&self, view: &View<'_>, severity: Severity, ties: Ties) -> Observation {
        let conns = &self.group.conns;
        let oldest = conns[0];
        let age = view.seconds_since(oldest.since_ns());
        let unread: u64 = conns.iter().map(|conn| u64::from(conn.unread_bytes)).sum();
        let is_lower_bound = oldest.is(ConnFlags::STATE_OLDER);
        let growth = self.growth(view);
        let mut evidence = vec![
            Evidence::new("stuck", self.stuck as f64, "connections").against(view.thresholds.get(&STUCK)),
            Evidence::new("oldest", age, "seconds")
                .against(view.thresholds.get(if self.stuck > 0 { &STUCK_SECONDS } else { &IDLE_SECONDS }))
                .at_least(is_lower_bound),
            Evidence::new("unread", unread as f64, "bytes"),
        ];
        if self.idle > 0 {
            evidence.push(Evidence::new("idle_when_closed", self.idle as f64, "connections"));
        }
        if let Some(growth) = growth {
            evidence.push(Evidence::new("growth", growth, "per_minute"));
        }
        let (summary, next_step) = self.words(growth);
        Observation {
            rule: SPEC.rule,
            subject: self.subject.clone(),
            severity,
            since_ns: oldest.since_ns(),
            since_is_lower_bound: is_lower_bound,
            count: conns.len() as u64,
            evidence,
            summary,
            next_step,
            examples: self.group.examples(),
            members: self.group.members(view.tracker),
            ties,
        }
    }

    fn words(&self, growth: Option<f64>) -> (String, String) {
        let (name, peer) = (self.subject.name(), self.subject.peer_sentence());
        let grows = growth.map_or(String::new(), |growth| format!(", {growth:.1} more each minute"));
        let count = connections(self.group.conns.len());
        if self.relays {
            return (
                format!(
                    "{peer} closed {count}; {name} has passed that on and waits for its own peer to close."
                ),
                format!("Look at the peer that {name} waits for, not at {name}."),
            );
        }
        if self.stuck == 0 {
            return (
                format!(
                    "{peer} closed {count} of {name} that were idle{grows}; {name} has not closed its side."
                ),
                format!(
                    "A pool closes such ones when it next looks at them. If their number grows, {name} forgets them: give \
                     the pool an idle time-out below that of the server."
                ),
            );
        }
        let look = match self.subject.role {
            Role::Server => "A thread dump shows what its handlers wait for: a pool, a lock, a transaction",
            _ => "A thread dump shows who should close them",
        };
        (
            format!("{peer} closed {count} that {name} still holds and does nothing with{grows}."),
            format!(
                "{look}. The kernel has no timer for this state: only {name} can close them, or its restart, before which \
                 the dump is worth taking."
            ),
        )
    }
}
