//! `/ports`: the local ports that connections hold, toward each destination from each source address, beside those that
//! there are.
//!
//! A port may serve many destinations at once; toward one and the same, each connection needs a port of its own, and its
//! TIME_WAIT keeps it for a minute.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv6Addr,
    ops::Range,
    ptr,
    sync::Arc,
};

use rustc_hash::{FxHashMap, FxHashSet};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    http::{
        Api, ApiError, List, Render,
        page::{Extent, Page},
        render::{
            completeness::Completeness,
            counts::{ConnectionCounts, counted_text, cut},
            text::{printable, table},
        },
    },
    kernel::{
        local_ports::{self, LocalPorts},
        netns::OfEach,
    },
    model::{
        address::{Address, GroupAddress},
        groups::Role,
        table::Conn,
    },
    node::Node,
    tcp::connect_outcome::Outcome,
};

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Ports {
    #[serde(flatten)]
    completeness: Completeness,
    #[serde(flatten)]
    extent: Extent,
    /// The fullest first.
    ports: Vec<Row>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PortRow")]
pub(crate) struct Row {
    /// Inode of the network namespace, as in /proc/PID/ns/net.
    netns: u32,
    /// The address that the connections come from; its port is `null`: each has another.
    local: GroupAddress,
    /// The destination.
    remote: Address,
    /// Local ports that connections hold toward the destination, those in TIME_WAIT included.
    in_use: usize,
    /// Local ports that the kernel chooses from; `null` where that is not known.
    available: Option<usize>,
    /// Connects from there to the destination that found no port free (EADDRNOTAVAIL), among the connections that ended
    /// last. Where ports seem to be left, the sockets have a range of their own (IP_LOCAL_PORT_RANGE), or other sockets'
    /// bind() has taken the ports for itself, from any address and to any destination: see `in_use_anywhere`.
    failed_connects: usize,
    /// Of the local ports that the kernel chooses from, those that any socket of the network namespace has, from whichever
    /// address and to whichever destination; `null` where that is not known.
    in_use_anywhere: Option<usize>,
    /// `in_use` by state; non-zero only.
    states: BTreeMap<&'static str, usize>,
    /// Names of the local processes; `null` for one that is not known.
    comms: BTreeSet<Option<Arc<str>>>,
}

/// `None` of a namespace that is gone: TIME_WAITs may stay in the table until the next sweep.
type Known = OfEach<Option<LocalPorts>>;

/// The connections from one source address toward one destination.
#[derive(Default)]
struct Used {
    now: ConnectionCounts,
    comms: BTreeSet<Option<Arc<str>>>,
    failed_connects: usize,
}

impl Used {
    fn of(node: &Node, conns: &[&Conn], is_failed: impl Fn(&Conn) -> bool) -> Self {
        let mut used = Self::default();
        for conn in conns {
            if is_failed(conn) {
                used.failed_connects += 1;
            } else {
                used.now.count(conn);
            }
            let processes = node.tracker.processes();
            used.comms.insert(conn.process.map(|id| Arc::clone(&processes.get(id).comm)));
        }
        used
    }
}

pub(crate) async fn answer(api: Api, (): (), page: Page) -> Result<Ports, ApiError> {
    let namespaces = |node: &Node, _| {
        let failed: FxHashSet<u32> = failed(node).map(|conn| conn.netns).collect();
        node.namespaces_of(|conn| may_be_a_client(conn) || failed.contains(&conn.netns))
    };
    let namespaces = api.ask(false, namespaces).await?;
    let (known, problem) = if api.live {
        match local_ports::ask(namespaces).await {
            Ok(known) => (known, None),
            Err(error) => (Known::new(), Some(error)),
        }
    } else {
        (Known::new(), Some("a recording does not say which ports there were".to_owned()))
    };
    api.ask(false, move |node, _| list(node, &known, problem, &page)).await?
}

/// Connects that found no port, among the connections that ended last.
fn failed(node: &Node) -> impl Iterator<Item = &Conn> {
    let ended = node.tracker.ended().iter().map(|ended| &ended.conn);
    ended.filter(|conn| conn.connect == Some(Outcome::NoPort))
}

/// What connections are counted by: where they come from and where they lead. They need a local port each.
fn ends(conn: &Conn) -> (u32, Ipv6Addr, Ipv6Addr, u16) {
    (conn.netns, conn.local.addr, conn.remote.addr, conn.remote.port)
}

/// Of connections in the order of their ends, those with the same.
fn destinations(conns: &[&Conn]) -> Vec<Range<u32>> {
    let mut end = 0;
    let next = |same: &[&Conn]| {
        let begin = end;
        end += same.len() as u32;
        begin..end
    };
    conns.chunk_by(|one, next| ends(one) == ends(next)).map(next).collect()
}

fn part<'a, 'b>(conns: &'a [&'b Conn], range: &Range<u32>) -> &'a [&'b Conn] {
    conns.get(range.start as usize..range.end as usize).unwrap_or_default()
}

fn may_be_a_client(conn: &Conn) -> bool {
    matches!(conn.role, Role::Client | Role::Unknown) && conn.local.port != 0
}

/// Whether it holds a port that the kernel might have chosen for another. Which side of an older TIME_WAIT was the
/// client only the ports say.
fn counts(conn: &Conn, ports: Option<&LocalPorts>) -> bool {
    let known = |ports: &LocalPorts| {
        ports.contains(conn.local.port) && (conn.role == Role::Client || !ports.contains(conn.remote.port))
    };
    may_be_a_client(conn) && ports.map_or(conn.role == Role::Client, known)
}

/// `problem`: why nothing could be asked.
fn list(node: &Node, known: &Known, problem: Option<String>, page: &Page) -> Result<Ports, ApiError> {
    let tracker = &node.tracker;
    let of = |netns: u32| known.get(&netns)?.as_ref().ok()?.as_ref();
    let exists = |conn: &&Conn| !matches!(known.get(&conn.netns), Some(Ok(None)));
    // There may be a destination for each connection: sorted references take the least memory.
    let live = tracker.table().iter().filter(exists).filter(|conn| counts(conn, of(conn.netns)));
    // One that no connection leads to was not asked about.
    let asked = |conn: &&Conn| known.is_empty() || known.contains_key(&conn.netns);
    let failed: Vec<&Conn> = failed(node).filter(exists).filter(asked).collect();
    let places: FxHashSet<*const Conn> = failed.iter().copied().map(ptr::from_ref).collect();
    let is_failed = |conn: &Conn| places.contains(&ptr::from_ref(conn));
    let mut conns: Vec<&Conn> = live.chain(failed.iter().copied()).collect();
    conns.sort_unstable_by_key(|conn| ends(conn));
    let mut anywhere: FxHashMap<u32, FxHashSet<u16>> = FxHashMap::default();
    for conn in tracker.table().iter() {
        if of(conn.netns).is_some_and(|ports| ports.contains(conn.local.port)) {
            anywhere.entry(conn.netns).or_default().insert(conn.local.port);
        }
    }
    let available: HashMap<u32, usize> =
        known.keys().filter_map(|netns| Some((*netns, of(*netns)?.count()))).collect();
    let in_use = |conns: &[&Conn]| conns.iter().filter(|conn| !is_failed(conn)).count();
    // In thousandths, which order well.
    let share = |netns: u32, in_use: usize| {
        available.get(&netns).map(|available| in_use * 1000 / (*available).max(1))
    };
    let cut = page.cut("share", destinations(&conns), |range: &Range<u32>| {
        let conns = part(&conns, range);
        let (in_use, ends) = (in_use(conns), conns.first().map(|conn| ends(conn)));
        (Reverse(ends.and_then(|ends| share(ends.0, in_use))), Reverse(in_use), ends)
    })?;
    let row = |range: Range<u32>| {
        let conns = part(&conns, &range);
        let (first, used) = (conns.first()?, Used::of(node, conns, is_failed));
        let netns = first.netns;
        Some(Row {
            netns,
            local: GroupAddress { addr: Some(first.local.addr.to_canonical()), port: None },
            remote: first.remote.into(),
            in_use: used.now.total(),
            available: available.get(&netns).copied(),
            failed_connects: used.failed_connects,
            in_use_anywhere: of(netns).map(|_| anywhere.get(&netns).map_or(0, FxHashSet::len)),
            states: used.now.shown().states,
            comms: used.comms,
        })
    };
    let rows = cut.rows.into_iter().filter_map(row);
    let mut problems: Vec<String> =
        known.values().filter_map(|ports| ports.as_ref().err()).cloned().chain(problem).collect();
    problems.sort_unstable();
    Ok(Ports {
        completeness: Completeness::of(node).and("available", problems),
        extent: cut.extent,
        ports: rows.collect(),
    })
}

impl List for Ports {
    type Row = Row;

    const AT_ONCE: usize = 10_000;

    fn into_rows(self) -> (Vec<Row>, Option<String>) {
        (self.ports, self.extent.next_cursor)
    }
}

impl Render for Ports {
    fn text(&self) -> String {
        let rows: Vec<_> = self
            .ports
            .iter()
            .map(|row| {
                let share = |available: usize| 100.0 * row.in_use as f64 / available.max(1) as f64;
                let names = row.comms.iter().map(|name| name.as_deref().map_or("-".to_owned(), printable));
                vec![
                    row.netns.to_string(),
                    row.local.addr.map_or("-".to_owned(), |addr| addr.to_string()),
                    row.remote.to_string(),
                    row.in_use.to_string(),
                    row.available.map_or("-".to_owned(), |available| available.to_string()),
                    row.available.map_or("-".to_owned(), |available| format!("{:.1}%", share(available))),
                    row.failed_connects.to_string(),
                    row.in_use_anywhere.map_or("-".to_owned(), |ports| ports.to_string()),
                    counted_text(row.states.iter().map(|(state, count)| (*state, *count))),
                    names.collect::<Vec<_>>().join(", "),
                ]
            })
            .collect();
        let header = [
            "NETNS",
            "SOURCE",
            "DESTINATION",
            "IN USE",
            "AVAILABLE",
            "SHARE",
            "FAILED",
            "IN USE ANYWHERE",
            "STATES",
            "PROCESSES",
        ];
        table(&header, &rows) + &self.completeness.text() + &cut(self.ports.len(), self.extent.total)
    }
}
