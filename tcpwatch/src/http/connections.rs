//! `/connections`: every connection now, filtered and sorted; `/connections/ID`: one, with its whole life.

use axum::{
    extract::{Path, State},
    response::Response,
};
use serde::Serialize;

use super::{
    Answer, Api, ApiError, Asked,
    filter::Filter,
    request::Params,
    respond,
    text::{bounded_duration, duration, endpoint, printable, table},
    view::{Detail, End, Row, detail, row},
};
use crate::{clock::Clock, connect::Outcome, node::Node, process::Process, table::Conn};

#[derive(Debug, Serialize)]
struct Connections {
    /// How many match, shown or not.
    total: usize,
    /// Whether `limit` cut the list.
    truncated: bool,
    connections: Vec<Row>,
}

pub(super) const DEFAULT_LIMIT: usize = 100;

enum Sort {
    Age,
    StateSeconds,
}

pub(super) async fn handle(State(api): State<Api>, mut asked: Asked) -> Response {
    let answer = match parse(&mut asked.params) {
        Ok((filter, sort, limit)) => {
            api.ask(true, move |node, clock| list(node, clock, &filter, &sort, limit)).await
        }
        Err(error) => Err(error),
    };
    respond(asked.format, answer)
}

pub(super) async fn handle_one(State(api): State<Api>, Path(id): Path<String>, asked: Asked) -> Response {
    let answer = match (asked.params.finish(&[]), u64::from_str_radix(&id, 16)) {
        (Err(error), _) => Err(error),
        (_, Err(_)) => Err(ApiError::not_found(format!("`{id}` is not the id of a connection"))),
        (Ok(()), Ok(id)) => api.ask(true, move |node, clock| find(node, clock, id)).await.flatten(),
    };
    respond(asked.format, answer)
}

fn parse(params: &mut Params) -> Result<(Filter, Sort, usize), ApiError> {
    let filter = Filter::take(params)?;
    let sort = match params.take("sort")?.as_deref() {
        None | Some("age") => Sort::Age,
        Some("state_seconds") => Sort::StateSeconds,
        Some(other) => {
            return Err(ApiError::bad("sort", format!("`{other}` is not one of age, state_seconds")));
        }
    };
    let limit = params.take_limit(DEFAULT_LIMIT)?;
    params.finish(&[&Filter::PARAMETERS[..], &["sort", "limit"]].concat())?;
    Ok((filter, sort, limit))
}

fn list(node: &Node, clock: Clock, filter: &Filter, sort: &Sort, limit: usize) -> Connections {
    let table = &node.tracker.table;
    let matches = |conn: &&Conn| filter.matches(node, conn);
    let mut found: Vec<&Conn> = match filter.state {
        Some(state) => table.in_state(state).filter(matches).collect(),
        None => table.iter().filter(matches).collect(),
    };
    let total = found.len();
    let key = |conn: &&Conn| match sort {
        Sort::Age => (conn.opened_ns(), conn.cookie),
        Sort::StateSeconds => (conn.since_ns(), conn.cookie),
    };
    if total > limit {
        found.select_nth_unstable_by_key(limit, key);
        found.truncate(limit);
    }
    found.sort_unstable_by_key(key);
    Connections {
        total,
        truncated: total > limit,
        connections: found.into_iter().map(|conn| row(node, clock, conn)).collect(),
    }
}

fn find(node: &Node, clock: Clock, id: u64) -> Result<Detail, ApiError> {
    let tracker = &node.tracker;
    let live = if tracker.told.addresses {
        // Listed under their address only: all are looked at.
        tracker.table.iter().find(|conn| conn.id() == id)
    } else {
        tracker.table.find(id).map(|slot| tracker.table.get(slot))
    };
    if let Some(conn) = live {
        return Ok(detail(node, clock, conn, None));
    }
    let ended = tracker.ended.iter().rev().find(|ended| ended.conn.id() == id);
    ended.map(|ended| detail(node, clock, &ended.conn, Some(ended))).ok_or_else(|| {
        ApiError::not_found(format!("no connection {id:x}, neither now nor among the last that ended"))
    })
}

impl Answer for Connections {
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
                    bounded_duration(row.state_seconds, row.at_least),
                    role,
                    process.map_or("-".to_owned(), |process| process.pid.to_string()),
                    process.map_or("-".to_owned(), |process| printable(&process.comm)),
                    show(&row.local),
                    show(&row.remote),
                ]
            })
            .collect();
        let mut text = table(&["ID", "STATE", "FOR", "ROLE", "PID", "PROCESS", "LOCAL", "REMOTE"], &rows);
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

pub(super) fn show(end: &End) -> String {
    endpoint(&end.addr.to_string(), Some(end.port))
}

impl Answer for Detail {
    fn text(&self) -> String {
        let mut text = format!("{} of {}\n", self.row.role, show(&self.row.local));
        let mut line = |label: &str, value: String| text += &format!("  {label:<12}{value}\n");
        line("remote", show(&self.row.remote));
        line("netns", self.row.netns.to_string());
        for (label, process) in
            [("opened by", &self.opener), ("process", &self.row.process), ("closed by", &self.closer)]
        {
            if let Some(process) = process {
                line(label, show_process(process));
            }
        }
        if self.row.accepted == Some(false) {
            line("accepted", "not yet".to_owned());
        }
        if let Some(connect) = self.connect {
            let repeated = match connect.syn_retransmits {
                None | Some(0) => String::new(),
                Some(count) => format!(", {count} SYN repeated"),
            };
            let after =
                connect.seconds.map_or(String::new(), |seconds| format!(" after {}", duration(seconds)));
            let outcome = connect.outcome.map_or("waits", Outcome::name);
            line("connect", format!("{outcome}{after}{repeated}"));
        }
        if let Some(first) = self.first_close {
            let after = self.established_seconds.map_or(String::new(), |seconds| {
                format!(" after {} ESTABLISHED", bounded_duration(seconds, self.row.at_least))
            });
            line("first close", format!("{}{after}", first.name()));
        }
        if let Some(retransmits) = self.retransmits.filter(|retransmits| *retransmits > 0) {
            line("retransmits", format!("{retransmits} segments, {} bytes", self.retransmitted_bytes));
        }
        if !self.retransmits_by_kind.is_empty() {
            let kinds = self.retransmits_by_kind.iter().map(|(kind, count)| format!("{count} {kind}"));
            line("because of", kinds.collect::<Vec<_>>().join(", "));
        }
        if self.spurious_retransmits > 0 {
            line("needlessly", format!("{} segments", self.spurious_retransmits));
        }
        if self.unread_bytes > 0 {
            line("unread", format!("{} bytes", self.unread_bytes));
        }
        if self.error != 0 {
            line("error", std::io::Error::from_raw_os_error(self.error.into()).to_string());
        }
        text.push('\n');
        let rows: Vec<_> = self
            .life
            .iter()
            .map(|step| {
                let cause = step.cause.name().to_owned();
                vec![step.since.clone(), step.state.to_string(), duration(step.seconds), cause]
            })
            .collect();
        text + &table(&["SINCE", "STATE", "FOR", "CAUSED BY"], &rows)
    }
}

fn show_process(process: &Process) -> String {
    let exe = process.exe.as_deref().unwrap_or("");
    printable(format!("{} (pid {}) {exe}", process.comm, process.pid).trim_end())
}
