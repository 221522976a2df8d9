//! `/connections`: every connection now, filtered and sorted.

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    http::{
        Api, ApiError, List, Render,
        filter::Filter,
        page::{Extent, Page},
        parameters::{choices, parameters},
        render::{
            completeness::Completeness,
            counts::cut,
            text::{bounded_duration, duration, table},
            view::{Row, row, show_queue},
        },
    },
    model::table::Conn,
    node::Node,
    tcp::time::Clock,
};

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Connections {
    #[serde(flatten)]
    completeness: Completeness,
    #[serde(flatten)]
    extent: Extent,
    connections: Vec<Row>,
}

choices! {
    pub(crate) enum Sort {
        /// the oldest connection first
        Age = "age",
        /// the longest in its state first
        StateSeconds = "state_seconds",
        /// those first whose delivery stands still, the longest before the others
        Stalled = "stalled",
    }
}

parameters! {
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Order {
        /// which connections come first
        sort: Sort,
    }
}

pub(crate) async fn answer(
    api: Api,
    (filter, order): (Filter, Order),
    page: Page,
) -> Result<Connections, ApiError> {
    api.ask(true, move |node, clock| list(node, clock, &filter, order.sort, &page)).await?
}

fn list(
    node: &Node,
    clock: Clock,
    filter: &Filter,
    sort: Sort,
    page: &Page,
) -> Result<Connections, ApiError> {
    let table = &node.tracker.table();
    let matches = |conn: &&Conn| filter.matches(node, conn);
    let found: Vec<&Conn> = match filter.state {
        Some(state) => table.in_state(state).filter(matches).collect(),
        None => table.iter().filter(matches).collect(),
    };
    let cut = page.cut(sort.word(), found, |conn| match sort {
        Sort::Age => (conn.opened_ns(), conn.cookie),
        Sort::StateSeconds => (conn.since_ns(), conn.cookie),
        Sort::Stalled => (conn.stalled().map_or(u64::MAX, |stalled| stalled.since_ns), conn.cookie),
    })?;
    Ok(Connections {
        completeness: Completeness::of(node),
        extent: cut.extent,
        connections: cut.rows.into_iter().map(|conn| row(node, clock, conn)).collect(),
    })
}

impl List for Connections {
    type Row = Row;

    const AT_ONCE: usize = 10_000;

    fn into_rows(self) -> (Vec<Row>, Option<String>) {
        (self.connections, self.extent.next_cursor)
    }
}

impl Render for Connections {
    fn text(&self) -> String {
        let rows: Vec<_> = self
            .connections
            .iter()
            .map(|row| {
                let process = row.process.as_ref();
                let role = match row.accepted {
                    Some(false) => "unaccepted".to_owned(),
                    _ => row.role.to_string(),
                };
                vec![
                    row.id.clone(),
                    row.state.to_string(),
                    bounded_duration(row.state_seconds, row.state_is_lower_bound),
                    role,
                    process.map_or("-".to_owned(), |process| process.pid.to_string()),
                    row.shown_process(),
                    row.local_text(),
                    row.remote_text(),
                    row.stalled.map_or(String::new(), |stalled| duration(stalled.duration_seconds)),
                    row.queue.as_ref().map_or(String::new(), show_queue),
                ]
            })
            .collect();
        let header =
            ["ID", "STATE", "FOR", "ROLE", "PID", "PROCESS", "LOCAL", "REMOTE", "STALLED FOR", "QUEUE"];
        table(&header, &rows) + &self.completeness.text() + &cut(self.connections.len(), self.extent.total)
    }
}
