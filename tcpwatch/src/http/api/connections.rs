//! `/connections`: every connection now, filtered and sorted.

use axum::{extract::State, response::Response};
use serde::Serialize;

use crate::{
    http::{
        Api, ApiError, Asked, Render,
        filter::Filter,
        render::{
            completeness::Completeness,
            text::{bounded_duration, duration, printable, table},
            view::{Row, row},
        },
        request::{DEFAULT_LIMIT, Params},
        respond,
    },
    model::table::Conn,
    node::Node,
    tcp::time::Clock,
};

#[derive(Debug, Serialize)]
struct Connections {
    #[serde(flatten)]
    completeness: Completeness,
    /// How many match, shown or not.
    total: usize,
    /// Whether `limit` cut the list.
    truncated: bool,
    connections: Vec<Row>,
}

enum Sort {
    Age,
    StateSeconds,
    Stalled,
}

pub(crate) async fn handle(State(api): State<Api>, mut asked: Asked) -> Response {
    let answer = match parse(&mut asked.params) {
        Ok((filter, sort, limit)) => {
            api.ask(true, move |node, clock| list(node, clock, &filter, &sort, limit)).await
        }
        Err(error) => Err(error),
    };
    respond(asked.format, answer)
}

fn parse(params: &mut Params) -> Result<(Filter, Sort, usize), ApiError> {
    let filter = Filter::take(params)?;
    let sort = match params.take("sort")?.as_deref() {
        None | Some("age") => Sort::Age,
        Some("state_seconds") => Sort::StateSeconds,
        Some("stalled") => Sort::Stalled,
        Some(other) => {
            return Err(ApiError::bad(
                "sort",
                format!("`{other}` is not one of age, state_seconds, stalled"),
            ));
        }
    };
    let limit = params.take_limit(DEFAULT_LIMIT)?;
    params.finish(&[&Filter::PARAMETERS[..], &["sort", "limit"]].concat())?;
    Ok((filter, sort, limit))
}

fn list(node: &Node, clock: Clock, filter: &Filter, sort: &Sort, limit: usize) -> Connections {
    let table = &node.tracker.table();
    let matches = |conn: &&Conn| filter.matches(node, conn);
    let mut found: Vec<&Conn> = match filter.state {
        Some(state) => table.in_state(state).filter(matches).collect(),
        None => table.iter().filter(matches).collect(),
    };
    let total = found.len();
    let key = |conn: &&Conn| match sort {
        Sort::Age => (conn.opened_ns(), conn.cookie),
        Sort::StateSeconds => (conn.since_ns(), conn.cookie),
        Sort::Stalled => (conn.stalled().map_or(u64::MAX, |stalled| stalled.since_ns), conn.cookie),
    };
    if total > limit {
        found.select_nth_unstable_by_key(limit, key);
        found.truncate(limit);
    }
    found.sort_unstable_by_key(key);
    Connections {
        completeness: Completeness::of(node),
        total,
        truncated: total > limit,
        connections: found.into_iter().map(|conn| row(node, clock, conn)).collect(),
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
                    process.map_or("-".to_owned(), |process| printable(&process.comm)),
                    row.local.to_string(),
                    row.remote.to_string(),
                    row.stalled.map_or(String::new(), |stalled| duration(stalled.duration_seconds)),
                ]
            })
            .collect();
        let header = ["ID", "STATE", "FOR", "ROLE", "PID", "PROCESS", "LOCAL", "REMOTE", "STALLED FOR"];
        let mut text = table(&header, &rows) + &self.completeness.text();
        if self.truncated {
            text += &format!(
                "\n{} of {} shown; ?limit=0 shows all, and `/` lists the filters\n",
                self.connections.len(),
                self.total
            );
        }
        text
    }
}
