//! `/processes`: who has how many connections now, and what was counted of each name since the start.
//!
//! Connections are counted when asked: that costs a walk through the table, and nothing while nobody asks. What was
//! counted since the start is known by name only, as in `/metrics`.

use std::{cmp::Reverse, sync::Arc};

use rustc_hash::{FxHashMap, FxHashSet};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    http::{
        Api, ApiError, List, Render,
        page::{Extent, Page},
        parameters::parameters,
        render::{
            completeness::Completeness,
            counts::{COLUMNS, ConnectionCounts, CountsView, Now, Order, cells, cut},
            text::{printable, table},
        },
        translations::{self, Nat, Translations},
    },
    model::{
        groups::Counts,
        processes::{Process, ProcessId},
    },
    node::Node,
};

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Processes {
    #[serde(flatten)]
    completeness: Completeness,
    #[serde(flatten)]
    extent: Extent,
    processes: Vec<Row>,
}

/// All processes of one name.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ProcessRow")]
pub(crate) struct Row {
    /// `null` for what has no known owner; `~other` for what found no place of its own.
    comm: Option<Arc<str>>,
    connections: Now,
    #[serde(flatten)]
    counted: CountsView,
    /// How many processes of this name have connections now.
    running: usize,
    /// Those, the most connections first; each of the programs that a process ran under this name by itself.
    instances: Vec<Instance>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Instance {
    #[serde(flatten)]
    process: Process,
    connections: Now,
}

parameters! {
    #[derive(Clone, Debug)]
    pub(crate) struct Named {
        /// only processes with exactly this name, as answers show it
        comm: Option<String>,
    }
}

pub(crate) async fn answer(
    api: Api,
    (named, order, nat): (Named, Order, Nat),
    page: Page,
) -> Result<Processes, ApiError> {
    let translations = translations::ask(&api, nat.nat).await?;
    api.ask(true, move |node, _| list(node, named.comm.as_deref(), order, &page, translations)).await?
}

fn list(
    node: &Node,
    comm: Option<&str>,
    order: Order,
    page: &Page,
    translations: Translations,
) -> Result<Processes, ApiError> {
    let tracker = &node.tracker;
    let mut by_process: FxHashMap<Option<ProcessId>, ConnectionCounts> = FxHashMap::default();
    for conn in tracker.table().iter() {
        by_process.entry(conn.process).or_default().count_with(conn, &translations);
    }
    let mut by_name: FxHashMap<Option<Arc<str>>, (ConnectionCounts, Counts, Vec<_>)> = FxHashMap::default();
    for (id, tally) in by_process {
        let process = id.map(|id| tracker.processes().get(id));
        let (sum, _, instances) =
            by_name.entry(process.map(|process| Arc::clone(&process.comm))).or_default();
        sum.add(&tally);
        instances.extend(process.map(|process| (process, tally)));
    }
    for group in tracker.groups().iter() {
        by_name.entry(group.key.shown_process()).or_default().1.add(&group.counts);
    }
    let rows: Vec<_> = by_name
        .into_iter()
        .filter(|(name, _)| comm.is_none_or(|comm| name.as_deref() == Some(comm)))
        .map(|(name, (tally, counts, instances))| (name, tally, counts, instances))
        .collect();
    let cut = order.page(page, rows)?;
    Ok(Processes {
        completeness: Completeness::of_counts(node).and("translated", translations.problems),
        extent: cut.extent,
        processes: cut
            .rows
            .into_iter()
            .map(|(comm, tally, counts, mut instances)| {
                let pids: FxHashSet<_> =
                    instances.iter().map(|(process, _)| (process.pid, process.start_ns)).collect();
                let running = pids.len();
                instances.sort_by_key(|(process, tally)| (Reverse(tally.total()), process.pid));
                instances.truncate(page.limit());
                let instance = |(process, tally): (&Process, ConnectionCounts)| Instance {
                    process: process.clone(),
                    connections: tally.shown(),
                };
                Row {
                    comm,
                    connections: tally.shown(),
                    counted: CountsView::of(counts),
                    running,
                    instances: instances.into_iter().map(instance).collect(),
                }
            })
            .collect(),
    })
}

impl List for Processes {
    type Row = Row;

    const AT_ONCE: usize = usize::MAX;

    fn into_rows(self) -> (Vec<Row>, Option<String>) {
        (self.processes, self.extent.next_cursor)
    }
}

impl Render for Processes {
    fn text(&self) -> String {
        let rows: Vec<_> = self
            .processes
            .iter()
            .map(|row| {
                let pid = match (&row.instances[..], row.running) {
                    ([first, ..], 1) => first.process.pid.to_string(),
                    (_, 0) => "-".to_owned(),
                    (_, several) => format!("{several} of them"),
                };
                let first = [row.comm.as_deref().map_or("-".to_owned(), printable), pid];
                first.into_iter().chain(cells(&row.connections, &row.counted)).collect()
            })
            .collect();
        let header = [&["PROCESS", "PID"][..], &COLUMNS].concat();
        table(&header, &rows) + &self.completeness.text() + &cut(self.processes.len(), self.extent.total)
    }
}
