//! `keepalive_race`: a server closes an idle keep-alive connection just as the next request is on its way.

use crate::{
    findings::{
        Rule, Severity,
        meetings::{self, Meeting},
        observation::{Evidence, Group, Observation, Observations, Subject, Ties, View},
        rules::Spec,
        thresholds::Threshold,
    },
    model::table::Conn,
    tcp::modes::Mode,
};

const REQUESTS: Threshold = Threshold {
    name: "keepalive_race.requests",
    default: 2.0,
    reason: "within a quarter of an hour; of one request alone the server's time-out must be known too",
};
const CRITICAL: Threshold = Threshold {
    name: "keepalive_race.critical_requests",
    default: 10.0,
    reason: "within a quarter of an hour: by timing alone the race is one request in thousands",
};

/// A request that met a close within this share of a time-out met that time-out.
const NEAR: f64 = 0.1;

pub(super) const SPEC: Spec = Spec {
    rule: Rule::KeepaliveRace,
    observe,
    thresholds: &[&REQUESTS, &CRITICAL],
    signals: &["receive_reset", "send_reset"],
    hold_seconds: 900,
    resolution_seconds: 2.0,
    evidence: &[
        "requests",
        "in_use",
        "server_idle_seconds",
        "server_idle_most_seconds",
        "closes_with_that_idle",
        "client_idle_seconds",
        "shortest_delay",
        "longest_delay",
        "lost",
    ],
    explanation: "The server closes a connection that has been idle for its keep-alive time-out, and the client's next request \
                  is on its way: it comes after the close, and the server's kernel answers it with a reset. The client cannot know \
                  whether the request was served. Clients repeat what is safe to repeat (GET), and fail otherwise: a proxy answers \
                  502. The side that sends requests must give up idle connections first.",
    page: include_str!("../../../../docs/findings/keepalive_race.md"),
};

fn observe(view: &View<'_>, out: &mut Observations) {
    for (subject, meetings) in meetings::of_rule(view, SPEC.rule) {
        out.push(Found::new(view, &meetings).observation(view, subject));
    }
}

/// The meetings of one subject, and the time-outs on both sides.
struct Found<'a> {
    meetings: &'a [Meeting<'a>],
    /// Those of connections that were idle.
    idle: Vec<&'a Meeting<'a>>,
    server: Vec<Mode>,
    client: Vec<Mode>,
}

impl<'a> Found<'a> {
    fn new(view: &View<'_>, meetings: &'a [Meeting<'a>]) -> Self {
        let latest = &meetings[meetings.len() - 1];
        let idle = meetings.iter().filter(|meeting| !meeting.was_in_use()).collect();
        let (server, client) = (latest.server_modes(view), latest.client_modes(view));
        Self { meetings, idle, server, client }
    }

    /// The time-out that the latest of them met.
    fn time_out(&self) -> Option<Mode> {
        let latest = self.idle.last()?;
        self.server.iter().copied().find(|mode| mode.is_near(latest.idle_ms(), NEAR))
    }

    fn severity(&self, view: &View<'_>) -> Severity {
        let count = self.idle.len();
        let ended_at_once = self.time_out().is_none() && meetings::were_closed_at_once(&self.idle);
        match count {
            0 => Severity::Info,
            _ if ended_at_once => Severity::Info,
            _ if count >= view.thresholds.count(&CRITICAL) => Severity::Critical,
            _ if count >= view.thresholds.count(&REQUESTS) || self.time_out().is_some() => Severity::Warning,
            _ => Severity::Info,
        }
    }

    fn observation(&self, view: &View<'_>, subject: Subject) -> Observation {
        let delays = || self.meetings.iter().map(Meeting::delay_ns);
        let [shortest, longest] =
            [delays().min(), delays().max()].map(|delay| delay.unwrap_or(0) as f64 / 1e9);
        let lost: u64 = self.meetings.iter().map(|meeting| meeting.bytes).sum();
        let mut evidence = vec![
            Evidence::new("requests", self.meetings.len() as f64, "requests")
                .against(view.thresholds.get(&REQUESTS)),
            Evidence::new("in_use", (self.meetings.len() - self.idle.len()) as f64, "requests"),
        ];
        evidence.extend(server_idle(self.time_out(), &self.idle));
        if let Some(mode) = self.client.first() {
            evidence.push(Evidence::new("client_idle_seconds", seconds(mode.least_ms), "seconds"));
        }
        evidence.push(Evidence::new("shortest_delay", shortest, "seconds"));
        evidence.push(Evidence::new("longest_delay", longest, "seconds"));
        // The server's end does not know what came.
        let is_bound = self.meetings.iter().any(|meeting| meeting.client.is_none());
        evidence.push(Evidence::new("lost", lost as f64, "bytes").at_least(is_bound));
        let (summary, next_step) = self.words(view, &subject);
        let group = Group { conns: self.meetings.iter().flat_map(ends).collect() };
        Observation {
            rule: SPEC.rule,
            severity: self.severity(view),
            since_ns: self.meetings[0].at_ns,
            since_is_lower_bound: false,
            count: self.meetings.len() as u64,
            evidence,
            summary,
            next_step,
            examples: group.examples(),
            members: Group { conns: self.meetings.iter().filter_map(first_end).collect() }
                .members(view.tracker),
            ties: Ties { sockets: group.sockets(), ..Ties::default() },
            subject,
        }
    }

    fn words(&self, view: &View<'_>, subject: &Subject) -> (String, String) {
        let latest = &self.meetings[self.meetings.len() - 1];
        let name = |conn: &Conn| conn.process.map(|id| view.tracker.processes().get(id).comm.to_string());
        let server = latest.server.map(|end| name(&end.conn).unwrap_or_else(|| subject.peer_text()));
        let server = server.unwrap_or_else(|| subject.peer_text());
        let client = latest.client.map_or_else(
            || latest.server.map(|end| end.conn.remote.addr.to_canonical().to_string()),
            |end| name(&end.conn),
        );
        let client = client.unwrap_or_else(|| "its client".to_owned());
        let requests = requests(self.meetings.len());
        if self.idle.is_empty() {
            return (
                format!(
                    "{server} closed connections in use just as {requests} of {client} came: answered with a reset."
                ),
                format!(
                    "A limit of requests for a connection, or {server} is being replaced: let it finish connections before it \
                     closes them."
                ),
            );
        }
        let after = match (self.time_out(), self.idle.last()) {
            (Some(mode), _) => format!("after {:.1} s", seconds(mode.least_ms)),
            (None, Some(one)) => format!("(the latest after {:.1} s)", one.idle_ns as f64 / 1e9),
            (None, None) => String::new(),
        };
        let node = self.time_out().filter(|mode| mode.least_ms >= 1500 && server == "node").map_or(
            String::new(),
            |mode| {
                format!(
                    " (node waits a second longer than keepAliveTimeout, by its version: {:.1} s)",
                    seconds(mode.least_ms - 1000)
                )
            },
        );
        let keeps = self.client.first().map_or_else(
            || format!("{client} was not seen to give up idle connections first"),
            |mode| format!("{client} gives them up after {:.1} s", seconds(mode.least_ms)),
        );
        (
            format!(
                "{server} closes idle connections {after}{node}, and {requests} of {client} came just then: answered with a reset."
            ),
            format!(
                "Let {client} give up idle connections before {server} does, or raise the keep-alive time-out of {server} above \
                 that of {client}: {keeps}. Requests that are safe to repeat (GET) are probably repeated; the others (POST) fail."
            ),
        )
    }
}

/// What shows after how long the server closes idle connections: a time-out, else what the meetings show.
pub(super) fn server_idle(time_out: Option<Mode>, idle: &[&Meeting<'_>]) -> Vec<Evidence> {
    let of_meetings = || {
        let all = || idle.iter().map(|meeting| meeting.idle_ms());
        Some((all().min()?, all().max()?, None))
    };
    let found = time_out.map(|mode| (mode.least_ms, mode.most_ms, Some(mode.samples))).or_else(of_meetings);
    let Some((least_ms, most_ms, samples)) = found else { return Vec::new() };
    let mut evidence = vec![
        Evidence::new("server_idle_seconds", seconds(least_ms), "seconds"),
        Evidence::new("server_idle_most_seconds", seconds(most_ms), "seconds"),
    ];
    evidence
        .extend(samples.map(|samples| Evidence::new("closes_with_that_idle", samples as f64, "connections")));
    evidence
}

pub(super) fn seconds(ms: u32) -> f64 {
    f64::from(ms) / 1000.0
}

/// `1 request`, `12 requests`.
pub(super) fn requests(count: usize) -> String {
    if count == 1 { "1 request".to_owned() } else { format!("{count} requests") }
}

/// The connection at both ends, as far as they are here.
pub(super) fn ends<'a>(meeting: &Meeting<'a>) -> impl Iterator<Item = &'a Conn> {
    meeting.server.into_iter().chain(meeting.client).map(|end| &end.conn)
}

/// At the end that a race is about.
fn first_end<'a>(meeting: &Meeting<'a>) -> Option<&'a Conn> {
    ends(meeting).next()
}
