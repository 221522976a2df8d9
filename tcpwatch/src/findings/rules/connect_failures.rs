//! `connect_failures`: connects of a workload to one destination fail, all or some.

use crate::{
    events::decode::Endpoint,
    findings::{
        Rule, Severity,
        evidence::{is_loopback, listener},
        observation::{Evidence, Group, Observation, Observations, Subject, Ties, View},
        rules::Spec,
        share,
        thresholds::Threshold,
    },
    model::{
        dials::{Attempts, Dialled, Dials},
        table::Conn,
    },
    tcp::{modes::modes, state::TcpState},
};

const FAILED: Threshold = Threshold {
    name: "connect_failures.failed",
    default: 5.0,
    reason: "within a minute; fewer are a restart, or a tool that tries a port",
};
const SHARE_PERCENT: Threshold = Threshold {
    name: "connect_failures.share_percent",
    default: 10.0,
    reason: "of the attempts, with 95 % confidence: below it callers that repeat a connect hide it",
};
const WARNING_PERCENT: Threshold = Threshold {
    name: "connect_failures.warning_percent",
    default: 20.0,
    reason: "one in five: repeating once no longer hides it",
};
const STREAK: Threshold = Threshold {
    name: "connect_failures.streak",
    default: 3.0,
    reason: "failures without a success in between, for those that seldom try",
};
const SECONDS: Threshold =
    Threshold { name: "connect_failures.seconds", default: 10.0, reason: "a restart is over by then" };
const NEVER_SECONDS: Threshold = Threshold {
    name: "connect_failures.never_succeeded_seconds",
    default: 30.0,
    reason: "programs that start before their server wait for it",
};
const CRITICAL_SECONDS: Threshold = Threshold {
    name: "connect_failures.critical_seconds",
    default: 60.0,
    reason: "nothing has succeeded for a minute that did before: an outage",
};

/// Of a destination that both accepts and refuses: each so often, and so many changes between them.
const FLAPS: u32 = 3;
const ALTERNATIONS: u32 = 4;
const CRITICAL_ATTEMPTS: u32 = 10;
/// So many successes show that it is over.
const RECOVERED: u32 = 3;
/// Failures spread over a minute fall into so many spans of ten seconds.
const SPREAD: usize = 3;
const MINUTE_NS: u64 = 60_000_000_000;
const WINDOW_NS: u64 = 5 * MINUTE_NS;
/// The longest pause between two tries that is waited for.
const MAX_PAUSE_NS: u64 = 15 * MINUTE_NS;

pub(super) const SPEC: Spec = Spec {
    rule: Rule::ConnectFailures,
    observe,
    thresholds: &[
        &FAILED,
        &SHARE_PERCENT,
        &WARNING_PERCENT,
        &STREAK,
        &SECONDS,
        &NEVER_SECONDS,
        &CRITICAL_SECONDS,
    ],
    signals: &[],
    hold_seconds: 10,
    resolution_seconds: 2.0,
    evidence: &[
        "attempts",
        "ok",
        "refused",
        "timed_out",
        "unreachable",
        "reset",
        "gave_up",
        "fell_back",
        "failed_percent",
        "alternations",
        "syn_retransmits",
        "client_timeout_seconds",
        "local_listeners",
    ],
    explanation: "Connects to this destination fail. Refused: a kernel answered that nobody listens there, or a firewall did so in \
                  its name. Timed out or given up: nothing answered. Unreachable: a router, or this host, has no way there. Now \
                  this and now that: two machines have the address, or one of several backends behind it is dead.",
    page: include_str!("../../../../docs/findings/connect_failures.md"),
};

fn observe(view: &View<'_>, out: &mut Observations) {
    for (_, dials) in view.tracker.dials().iter() {
        if let Some(observation) = Found::of(view, dials).and_then(|found| found.observation(view)) {
            out.push(observation);
        }
    }
}

struct Found<'a> {
    dials: &'a Dials,
    /// Of the last five minutes.
    attempts: Attempts,
    flaps: bool,
}

impl<'a> Found<'a> {
    fn of(view: &View<'_>, dials: &'a Dials) -> Option<Self> {
        let hold_ns = view.thresholds.nanos(&SECONDS);
        let quiet_ns = view.now_ns.saturating_sub(dials.last_failed_ns);
        let recovered = dials.successes.count >= RECOVERED && quiet_ns >= hold_ns;
        let failures = dials.failures;
        let streak_ns = dials.last_failed_ns.saturating_sub(failures.first_ns);
        let usual_ns = streak_ns / u64::from(failures.count.saturating_sub(1).max(1));
        if recovered || quiet_ns > (3 * usual_ns).clamp(MINUTE_NS, MAX_PAUSE_NS) {
            return None;
        }
        let minute = dials.since(view.now_ns.saturating_sub(MINUTE_NS));
        let attempts = dials.since(view.now_ns.saturating_sub(WINDOW_NS));
        let unbroken = failures.count > 0 && view.now_ns.saturating_sub(failures.first_ns) >= hold_ns;
        let spread = dials.failing_spans(view.now_ns.saturating_sub(MINUTE_NS)) >= SPREAD;
        let share = 100.0 * share::at_least(minute.failed().into(), minute.all().into());
        let many = minute.failed() as usize >= view.thresholds.count(&FAILED)
            && share >= view.thresholds.get(&SHARE_PERCENT)
            && (unbroken || spread);
        let seldom = failures.count as usize >= view.thresholds.count(&STREAK) && streak_ns >= hold_ns;
        let flaps = attempts.get(Dialled::Refused) >= FLAPS
            && attempts.get(Dialled::Established) >= FLAPS
            && attempts.alternations >= ALTERNATIONS;
        (many || seldom || flaps).then_some(Self { dials, attempts, flaps })
    }

    fn failed_percent(&self) -> f64 {
        100.0 * f64::from(self.attempts.failed()) / f64::from(self.attempts.all().max(1))
    }

    fn severity(&self, view: &View<'_>) -> Severity {
        let dials = self.dials;
        let failing_ns = dials.last_failed_ns.saturating_sub(dials.failures.first_ns);
        let is_outage = dials.succeeded
            && dials.failures.count >= CRITICAL_ATTEMPTS
            && failing_ns >= view.thresholds.nanos(&CRITICAL_SECONDS);
        let may_start = !dials.succeeded
            && view.now_ns.saturating_sub(dials.first_failed_ns) < view.thresholds.nanos(&NEVER_SECONDS);
        if is_outage {
            Severity::Critical
        } else if may_start {
            Severity::Info
        } else if self.flaps || self.failed_percent() >= view.thresholds.get(&WARNING_PERCENT) {
            Severity::Warning
        } else {
            Severity::Info
        }
    }

    fn observation(&self, view: &View<'_>) -> Option<Observation> {
        let conns: Vec<&Conn> = self.dials.examples().collect();
        let latest = *conns.last()?;
        let subject = Subject::of(view.tracker, latest);
        let count = |name, dialled| Evidence::new(name, self.attempts.get(dialled).into(), "connects");
        let mut evidence = vec![
            Evidence::new("attempts", self.attempts.all().into(), "connects"),
            count("ok", Dialled::Established),
            count("refused", Dialled::Refused),
            count("timed_out", Dialled::TimedOut),
            count("unreachable", Dialled::Unreachable),
            count("reset", Dialled::Reset),
            count("gave_up", Dialled::GaveUp),
            count("fell_back", Dialled::FellBack),
            Evidence::new("failed_percent", self.failed_percent(), "percent")
                .against(view.thresholds.get(&WARNING_PERCENT)),
            Evidence::new("alternations", self.attempts.alternations.into(), "changes")
                .against(ALTERNATIONS.into()),
            Evidence::new("syn_retransmits", self.attempts.syn_repeats.into(), "segments"),
        ];
        let patience = modes(self.dials.patiences(), view.tracker.tick_ms()).first().copied();
        let patience = patience.map(|mode| f64::from(mode.least_ms) / 1000.0);
        evidence
            .extend(patience.map(|patience| Evidence::new("client_timeout_seconds", patience, "seconds")));
        let local = is_here(latest).then(|| Listeners::at(view, latest));
        let taking = local.as_ref().map(|local| local.taking);
        evidence.extend(taking.map(|taking| Evidence::new("local_listeners", taking as f64, "listeners")));
        let (summary, next_step) = self.words(&subject, local.as_ref());
        let since_ns = match self.dials.failures.count {
            0 => self.dials.first_failed_ns,
            _ => self.dials.failures.first_ns,
        };
        let listener = is_here(latest).then(|| listener(view.tracker, latest.netns, latest.remote)).flatten();
        let group = Group { conns };
        Some(Observation {
            rule: SPEC.rule,
            severity: self.severity(view),
            since_ns,
            since_is_lower_bound: false,
            count: self.attempts.failed().into(),
            evidence,
            summary,
            next_step,
            examples: group.examples(),
            members: group.members(view.tracker),
            ties: Ties {
                sockets: group.sockets(),
                listener: listener.map(|conn| conn.cookie),
                destination: Some((latest.remote.addr, latest.remote.port)),
                ..Ties::default()
            },
            subject,
        })
    }

    /// What most of the failures are.
    fn most(&self) -> Dialled {
        let failures =
            [Dialled::Refused, Dialled::TimedOut, Dialled::GaveUp, Dialled::Unreachable, Dialled::Reset];
        failures.into_iter().rev().max_by_key(|one| self.attempts.get(*one)).unwrap_or(Dialled::Refused)
    }

    fn words(&self, subject: &Subject, local: Option<&Listeners>) -> (String, String) {
        let (name, peer) = (subject.name(), subject.peer_text());
        let (failed, all) = (self.attempts.failed(), self.attempts.all());
        let how = match self.most() {
            Dialled::Refused => "refused",
            Dialled::TimedOut => "timed out, nothing answered",
            Dialled::GaveUp => "given up by the application after nothing had answered",
            Dialled::Unreachable => "unreachable",
            _ => "reset",
        };
        if self.flaps {
            return (
                format!("{peer} now accepts and now refuses connects of {name}: {failed} of {all} failed."),
                "Two machines may have the address (`ip neigh show`, `arping -D`), or one of several backends behind it is \
                 dead (`ipvsadm -Ln`, `kubectl get endpointslices`), or one of several processes that share the port ends. \
                 TCP alone does not tell these apart."
                    .to_owned(),
            );
        }
        let next_step = match (self.most(), local) {
            (Dialled::Refused, Some(local)) => local.words(subject),
            (Dialled::Refused, None) => format!(
                "Look whether anything listens there, and on which address (`ss -tlnp` on that machine); a firewall may refuse \
                 in its name. Is {peer} the address that {name} should dial?"
            ),
            (Dialled::TimedOut | Dialled::GaveUp, _) => format!(
                "Nothing answers the SYNs: the machine of {peer} is down or not there, a firewall drops them, or the listener's \
                 accept queue is full."
            ),
            (Dialled::Unreachable, _) => {
                format!("This host or a router has no way to {peer}, or a firewall says so: `ip route get`.")
            }
            _ => format!("{peer} reset connects of {name} under way."),
        };
        (format!("{failed} of {all} connects of {name} to {peer} failed, most were {how}."), next_step)
    }
}

/// Whether the destination is in the network namespace of the socket, as far as the address shows.
fn is_here(conn: &Conn) -> bool {
    is_loopback(conn.remote.addr) || conn.remote.addr == conn.local.addr
}

/// Who listens on the port dialled, in the same network namespace.
struct Listeners {
    /// Listeners that take connects to the address dialled.
    taking: usize,
    /// Another address at which one listens.
    elsewhere: Option<Endpoint>,
}

impl Listeners {
    fn at(view: &View<'_>, dialled: &Conn) -> Self {
        let on_port = view.tracker.table().in_state(TcpState::Listen);
        let on_port = on_port
            .filter(|conn| conn.netns == dialled.netns && conn.local.port == dialled.remote.port)
            .map(|conn| conn.local);
        let (taking, elsewhere): (Vec<Endpoint>, Vec<Endpoint>) =
            on_port.partition(|local| takes(*local, dialled.remote));
        Self { taking: taking.len(), elsewhere: elsewhere.first().copied() }
    }

    fn words(&self, subject: &Subject) -> String {
        let (name, peer) = (subject.name(), subject.peer_text());
        match (self.taking, self.elsewhere) {
            (0, Some(at)) => {
                let at = at.addr.to_canonical();
                format!(
                    "A process of this machine listens on that port, but only on {at}: let it listen on the address that {name} \
                     dials, or the other way round."
                )
            }
            (0, None) => {
                format!("Nobody listens at {peer} on this machine: start the server, or correct the port.")
            }
            _ => format!(
                "By now a process of this machine listens at {peer}: it did not then, or was not ready."
            ),
        }
    }
}

/// An IPv6 wildcard takes IPv4, too, unless the listener does not want that.
fn takes(listens: Endpoint, dialled: Endpoint) -> bool {
    let is_v6 = dialled.addr.to_ipv4_mapped().is_none();
    let any = listens.is_wildcard() && (!is_v6 || listens.addr.to_ipv4_mapped().is_none());
    any || listens.addr == dialled.addr
}
