//! `/history`: the connections that ended last.

use std::time::{Duration, SystemTime};

use axum::{extract::State, response::Response};
use ipnet::IpNet;
use serde::Serialize;

use crate::{
    http::{
        Api, ApiError, Asked, Render,
        api::connections::show,
        filter::address_or_cidr,
        render::{
            counts::cut,
            text::{bytes, duration, printable, table},
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
    /// How many match, shown or not.
    total: usize,
    truncated: bool,
    /// Latest end first.
    connections: Vec<Detail>,
}

struct Wanted {
    /// A pid or a name.
    process: Option<String>,
    peer: Option<IpNet>,
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
        process: params.take("process")?,
        peer: params.take("peer")?.map(|text| address_or_cidr("peer", &text)).transpose()?,
        since: params.take("since")?.map(|text| since(&text)).transpose()?,
        limit: params.take_limit(DEFAULT_LIMIT)?,
    };
    params.finish(&["process", "peer", "since", "limit"])?;
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
        wanted.peer.is_none_or(|peer| peer.contains(&conn.remote.addr.to_canonical()))
            && wanted.process.as_ref().is_none_or(|name| {
                conn.process
                    .map(|id| node.tracker.processes().get(id))
                    .is_some_and(|process| *process.comm == **name || name.parse() == Ok(process.pid))
            })
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
                    duration(ended.row.age_seconds),
                    ended.row.role.to_string(),
                    process.map_or("-".to_owned(), |process| process.pid.to_string()),
                    process.map_or("-".to_owned(), |process| printable(&process.comm)),
                    show(&ended.row.local),
                    show(&ended.row.remote),
                    carried(ended.sent_bytes),
                    carried(ended.received_bytes),
                ]
            })
            .collect();
        let header =
            ["ID", "ENDED", "LIVED", "ROLE", "PID", "PROCESS", "LOCAL", "REMOTE", "SENT", "RECEIVED"];
        table(&header, &rows) + &cut(self.connections.len(), self.total)
    }
}
