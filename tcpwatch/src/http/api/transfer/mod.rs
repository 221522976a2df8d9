//! `/transfer`: how the data of the live connections goes, summed by process and peer: asked of the kernel now.
//!
//! The kernel is asked in a thread of its own and answers in parts; each part is booked by the owner of the state in
//! turn with what else it has to do. For rates it is asked twice.

pub(super) mod look;
pub(super) mod totals;

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::{
    http::{
        Api, ApiError, List, Render,
        api::transfer::{
            look::{FirstLook, Look},
            totals::{Key, Sum, Sums, Waiting},
        },
        filter::Chosen,
        page::{Extent, Page},
        parameters::{Value, choices, parameters},
        render::{
            completeness::Completeness,
            counts::cut,
            text::{bytes, duration, limits, printable, round_trip, spread, table},
        },
    },
    kernel::sock_diag::{self, Asking, Carried},
    model::{address::GroupAddress, groups::Role, live::Spread},
    node::Node,
    tcp::time,
};

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Transfers {
    #[serde(flatten)]
    completeness: Completeness,
    #[serde(flatten)]
    extent: Extent,
    /// Seconds that `rates` were measured over; absent unless `seconds` was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    period_seconds: Option<f64>,
    transfers: Vec<Row>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "TransferRow")]
pub(crate) struct Row {
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
    /// The least round-trip time of each connection in the last minutes: what the network takes, without the peer's delay of
    /// an acknowledgement, which is part of `rtt`; `null` before the first measurement of any.
    least_rtt: Option<Spread>,
    /// How long the last answer took, over clients' connections that have it. Where all wait for the next one, as clients do
    /// that ask again at once, one of them is looked at until it is answered, for a sixth of a second at most. `null` when
    /// none has an answer.
    answer_time: Option<Spread>,
    /// Clients' connections that wait for an answer; `null` when none does.
    waiting: Option<Waiting>,
    /// Data that flowed in `period_seconds`; absent unless `seconds` was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    rates: Option<Rates>,
}

#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
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

choices! {
    pub(crate) enum Sort {
        /// those that sent and received the most bytes first
        Bytes = "bytes",
        /// the most connections first
        Connections = "connections",
        /// the most bytes retransmitted first
        Retransmits = "retransmits",
        /// those that send and receive the most bytes per second first; needs `seconds`
        Rate = "rate",
        /// by the process's name
        Name = "name",
    }
}

parameters! {
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Order {
        /// measures rates: the kernel is asked a second time after this many seconds, such as `0.5`
        seconds: Option<Seconds>,
        /// which rows come first
        sort: Sort,
    }
}

#[derive(Clone, Copy, Debug)]
struct Seconds(f64);

/// Most clients and proxies wait no longer for an answer.
const MOST_SECONDS: f64 = 60.0;

impl Value for Seconds {
    fn parse(text: &str) -> Result<Self, String> {
        let seconds = text.parse().ok().filter(|seconds| *seconds > 0.0 && *seconds <= MOST_SECONDS);
        seconds.map(Self).ok_or_else(|| format!("is not a number above 0 and at most {MOST_SECONDS}"))
    }

    fn schema() -> serde_json::Value {
        json!({"type": "number", "exclusiveMinimum": 0, "maximum": MOST_SECONDS})
    }
}

pub(crate) async fn answer(
    api: Api,
    (chosen, order): (Chosen, Order),
    page: Page,
) -> Result<Transfers, ApiError> {
    if order.sort == Sort::Rate && order.seconds.is_none() {
        return Err(ApiError::bad("sort", "`rate` needs `seconds`, the time to measure it over"));
    }
    let (sums, seconds, problems) = if api.live {
        look(&api, order.seconds.map(|seconds| Duration::from_secs_f64(seconds.0))).await?
    } else {
        let problem = "a recording does not have what only the kernel counts";
        (Sums::default(), None, vec![problem.to_owned()])
    };
    let rows = sums.by_key.into_iter();
    let rows = rows.filter(|((process, role, _), _)| chosen.matches(process.as_deref(), *role));
    let mut rows: Vec<_> = rows.collect();
    watch_answers(&mut rows).await;
    let cut = page.cut(order.sort.word(), rows, |((process, role, peer), sum)| {
        let number = match order.sort {
            Sort::Bytes => sum.carried.sent_bytes + sum.carried.received_bytes,
            Sort::Rate => sum.lately.sent_bytes + sum.lately.received_bytes,
            Sort::Connections => sum.connections,
            Sort::Retransmits => sum.carried.retransmitted_bytes,
            Sort::Name => 0,
        };
        let peer = GroupAddress::from(*peer);
        (Reverse(number), process.clone(), peer.addr, peer.port, role.name().to_owned())
    })?;
    let row = |((comm, role, peer), sum): (Key, Sum)| Row {
        comm,
        role,
        peer: peer.into(),
        rtt: sum.rtt.spread(),
        least_rtt: sum.least_rtt.spread(),
        answer_time: sum.answered.spread(),
        waiting: Waiting::of(sum.awaited),
        rates: seconds.map(|seconds| Rates::over(seconds, sum.lately)),
        sum,
    };
    let completeness = api.ask(false, |node, _| Completeness::of(node)).await?.and("transfers", problems);
    Ok(Transfers {
        completeness,
        extent: cut.extent,
        period_seconds: seconds,
        transfers: cut.rows.into_iter().map(row).collect(),
    })
}

impl List for Transfers {
    type Row = Row;

    const AT_ONCE: usize = usize::MAX;

    fn into_rows(self) -> (Vec<Row>, Option<String>) {
        (self.transfers, self.extent.next_cursor)
    }
}

/// Connections whose next answer is waited for, in one answer.
const MOST_WATCHED: usize = 32;

/// Waits for an answer of a connection of each row whose connections all wait for one: those of clients that ask again at once.
async fn watch_answers(rows: &mut [(Key, Sum)]) {
    let mut by_namespace: BTreeMap<u32, (Vec<usize>, Vec<Asking>)> = BTreeMap::new();
    let asking = rows.iter().enumerate().filter(|(_, (_, sum))| sum.answered.count() == 0);
    let asking = asking.filter_map(|(row, (_, sum))| Some((row, sum.asking.clone()?)));
    for (row, asking) in asking.take(MOST_WATCHED) {
        let (rows, all) = by_namespace.entry(asking.target.netns).or_default();
        rows.push(row);
        all.push(asking);
    }
    let watched = by_namespace.into_values().map(|(rows, asking)| async {
        let answers = sock_diag::watch_answers(asking).await;
        rows.into_iter().zip(answers)
    });
    for (row, answer) in join_all(watched).await.into_iter().flatten() {
        if let Some(took) = answer {
            rows[row].1.answered.add(took.as_secs_f64());
        }
    }
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
const MORE_COLUMNS: [&str; 7] =
    ["QUEUED OUT, IN", "OUT OF ORDER", "ROUND TRIP", "LEAST", "ANSWERED IN", "WAITING", "LIMITED BY"];

impl Render for Transfers {
    fn text(&self) -> String {
        let rates: &[_] = if self.period_seconds.is_some() { &RATES } else { &[] };
        let header = [&COLUMNS, rates, &MORE_COLUMNS].concat();
        let rows: Vec<_> = self.transfers.iter().map(Row::cells).collect();
        table(&header, &rows) + &self.completeness.text() + &cut(self.transfers.len(), self.extent.total)
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
            round_trip(self.least_rtt),
            spread(self.answer_time, duration),
            self.waiting.map_or("-".to_owned(), |waiting| {
                format!("{}, longest {}", waiting.connections, duration(waiting.longest_seconds))
            }),
            limits(sum.busy_seconds, sum.peer_window_limited_seconds, sum.buffer_limited_seconds),
        ]);
        cells
    }
}
