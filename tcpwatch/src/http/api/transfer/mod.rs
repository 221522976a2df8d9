//! `/transfer`: how the data of the live connections goes, summed by process and peer: asked of the kernel now.
//!
//! The kernel is asked in a thread of its own and answers in parts; each part is booked by the owner of the state in
//! turn with what else it has to do. For rates it is asked twice.

mod look;
mod totals;

use std::{cmp::Reverse, sync::Arc, time::Duration};

use axum::{extract::State, response::Response};
use serde::Serialize;

use crate::{
    http::{
        Api, ApiError, Asked, Render,
        api::transfer::{
            look::{FirstLook, Look},
            totals::{Sum, Sums, Waiting},
        },
        filter::Chosen,
        render::{
            completeness::Completeness,
            counts::cut,
            text::{bytes, duration, limits, printable, round_trip, spread, table},
        },
        request::{DEFAULT_LIMIT, Params},
        respond,
    },
    kernel::sock_diag::Carried,
    model::{address::GroupAddress, groups::Role, live::Spread},
    node::Node,
    tcp::time,
};

#[derive(Debug, Serialize)]
struct Transfers {
    #[serde(flatten)]
    completeness: Completeness,
    /// How many match, shown or not.
    total: usize,
    /// Whether `limit` cut the list.
    truncated: bool,
    /// Seconds that `rates` were measured over; absent unless `seconds` was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    period_seconds: Option<f64>,
    transfers: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    /// Name of the local process; `null` where it is not known.
    comm: Option<Arc<str>>,
    /// Which side of the connections the local sockets are.
    role: Role,
    /// The server's side of the connections: of clients the address and port that they connected to, of servers their own
    /// port; both `null` where it is not known which side is the server's.
    peer: GroupAddress,
    #[serde(flatten)]
    sum: Sum,
    /// The connections' smoothed round-trip times; `null` before the first measurement of any.
    rtt: Option<Spread>,
    /// How long the last answer took, over clients' connections that have it; `null` when none has.
    answer_time: Option<Spread>,
    /// Clients' connections that wait for an answer; `null` when none does.
    waiting: Option<Waiting>,
    /// Data that flowed in `period_seconds`; absent unless `seconds` was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    rates: Option<Rates>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Rates {
    /// Bytes of data sent a second, each once.
    sent_bytes_per_second: u64,
    /// Bytes of data received a second, each once.
    received_bytes_per_second: u64,
    /// Bytes of data sent again a second.
    retransmitted_bytes_per_second: u64,
}

impl Rates {
    fn over(seconds: f64, carried: Carried) -> Self {
        let rate = |bytes: u64| (bytes as f64 / seconds).round() as u64;
        Self {
            sent_bytes_per_second: rate(carried.sent_bytes),
            received_bytes_per_second: rate(carried.received_bytes),
            retransmitted_bytes_per_second: rate(carried.retransmitted_bytes),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Bytes,
    Rate,
    Connections,
    Retransmits,
    Name,
}

struct Wanted {
    chosen: Chosen,
    period: Option<Duration>,
    sort: Sort,
    limit: usize,
}

/// Most clients and proxies wait no longer for an answer.
const MOST_SECONDS: f64 = 60.0;

pub(crate) async fn handle(State(api): State<Api>, mut asked: Asked) -> Response {
    let answer = match parse(&mut asked.params) {
        Ok(wanted) => answer(&api, &wanted).await,
        Err(error) => Err(error),
    };
    respond(asked.format, answer)
}

fn parse(params: &mut Params) -> Result<Wanted, ApiError> {
    let chosen = Chosen::take(params)?;
    let seconds: Option<f64> = params.take_as("seconds")?;
    if let Some(seconds) = seconds
        && !(seconds > 0.0 && seconds <= MOST_SECONDS)
    {
        return Err(ApiError::bad(
            "seconds",
            format!("`{seconds}` is not above 0 and at most {MOST_SECONDS}"),
        ));
    }
    let sort = match params.take("sort")?.as_deref() {
        None | Some("bytes") => Sort::Bytes,
        Some("rate") if seconds.is_none() => {
            return Err(ApiError::bad("sort", "`rate` needs `seconds`, the time to measure it over"));
        }
        Some("rate") => Sort::Rate,
        Some("connections") => Sort::Connections,
        Some("retransmits") => Sort::Retransmits,
        Some("name") => Sort::Name,
        Some(other) => {
            let known = "bytes, rate, connections, retransmits, name";
            return Err(ApiError::bad("sort", format!("`{other}` is not one of {known}")));
        }
    };
    let limit = params.take_limit(DEFAULT_LIMIT)?;
    params.finish(&["comm", "role", "seconds", "sort", "limit"])?;
    Ok(Wanted { chosen, period: seconds.map(Duration::from_secs_f64), sort, limit })
}

async fn answer(api: &Api, wanted: &Wanted) -> Result<Transfers, ApiError> {
    let (sums, seconds, problems) = if api.live {
        look(api, wanted.period).await?
    } else {
        let problem = "a recording does not have what only the kernel counts";
        (Sums::default(), None, vec![problem.to_owned()])
    };
    let mut rows: Vec<_> = sums
        .by_key
        .into_iter()
        .filter(|((process, role, _), _)| wanted.chosen.matches(process.as_deref(), *role))
        .map(|((comm, role, peer), sum)| Row {
            comm,
            role,
            peer: peer.into(),
            rtt: sum.rtt.spread(),
            answer_time: sum.answered.spread(),
            waiting: Waiting::of(sum.awaited),
            rates: seconds.map(|seconds| Rates::over(seconds, sum.lately)),
            sum,
        })
        .collect();
    let total = rows.len();
    rows.sort_by(|a, b| (&a.comm, a.peer, a.role).cmp(&(&b.comm, b.peer, b.role)));
    rows.sort_by_key(|Row { sum, .. }| {
        Reverse(match wanted.sort {
            Sort::Bytes => sum.carried.sent_bytes + sum.carried.received_bytes,
            Sort::Rate => sum.lately.sent_bytes + sum.lately.received_bytes,
            Sort::Connections => sum.connections,
            Sort::Retransmits => sum.carried.retransmitted_bytes,
            Sort::Name => 0,
        })
    });
    rows.truncate(wanted.limit);
    let completeness = api.ask(false, |node, _| Completeness::of(node)).await?.and("transfers", problems);
    Ok(Transfers {
        completeness,
        total,
        truncated: total > rows.len(),
        period_seconds: seconds,
        transfers: rows,
    })
}

/// The sums of now, over how many seconds their rates are, and what could not be asked.
async fn look(api: &Api, period: Option<Duration>) -> Result<(Sums, Option<f64>, Vec<String>), ApiError> {
    let first = match period {
        Some(period) => Some(FirstLook::take(api, period).await?),
        None => None,
    };
    let mut problems = first.as_ref().map_or(Vec::new(), |first| first.problems.clone());
    let first_ns = first.as_ref().map(|first| first.answered_ns);
    let mut sums = Sums::since(first);
    let mut look = Look::start(api).await?;
    while let Some(part) = look.next().await {
        let book = move |node: &Node, _| {
            sums.add(node, &part);
            sums
        };
        sums = api.ask(false, book).await?;
    }
    let seconds = first_ns.map(|first_ns| time::seconds(look.answered_ns() - first_ns));
    problems.append(&mut look.problems);
    problems.sort();
    // Both looks may have met the same.
    problems.dedup();
    Ok((sums, seconds, problems))
}

const COLUMNS: [&str; 7] = ["PROCESS", "ROLE", "PEER", "NOW", "SENT", "RECEIVED", "RETRANSMITTED"];
/// Where somebody asked for them.
const RATES: [&str; 3] = ["SENT/S", "RECEIVED/S", "RETRANSMITTED/S"];
const MORE_COLUMNS: [&str; 6] =
    ["QUEUED OUT, IN", "OUT OF ORDER", "ROUND TRIP", "ANSWERED IN", "WAITING", "LIMITED BY"];

impl Render for Transfers {
    fn text(&self) -> String {
        let rates: &[_] = if self.period_seconds.is_some() { &RATES } else { &[] };
        let header = [&COLUMNS, rates, &MORE_COLUMNS].concat();
        let rows: Vec<_> = self.transfers.iter().map(Row::cells).collect();
        table(&header, &rows) + &self.completeness.text() + &cut(self.transfers.len(), self.total)
    }
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let sum = &self.sum;
        let mut cells = vec![
            self.comm.as_deref().map_or("-".to_owned(), printable),
            self.role.to_string(),
            self.peer.to_string(),
            sum.connections.to_string(),
            bytes(sum.carried.sent_bytes),
            bytes(sum.carried.received_bytes),
            bytes(sum.carried.retransmitted_bytes),
        ];
        if let Some(rates) = self.rates {
            cells.extend(
                [
                    rates.sent_bytes_per_second,
                    rates.received_bytes_per_second,
                    rates.retransmitted_bytes_per_second,
                ]
                .map(bytes),
            );
        }
        cells.extend([
            format!("{}, {}", bytes(sum.send_queue_bytes), bytes(sum.receive_queue_bytes)),
            sum.out_of_order_packets.to_string(),
            round_trip(self.rtt),
            spread(self.answer_time, duration),
            self.waiting.map_or("-".to_owned(), |waiting| {
                format!("{}, longest {}", waiting.connections, duration(waiting.longest_seconds))
            }),
            limits(sum.busy_seconds, sum.peer_window_limited_seconds, sum.buffer_limited_seconds),
        ]);
        cells
    }
}
