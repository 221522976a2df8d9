//! `/peers`: by the server's side of the connections: how many now, and what was counted since the start.
//!
//! The groups of `/metrics`, summed over processes. Connections are counted when asked: that costs a walk through the
//! table, and nothing while nobody asks.

use std::{collections::BTreeSet, sync::Arc};

use rustc_hash::FxHashMap;
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    http::{
        Api, ApiError, List, Render,
        filter::Chosen,
        page::{Extent, Page},
        render::{
            completeness::Completeness,
            counts::{COLUMNS, ConnectionCounts, CountsView, Now, Order, cells, cut},
            text::{printable, table},
        },
        translations::{self, Nat, Translations},
    },
    model::{
        address::GroupAddress,
        groups::{Counts, Peer, Role},
    },
    node::Node,
};

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Peers {
    #[serde(flatten)]
    completeness: Completeness,
    #[serde(flatten)]
    extent: Extent,
    peers: Vec<Row>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PeerRow")]
pub(crate) struct Row {
    /// Which side of the connections the local sockets are.
    role: Role,
    /// The server's side of the connections: of clients the address and port that they connected to, of servers their own
    /// port. Both `null` where it is not known which side is the server's, and of what found no place in a group of its
    /// own.
    peer: GroupAddress,
    /// Names of the local processes; `null` for one that is not known.
    comms: BTreeSet<Option<Arc<str>>>,
    /// Connections of now.
    connections: Now,
    #[serde(flatten)]
    counted: CountsView,
}

pub(crate) async fn answer(
    api: Api,
    (chosen, order, nat): (Chosen, Order, Nat),
    page: Page,
) -> Result<Peers, ApiError> {
    let translations = translations::ask(&api, nat.nat).await?;
    api.ask(true, move |node, _| list(node, &chosen, order, &page, translations)).await?
}

fn list(
    node: &Node,
    chosen: &Chosen,
    order: Order,
    page: &Page,
    translations: Translations,
) -> Result<Peers, ApiError> {
    let tracker = &node.tracker;
    let mut by_group: FxHashMap<_, ConnectionCounts> = FxHashMap::default();
    for conn in tracker.table().iter() {
        // One without a group was found by a sweep under way, at whose end it gets one.
        if let Some(group) = conn.group.filter(|_| conn.role != Role::Listener) {
            by_group.entry(group).or_default().count_with(conn, &translations);
        }
    }
    let mut by_peer: FxHashMap<(Role, Peer), (ConnectionCounts, Counts, BTreeSet<_>)> = FxHashMap::default();
    for (id, group) in tracker
        .groups()
        .ids()
        .filter(|(_, group)| chosen.matches(group.key.shown_process().as_deref(), group.key.role))
    {
        let key = (group.key.role, group.key.peer);
        let (tally, counts, processes) = by_peer.entry(key).or_default();
        if let Some(now) = by_group.get(&id) {
            tally.add(now);
        }
        counts.add(&group.counts);
        processes.insert(group.key.shown_process());
    }
    let rows: Vec<_> = by_peer
        .into_iter()
        .map(|((role, peer), (tally, counts, processes))| {
            let peer = GroupAddress::from(peer);
            ((peer.addr, peer.port, role.name().to_owned()), tally, counts, (role, peer, processes))
        })
        .collect();
    let cut = order.page(page, rows)?;
    Ok(Peers {
        completeness: Completeness::of_counts(node).and("translated", translations.problems),
        extent: cut.extent,
        peers: cut
            .rows
            .into_iter()
            .map(|(_, tally, counts, (role, peer, processes))| Row {
                role,
                peer,
                comms: processes,
                connections: tally.shown(),
                counted: CountsView::of(counts),
            })
            .collect(),
    })
}

impl List for Peers {
    type Row = Row;

    const AT_ONCE: usize = usize::MAX;

    fn into_rows(self) -> (Vec<Row>, Option<String>) {
        (self.peers, self.extent.next_cursor)
    }
}

impl Render for Peers {
    fn text(&self) -> String {
        let rows: Vec<_> = self
            .peers
            .iter()
            .map(|row| {
                let names = row.comms.iter().map(|name| name.as_deref().map_or("-".to_owned(), printable));
                let names: Vec<_> = names.collect();
                let processes = match &names[..] {
                    [first, second, third, more @ ..] if !more.is_empty() => {
                        format!("{first}, {second}, {third} and {} more", more.len())
                    }
                    few => few.join(", "),
                };
                let first = [row.peer.to_string(), row.role.to_string(), processes];
                first.into_iter().chain(cells(&row.connections, &row.counted)).collect()
            })
            .collect();
        let header = [&["PEER", "ROLE", "PROCESSES"][..], &COLUMNS].concat();
        table(&header, &rows) + &self.completeness.text() + &cut(self.peers.len(), self.extent.total)
    }
}
