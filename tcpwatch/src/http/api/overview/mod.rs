//! `/`: is something wrong, what was looked at to say so, and is this normal?

mod figures;

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::Serialize;

use self::figures::Figure;
use crate::{
    findings::{Severity, life::Finding},
    http::{
        Api, ApiError, Render,
        api::findings::{Shown, verdict},
        render::{
            completeness::Completeness,
            figures::{COLUMNS, both_ends, thousands},
            text::{duration, printable, wrap},
        },
    },
    node::{Node, SweepFirst},
    tcp::time::Clock,
};

/// Findings that the text shows, the rest of each story included.
const FINDINGS: usize = 6;
/// For how long back ended findings are counted.
const HOURS: u64 = 6;
const HOURS_NS: u64 = HOURS * 3600 * 1_000_000_000;

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Overview {
    /// Name of the node.
    node: String,
    /// Version of tcpwatch.
    version: &'static str,
    /// When the question was answered.
    generated_at: String,
    #[serde(flatten)]
    completeness: Completeness,
    /// What is wrong now, in a few words: `OK: nothing wrong now`, how many findings of each severity, or that nothing was seen
    /// where the answer is not complete.
    verdict: String,
    /// Warnings and criticals that are open.
    open: usize,
    /// When the condition of the first of them began; `null` when there are none.
    since: Option<String>,
    /// Warnings and criticals that ended in the last six hours.
    ended: usize,
    /// When the last of them ended; `null` when none did.
    last_ended_at: Option<String>,
    /// What was looked at.
    seeing: Seeing,
    /// The open findings of stories in which something is a warning or worse: causes before effects, the worst first.
    findings: Vec<Shown>,
    /// What there is now, beside what there was.
    figures: Vec<Figure>,
    #[serde(skip)]
    clock_text: ClockText,
}

/// What was looked at, so that silence can be taken for health.
#[derive(Debug, Serialize, JsonSchema)]
struct Seeing {
    /// Connections now, listeners and those in TIME_WAIT among them.
    connections: usize,
    /// Processes that have any of them; each program that a process ran counts by itself.
    processes: usize,
    /// Network namespaces that there are, as the latest sweep found.
    network_namespaces: usize,
    /// Seconds since tcpwatch began to watch.
    watched_seconds: f64,
}

/// Times as the text shows them.
#[derive(Debug)]
struct ClockText {
    now: String,
    since: Option<String>,
    last_ended: Option<String>,
}

pub(crate) async fn answer(api: Api, (): ()) -> Result<Overview, ApiError> {
    api.ask_after(SweepFirst::IfCheap, overview).await
}

fn overview(node: &Node, clock: Clock) -> Overview {
    let stories = node.findings.stories();
    let told = alarming(&stories);
    let alarms = || stories.iter().map(|(_, finding)| *finding).filter(|finding| is_alarm(finding));
    let since_ns = alarms().map(|finding| finding.latest.since_ns).min();
    let recent = node.findings.ended().filter(|finding| {
        finding.worst.severity >= Severity::Warning
            && finding.ended_ns >= Some(clock.now_ns.saturating_sub(HOURS_NS))
    });
    let ended: Vec<u64> = recent.filter_map(|finding| finding.ended_ns).collect();
    let last_ended_ns = ended.iter().copied().max();
    let at = |ns| clock.at(ns).rfc3339();
    let open = alarms().count();
    let completeness = Completeness::of(node);
    let shown: Vec<_> = told.into_iter().map(|(depth, finding)| Shown::of(finding, depth, clock)).collect();
    Overview {
        node: node.identity.node.clone(),
        version: env!("CARGO_PKG_VERSION"),
        generated_at: clock.rfc3339(),
        verdict: if open == 0 && !completeness.is_complete() {
            "nothing wrong was seen, but not everything was looked at".to_owned()
        } else {
            verdict(&shown.iter().collect::<Vec<_>>())
        },
        completeness,
        open,
        since: since_ns.map(at),
        ended: ended.len(),
        last_ended_at: last_ended_ns.map(at),
        seeing: Seeing {
            connections: node.tracker.table().len(),
            processes: node.tracker.table().owners(),
            network_namespaces: node.tracker.namespaces_found(),
            watched_seconds: node.uptime_seconds(clock),
        },
        findings: shown,
        figures: figures::figures(node, clock),
        clock_text: ClockText {
            now: seconds_of(&clock.rfc3339()),
            since: since_ns.map(|ns| format!("{} ({})", time_of(&at(ns)), duration(clock.seconds_since(ns)))),
            last_ended: last_ended_ns.map(|ns| time_of(&at(ns)).to_owned()),
        },
    }
}

fn is_alarm(finding: &Finding) -> bool {
    finding.severity >= Severity::Warning
}

/// The stories in which something is a warning or worse: a cause that is none itself explains.
fn alarming<'a>(stories: &[(usize, &'a Finding)]) -> Vec<(usize, &'a Finding)> {
    let begins = |(depth, _): &&(usize, &Finding)| *depth == 0;
    let parts = stories.chunk_by(|_, next| !begins(&next));
    parts.filter(|story| story.iter().any(|(_, finding)| is_alarm(finding))).flatten().copied().collect()
}

/// `2026-11-30 03:12:41Z`
fn seconds_of(rfc3339: &str) -> String {
    format!("{}Z", rfc3339.get(..19).unwrap_or(rfc3339).replace('T', " "))
}

/// `03:12`
fn time_of(rfc3339: &str) -> &str {
    rfc3339.get(11..16).unwrap_or(rfc3339)
}

/// `1 process`, `1,204 processes`.
fn counted(count: usize, [one, many]: [&str; 2]) -> String {
    format!("{} {}", thousands(count as u64), if count == 1 { one } else { many })
}

impl Overview {
    fn verdict_text(&self) -> String {
        let mut text = format!("{}  {}", printable(&self.node), self.verdict);
        if let Some(since) = &self.clock_text.since {
            let _ = write!(text, " since {since}");
        } else if let Some(last) = &self.clock_text.last_ended {
            let ended = counted(self.ended, ["finding", "findings"]);
            let _ = write!(text, "; {ended} in the last {HOURS} h, over since {last}");
        }
        text
    }

    /// The alibi: what was looked at, for how long, and whether that was everything.
    fn seeing_text(&self) -> String {
        let Seeing { connections, processes, network_namespaces, watched_seconds } = &self.seeing;
        let complete = if self.completeness.is_complete() { "complete" } else { "INCOMPLETE" };
        let text = format!(
            "{} of {} in {}, {complete}; watched for {}",
            counted(*connections, ["connection", "connections"]),
            counted(*processes, ["process", "processes"]),
            counted(*network_namespaces, ["network namespace", "network namespaces"]),
            duration(*watched_seconds)
        );
        format!("seeing  {}\n", wrap(&text, COLUMNS, 8))
    }
}

impl Render for Overview {
    fn text(&self) -> String {
        let mut text = both_ends(&self.verdict_text(), &self.clock_text.now);
        text += &self.seeing_text();
        for line in self.completeness.text().lines().filter(|line| !line.is_empty()) {
            text += &format!("        {}\n", wrap(line, COLUMNS, 8));
        }
        for finding in self.findings.iter().take(FINDINGS) {
            text += &format!("\n{}", finding.text());
        }
        if self.findings.len() > FINDINGS {
            let _ =
                writeln!(text, "\n{} more: /findings", thousands((self.findings.len() - FINDINGS) as u64));
        }
        let rows: Vec<_> = self.figures.iter().map(Figure::cells).collect();
        text += &format!("\n{}", figures::table(&rows));
        text += &format!(
            "\nmore  /findings?since={HOURS}h  /series  /processes  /peers  /connections  /history  /help\n"
        );
        text
    }
}
