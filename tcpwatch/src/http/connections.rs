//! `/connections`: every connection now, filtered and sorted.

use std::{net::IpAddr, str::FromStr};

use axum::{extract::State, response::Response};
use ipnet::IpNet;
use serde::Serialize;

use super::{
    Answer, Api, ApiError, Asked,
    request::Params,
    respond,
    text::{bounded_duration, endpoint, table},
};
use crate::{
    aggregate::Role, clock::Clock, decode::Endpoint, node::Node, process::Process, state::TcpState,
    table::Conn,
};

#[derive(Debug, Serialize)]
struct Connections {
    /// How many match, shown or not.
    total: usize,
    /// Whether `limit` cut the list.
    truncated: bool,
    connections: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    /// The socket's cookie in hexadecimal, as `ss -e` shows it after `sk:`.
    id: String,
    /// Inode of the network namespace, as in /proc/PID/ns/net.
    netns: u32,
    role: Role,
    state: TcpState,
    state_seconds: f64,
    age_seconds: f64,
    /// The times are lower bounds: it was there before tcpwatch saw it.
    at_least: bool,
    process: Option<Process>,
    local: End,
    remote: End,
}

#[derive(Debug, Serialize)]
struct End {
    addr: IpAddr,
    port: u16,
}

const DEFAULT_LIMIT: usize = 100;
const PARAMETERS: &[&str] =
    &["state", "pid", "comm", "local_port", "remote_port", "remote", "role", "sort", "limit"];

struct Filter {
    state: Option<TcpState>,
    pid: Option<u32>,
    comm: Option<String>,
    local_port: Option<u16>,
    remote_port: Option<u16>,
    remote: Option<IpNet>,
    role: Option<Role>,
}

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

fn parse(params: &mut Params) -> Result<(Filter, Sort, usize), ApiError> {
    let filter = Filter {
        state: params.take_as("state")?,
        pid: params.take_as("pid")?,
        comm: params.take("comm")?,
        local_port: params.take_as("local_port")?,
        remote_port: params.take_as("remote_port")?,
        remote: params.take("remote")?.map(|text| address_or_cidr(&text)).transpose()?,
        role: params.take_as("role")?,
    };
    let sort = match params.take("sort")?.as_deref() {
        None | Some("age") => Sort::Age,
        Some("state_seconds") => Sort::StateSeconds,
        Some(other) => {
            return Err(ApiError::bad("sort", format!("`{other}` is not one of age, state_seconds")));
        }
    };
    let limit = match params.take_as("limit")? {
        None => DEFAULT_LIMIT,
        Some(0) => usize::MAX,
        Some(limit) => limit,
    };
    params.finish(PARAMETERS)?;
    Ok((filter, sort, limit))
}

fn address_or_cidr(text: &str) -> Result<IpNet, ApiError> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).map_err(|_| {
        ApiError::bad("remote", format!("`{text}` is not an address or CIDR such as 10.0.0.0/8"))
    })
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let role = Self::ALL.iter().copied().find(|role| role.name() == text);
        role.ok_or_else(|| "not one of client, server, listener, unknown".to_owned())
    }
}

fn list(node: &Node, clock: Clock, filter: &Filter, sort: &Sort, limit: usize) -> Connections {
    let tracker = &node.tracker;
    let matches = |conn: &&Conn| {
        filter.local_port.is_none_or(|port| conn.local.port == port)
            && filter.remote_port.is_none_or(|port| conn.remote.port == port)
            && filter.role.is_none_or(|role| conn.role == role)
            && filter.remote.is_none_or(|net| net.contains(&conn.remote.addr.to_canonical()))
            && (filter.pid.is_none() && filter.comm.is_none()
                || conn.process.map(|id| tracker.processes.get(id)).is_some_and(|process| {
                    filter.pid.is_none_or(|pid| process.pid == pid)
                        && filter.comm.as_ref().is_none_or(|comm| *process.comm == **comm)
                }))
    };
    let mut found: Vec<&Conn> = match filter.state {
        Some(state) => tracker.table.in_state(state).filter(matches).collect(),
        None => tracker.table.iter().filter(matches).collect(),
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

fn row(node: &Node, clock: Clock, conn: &Conn) -> Row {
    let end = |end: Endpoint| End { addr: end.addr.to_canonical(), port: end.port };
    Row {
        id: format!("{:x}", conn.cookie),
        netns: conn.netns,
        role: conn.role,
        state: conn.state(),
        state_seconds: clock.seconds_since(conn.since_ns()),
        age_seconds: clock.seconds_since(conn.opened_ns()),
        at_least: conn.at_least(),
        process: conn.process.map(|id| node.tracker.processes.get(id).clone()),
        local: end(conn.local),
        remote: end(conn.remote),
    }
}

impl Answer for Connections {
    fn text(&self) -> String {
        let rows: Vec<_> = self
            .connections
            .iter()
            .map(|row| {
                let process = row.process.as_ref();
                vec![
                    row.state.to_string(),
                    bounded_duration(row.state_seconds, row.at_least),
                    row.role.to_string(),
                    process.map_or("-".to_owned(), |process| process.pid.to_string()),
                    process.map_or("-".to_owned(), |process| process.comm.to_string()),
                    endpoint(&row.local.addr.to_string(), Some(row.local.port)),
                    endpoint(&row.remote.addr.to_string(), Some(row.remote.port)),
                ]
            })
            .collect();
        let mut text = table(&["STATE", "FOR", "ROLE", "PID", "PROCESS", "LOCAL", "REMOTE"], &rows);
        if self.truncated {
            text += &format!(
                "\n{} of {} shown; ?limit=0 shows all, `curl .../` lists the filters\n",
                self.connections.len(),
                self.total
            );
        }
        text
    }
}
