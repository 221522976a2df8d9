//! `/history`: the connections that ended last.

use std::time::{Duration, SystemTime};

use axum::{extract::State, response::Response};
use ipnet::IpNet;
use serde::Serialize;

use crate::{
    http::{
        Api, ApiError, Asked, Render,
        filter::address_or_cidr,
        render::{
            completeness::Completeness,
            counts::cut,
            text::{bounded_duration, bytes, printable, table},
            view::{Detail, detail},
        },
        request::{DEFAULT_LIMIT, Params},
        respond,
    },
    model::tracker::Ended,
    node::Node,
    tcp::time::Clock,
};

#[derive(Debug, Serialize)]
struct History {
    #[serde(flatten)]
    completeness: Completeness,
    /// How many match, shown or not.
    total: usize,
    truncated: bool,
    /// Latest end first.
    connections: Vec<Detail>,
}

struct Wanted {
    comm: Option<String>,
    pid: Option<u32>,
    remote: Option<IpNet>,
    since: Option<Since>,
    limit: usize,
}

enum Since {
    Ago(Duration),
    At(SystemTime),
}

pub(crate) async fn handle(State(api): State<Api>, mut asked: Asked) -> Response {
    let answer = match parse(&mut asked.params) {
        Ok(wanted) => api.ask(false, move |node, clock| list(node, clock, &wanted)).await,
        Err(error) => Err(error),
    };
    respond(asked.format, answer)
}

fn parse(params: &mut Params) -> Result<Wanted, ApiError> {
    let wanted = Wanted {
        comm: params.take("comm")?,
        pid: params.take_as("pid")?,
        remote: params.take("remote")?.map(|text| address_or_cidr("remote", &text)).transpose()?,
        since: params.take("since")?.map(|text| since(&text)).transpose()?,
        limit: params.take_limit(DEFAULT_LIMIT)?,
    };
    params.finish(&["comm", "pid", "remote", "since", "limit"])?;
    Ok(wanted)
}

fn since(text: &str) -> Result<Since, ApiError> {
    let at = humantime::parse_rfc3339(text).map(Since::At);
    at.or_else(|_| humantime::parse_duration(text).map(Since::Ago)).map_err(|_| {
        let message =
            format!("`{text}` is neither a time such as 2026-01-31T12:00:00Z nor a duration such as 5m");
        ApiError::bad("since", message)
    })
}

fn list(node: &Node, clock: Clock, wanted: &Wanted) -> History {
    let earliest_ns = wanted.since.as_ref().map_or(0, |since| {
        let ago = match since {
            Since::Ago(ago) => *ago,
            Since::At(at) => clock.wall.duration_since(*at).unwrap_or_default(),
        };
        clock.now_ns.saturating_sub(u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX))
    });
    let is_wanted = |ended: &&Ended| {
        let conn = &ended.conn;
        let process = conn.process.map(|id| node.tracker.processes().get(id));
        wanted.remote.is_none_or(|remote| remote.contains(&conn.remote.addr.to_canonical()))
            && wanted.pid.is_none_or(|pid| process.is_some_and(|process| process.pid == pid))
            && wanted.comm.as_ref().is_none_or(|comm| process.is_some_and(|process| *process.comm == **comm))
    };
    // Ends are noted in about the order in which they happened: not a reason to stop at the first earlier.
    let mut found: Vec<_> = node
        .tracker
        .ended()
        .iter()
        .rev()
        .filter(|ended| ended.ended_ns >= earliest_ns)
        .filter(is_wanted)
        .collect();
    let total = found.len();
    found.truncate(wanted.limit);
    History {
        completeness: Completeness::of(node),
        total,
        truncated: total > wanted.limit,
        connections: found.iter().map(|ended| detail(node, clock, &ended.conn, Some(ended))).collect(),
    }
}

impl Render for History {
    fn text(&self) -> String {
        let rows: Vec<_> = self
            .connections
            .iter()
            .map(|ended| {
                let process = ended.row.process.as_ref();
                let carried = |count: Option<u64>| count.map_or("-".to_owned(), bytes);
                vec![
                    ended.row.id.clone(),
                    ended.ended_at.clone().unwrap_or_default(),
                    bounded_duration(ended.row.age_seconds, ended.row.age_is_lower_bound),
                    ended.row.role.to_string(),
                    process.map_or("-".to_owned(), |process| process.pid.to_string()),
                    process.map_or("-".to_owned(), |process| printable(&process.comm)),
                    ended.row.local.to_string(),
                    ended.row.remote.to_string(),
                    carried(ended.sent_bytes),
                    carried(ended.received_bytes),
                ]
            })
            .collect();
        let header =
            ["ID", "ENDED", "LIVED", "ROLE", "PID", "PROCESS", "LOCAL", "REMOTE", "SENT", "RECEIVED"];
        table(&header, &rows) + &self.completeness.text() + &cut(self.connections.len(), self.total)
    }
}
