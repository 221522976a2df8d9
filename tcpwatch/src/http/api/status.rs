//! `/status`: how tcpwatch itself is doing.

use std::{collections::BTreeMap, fmt::Write as _};

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    events::frame::LostRecords,
    http::{
        Api, ApiError, Render,
        render::text::{bytes, duration, table},
    },
    kernel::{
        probes::{Hooks, SignalReport},
        procfs::{self, OwnUsage},
    },
    model::tracker::Repairs,
    node::Node,
    tcp::{
        state::TcpState,
        time::{Clock, rfc3339},
    },
};

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Status {
    version: &'static str,
    node: String,
    started_at: String,
    uptime_seconds: f64,
    ready: bool,
    #[serde(flatten)]
    hooks: Hooks,
    records: Records,
    connections: Connections,
    processes: Processes,
    /// What the last sweep of all sockets could not look at.
    sweep_problems: Vec<String>,
    usage: OwnUsage,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Records {
    received: u64,
    lost: u64,
    lost_by_cause: LostRecords,
    malformed: u64,
    /// Of retransmits, not written because that socket's had been told of a moment ago; their counts are known.
    held_back: u64,
    /// What sweeps put right in the table because its record was lost or never written.
    repairs: Repairs,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ConnectionTotals")]
struct Connections {
    /// Every state, also those with none.
    states: BTreeMap<&'static str, usize>,
    total: usize,
    /// Seen when the table was full, and so not kept.
    untracked: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ProcessTotals")]
struct Processes {
    known: usize,
    /// Seen when the table was full, and so not kept.
    refused: u64,
}

pub(crate) async fn answer(api: Api, (): ()) -> Result<Status, ApiError> {
    api.ask(false, status).await
}

fn status(node: &Node, clock: Clock) -> Status {
    let (tracker, records) = (&node.tracker, node.records);
    Status {
        version: env!("CARGO_PKG_VERSION"),
        node: node.identity.node.clone(),
        started_at: rfc3339(node.identity.started),
        uptime_seconds: node.uptime_seconds(clock),
        ready: node.waiting_for.is_none(),
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
            untracked: tracker.untracked(),
        },
        processes: Processes { known: tracker.processes().len(), refused: tracker.processes().refused },
        sweep_problems: node.sweep_problems.clone(),
        usage: procfs::own_usage().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read own usage");
            OwnUsage::default()
        }),
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
        line("uses", format!("{} RSS, {:.2} s CPU", bytes(self.usage.rss_bytes), self.usage.cpu_seconds));
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
        line("connections", format!("{}, {} untracked", connections.total, connections.untracked));
        line("processes", format!("{}, {} refused", processes.known, processes.refused));
        for problem in &self.sweep_problems {
            line("problem", problem.clone());
        }
        text.push('\n');
        text += &signals(&self.hooks);
        text.push('\n');
        let states = self.connections.states.iter();
        let rows: Vec<_> =
            states.map(|(state, count)| vec![(*state).to_owned(), count.to_string()]).collect();
        text += &table(&["STATE", "CONNECTIONS"], &rows);
        text
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
