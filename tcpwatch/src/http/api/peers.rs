//! `/peers`: by the server's side of the connections: how many now, and what was counted since the start.
//!
//! The groups of `/metrics`, summed over processes. Connections are counted when asked: that costs a walk through the
//! table, and nothing while nobody asks.

use std::{collections::BTreeSet, sync::Arc};

use axum::{extract::State, response::Response};
use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::{
    http::{
        Api, ApiError, Asked, Render,
        filter::Chosen,
        render::{
            completeness::Completeness,
            counts::{COLUMNS, ConnectionCounts, CountsView, Now, Wanted, cells, cut},
            text::{printable, table},
        },
        request::Params,
        respond,
        translations::Translations,
    },
    model::{
        address::GroupAddress,
        groups::{Counts, Peer, Role},
    },
    node::Node,
};

#[derive(Debug, Serialize)]
struct Peers {
    #[serde(flatten)]
    completeness: Completeness,
    /// How many match, shown or not.
    total: usize,
    /// Whether `limit` cut the list.
    truncated: bool,
    peers: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
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

pub(crate) async fn handle(State(api): State<Api>, mut asked: Asked) -> Response {
    let answer = match parse(&mut asked.params) {
        Ok((chosen, wanted)) => answer(&api, chosen, wanted).await,
        Err(error) => Err(error),
    };
    respond(asked.format, answer)
}

async fn answer(api: &Api, chosen: Chosen, wanted: Wanted) -> Result<Peers, ApiError> {
    let translations = wanted.translations(api).await?;
    api.ask(true, move |node, _| list(node, &chosen, wanted, translations)).await
}

fn parse(params: &mut Params) -> Result<(Chosen, Wanted), ApiError> {
    let chosen = Chosen::take(params)?;
    let wanted = Wanted::take(params)?;
    params.finish(&[&Chosen::PARAMETERS[..], &Wanted::PARAMETERS].concat())?;
    Ok((chosen, wanted))
}

fn list(node: &Node, chosen: &Chosen, wanted: Wanted, translations: Translations) -> Peers {
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
        .filter(|(_, group)| chosen.matches(group.key.process.as_deref(), group.key.role))
    {
        let key = (group.key.role, group.key.peer);
        let (tally, counts, processes) = by_peer.entry(key).or_default();
        if let Some(now) = by_group.get(&id) {
            tally.add(now);
        }
        counts.add(&group.counts);
        processes.insert(group.key.process.clone());
    }
    let mut rows: Vec<_> = by_peer
        .into_iter()
        .map(|((role, peer), (tally, counts, processes))| {
            ((GroupAddress::from(peer), role), tally, counts, processes)
        })
        .collect();
    let total = wanted.apply(&mut rows);
    Peers {
        completeness: Completeness::of(node).and("translated", translations.problems),
        total,
        truncated: total > rows.len(),
        peers: rows
            .into_iter()
            .map(|((peer, role), tally, counts, processes)| Row {
                role,
                peer,
                comms: processes,
                connections: tally.shown(),
                counted: CountsView::of(&counts),
            })
            .collect(),
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
        table(&header, &rows) + &self.completeness.text() + &cut(self.peers.len(), self.total)
    }
}
