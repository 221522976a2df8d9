//! `/status`: how tcpwatch itself is doing.

use std::{collections::BTreeMap, fmt::Write as _};

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    events::frame::LostRecords,
    http::{
        Api, ApiError, Render,
        render::{
            completeness::Completeness,
            text::{bytes, duration, table},
        },
    },
    kernel::{
        probes::{Hooks, SignalReport},
        procfs::{self, OwnUsage},
    },
    model::tracker::Repairs,
    node::{Node, SweepFirst},
    tcp::{state::TcpState, time::Clock},
};

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Status {
    /// Version of tcpwatch.
    version: &'static str,
    /// Name of the node.
    node: String,
    /// When tcpwatch began to watch.
    started_at: String,
    /// Seconds since then.
    uptime_seconds: f64,
    /// Whether a sweep of open sockets has ended, so that everything open is known.
    ready: bool,
    #[serde(flatten)]
    completeness: Completeness,
    #[serde(flatten)]
    hooks: Hooks,
    /// What became of the records of the BPF programs.
    records: Records,
    /// The table of connections.
    connections: Connections,
    /// The table of processes.
    processes: Processes,
    /// What tcpwatch does not look at, in words.
    out_of_scope: [&'static str; 1],
    /// What tcpwatch itself takes; `null` where `errors` says why /proc could not be read.
    usage: Option<OwnUsage>,
}

/// The application closes the MPTCP socket; its subflows stay ESTABLISHED meanwhile.
const OUT_OF_SCOPE: [&str; 1] = [
    "MPTCP sockets, which `ss -M` shows: their own states and leaks; their subflows are connections like any other",
];

#[derive(Debug, Serialize, JsonSchema)]
struct Records {
    /// Records received since the start.
    received: u64,
    /// Records lost since the start; sweeps make up for them.
    lost: u64,
    /// `lost` by cause: the ring was full, or the kernel skipped a run of the program.
    lost_by_cause: LostRecords,
    /// Records skipped since the start because they could not be decoded; sweeps make up for them.
    malformed: u64,
    /// Retransmits that were only counted, because a record of their socket had been written a moment before.
    held_back: u64,
    /// Connections that sweeps put right in the table because a record was lost or never written.
    repairs: Repairs,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ConnectionTotals")]
struct Connections {
    /// Connections now, by state; every state, also those without any.
    states: BTreeMap<&'static str, usize>,
    /// Connections now.
    total: usize,
    /// Seconds since the latest sweep of all sockets ended; `null` before the first, and of a recording. `/status` starts one
    /// where that is cheap. What no hook of this kernel reports is as old as that: requests of connections (SYN_RECV), and
    /// the TIME_WAIT of an orphan in FIN_WAIT2 where `signals` says that it is inferred and the peer is elsewhere.
    swept_before_seconds: Option<f64>,
    /// Connections that were not kept because the table was full, since the start.
    untracked: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ProcessTotals")]
struct Processes {
    /// Processes that are known now.
    known: usize,
    /// Processes that were not kept because the table was full, since the start.
    refused: u64,
}

pub(crate) async fn answer(api: Api, (): ()) -> Result<Status, ApiError> {
    let usage = procfs::own_usage().map_err(|error| error.to_string());
    api.ask_after(SweepFirst::IfCheap, |node, clock| status(node, clock, usage)).await
}

fn status(node: &Node, clock: Clock, usage: Result<OwnUsage, String>) -> Status {
    let (tracker, records) = (&node.tracker, node.records);
    let (usage, usage_error) = usage.map_or_else(|error| (None, Some(error)), |usage| (Some(usage), None));
    Status {
        version: env!("CARGO_PKG_VERSION"),
        node: node.identity.node.clone(),
        started_at: clock.at(node.identity.started_ns).rfc3339(),
        uptime_seconds: node.uptime_seconds(clock),
        ready: node.waiting_for.is_none(),
        completeness: Completeness::of(node).and("usage", usage_error),
        hooks: node.hooks.clone(),
        records: Records {
            received: records.received,
            lost: records.lost.total(),
            lost_by_cause: records.lost,
            malformed: records.malformed,
            held_back: records.unrecorded.held_back,
            repairs: tracker.repairs(),
        },
        connections: Connections {
            states: TcpState::ALL
                .iter()
                .filter(|state| **state != TcpState::Close)
                .map(|state| (state.name(), tracker.table().count(*state)))
                .collect(),
            total: tracker.table().len(),
            swept_before_seconds: node.sweeps.ended_ns.map(|ended_ns| clock.seconds_since(ended_ns)),
            untracked: tracker.untracked(),
        },
        processes: Processes { known: tracker.processes().len(), refused: tracker.processes().refused },
        out_of_scope: OUT_OF_SCOPE,
        usage,
    }
}

impl Render for Status {
    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |label: &str, value: String| {
            let _ = writeln!(text, "{label:<13}{value}");
        };
        line("tcpwatch", format!("{} on {}, Linux {}", self.version, self.node, self.hooks.kernel.release));
        line("up", format!("{} (since {})", duration(self.uptime_seconds), self.started_at));
        line("ready", if self.ready { "yes".into() } else { "no".into() });
        if let Some(usage) = &self.usage {
            line("uses", format!("{} RSS, {:.2} s CPU", bytes(usage.rss_bytes), usage.cpu_seconds));
        }
        let records = &self.records;
        line(
            "records",
            format!(
                "{} received, {} lost ({} ring full, {} run skipped), {} malformed, {} held back",
                records.received,
                records.lost,
                records.lost_by_cause.ring_full,
                records.lost_by_cause.run_skipped,
                records.malformed,
                records.held_back
            ),
        );
        let repairs = records.repairs;
        line(
            "repairs",
            format!(
                "{} appeared, {} changed, {} vanished",
                repairs.appeared, repairs.changed, repairs.vanished
            ),
        );
        let (connections, processes) = (&self.connections, &self.processes);
        let swept = connections
            .swept_before_seconds
            .map_or(String::new(), |before| format!(", all looked at {} ago", duration(before)));
        line("connections", format!("{}, {} untracked{swept}", connections.total, connections.untracked));
        line("processes", format!("{}, {} refused", processes.known, processes.refused));
        for what in self.out_of_scope {
            line("out of scope", what.to_owned());
        }
        text.push('\n');
        text += &signals(&self.hooks);
        text.push('\n');
        let states = self.connections.states.iter();
        let rows: Vec<_> =
            states.map(|(state, count)| vec![(*state).to_owned(), count.to_string()]).collect();
        text + &table(&["STATE", "CONNECTIONS"], &rows) + &self.completeness.text()
    }
}

/// The signals, their hooks, and what is lost.
pub fn signals(hooks: &Hooks) -> String {
    let row = |signal: &SignalReport| {
        let hook = signal.hook.as_deref().unwrap_or("none");
        vec![signal.key.to_string(), signal.signal.to_owned(), hook.to_owned()]
    };
    let rows: Vec<_> = hooks.signals.iter().map(row).collect();
    let mut text = table(&["KEY", "SIGNAL", "HOOK"], &rows);
    for signal in &hooks.signals {
        for attempt in &signal.tried {
            let _ = writeln!(text, "  {}: {}: {}", signal.key, attempt.hook, attempt.error.trim());
        }
        if let Some(lost) = signal.lost {
            let _ = writeln!(text, "  {}: lost: {lost}", signal.key);
        }
    }
    text
}
