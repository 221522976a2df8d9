//! `/history`: the connections that ended last.

use std::{
    cmp::Reverse,
    time::{Duration, SystemTime},
};

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::{
    http::{
        Api, ApiError, List, Render,
        filter::Filter,
        page::{Extent, Page},
        parameters::{Value, parameters},
        render::{
            completeness::Completeness,
            counts::cut,
            text::{bytes, known_duration, table},
            view::{Detail, detail},
        },
    },
    model::tracker::Ended,
    node::Node,
    tcp::{connect_outcome::Outcome, time::Clock},
};

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct History {
    #[serde(flatten)]
    completeness: Completeness,
    #[serde(flatten)]
    extent: Extent,
    /// Latest end first.
    connections: Vec<Detail>,
}

parameters! {
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Period {
        /// only what ended after this time (`2026-01-31T12:00:00Z`), or in the time until now (`5m`)
        since: Option<Since>,
    }
}

/// A time in the past.
#[derive(Clone, Copy, Debug)]
pub(super) enum Since {
    Ago(Duration),
    At(SystemTime),
}

impl Since {
    /// CLOCK_MONOTONIC then.
    pub(super) fn begins_ns(self, clock: Clock) -> u64 {
        let ago = match self {
            Self::Ago(ago) => ago,
            Self::At(at) => clock.wall.duration_since(at).unwrap_or_default(),
        };
        clock.now_ns.saturating_sub(u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Value for Since {
    fn parse(text: &str) -> Result<Self, String> {
        let at = humantime::parse_rfc3339(text).map(Self::At);
        at.or_else(|_| humantime::parse_duration(text).map(Self::Ago)).map_err(|_| {
            "is neither a time such as 2026-01-31T12:00:00Z nor a duration such as 5m".to_owned()
        })
    }

    fn schema() -> serde_json::Value {
        json!({"type": "string", "format": "time-or-duration"})
    }
}

pub(crate) async fn answer(
    api: Api,
    (filter, period): (Filter, Period),
    page: Page,
) -> Result<History, ApiError> {
    api.ask(false, move |node, clock| list(node, clock, &filter, period, &page)).await?
}

fn list(
    node: &Node,
    clock: Clock,
    filter: &Filter,
    period: Period,
    page: &Page,
) -> Result<History, ApiError> {
    let earliest_ns = period.since.map_or(0, |since| since.begins_ns(clock));
    let is_wanted = |ended: &&Ended| ended.ended_ns >= earliest_ns && filter.matches(node, &ended.conn);
    let found: Vec<_> = node.tracker.ended().iter().filter(is_wanted).collect();
    let cut = page.cut("end", found, |ended| (Reverse(ended.ended_ns), ended.conn.id()))?;
    Ok(History {
        completeness: Completeness::of(node),
        extent: cut.extent,
        connections: cut.rows.iter().map(|ended| detail(node, clock, &ended.conn, Some(ended))).collect(),
    })
}

fn lived(ended: &Detail) -> String {
    let (lower, upper) = (ended.row.age_is_lower_bound, ended.ended_at_is_upper_bound);
    known_duration((!lower || !upper).then_some(ended.row.age_seconds), lower, upper)
}

impl List for History {
    type Row = Detail;

    const AT_ONCE: usize = 10_000;

    fn into_rows(self) -> (Vec<Detail>, Option<String>) {
        (self.connections, self.extent.next_cursor)
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
                    lived(ended),
                    ended.row.role.to_string(),
                    process.map_or("-".to_owned(), |process| process.pid.to_string()),
                    ended.row.shown_process(),
                    ended.row.local_text(),
                    ended.row.remote_text(),
                    carried(ended.sent_bytes),
                    carried(ended.received_bytes),
                    how(ended),
                ]
            })
            .collect();
        let header =
            ["ID", "ENDED", "LIVED", "ROLE", "PID", "PROCESS", "LOCAL", "REMOTE", "SENT", "RECEIVED", "HOW"];
        table(&header, &rows) + &self.completeness.text() + &cut(self.connections.len(), self.extent.total)
    }
}

/// How it ended, in the fewest words that say it.
fn how(ended: &Detail) -> String {
    if let Some(reset) = &ended.reset {
        return format!("reset {}: {}", reset.direction.name(), reset.reason.name());
    }
    let refused =
        ended.connect.and_then(|connect| connect.outcome).filter(|what| *what != Outcome::Established);
    match (refused, ended.errno, ended.first_close) {
        (Some(outcome), _, _) => format!("connect: {}", outcome.name()),
        (None, Some(errno), _) => errno.text().into_owned(),
        (None, None, Some(first)) => format!("first close: {}", first.name()),
        (None, None, None) => "-".to_owned(),
    }
}
