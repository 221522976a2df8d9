//! `/findings` and `/findings/ID`: what is wrong, the causes before their effects.

use std::{fmt::Write as _, sync::Arc};

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::{
    findings::{
        Rule, Severity,
        life::{Finding, FindingId},
        observation::{Evidence, Member, Subject},
        rules::{SPECS, Spec, spec},
    },
    http::{
        Api, ApiError, Render,
        api::history::Since,
        parameters::{Given, Parameter, Parameters, Place, Value, parameters},
        render::{
            completeness::Completeness,
            text::{bounded_duration, bytes, duration, printable, wrap},
        },
    },
    model::{address::GroupAddress, container::Container, groups::Role, workload::Place as WorkloadPlace},
    node::Node,
    tcp::time::Clock,
};

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Answer {
    /// Name of the node.
    node: String,
    /// When the question was answered.
    generated_at: String,
    #[serde(flatten)]
    completeness: Completeness,
    /// Each cause before its effects, the worst first; then the ended ones, the latest end first.
    findings: Vec<Shown>,
    /// What is looked for.
    rules: Vec<RuleStatus>,
}

/// Something that is wrong, or was.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Finding")]
pub(crate) struct Shown {
    /// Identifier, such as `close_wait_leak.3`: the same while the finding lasts.
    id: String,
    /// What kind of incident it is; docs/findings has a page for each.
    rule: Rule,
    /// How urgent it is. `info` is no alarm: it explains, or may become one.
    severity: Severity,
    /// When the condition began, which is before the finding opened.
    since: String,
    /// Whether `since` is an upper bound: the condition was there when tcpwatch first saw it.
    since_is_upper_bound: bool,
    /// When it was last observed.
    last_seen: String,
    /// When it ended; `null` while it is open.
    ended_at: Option<String>,
    /// How many times it was observed again within five minutes of its end, and went on under its id.
    reopened: u32,
    /// Whom it is about.
    who: Who,
    /// Which side of the connections the processes are.
    role: Role,
    /// The server's end: for a client whom it dialled, for a server its own port.
    peer: GroupAddress,
    /// Inode of the network namespace.
    netns: u32,
    /// Connections, or whatever the rule counts.
    count: u64,
    /// Its worst moment.
    worst: Worst,
    /// The numbers that it rests on, and what they were held against.
    evidence: Vec<Evidence>,
    /// What is wrong, in words.
    summary: String,
    /// What such an incident is, in general.
    explanation: &'static str,
    /// What to do, in words.
    next_step: String,
    /// Ids of a few of its connections, for `/connections/ID`, the oldest first.
    examples: Vec<String>,
    /// Ids of the findings that this one follows from.
    caused_by: Vec<String>,
    /// Ids of the findings that follow from this one.
    effects: Vec<String>,
    /// How old, in seconds, what the rule sees may be.
    resolution_seconds: f64,
    /// How many causes stand above it: it is shown so much further in.
    #[serde(skip)]
    depth: usize,
    /// Seconds that the condition has lasted, until now or its end.
    #[serde(skip)]
    lasted_seconds: f64,
}

/// The processes that a finding is about.
#[derive(Debug, Serialize, JsonSchema)]
struct Who {
    /// Their name; `null` where the owner is not known.
    process: Option<Arc<str>>,
    /// Their executable, where they are known by that; `null` in a container or a systemd service.
    exe: Option<Arc<str>>,
    /// Their container.
    container: Option<Arc<Container>>,
    /// Their systemd service.
    unit: Option<Arc<str>>,
    /// Ids of at most 20 of them, those of the oldest connections first.
    pids: Vec<u32>,
    /// How many they are.
    processes: usize,
}

/// The worst moment of a finding.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "WorstMoment")]
struct Worst {
    /// Its severity then.
    severity: Severity,
    /// Its count then.
    count: u64,
    /// When that was.
    at: String,
}

/// Whether a rule can see anything here.
#[derive(Debug, Serialize, JsonSchema)]
struct RuleStatus {
    /// The rule.
    rule: Rule,
    /// `active`; `on_request`: it answers a question (`/network`); or `unavailable`: it cannot see what it looks for.
    status: &'static str,
    /// Why it is unavailable; `null` of an active one.
    reason: Option<String>,
}

const MAX_PIDS: usize = 20;

impl Who {
    fn of(subject: &Subject, members: &[Member]) -> Self {
        let workload = subject.workload.as_ref();
        let container = members.iter().find_map(|member| member.container.clone());
        let place = workload.map(|workload| &workload.place);
        Self {
            process: workload.map(|workload| workload.comm.clone()),
            exe: match place {
                Some(WorkloadPlace::Program(exe)) => exe.clone(),
                _ => None,
            },
            container: container.filter(|_| matches!(place, Some(WorkloadPlace::Container(_)))),
            unit: match place {
                Some(WorkloadPlace::Unit(unit)) => Some(unit.clone()),
                _ => None,
            },
            pids: members.iter().take(MAX_PIDS).map(|member| member.pid).collect(),
            processes: members.len(),
        }
    }

    /// Such as `orders (container 0123456789ab) pid 4113`.
    fn text(&self, subject: &str) -> String {
        match &self.pids[..] {
            [] => subject.to_owned(),
            [pid] => format!("{subject} pid {pid}"),
            pids => {
                let shown: Vec<_> = pids.iter().take(3).map(ToString::to_string).collect();
                let more = if self.processes > 3 { ", ..." } else { "" };
                format!("{subject} {} processes: {}{more}", self.processes, shown.join(", "))
            }
        }
    }
}

impl Shown {
    pub(super) fn of(finding: &Finding, depth: usize, clock: Clock) -> Self {
        let (latest, at) = (&finding.latest, |ns| clock.at(ns).rfc3339());
        let ids = |ids: &[FindingId]| ids.iter().map(ToString::to_string).collect();
        let spec: &Spec = spec(finding.id.rule);
        let until_ns = finding.ended_ns.unwrap_or(clock.now_ns);
        Self {
            id: finding.id.to_string(),
            rule: finding.id.rule,
            severity: finding.severity,
            since: at(latest.since_ns),
            since_is_upper_bound: latest.since_is_lower_bound,
            last_seen: at(finding.last_seen_ns),
            ended_at: finding.ended_ns.map(at),
            reopened: finding.reopened,
            who: Who::of(&latest.subject, &latest.members),
            role: latest.subject.role,
            peer: latest.subject.peer.into(),
            netns: latest.subject.netns,
            count: latest.count,
            worst: Worst {
                severity: finding.worst.severity,
                count: finding.worst.count,
                at: at(finding.worst.at_ns),
            },
            evidence: latest.evidence.clone(),
            summary: latest.summary.clone(),
            explanation: spec.explanation,
            next_step: latest.next_step.clone(),
            examples: latest.examples.iter().map(|id| format!("{id:x}")).collect(),
            caused_by: ids(&finding.caused_by),
            effects: ids(&finding.effects),
            resolution_seconds: spec.resolution_seconds,
            depth,
            lasted_seconds: clock.at(until_ns).seconds_since(latest.since_ns),
        }
    }
}

parameters! {
    #[derive(Clone, Debug)]
    pub(crate) struct Wanted {
        /// only findings of this rule
        rule: Option<Rule>,
        /// only findings as severe as this, or more
        severity: Option<Severity>,
        /// also findings that ended after this time (`2026-01-31T12:00:00Z`), or in the time until now (`6h`), of the last
        /// 24 hours
        since: Option<Since>,
    }
}

impl Value for Rule {
    fn parse(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|rule| rule.name() == text);
        found.copied().ok_or_else(|| format!("is not a rule; the rules: {}", names(Self::ALL, Self::name)))
    }

    fn schema() -> serde_json::Value {
        json!({"type": "string", "enum": Self::ALL})
    }
}

impl Value for Severity {
    fn parse(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|severity| severity.name() == text);
        found.copied().ok_or_else(|| format!("is not one of {}", names(&Self::ALL, Self::name)))
    }

    fn schema() -> serde_json::Value {
        json!({"type": "string", "enum": Self::ALL})
    }
}

fn names<T: Copy>(all: &[T], name: impl Fn(T) -> &'static str) -> String {
    let names: Vec<_> = all.iter().map(|one| name(*one)).collect();
    names.join(", ")
}

pub(crate) async fn answer(api: Api, wanted: Wanted) -> Result<Answer, ApiError> {
    api.ask(false, move |node, clock| {
        let is_wanted = |finding: &&Finding| {
            wanted.rule.is_none_or(|rule| finding.id.rule == rule)
                && wanted.severity.is_none_or(|least| finding.severity >= least)
        };
        let stories = node.findings.stories();
        let open = stories.iter().filter(|(_, finding)| is_wanted(finding));
        let open = open.map(|(depth, finding)| Shown::of(finding, *depth, clock));
        let ended_since = |finding: &&Finding| {
            wanted.since.is_some_and(|since| finding.ended_ns >= Some(since.begins_ns(clock)))
        };
        let ended = node.findings.ended().filter(is_wanted).filter(ended_since);
        let ended = ended.map(|finding| Shown::of(finding, 0, clock));
        Answer {
            node: node.identity.node.clone(),
            generated_at: clock.rfc3339(),
            completeness: completeness(node),
            findings: open.chain(ended).collect(),
            rules: SPECS.iter().map(|spec| status(node, spec)).collect(),
        }
    })
    .await
}

fn completeness(node: &Node) -> Completeness {
    let unkept = (node.findings.unkept > 0).then(|| {
        format!(
            "{} more subjects have something wrong than are kept; the most severe are",
            node.findings.unkept
        )
    });
    Completeness::of(node).and("findings", unkept)
}

/// A recording does not say which hooks served it.
fn status(node: &Node, spec: &Spec) -> RuleStatus {
    let missing = spec.signals.iter().find_map(|key| {
        let signal = node.hooks.signals.iter().find(|report| report.key.key() == *key)?;
        signal.hook.is_none().then_some(signal)
    });
    RuleStatus {
        rule: spec.rule,
        status: match missing {
            Some(_) => "unavailable",
            None if spec.rule == Rule::NetworkCleared => "on_request",
            None => "active",
        },
        reason: missing.map(|signal| {
            let lost = signal.lost.map_or(String::new(), |lost| format!(": {lost}"));
            format!("the signal `{}` is not to be had on this kernel{lost}", signal.key.key())
        }),
    }
}

/// Which finding: the segment of the path.
pub(crate) struct Id(FindingId);

impl Parameters for Id {
    fn declare() -> Vec<Parameter> {
        vec![Parameter {
            name: "id",
            place: Place::Path,
            meaning: "`id` of the finding".to_owned(),
            schema: json!({"type": "string", "pattern": r"^[a-z0-9_]+\.[0-9]{1,10}$"}),
        }]
    }

    fn take(given: &mut Given) -> Result<Self, ApiError> {
        let text = given.take_segment("id");
        let parse = || {
            let (rule, number) = text.split_once('.')?;
            let number = Some(number).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
            Some(FindingId { rule: Rule::parse(rule).ok()?, number: number.parse().ok()? })
        };
        parse().map(Self).ok_or_else(|| {
            ApiError::bad("id", format!("`{text}` is not the id of a finding, such as close_wait_leak.1"))
        })
    }
}

/// One finding.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "FindingAnswer")]
pub(crate) struct One {
    #[serde(flatten)]
    completeness: Completeness,
    #[serde(flatten)]
    finding: Shown,
}

pub(crate) async fn one(api: Api, Id(id): Id) -> Result<One, ApiError> {
    let found = api.ask(false, move |node, clock| {
        let finding = node.findings.find(id)?;
        Some(One { completeness: completeness(node), finding: Shown::of(finding, 0, clock) })
    });
    found
        .await?
        .ok_or_else(|| ApiError::not_found(format!("no finding {id}, neither now nor in the last day")))
}

/// The text form's width.
const COLUMNS: usize = 100;
/// Where the text of an outermost finding begins.
const INDENT: usize = 10;
/// Findings that the text shows at most.
const ROWS: usize = 10;

impl Render for Answer {
    fn text(&self) -> String {
        let open: Vec<&Shown> = self.findings.iter().filter(|finding| finding.ended_at.is_none()).collect();
        let mut text = format!("{}  {}  {}\n", printable(&self.node), verdict(&open), self.generated_at);
        for finding in self.findings.iter().take(ROWS) {
            text.push('\n');
            text += &finding.text();
        }
        if self.findings.len() > ROWS {
            let _ = writeln!(text, "\n{} more: ?format=json, ?rule=, ?severity=", self.findings.len() - ROWS);
        }
        let unavailable = self.rules.iter().filter(|rule| rule.status == "unavailable");
        for RuleStatus { rule, reason, .. } in unavailable {
            let reason = reason.as_deref().unwrap_or_default();
            let line = format!("unavailable  {}: {reason}", rule.name());
            let _ = write!(text, "\n{}\n", wrap(&line, COLUMNS, 13));
        }
        text + &self.completeness.text()
    }
}

/// `OK: nothing wrong now`, or how many of each severity.
pub(super) fn verdict(open: &[&Shown]) -> String {
    let count = |severity| open.iter().filter(|finding| finding.severity == severity).count();
    let [info, warning, critical] = Severity::ALL.map(count);
    let plural = if warning == 1 { "" } else { "s" };
    match (critical, warning, info) {
        (0, 0, 0) => "OK: nothing wrong now".to_owned(),
        (0, 0, info) => format!("OK: nothing wrong now ({info} info)"),
        (0, warning, _) => format!("{warning} warning{plural}"),
        (critical, 0, _) => format!("{critical} CRITICAL"),
        (critical, warning, _) => format!("{critical} CRITICAL, {warning} warning{plural}"),
    }
}

impl Render for One {
    fn text(&self) -> String {
        let mut text = self.finding.text();
        let margin = " ".repeat(INDENT);
        let _ = writeln!(text, "{margin}{}", wrap(self.finding.explanation, COLUMNS, INDENT));
        for evidence in &self.finding.evidence {
            let (value, limit) = (number(evidence, evidence.value), evidence.limit);
            let bound = if evidence.is_lower_bound { ">" } else { "" };
            let limit = limit.map_or(String::new(), |limit| format!("  (limit {})", number(evidence, limit)));
            let _ = writeln!(text, "{margin}{:<28}{bound}{value}{limit}", evidence.name.replace('_', " "));
        }
        text + &self.completeness.text()
    }
}

fn number(evidence: &Evidence, value: f64) -> String {
    match evidence.unit {
        "seconds" => duration(value),
        "bytes" => bytes(value as u64),
        unit => format!("{value} {}", unit.replace("per_minute", "a minute")),
    }
}

impl Shown {
    pub(super) fn text(&self) -> String {
        let margin = "  ".repeat(self.depth);
        let indent = INDENT + margin.len();
        let severity = match self.severity {
            Severity::Critical => "CRITICAL",
            Severity::Warning => "WARNING",
            Severity::Info => "info",
        };
        let place = self.who.unit.as_deref().map(ToOwned::to_owned).or_else(|| {
            self.who
                .container
                .as_ref()
                .map(|one| format!("container {}", one.id.get(..12).unwrap_or(&one.id)))
        });
        let process = self.who.process.as_deref().unwrap_or("unknown process").to_owned();
        let name = place.map_or_else(|| process.clone(), |place| format!("{process} ({place})"));
        let peer = match (self.peer.addr, self.peer.port) {
            (None, Some(port)) => format!("on :{port}"),
            (None, None) => String::new(),
            _ => format!("-> {}", self.peer),
        };
        let how_long = bounded_duration(self.lasted_seconds, self.since_is_upper_bound);
        let lasts = match &self.ended_at {
            Some(ended_at) => format!("lasted {how_long}, until {ended_at}"),
            None => format!("for {how_long}"),
        };
        let head = format!("{}  {} {peer}  {lasts}", self.id, self.who.text(&name));
        let mut text =
            format!("{margin}{severity:<INDENT$}{}\n", wrap(&printable(head.trim_end()), COLUMNS, indent));
        let mut line = |label: &str, what: &str| {
            let label = format!("{margin}  {label}");
            let _ = writeln!(text, "{label:<indent$}{}", wrap(&printable(what), COLUMNS, indent));
        };
        line("", &self.summary);
        for cause in &self.caused_by {
            line("cause", cause);
        }
        for effect in &self.effects {
            line("effect", effect);
        }
        line("do", &self.next_step);
        let example = self.examples.first().map_or(String::new(), |id| format!("  /connections/{id}"));
        line("look", &format!("/findings/{}{example}", self.id));
        text
    }
}
