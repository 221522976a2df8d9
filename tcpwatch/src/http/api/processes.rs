//! `/processes`: who has how many connections now, and what was counted of each name since the start.
//!
//! Connections are counted when asked: that costs a walk through the table, and nothing while nobody asks. What was
//! counted since the start is known by name only, as in `/metrics`.

use std::{cmp::Reverse, sync::Arc};

use axum::{extract::State, response::Response};
use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::{
    http::{
        Api, ApiError, Asked, Render,
        render::{
            completeness::Completeness,
            counts::{COLUMNS, ConnectionCounts, CountsView, Now, Wanted, cells, cut},
            text::{printable, table},
        },
        request::Params,
        respond,
        translations::Translations,
    },
    model::{
        groups::Counts,
        processes::{Process, ProcessId},
    },
    node::Node,
};

#[derive(Debug, Serialize)]
struct Processes {
    #[serde(flatten)]
    completeness: Completeness,
    /// How many names match, shown or not.
    total: usize,
    /// Whether `limit` cut the list.
    truncated: bool,
    processes: Vec<Row>,
}

/// All processes of one name.
#[derive(Debug, Serialize)]
struct Row {
    /// `null` for what has no known owner.
    comm: Option<Arc<str>>,
    connections: Now,
    #[serde(flatten)]
    counted: CountsView,
    /// How many processes of this name have connections now.
    running: usize,
    /// Those, the most connections first.
    instances: Vec<Instance>,
}

#[derive(Debug, Serialize)]
struct Instance {
    #[serde(flatten)]
    process: Process,
    connections: Now,
}

pub(crate) async fn handle(State(api): State<Api>, mut asked: Asked) -> Response {
    let answer = match parse(&mut asked.params) {
        Ok((comm, wanted)) => answer(&api, comm, wanted).await,
        Err(error) => Err(error),
    };
    respond(asked.format, answer)
}

async fn answer(api: &Api, comm: Option<String>, wanted: Wanted) -> Result<Processes, ApiError> {
    let translations = wanted.translations(api).await?;
    api.ask(true, move |node, _| list(node, comm.as_deref(), wanted, translations)).await
}

fn parse(params: &mut Params) -> Result<(Option<String>, Wanted), ApiError> {
    let (comm, wanted) = (params.take("comm")?, Wanted::take(params)?);
    params.finish(&[&["comm"][..], &Wanted::PARAMETERS].concat())?;
    Ok((comm, wanted))
}

fn list(node: &Node, comm: Option<&str>, wanted: Wanted, translations: Translations) -> Processes {
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
        by_name.entry(group.key.process.clone()).or_default().1.add(&group.counts);
    }
    let mut rows: Vec<_> = by_name
        .into_iter()
        .filter(|(name, _)| comm.is_none_or(|comm| name.as_deref() == Some(comm)))
        .map(|(name, (tally, counts, instances))| (name, tally, counts, instances))
        .collect();
    let total = wanted.apply(&mut rows);
    Processes {
        completeness: Completeness::of(node).and("translated", translations.problems),
        total,
        truncated: total > rows.len(),
        processes: rows
            .into_iter()
            .map(|(comm, tally, counts, mut instances)| {
                let running = instances.len();
                instances.sort_by_key(|(process, tally)| (Reverse(tally.total()), process.pid));
                instances.truncate(wanted.limit());
                let instance = |(process, tally): (&Process, ConnectionCounts)| Instance {
                    process: process.clone(),
                    connections: tally.shown(),
                };
                Row {
                    comm,
                    connections: tally.shown(),
                    counted: CountsView::of(&counts),
                    running,
                    instances: instances.into_iter().map(instance).collect(),
                }
            })
            .collect(),
    }
}

impl Render for Processes {
    fn text(&self) -> String {
        let rows: Vec<_> = self
            .processes
            .iter()
            .map(|row| {
                let pid = match (&row.instances[..], row.running) {
                    ([only], 1) => only.process.pid.to_string(),
                    (_, 0) => "-".to_owned(),
                    (_, several) => format!("{several} of them"),
                };
                let first = [row.comm.as_deref().map_or("-".to_owned(), printable), pid];
                first.into_iter().chain(cells(&row.connections, &row.counted)).collect()
            })
            .collect();
        let header = [&["PROCESS", "PID"][..], &COLUMNS].concat();
        table(&header, &rows) + &self.completeness.text() + &cut(self.processes.len(), self.total)
    }
}
