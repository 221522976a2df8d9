//! `stale_pooled_connection`: a client uses a pooled connection that its server closed a while ago.

use crate::{
    findings::{
        Rule, Severity,
        meetings::{self, Meeting},
        observation::{Evidence, Group, Observation, Observations, Subject, Ties, View},
        rules::{
            Spec,
            keepalive_race::{ends, requests, seconds, server_idle},
        },
        thresholds::Threshold,
    },
    model::groups::Role,
    tcp::modes::Mode,
};

const REQUESTS: Threshold = Threshold {
    name: "stale_pooled_connection.requests",
    default: 2.0,
    reason: "within a quarter of an hour; of one request alone the server's time-out must be known too",
};
const CRITICAL: Threshold = Threshold {
    name: "stale_pooled_connection.critical_requests",
    default: 10.0,
    reason: "within ten minutes: one a minute, which users notice",
};

/// A request over a connection that was closed within this share of a time-out met that time-out.
const NEAR: f64 = 0.05;
const CRITICAL_NS: u64 = 600_000_000_000;
/// So few bytes, and a new connection at once, are a validation query that did its work.
const VALIDATION_BYTES: u64 = 16;
const VALIDATED_NS: u64 = 100_000_000;
/// A pool should give up connections by this share of the server's time-out.
const LIFETIME_SHARE: f64 = 0.8;

pub(super) const SPEC: Spec = Spec {
    rule: Rule::StalePooledConnection,
    observe,
    thresholds: &[&REQUESTS, &CRITICAL],
    signals: &["receive_reset"],
    hold_seconds: 900,
    resolution_seconds: 2.0,
    evidence: &[
        "requests",
        "validation_queries",
        "server_idle_seconds",
        "server_idle_most_seconds",
        "closes_with_that_idle",
        "shortest_delay",
        "median_delay",
        "longest_delay",
        "advised_idle",
    ],
    explanation: "The server had closed the connection while it was idle; the client did not look, and sent its next request over \
                  it: the server's kernel answered with a reset. The application sees \"unexpected EOF\", \"invalid connection\" \
                  or \"broken pipe\". The pool must give up connections before the server does, or look at them before it uses \
                  them.",
    page: include_str!("../../../../docs/findings/stale_pooled_connection.md"),
};

fn observe(view: &View<'_>, out: &mut Observations) {
    for (subject, meetings) in meetings::of_rule(view, SPEC.rule) {
        let idle: Vec<&Meeting<'_>> = meetings.iter().filter(|meeting| !meeting.was_in_use()).collect();
        let modes = meetings[meetings.len() - 1].server_modes(view);
        let near = |ms| modes.iter().copied().find(|mode| mode.is_near(ms, NEAR));
        let time_out = idle.last().and_then(|latest| near(latest.idle_ms()));
        out.push(Found { meetings: &meetings, idle, time_out }.observation(view, subject));
    }
}

struct Found<'a> {
    meetings: &'a [Meeting<'a>],
    idle: Vec<&'a Meeting<'a>>,
    /// The server's time-out that the latest of them met.
    time_out: Option<Mode>,
}

impl<'a> Found<'a> {
    fn validation_queries(&self) -> usize {
        self.meetings.iter().filter(|meeting| is_validation(meeting)).count()
    }

    /// The server ended, and closed all at once.
    fn after_restart(&self) -> bool {
        let all: Vec<&Meeting<'_>> = self.meetings.iter().collect();
        self.time_out.is_none() && meetings::were_closed_at_once(&all)
    }

    fn severity(&self, view: &View<'_>, subject: &Subject) -> Severity {
        let uses = self.meetings.len() - self.validation_queries();
        let lately = view.now_ns.saturating_sub(CRITICAL_NS);
        let latest = self.meetings.iter().filter(|one| one.at_ns >= lately && !is_validation(one)).count();
        // At the server it is the fault of another.
        if uses == 0 || subject.role == Role::Server || self.after_restart() {
            Severity::Info
        } else if latest >= view.thresholds.count(&CRITICAL) {
            Severity::Critical
        } else if uses >= view.thresholds.count(&REQUESTS) || self.time_out.is_some() {
            Severity::Warning
        } else {
            Severity::Info
        }
    }

    fn observation(&self, view: &View<'_>, subject: Subject) -> Observation {
        let mut delays: Vec<u64> = self.meetings.iter().map(Meeting::delay_ns).collect();
        delays.sort_unstable();
        let delay = |index: usize| delays[index] as f64 / 1e9;
        let mut evidence = vec![
            Evidence::new("requests", self.meetings.len() as f64, "requests")
                .against(view.thresholds.get(&REQUESTS)),
            Evidence::new("validation_queries", self.validation_queries() as f64, "requests"),
        ];
        evidence.extend(server_idle(self.time_out, &self.idle));
        evidence.extend([
            Evidence::new("shortest_delay", delay(0), "seconds"),
            Evidence::new("median_delay", delay(delays.len() / 2), "seconds"),
            Evidence::new("longest_delay", delay(delays.len() - 1), "seconds"),
        ]);
        let advised = self.time_out.map(|mode| LIFETIME_SHARE * seconds(mode.least_ms));
        evidence.extend(advised.map(|advised| Evidence::new("advised_idle", advised, "seconds")));
        let (summary, next_step) = self.words(&subject, advised);
        let group = Group { conns: self.meetings.iter().flat_map(ends).collect() };
        let about = |meeting: &Meeting<'a>| Some(&meeting.client.or(meeting.server)?.conn);
        let members = Group { conns: self.meetings.iter().filter_map(about).collect() }.members(view.tracker);
        Observation {
            rule: SPEC.rule,
            severity: self.severity(view, &subject),
            since_ns: self.meetings[0].at_ns,
            since_is_lower_bound: false,
            count: self.meetings.len() as u64,
            evidence,
            summary,
            next_step,
            examples: group.examples(),
            members,
            ties: Ties { sockets: group.sockets(), ..Ties::default() },
            subject,
        }
    }

    fn words(&self, subject: &Subject, advised: Option<f64>) -> (String, String) {
        let (name, peer) = (subject.name(), subject.peer_text());
        let requests = requests(self.meetings.len());
        if subject.role == Role::Server {
            return (
                format!(
                    "{requests} of {peer} came long after {name} had closed the connection: answered with a reset."
                ),
                format!(
                    "Look at the clients of {name}: their pools should give up idle connections before {name} does."
                ),
            );
        }
        if self.after_restart() {
            return (
                format!(
                    "{peer} closed all connections at once, as a server does that restarts; {name} then sent {requests} over them."
                ),
                format!(
                    "If {name} should survive a restart of {peer}, let it look at connections before it uses them."
                ),
            );
        }
        let after = match (self.time_out, self.idle.last()) {
            (Some(mode), _) => format!("idle connections after {:.1} s", seconds(mode.least_ms)),
            (None, Some(one)) => {
                format!("idle connections (the latest after {:.1} s)", one.idle_ns as f64 / 1e9)
            }
            (None, None) => "connections in use".to_owned(),
        };
        let limit = advised.map_or_else(
            || "below the server's idle time-out".to_owned(),
            |advised| format!("of {advised:.1} s at most"),
        );
        (
            format!(
                "{peer} closes {after}; {name} did not notice, and sent {requests} over them afterwards."
            ),
            format!(
                "Give the pool of {name} an idle time-out {limit} (Go: SetConnMaxIdleTime; HikariCP: maxLifetime, keepaliveTime; \
                 SQLAlchemy: pool_recycle, pool_pre_ping; go-redis: ConnMaxIdleTime), or let it look at a connection before it \
                 uses it."
            ),
        )
    }
}

fn is_validation(meeting: &Meeting<'_>) -> bool {
    let dialled_ns = meeting.client.and_then(|client| client.dialled_ns);
    meeting.bytes <= VALIDATION_BYTES
        && dialled_ns.is_some_and(|dialled_ns| dialled_ns <= meeting.at_ns.saturating_add(VALIDATED_NS))
}
