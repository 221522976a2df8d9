//! `/transfer`: how the data of the live connections goes, summed by process and peer: asked of the kernel now.
//!
//! The kernel is asked in a thread of its own and answers in parts; each part is booked by the owner of the state in
//! turn with what else it has to do.

use std::{cmp::Reverse, sync::Arc};

use axum::{extract::State, response::Response};
use rustc_hash::FxHashMap;
use serde::Serialize;

use super::{
    Answer, Api, ApiError, Asked,
    connections::DEFAULT_LIMIT,
    request::Params,
    respond,
    sums::cut,
    text::{bytes, printable, table},
};
use crate::{
    aggregate::{Peer, Role},
    node::Node,
    sock_diag::{self, Figures},
    table::{Conn, Ends},
};

#[derive(Debug, Serialize)]
struct Transfers {
    /// How many match, shown or not.
    total: usize,
    /// Whether `limit` cut the list.
    truncated: bool,
    transfers: Vec<Row>,
    /// What could not be asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    /// The name of the local process; `null` for one that is not known.
    process: Option<Arc<str>>,
    role: Role,
    peer: String,
    #[serde(flatten)]
    sum: Sum,
    /// `null` before the first measurement of any.
    rtt: Option<Rtt>,
}

/// Over connections that live now, each since it began.
#[derive(Clone, Debug, Default, Serialize)]
struct Sum {
    connections: u64,
    sent_bytes: u64,
    received_bytes: u64,
    retransmitted_bytes: u64,
    send_queue_bytes: u64,
    receive_queue_bytes: u64,
    delivery_rate: u64,
    busy_seconds: f64,
    peer_window_limited_seconds: f64,
    buffer_limited_seconds: f64,
    window_probes: u64,
    out_of_order_packets: u64,
    #[serde(skip)]
    rtt: RttSum,
}

#[derive(Clone, Copy, Debug, Default)]
struct RttSum {
    count: u64,
    seconds: f64,
    least: f64,
    most: f64,
}

/// Of the connections' smoothed round-trip times.
#[derive(Clone, Copy, Debug, Serialize)]
struct Rtt {
    least_seconds: f64,
    mean_seconds: f64,
    most_seconds: f64,
}

impl Sum {
    fn add(&mut self, figures: &Figures) {
        self.connections += 1;
        self.sent_bytes += figures.sent_bytes;
        self.received_bytes += figures.received_bytes;
        self.retransmitted_bytes += figures.retransmitted_bytes;
        self.send_queue_bytes += u64::from(figures.send_queue_bytes);
        self.receive_queue_bytes += u64::from(figures.receive_queue_bytes);
        self.delivery_rate += figures.delivery_rate;
        self.busy_seconds += figures.busy_seconds;
        self.peer_window_limited_seconds += figures.peer_window_limited_seconds;
        self.buffer_limited_seconds += figures.buffer_limited_seconds;
        self.window_probes += u64::from(figures.window_probes);
        self.out_of_order_packets += u64::from(figures.out_of_order_packets);
        if let Some(seconds) = figures.rtt_seconds {
            let RttSum { count, seconds: sum, least, most } = self.rtt;
            let least = if count == 0 { seconds } else { least.min(seconds) };
            self.rtt = RttSum { count: count + 1, seconds: sum + seconds, least, most: most.max(seconds) };
        }
    }
}

impl RttSum {
    fn shown(self) -> Option<Rtt> {
        (self.count > 0).then(|| Rtt {
            least_seconds: self.least,
            mean_seconds: self.seconds / self.count as f64,
            most_seconds: self.most,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Bytes,
    Connections,
    Retransmitted,
    Name,
}

struct Wanted {
    comm: Option<String>,
    role: Option<Role>,
    sort: Sort,
    limit: usize,
}

type Key = (Option<Arc<str>>, Role, Peer);

#[derive(Default)]
struct Sums {
    by_key: FxHashMap<Key, Sum>,
    /// Where connections are not known by the kernel's cookies: by what they are known.
    by_ends: Option<FxHashMap<Ends, u64>>,
}

impl Sums {
    /// Books a part. What ended meanwhile, or is not known yet, is left out.
    fn add(&mut self, node: &Node, part: &[Figures]) {
        for figures in part {
            if let Some(conn) = self.find(node, figures) {
                let process = conn.process.map(|id| Arc::clone(&node.tracker.processes.get(id).comm));
                self.by_key.entry((process, conn.role, conn.peer())).or_default().add(figures);
            }
        }
    }

    fn find<'a>(&mut self, node: &'a Node, figures: &Figures) -> Option<&'a Conn> {
        let table = &node.tracker.table;
        let ends = (figures.netns, figures.local, figures.remote);
        let cookie = if node.tracker.told.addresses {
            let by_ends = self.by_ends.get_or_insert_with(|| {
                table.iter().filter(|conn| is_full(conn)).map(|conn| (conn.ends(), conn.cookie)).collect()
            });
            *by_ends.get(&ends)?
        } else {
            figures.cookie
        };
        table.find(cookie).map(|slot| table.get(slot)).filter(|conn| is_full(conn) && conn.ends() == ends)
    }
}

fn is_full(conn: &Conn) -> bool {
    conn.role != Role::Listener && !conn.marks.minisock && !conn.marks.request
}

pub(super) async fn handle(State(api): State<Api>, mut asked: Asked) -> Response {
    let answer = match parse(&mut asked.params) {
        Ok(wanted) => answer(&api, &wanted).await,
        Err(error) => Err(error),
    };
    respond(asked.format, answer)
}

fn parse(params: &mut Params) -> Result<Wanted, ApiError> {
    let (comm, role) = (params.take("comm")?, params.take_as("role")?);
    let sort = match params.take("sort")?.as_deref() {
        None | Some("bytes") => Sort::Bytes,
        Some("connections") => Sort::Connections,
        Some("retransmitted") => Sort::Retransmitted,
        Some("name") => Sort::Name,
        Some(other) => {
            let known = "bytes, connections, retransmitted, name";
            return Err(ApiError::bad("sort", format!("`{other}` is not one of {known}")));
        }
    };
    let limit = params.take_limit(DEFAULT_LIMIT)?;
    params.finish(&["comm", "role", "sort", "limit"])?;
    Ok(Wanted { comm, role, sort, limit })
}

async fn answer(api: &Api, wanted: &Wanted) -> Result<Transfers, ApiError> {
    let namespaces = api.ask(false, |node, _| node.namespaces_of(is_full)).await?;
    let (mut sums, mut problems) = (Sums::default(), Vec::new());
    if api.live {
        let mut parts = sock_diag::ask_all(namespaces);
        while let Some(part) = parts.recv().await {
            match part {
                Ok(part) => {
                    let book = move |node: &Node, _| {
                        sums.add(node, &part);
                        sums
                    };
                    sums = api.ask(false, book).await?;
                }
                Err(problem) => problems.push(problem),
            }
        }
    } else {
        problems.push("a recording does not have what only the kernel counts".to_owned());
    }
    let mut rows: Vec<_> = sums
        .by_key
        .into_iter()
        .filter(|((process, role, _), _)| {
            wanted.role.is_none_or(|wanted| *role == wanted)
                && wanted.comm.as_deref().is_none_or(|comm| process.as_deref() == Some(comm))
        })
        .map(|((process, role, peer), sum)| Row {
            process,
            role,
            peer: peer.to_string(),
            rtt: sum.rtt.shown(),
            sum,
        })
        .collect();
    let total = rows.len();
    rows.sort_by(|a, b| (&a.process, &a.peer, a.role).cmp(&(&b.process, &b.peer, b.role)));
    rows.sort_by_key(|Row { sum, .. }| {
        Reverse(match wanted.sort {
            Sort::Bytes => sum.sent_bytes + sum.received_bytes,
            Sort::Connections => sum.connections,
            Sort::Retransmitted => sum.retransmitted_bytes,
            Sort::Name => 0,
        })
    });
    rows.truncate(wanted.limit);
    Ok(Transfers { total, truncated: total > rows.len(), transfers: rows, problems })
}

impl Answer for Transfers {
    fn text(&self) -> String {
        let rows: Vec<_> = self
            .transfers
            .iter()
            .map(|row| {
                let sum = &row.sum;
                vec![
                    row.process.as_deref().map_or("-".to_owned(), printable),
                    row.role.to_string(),
                    row.peer.clone(),
                    sum.connections.to_string(),
                    bytes(sum.sent_bytes),
                    bytes(sum.received_bytes),
                    bytes(sum.retransmitted_bytes),
                    format!("{}, {}", bytes(sum.send_queue_bytes), bytes(sum.receive_queue_bytes)),
                    sum.out_of_order_packets.to_string(),
                    row.rtt.map_or("-".to_owned(), |rtt| {
                        let millis = |seconds: f64| format!("{:.3}", seconds * 1e3);
                        let [least, mean, most] =
                            [rtt.least_seconds, rtt.mean_seconds, rtt.most_seconds].map(millis);
                        format!("{mean}ms ({least} to {most})")
                    }),
                    limits(sum),
                ]
            })
            .collect();
        let header = [
            "PROCESS",
            "ROLE",
            "PEER",
            "NOW",
            "SENT",
            "RECEIVED",
            "RETRANSMITTED",
            "QUEUED OUT, IN",
            "OUT OF ORDER",
            "ROUND TRIP",
            "LIMITED BY",
        ];
        let mut text = table(&header, &rows);
        for problem in &self.problems {
            text += &format!("\nnot complete: {problem}\n");
        }
        if self.truncated {
            text += &cut(self.transfers.len(), self.total);
        }
        text
    }
}

/// Shares of the time in which there was something to send.
fn limits(sum: &Sum) -> String {
    let limits = [("window", sum.peer_window_limited_seconds), ("buffer", sum.buffer_limited_seconds)];
    let shares = limits.into_iter().filter(|(_, seconds)| *seconds > 0.0);
    let shown: Vec<_> =
        shares.map(|(what, seconds)| format!("{what} {:.0}%", 100.0 * seconds / sum.busy_seconds)).collect();
    shown.join(", ")
}
